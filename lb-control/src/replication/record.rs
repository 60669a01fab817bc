//! What one node tells the other about its flows: messages of the peer link's
//! stream, which arrive in order or not at all.
//!
//! A message is one byte that says what it holds, and as many items of that kind
//! as fit. Numbers are in network byte order. Ids of services and members are
//! those of whoever sends, who says beforehand what they stand for.

use lb_common::net::{Addr, Be16, family};

/// Version of these messages.
pub const VERSION: u8 = 1;

/// Longest message, in bytes.
pub const MESSAGE_BYTES: usize = 1_100;

/// What nobody's message looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within an item, or has none.
    #[error("it is cut short")]
    Truncated,
    /// There is no such kind.
    #[error("it is of kind {0}, which is unknown here")]
    Kind(u8),
    /// A field has a value that it can't have.
    #[error("a field has a value that it can't have")]
    Value,
}

/// What both need to have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u8,
    /// Buckets of the flow tables.
    pub buckets: u32,
    /// What the secret key of the flow hash makes of a known flow.
    pub key_mark: u64,
}

/// A service of the sender. Its shares follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its id there.
    pub id: u32,
    /// Its slots.
    pub size: u32,
    /// Nobody is up: slots stay as they are.
    pub keep: bool,
    /// Number of [`Share`]s that follow.
    pub shares: u32,
    /// Its name.
    pub name: String,
}

/// Share of a member in its service's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Id of the service.
    pub service: u32,
    /// [`crate::scheduler::identity`].
    pub identity: u64,
    /// Its share.
    pub share: u32,
}

/// What a member is, whatever its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberEnd {
    /// The backend's address.
    pub address: Addr,
    /// Its family.
    pub family: u8,
    /// Port that packets are rewritten to; zero keeps it.
    pub port: Be16,
    /// [`lb_common::abi::method`].
    pub method: u8,
}

/// What a member's id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id there.
    pub id: u32,
    /// Id of its service there.
    pub service: u32,
    /// What it is.
    pub end: MemberEnd,
}

/// A slot of a service's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Id of the service.
    pub service: u32,
    /// Number of the slot in the table.
    pub slot: u32,
    /// Member for new flows.
    pub current: u32,
    /// Member for flows without an entry.
    pub base: u32,
    /// Flows are looked up.
    pub tracked: bool,
    /// The time is that of a refused insertion.
    pub pressed: bool,
    /// Milliseconds since its time.
    pub age_ms: u32,
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `FLOWS`.
    Flows,
    /// `REPLY_FLOWS`.
    Replies,
}

/// An entry of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The bucket it is in.
    pub bucket: u32,
    /// Its tag; the lowest bit is zero.
    pub tag: u32,
    /// Its member's id.
    pub member: u32,
    /// Milliseconds since it was last seen.
    pub age_ms: u32,
    /// In which table.
    pub which: Which,
    /// FIN or RST was seen.
    pub closing: bool,
    /// Of full tracking.
    pub full: bool,
    /// Entries that belong into its other bucket may be in this one.
    pub overflowed: bool,
}

/// An entry that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The bucket it was in.
    pub bucket: u32,
    /// Its tag.
    pub tag: u32,
    /// Its member's id.
    pub member: u32,
    /// In which table.
    pub which: Which,
}

/// A source and the server it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// [`lb_common::persist::group`].
    pub group: u32,
    /// First address of its prefix.
    pub address: Addr,
    /// Its family.
    pub family: u8,
    /// [`lb_common::persist::backend`]; zero: it has none any more.
    pub backend: u64,
    /// Milliseconds since it was last noted.
    pub age_ms: u32,
}

/// Full NAT: a port of a pool address and the flow it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The pool's address.
    pub pool: Addr,
    /// The client's address.
    pub client: Addr,
    /// The flow's hash.
    pub hash: u64,
    /// Ports of the pool, the client and the VIP.
    pub ports: [Be16; 3],
    /// Family of all of them.
    pub family: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`lb_common::binding::BindingState::flags`]; none: the port is no flow's
    /// any more.
    pub flags: Option<u8>,
    /// Its member's id.
    pub member: u32,
    /// Milliseconds since it was last seen.
    pub age_ms: u32,
}

