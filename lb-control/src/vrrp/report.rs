//! What nodes tell each other of their virtual routers, on the wire of the peer link.
//!
//! Numbers are big-endian. A message begins with the version of this format and its
//! kind; what is longer, shorter or out of range is refused as a whole.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use super::machine::State;

/// Most bytes of a message: it fits into a datagram of the peer link.
pub const MOST_BYTES: usize = 1_100;

const VERSION: u8 = 1;

/// Version, kind.
const HEADER: usize = 2;
/// Epoch, sequence, flags, count.
const REPORTS_HEADER: usize = HEADER + 18;
const REPORT: usize = 28;
/// How many virtual routers a message tells of.
const MOST_REPORTS: usize = (MOST_BYTES - REPORTS_HEADER) / REPORT;
/// How many virtual routers are handed over at once: all there can be.
const MOST_MOVED: usize = (MOST_BYTES - HEADER - 19) / 2;

/// A virtual router: a VRID and a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId {
    /// 1 to 255.
    pub vrid: u8,
    /// Whether it is of IPv4.
    pub is_v4: bool,
}

/// What a node says of one of its virtual routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub id: RouterId,
    /// Its state.
    pub state: State,
    /// What it advertises, or would.
    pub priority: u8,
    /// It could forward: no fault, and its links are up.
    pub able: bool,
    /// A reference host has answered lately.
    pub proof: bool,
    /// Reference hosts that answer.
    pub answered: u8,
    /// Reference hosts; 0: none is configured, and `proof` says nothing.
    pub hosts: u8,
    /// It has handed over, and doesn't preempt.
    pub handed_over: bool,
    /// It was handed over to this node: nobody preempts.
    pub taken: bool,
    /// A backup that hears of who is active by the peer link alone.
    pub deaf: bool,
    /// Its own advertisement interval, in whole milliseconds.
    pub interval: Duration,
    /// How long it has been in its state, in whole milliseconds.
    pub in_state: Duration,
    /// Its address on its segment.
    pub source: IpAddr,
}

/// Of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandOverId {
    /// Of the start of the daemon that hands over.
    pub epoch: u64,
    /// Grows from one to the next.
    pub number: u64,
}

/// Why a node doesn't take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A virtual router isn't a backup there.
    NotBackup,
    /// No reference host answers there.
    Isolated,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// How virtual routers are.
    Reports {
        /// Of the start of the daemon.
        epoch: u64,
        /// Grows from one round of reports to the next.
        sequence: u64,
        /// Its flow table is in sync.
        in_sync: bool,
        /// Those that there was room for.
        routers: Vec<Report>,
    },
    /// Become active, all of you or none.
    Take {
        /// Of this hand-over.
        id: HandOverId,
        /// Whoever hands over may preempt later: it ends, or is broken.
        may_return: bool,
        /// Whole sync groups.
        routers: Vec<RouterId>,
    },
    /// They are active.
    Taken(HandOverId),
    /// They are not.
    Refused(HandOverId, Refusal),
    /// It came to nothing: whoever took lets go.
    Cancel(HandOverId),
    /// Hand these over to me: I am the better one.
    Give(Vec<RouterId>),
}

const REPORTS: u8 = 1;
const TAKE: u8 = 2;
const TAKEN: u8 = 3;
const REFUSED: u8 = 4;
const CANCEL: u8 = 5;
const GIVE: u8 = 6;

impl Message {
    /// Reports as few messages.
    pub fn reports(epoch: u64, sequence: u64, in_sync: bool, routers: &[Report]) -> Vec<Self> {
        let part = |routers: &[Report]| Self::Reports {
            epoch,
            sequence,
            in_sync,
            routers: routers.to_vec(),
        };
        routers.chunks(MOST_REPORTS).map(part).collect()
    }

