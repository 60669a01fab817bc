//! VRRP messages on the wire: version 3 (RFC 9568) and version 2 (RFC 3768).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use serde::Serialize;

/// Protocol number (RFC 9568 §5.1.1.4, §5.1.2.4).
pub const PROTOCOL: u8 = 112;

/// Of each packet, so that none comes from behind a router (§5.1.1.3, §5.1.2.3).
pub const TTL: u8 = 255;

/// Group of IPv4 (§5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// Group of IPv6 (§5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// Priority of whoever has the addresses itself (§5.2.4).
pub const OWNER: u8 = 255;

/// Priority of who is leaving (§5.2.4).
pub const LEAVING: u8 = 0;

const ADVERTISEMENT: u8 = 1;
const HEADER: usize = 8;
/// Authentication data of version 2 (RFC 3768 §5.3.10), which is zero.
const V2_TRAILER: usize = 8;
/// The largest interval in centiseconds: 12 bits (RFC 9568 §5.2.7).
const MOST_CENTISECONDS: u128 = 0xfff;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "u8")]
pub enum Version {
    /// RFC 3768: IPv4 alone, intervals in whole seconds.
    V2,
    /// RFC 9568.
    V3,
}

impl From<Version> for u8 {
    fn from(version: Version) -> Self {
        match version {
            Version::V2 => 2,
            Version::V3 => 3,
        }
    }
}

/// What the checksum of version 3 over IPv4 covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChecksumForm {
    /// The message alone (RFC 9568 §5.2.8).
    #[default]
    Message,
    /// A pseudo-header as well, as in RFC 5798, and in keepalived by default.
    PseudoHeader,
}

/// An advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Version that it is written in.
    pub version: Version,
    /// The virtual router.
    pub vrid: u8,
    /// 255 has the addresses itself, 0 is leaving.
    pub priority: u8,
    /// Time from one to the next: version 3 in centiseconds, 2 in seconds.
    pub interval: Duration,
    /// The virtual addresses, all of one family.
    pub addresses: Vec<IpAddr>,
}

/// Why a message is thrown away (RFC 9568 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// TTL or hop limit is not 255.
    Ttl,
    /// Neither version 2 nor 3, or version 2 over IPv6.
    Version,
    /// No advertisement.
    Type,
    /// Shorter than it says.
    Length,
    /// The checksum is wrong in every form.
    Checksum,
    /// VRID 0.
    Vrid,
    /// No address.
    NoAddress,
    /// Interval 0.
    Interval,
    /// Authentication, which version 2 once had (RFC 3768 §5.3.6).
    Authentication,
}

impl Malformed {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Ttl,
        Self::Version,
        Self::Type,
        Self::Length,
        Self::Checksum,
        Self::Vrid,
        Self::NoAddress,
        Self::Interval,
        Self::Authentication,
    ];

    /// The name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::Version => "version",
            Self::Type => "type",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Vrid => "vrid",
            Self::NoAddress => "no_address",
            Self::Interval => "interval",
            Self::Authentication => "authentication",
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ttl => "its TTL is not 255",
            Self::Version => "of no known version",
            Self::Type => "no advertisement",
            Self::Length => "shorter than it says",
            Self::Checksum => "a wrong checksum",
            Self::Vrid => "VRID 0",
            Self::NoAddress => "without an address",
            Self::Interval => "with interval 0",
            Self::Authentication => "with authentication",
        })
    }
}

/// Where a message came from and went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Primary address of the sender.
    pub source: IpAddr,
    /// The group, or this node in unicast.
    pub destination: IpAddr,
}