/// One thing that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// First of all.
    Hello(Hello),
    /// All that the sender has follows.
    Begin,
    /// That was all; from here on come changes.
    End,
    /// The receiver wants all of it again.
    Again,
    /// A service.
    Service(Service),
    /// A share.
    Share(Share),
    /// A member.
    Member(Member),
    /// A slot.
    Slot(Slot),
    /// An entry.
    Flow(Flow),
    /// An entry that is no more.
    Gone(Gone),
    /// A source.
    Source(Source),
    /// A binding.
    Binding(Binding),
}

impl Record {
    /// The byte that its messages begin with.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Begin => 2,
            Self::End => 3,
            Self::Again => 4,
            Self::Service(_) => 5,
            Self::Share(_) => 6,
            Self::Member(_) => 7,
            Self::Slot(_) => 8,
            Self::Flow(_) => 9,
            Self::Gone(_) => 10,
            Self::Source(_) => 11,
            Self::Binding(_) => 12,
        }
    }

    /// Appends the item.
    pub fn put(&self, out: &mut Vec<u8>) {
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        match self {
            Self::Begin | Self::End | Self::Again => out.push(0),
            Self::Hello(hello) => {
                out.push(hello.version);
                out.extend(hello.buckets.to_be_bytes());
                out.extend(hello.key_mark.to_be_bytes());
            }
            Self::Service(s) => {
                numbers(out, &[s.id, s.size, s.shares]);
                out.push(u8::from(s.keep));
                let name = s.name.as_bytes();
                let length = name.len().min(NAME_BYTES);
                out.extend((length as u16).to_be_bytes());
                out.extend(name.iter().take(length));
            }
            Self::Share(s) => {
                numbers(out, &[s.service, s.share]);
                out.extend(s.identity.to_be_bytes());
            }
            Self::Member(m) => {
                numbers(out, &[m.id, m.service]);
                out.extend(m.end.address.bytes());
                out.extend([m.end.family, m.end.method]);
                out.extend(m.end.port.get().to_be_bytes());
            }
            Self::Slot(s) => {
                numbers(out, &[s.service, s.slot, s.current, s.base, s.age_ms]);
                out.push(flag(s.tracked, 1) | flag(s.pressed, 2));
            }
            Self::Flow(f) => {
                numbers(out, &[f.bucket, f.tag, f.member, f.age_ms]);
                let which = flag(f.which == Which::Replies, 1);
                let flags = flag(f.closing, 2) | flag(f.full, 4) | flag(f.overflowed, 8);
                out.push(which | flags);
            }
            Self::Gone(g) => {
                numbers(out, &[g.bucket, g.tag, g.member]);
                out.push(flag(g.which == Which::Replies, 1));
            }
            Self::Source(s) => {
                numbers(out, &[s.group, s.age_ms]);
                out.extend(s.backend.to_be_bytes());
                out.extend(s.address.bytes());
                out.push(s.family);
            }
            Self::Binding(b) => {
                out.extend(b.pool.bytes());
                out.extend(b.client.bytes());
                out.extend(b.hash.to_be_bytes());
                for port in b.ports {
                    out.extend(port.get().to_be_bytes());
                }
                numbers(out, &[b.member, b.age_ms]);
                out.extend([b.family, b.protocol, u8::from(b.flags.is_some())]);
                out.push(b.flags.unwrap_or(0));
            }
        }
    }
}

/// A service's name may be as long as this, in bytes.
const NAME_BYTES: usize = 512;

fn numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