    /// Its bytes, at most [`MOST_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        match self {
            Self::Reports {
                epoch,
                sequence,
                in_sync,
                routers,
            } => {
                bytes.push(REPORTS);
                bytes.extend(epoch.to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                let routers = routers.get(..MOST_REPORTS).unwrap_or(routers);
                bytes.extend([u8::from(*in_sync), routers.len() as u8]);
                routers
                    .iter()
                    .for_each(|report| put_report(&mut bytes, report));
            }
            Self::Take {
                id,
                may_return,
                routers,
            } => {
                bytes.push(TAKE);
                put_id(&mut bytes, *id);
                bytes.push(u8::from(*may_return));
                put_routers(&mut bytes, routers);
            }
            Self::Taken(id) => {
                bytes.push(TAKEN);
                put_id(&mut bytes, *id);
            }
            Self::Refused(id, why) => {
                bytes.push(REFUSED);
                put_id(&mut bytes, *id);
                bytes.push(match why {
                    Refusal::NotBackup => 0,
                    Refusal::Isolated => 1,
                });
            }
            Self::Cancel(id) => {
                bytes.push(CANCEL);
                put_id(&mut bytes, *id);
            }
            Self::Give(routers) => {
                bytes.push(GIVE);
                put_routers(&mut bytes, routers);
            }
        }
        bytes
    }

    /// `None` if it is none of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        if bytes.len() > MOST_BYTES || rest.byte()? != VERSION {
            return None;
        }
        let message = match rest.byte()? {
            REPORTS => {
                let (epoch, sequence) = (rest.number()?, rest.number()?);
                let in_sync = rest.flag()?;
                let count = rest.byte()?;
                let routers: Option<_> = (0..count).map(|_| rest.report()).collect();
                Self::Reports {
                    epoch,
                    sequence,
                    in_sync,
                    routers: routers?,
                }
            }
            TAKE => Self::Take {
                id: rest.id()?,
                may_return: rest.flag()?,
                routers: rest.routers()?,
            },
            TAKEN => Self::Taken(rest.id()?),
            REFUSED => {
                let id = rest.id()?;
                let why = match rest.byte()? {
                    0 => Refusal::NotBackup,
                    1 => Refusal::Isolated,
                    _ => return None,
                };
                Self::Refused(id, why)
            }
            CANCEL => Self::Cancel(rest.id()?),
            GIVE => Self::Give(rest.routers()?),
            _ => return None,
        };
        rest.0.is_empty().then_some(message)
    }
}

/// Bits of a report's flags.
const FLAGS: [u8; 6] = [1, 2, 4, 8, 16, 32];

fn put_report(bytes: &mut Vec<u8>, report: &Report) {
    let state = match report.state {
        State::Initialize => 0,
        State::Backup => 1,
        State::Active => 2,
        State::Fault => 3,
    };
    let is_set = [
        report.able,
        report.proof,
        report.handed_over,
        report.taken,
        report.deaf,
        report.id.is_v4,
    ];
    let flags = FLAGS.iter().zip(is_set).filter(|(_, is_set)| *is_set);
    let flags = flags.fold(0, |all, (bit, _)| all | bit);
    bytes.extend([report.id.vrid, state, report.priority, flags]);
    bytes.extend([report.answered, report.hosts]);
    let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let interval = u16::try_from(milliseconds(report.interval)).unwrap_or(u16::MAX);
    bytes.extend(interval.to_be_bytes());
    bytes.extend(milliseconds(report.in_state).to_be_bytes());
    let source = match report.source {
        IpAddr::V4(source) => source.to_ipv6_mapped(),
        IpAddr::V6(source) => source,
    };
    bytes.extend(source.octets());
}

fn put_id(bytes: &mut Vec<u8>, id: HandOverId) {
    bytes.extend(id.epoch.to_be_bytes());
    bytes.extend(id.number.to_be_bytes());
}

