//! Which packets the fragments under way are of.

use crate::net::Addr;

/// What the fragments of one packet have in common (RFC 791 §3.2, RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Identification, network byte order; IPv4's in the first two bytes.
    pub id: u32,
    /// IPv4: IANA protocol number. IPv6, where it is no part of the packet's
    /// identity: zero.
    pub protocol: u8,
    /// Address family.
    pub family: u8,
    /// Zero.
    pub reserved: u16,
}

/// Where the first fragment went, and with it all others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentEntry {
    /// The member's id.
    pub member: u32,
    /// Its service: an id may be given to another member meanwhile.
    pub service: u32,
    /// Tick at which the first fragment was seen.
    pub ticks: u32,
    /// See [`direction`].
    pub direction: u32,
    /// The part of the flow's hash that tunnels' outer headers follow from.
    pub hash: u32,
    /// Full NAT's binding; zero: none.
    pub binding: u32,
}

impl FragmentEntry {
    /// Ticks that an entry counts for, 30 s at least. Receivers wait longer (RFC
    /// 1122 §3.3.2), but a fast sender's identifications come round earlier.
    pub const LIFE_TICKS: u32 = 30;

    /// Whether it still counts.
    #[inline(always)]
    pub const fn is_live(&self, now_ticks: u32) -> bool {
        now_ticks.wrapping_sub(self.ticks) <= Self::LIFE_TICKS
    }
}

/// Values of [`FragmentEntry::direction`].
pub mod direction {
    /// From a client to the member.
    pub const REQUEST: u32 = 1;
    /// From the member to a client.
    pub const REPLY: u32 = 2;
}