/// The records of a message.
///
/// # Errors
/// It is no message of this version; none of its records counts then.
pub fn decode(message: &[u8]) -> Result<Vec<Record>, Malformed> {
    let (&kind, items) = message.split_first().ok_or(Malformed::Truncated)?;
    let mut from = Reader(items);
    let mut records = Vec::new();
    while records.is_empty() || !from.0.is_empty() {
        records.push(from.record(kind)?);
    }
    Ok(records)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.bytes().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.bytes().map(u64::from_be_bytes)
    }

    fn port(&mut self) -> Result<Be16, Malformed> {
        self.bytes().map(|b| Be16::new(u16::from_be_bytes(b)))
    }

    fn address(&mut self) -> Result<Addr, Malformed> {
        self.bytes().map(Addr::from_bytes)
    }

    fn family(&mut self) -> Result<u8, Malformed> {
        match self.u8()? {
            known @ (family::V4 | family::V6) => Ok(known),
            _ => Err(Malformed::Value),
        }
    }

    /// Flags of which these are known.
    fn flags(&mut self, known: u8) -> Result<u8, Malformed> {
        match self.u8()? {
            flags if flags & !known == 0 => Ok(flags),
            _ => Err(Malformed::Value),
        }
    }

    fn record(&mut self, kind: u8) -> Result<Record, Malformed> {
        Ok(match kind {
            1 => Record::Hello(Hello {
                version: self.u8()?,
                buckets: self.u32()?,
                key_mark: self.u64()?,
            }),
            2 => self.empty(Record::Begin)?,
            3 => self.empty(Record::End)?,
            4 => self.empty(Record::Again)?,
            5 => Record::Service(self.service()?),
            6 => Record::Share(Share {
                service: self.u32()?,
                share: self.u32()?,
                identity: self.u64()?,
            }),
            7 => Record::Member(self.member()?),
            8 => Record::Slot(self.slot()?),
            9 => Record::Flow(self.flow()?),
            10 => Record::Gone(Gone {
                bucket: self.u32()?,
                tag: self.u32()?,
                member: self.u32()?,
                which: which(self.flags(1)?),
            }),
            11 => Record::Source(Source {
                group: self.u32()?,
                age_ms: self.u32()?,
                backend: self.u64()?,
                address: self.address()?,
                family: self.family()?,
            }),
            12 => Record::Binding(self.binding()?),
            other => return Err(Malformed::Kind(other)),
        })
    }

    fn empty(&mut self, record: Record) -> Result<Record, Malformed> {
        self.flags(0).map(|_| record)
    }

    fn service(&mut self) -> Result<Service, Malformed> {
        let (id, size, shares) = (self.u32()?, self.u32()?, self.u32()?);
        let keep = self.flags(1)? != 0;
        let length = usize::from(self.bytes().map(u16::from_be_bytes)?);
        let (name, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed::Truncated)?;
        self.0 = rest;
        let name = std::str::from_utf8(name).map_err(|_| Malformed::Value)?;
        Ok(Service {
            id,
            size,
            keep,
            shares,
            name: name.to_owned(),
        })
    }

    fn member(&mut self) -> Result<Member, Malformed> {
        let (id, service, address) = (self.u32()?, self.u32()?, self.address()?);
        let (family, method) = (self.family()?, self.u8()?);
        Ok(Member {
            id,
            service,
            end: MemberEnd {
                address,
                family,
                port: self.port()?,
                method,
            },
        })
    }

    fn slot(&mut self) -> Result<Slot, Malformed> {
        let (service, slot, current) = (self.u32()?, self.u32()?, self.u32()?);
        let (base, age_ms, flags) = (self.u32()?, self.u32()?, self.flags(3)?);
        Ok(Slot {
            service,
            slot,
            current,
            base,
            tracked: flags & 1 != 0,
            pressed: flags & 2 != 0,
            age_ms,
        })
    }

    fn flow(&mut self) -> Result<Flow, Malformed> {
        let (bucket, tag, member) = (self.u32()?, self.u32()?, self.u32()?);
        let (age_ms, flags) = (self.u32()?, self.flags(15)?);
        Ok(Flow {
            bucket,
            tag,
            member,
            age_ms,
            which: which(flags & 1),
            closing: flags & 2 != 0,
            full: flags & 4 != 0,
            overflowed: flags & 8 != 0,
        })
    }

    fn binding(&mut self) -> Result<Binding, Malformed> {
        let (pool, client, hash) = (self.address()?, self.address()?, self.u64()?);
        let ports = [self.port()?, self.port()?, self.port()?];
        let (member, age_ms) = (self.u32()?, self.u32()?);
        let (family, protocol) = (self.family()?, self.u8()?);
        let (has_flags, flags) = (self.flags(1)?, self.u8()?);
        Ok(Binding {
            pool,
            client,
            hash,
            ports,
            family,
            protocol,
            flags: (has_flags != 0).then_some(flags),
            member,
            age_ms,
        })
    }
}