fn put_routers(bytes: &mut Vec<u8>, routers: &[RouterId]) {
    let routers = routers.get(..MOST_MOVED).unwrap_or(routers);
    bytes.extend((routers.len() as u16).to_be_bytes());
    bytes.extend(routers.iter().flat_map(|id| [id.vrid, u8::from(id.is_v4)]));
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn id(&mut self) -> Option<HandOverId> {
        Some(HandOverId {
            epoch: self.number()?,
            number: self.number()?,
        })
    }

    fn routers(&mut self) -> Option<Vec<RouterId>> {
        let count = self.take().map(u16::from_be_bytes)?;
        let one = |_| {
            let vrid = self.byte().filter(|vrid| *vrid > 0)?;
            Some(RouterId {
                vrid,
                is_v4: self.flag()?,
            })
        };
        (0..count).map(one).collect()
    }

    fn report(&mut self) -> Option<Report> {
        let [vrid, state, priority, flags, answered, hosts] = self.take()?;
        let state = match state {
            0 => State::Initialize,
            1 => State::Backup,
            2 => State::Active,
            3 => State::Fault,
            _ => return None,
        };
        let [able, proof, handed_over, taken, deaf, is_v4] = FLAGS.map(|bit| flags & bit != 0);
        let interval = self.take().map(u16::from_be_bytes)?;
        let in_state = self.take().map(u32::from_be_bytes)?;
        let source = Ipv6Addr::from(self.take::<16>()?);
        let source = match source.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => source.into(),
        };
        let is_sound = vrid > 0 && flags < 64 && interval > 0 && answered <= hosts;
        is_sound.then_some(Report {
            id: RouterId { vrid, is_v4 },
            state,
            priority,
            able,
            proof,
            answered,
            hosts,
            handed_over,
            taken,
            deaf,
            interval: Duration::from_millis(interval.into()),
            in_state: Duration::from_millis(in_state.into()),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(vrid: u8) -> Report {
        Report {
            id: RouterId { vrid, is_v4: true },
            state: State::Active,
            priority: 150,
            able: true,
            proof: true,
            answered: 2,
            hosts: 3,
            handed_over: false,
            taken: true,
            deaf: false,
            interval: Duration::from_millis(100),
            in_state: Duration::from_millis(70_000),
            source: [192, 0, 2, 1].into(),
        }
    }

    fn samples() -> Vec<Message> {
        let id = HandOverId {
            epoch: 7,
            number: 9,
        };
        let routers = vec![
            report(51).id,
            RouterId {
                vrid: 255,
                is_v4: false,
            },
        ];
        let mut six = report(7);
        six.id.is_v4 = false;
        six.source = "fe80::1".parse().unwrap();
        let mut all = Message::reports(1, 2, true, &[report(51), six]);
        all.extend([
            Message::Take {
                id,
                may_return: true,
                routers: routers.clone(),
            },
            Message::Taken(id),
            Message::Refused(id, Refusal::NotBackup),
            Message::Refused(id, Refusal::Isolated),
            Message::Cancel(id),
            Message::Give(routers),
        ]);
        all
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_or_longer_is() {
        for message in samples() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Some(message.clone()));
            for length in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..length]), None, "{message:?}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Message::decode(&longer), None, "{message:?}");
            let other_version = [&[VERSION + 1], &bytes[1..]].concat();
            assert_eq!(Message::decode(&other_version), None);
        }
    }

    #[test]
    fn many_virtual_routers_are_told_in_several_messages_that_fit() {
        let all: Vec<Report> = (1..=255).map(report).collect();
        let messages = Message::reports(1, 1, false, &all);
        assert_eq!(messages.len(), 255_usize.div_ceil(MOST_REPORTS));
        let mut seen = Vec::new();
        for message in messages {
            let bytes = message.encode();
            assert!(bytes.len() <= MOST_BYTES, "{}", bytes.len());
            let Some(Message::Reports { routers, .. }) = Message::decode(&bytes) else {
                panic!("not read")
            };
            seen.extend(routers);
        }
        assert_eq!(seen, all);
        // All there can be are handed over at once.
        let ids: Vec<RouterId> = (1..=255)
            .flat_map(|vrid| [true, false].map(|is_v4| RouterId { vrid, is_v4 }))
            .collect();
        let bytes = Message::Give(ids.clone()).encode();
        assert!(bytes.len() <= MOST_BYTES, "{}", bytes.len());
        assert_eq!(Message::decode(&bytes), Some(Message::Give(ids)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = &Message::reports(1, 2, true, &[report(51)])[0];
        let sound = message.encode();
        // VRID 0, a state, flags, more answers than hosts, no interval, a flag.
        for (at, value) in [(20, 0), (21, 4), (23, 64), (24, 4), (27, 0), (18, 2)] {
            let mut bytes = sound.clone();
            bytes[at] = value;
            assert_eq!(Message::decode(&bytes), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic_and_what_is_read_is_written_the_same(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1_200),
            kind in 0..8_u8,
        ) {
            if let [version, of, ..] = &mut bytes[..] {
                (*version, *of) = (VERSION, kind);
            }
            if let Some(message) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode()), Some(message));
            }
        }

        #[test]
        fn a_damaged_message_is_none_or_another_one(
            which in 0..8_usize, at in any::<proptest::sample::Index>(), value in any::<u8>(),
        ) {
            let all = samples();
            let mut bytes = all[which % all.len()].encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Message::decode(&bytes);
        }
    }
}