impl Advertisement {
    /// The message, with a checksum of this form, where that makes a difference.
    pub fn encode(&self, ends: &Ends, form: ChecksumForm) -> Vec<u8> {
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        let version = u8::from(self.version);
        let mut message = vec![
            version << 4 | ADVERTISEMENT,
            self.vrid,
            self.priority,
            count,
        ];
        message.extend(match self.version {
            Version::V3 => {
                let centiseconds = (self.interval.as_millis() / 10).clamp(1, MOST_CENTISECONDS);
                (centiseconds as u16).to_be_bytes()
            }
            // Authentication type 0 and the interval.
            Version::V2 => [0, self.interval.as_secs().clamp(1, 255) as u8],
        });
        message.extend([0, 0]);
        for address in self.addresses.iter().take(usize::from(count)) {
            match address {
                IpAddr::V4(address) => message.extend(address.octets()),
                IpAddr::V6(address) => message.extend(address.octets()),
            }
        }
        if self.version == Version::V2 {
            message.extend([0; V2_TRAILER]);
        }
        let sum = !sum(&message, covered(self.version, ends, form, message.len()));
        message.splice(6..8, sum.to_be_bytes());
        message
    }

    /// Reads a message as RFC 9568 §7.1 wants it read. Also in which form its
    /// checksum was right, where there are two.
    ///
    /// # Errors
    /// Why it has to be thrown away.
    pub fn decode(message: &[u8], ends: &Ends, ttl: u8) -> Result<(Self, ChecksumForm), Malformed> {
        if ttl != TTL {
            return Err(Malformed::Ttl);
        }
        let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
            return Err(Malformed::Length);
        };
        let [first, vrid, priority, count, fifth, sixth, _, _] = *header;
        let version = match first >> 4 {
            2 if ends.source.is_ipv4() => Version::V2,
            3 => Version::V3,
            _ => return Err(Malformed::Version),
        };
        if first & 0x0f != ADVERTISEMENT {
            return Err(Malformed::Type);
        }
        let one = if ends.source.is_ipv4() { 4 } else { 16 };
        let trailer = if version == Version::V2 {
            V2_TRAILER
        } else {
            0
        };
        let listed = usize::from(count) * one;
        if rest.len() < listed + trailer {
            return Err(Malformed::Length);
        }
        // What comes behind is part of the message: its checksum covers it.
        let form = [ChecksumForm::Message, ChecksumForm::PseudoHeader]
            .into_iter()
            .find(|form| sum(message, covered(version, ends, *form, message.len())) == u16::MAX)
            .ok_or(Malformed::Checksum)?;
        if vrid == 0 {
            return Err(Malformed::Vrid);
        }
        if count == 0 {
            return Err(Malformed::NoAddress);
        }
        if version == Version::V2 && fifth != 0 {
            return Err(Malformed::Authentication);
        }
        let interval = match version {
            Version::V2 => Duration::from_secs(sixth.into()),
            Version::V3 => {
                let centiseconds = u16::from_be_bytes([fifth & 0x0f, sixth]);
                Duration::from_millis(u64::from(centiseconds) * 10)
            }
        };
        if interval.is_zero() {
            return Err(Malformed::Interval);
        }
        let addresses = rest.get(..listed).unwrap_or_default().chunks_exact(one);
        let advertisement = Self {
            version,
            vrid,
            priority,
            interval,
            addresses: addresses.filter_map(address).collect(),
        };
        Ok((advertisement, form))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

/// What is summed besides the message: the pseudo-header (RFC 9568 §5.2.8, RFC
/// 8200 §8.1; over IPv4 that of RFC 5798 §5.2.8), or nothing.
fn covered(version: Version, ends: &Ends, form: ChecksumForm, length: usize) -> u32 {
    let of = |bytes: &[u8]| words(bytes);
    let addresses = match (ends.source, ends.destination) {
        (IpAddr::V4(_), _) if version == Version::V2 || form == ChecksumForm::Message => return 0,
        (IpAddr::V4(a), IpAddr::V4(b)) => of(&a.octets()) + of(&b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => of(&a.octets()) + of(&b.octets()),
        _ => return 0,
    };
    addresses + u32::from(PROTOCOL) + length as u32
}

/// The Internet checksum's sum (RFC 1071) of a message and what else is covered.
fn sum(message: &[u8], covered: u32) -> u16 {
    let mut sum = words(message) + covered;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn words(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| {
        let [high, low] = [0, 1].map(|at| pair.get(at).copied().unwrap_or_default());
        u32::from(u16::from_be_bytes([high, low]))
    });
    words.sum()
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
