//! Who may use a service, and how often.

use crate::net::Addr;

/// Key of `SOURCES`, behind the prefix length: sources of one set. A service's
/// address is of one family, and so are its sources; the family is no part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    /// The set, see [`source_set`].
    pub set: u32,
    /// First address of the prefix.
    pub address: Addr,
}

/// Bits of [`SourceKey`] before the address.
pub const SOURCE_KEY_FIXED_BITS: u32 = 32;

/// Values of `SOURCES`. A source that no prefix covers is allowed.
pub mod source {
    /// Its packets are forwarded.
    pub const ALLOWED: u32 = 1;
    /// Its packets are dropped.
    pub const DENIED: u32 = 2;
    /// It is many clients' (a provider's proxies), and not kept together.
    pub const PROXY: u32 = 3;
}

/// Set `number` (1 to 255) of a service: its sources are replaced by writing
/// another set and naming it in the service's entry. Zero is no set: whoever
/// asks is allowed.
pub const fn source_set(service: u32, number: u8) -> u32 {
    service << 8 | number as u32
}

/// Key of `SOURCE_LIMITS`: where new flows come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LimitKey {
    /// The service's id.
    pub service: u32,
    /// The source: an IPv4 address, or the first 64 bits of an IPv6 one.
    pub source: Addr,
}

/// Place in `CORE_LIMITS` of the packets that the data path makes itself. The
/// others are service ids.
pub const CORE_LIMIT_RESETS: u32 = 0;

/// Resets that a core sends in a second at most.
pub const RESETS_PER_SECOND: u32 = 1000;