const fn which(flags: u8) -> Which {
    if flags & 1 == 0 {
        Which::Flows
    } else {
        Which::Replies
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Record> {
        let address = Addr::from_ip([192, 0, 2, 7].into()).0;
        let end = MemberEnd {
            address,
            family: family::V4,
            port: Be16::new(8080),
            method: 2,
        };
        vec![
            Record::Hello(Hello {
                version: VERSION,
                buckets: 1 << 20,
                key_mark: u64::MAX - 1,
            }),
            Record::Begin,
            Record::End,
            Record::Again,
            Record::Service(Service {
                id: 3,
                size: 65_537,
                keep: true,
                shares: 2,
                name: "größe".into(),
            }),
            Record::Share(Share {
                service: 3,
                identity: 1 << 60,
                share: 1024,
            }),
            Record::Member(Member {
                id: 9,
                service: 3,
                end,
            }),
            Record::Slot(Slot {
                service: 3,
                slot: 65_536,
                current: 9,
                base: 8,
                tracked: true,
                pressed: false,
                age_ms: 17,
            }),
            Record::Flow(Flow {
                bucket: 77,
                tag: 0xffff_fffe,
                member: 9,
                age_ms: 8_000,
                which: Which::Replies,
                closing: true,
                full: false,
                overflowed: true,
            }),
            Record::Gone(Gone {
                bucket: 77,
                tag: 2,
                member: 9,
                which: Which::Flows,
            }),
            Record::Source(Source {
                group: 1,
                address,
                family: family::V4,
                backend: 5,
                age_ms: 6,
            }),
            Record::Binding(Binding {
                pool: address,
                client: address,
                hash: 1,
                ports: [Be16::new(1), Be16::new(2), Be16::new(3)],
                family: family::V4,
                protocol: 6,
                flags: Some(3),
                member: 9,
                age_ms: 0,
            }),
        ]
    }

    fn message(records: &[Record]) -> Vec<u8> {
        let mut message = vec![records[0].kind()];
        records.iter().for_each(|record| record.put(&mut message));
        message
    }

    #[test]
    fn what_is_written_is_read() {
        for record in all() {
            let twice = [record.clone(), record];
            assert_eq!(decode(&message(&twice)).as_deref(), Ok(&twice[..]));
        }
    }

    #[test]
    fn what_is_cut_short_is_refused_as_a_whole() {
        for record in all() {
            let whole = message(&[record.clone(), record]);
            let one = (whole.len() - 1) / 2;
            for length in (0..whole.len()).filter(|n| *n != 1 + one) {
                let cut = decode(&whole[..length]);
                assert_eq!(cut, Err(Malformed::Truncated), "{length} of {whole:?}");
            }
        }
    }

    #[test]
    fn unknown_kinds_and_values_are_refused() {
        assert_eq!(decode(&[13, 0]), Err(Malformed::Kind(13)));
        assert_eq!(decode(&[0, 0]), Err(Malformed::Kind(0)));
        assert_eq!(decode(&[2, 1]), Err(Malformed::Value));
        let mut gone = message(&all()[9..10]);
        *gone.last_mut().unwrap() = 2;
        assert_eq!(decode(&gone), Err(Malformed::Value));
    }

    proptest! {
        /// No bytes make it panic, and whatever it takes it would write the same.
        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..14) {
            let mut bytes = bytes;
            bytes.insert(0, kind);
            if let Ok(records) = decode(&bytes) {
                let has_spare_bits = matches!(records[0], Record::Binding(_));
                prop_assert!(has_spare_bits || message(&records) == bytes);
            }
        }
    }
}
