//! What a service is to the data path.

use crate::schedule::GROUPS;

/// What the data path needs to know of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Row of the service in `DROPS`, `EVENTS` and `SERVICE_NAMES`; not zero.
    pub id: u32,
    /// First slot of its table.
    pub slot_offset: u32,
    /// Number of its slots.
    pub slot_size: u32,
    /// Index in `OWNERS`.
    pub owner: u16,
    /// See [`service_flag`].
    pub flags: u16,
    /// Units after which a flow's entry has expired.
    pub idle_units: u32,
    /// See [`crate::schedule::scheduler`].
    pub scheduler: u8,
    /// See [`udp`].
    pub udp: u8,
    /// Leading bits of an IPv4 source that count, with [`service_flag::BY_SOURCE`].
    pub prefix_v4: u8,
    /// Leading bits of an IPv6 source that count, with [`service_flag::BY_SOURCE`].
    pub prefix_v6: u8,
    /// Slots of a cycle of turns, from the first on; zero: no turns.
    pub cycle: u32,
    /// First word in `SLOTS` of the list of members, the priority groups one
    /// after another, a member's id in each word.
    pub list_offset: u32,
    /// Members listed in each group; all zero where nobody has a limit.
    pub list_sizes: [u16; GROUPS],
    /// Group whose services' sources keep their servers together, see
    /// [`crate::persist::group`]; zero: no persistence.
    pub group: u32,
    /// Ticks after which an idle source has no server any more.
    pub persist_ticks: u32,
    /// [`crate::limit::cost`] of a new flow on one core; zero: no limit.
    pub core_cost: u32,
    /// The same from one source.
    pub source_cost: u32,
    /// Set of `SOURCES` that says who may use it; zero: everybody.
    pub sources: u32,
    /// Set of `SOURCES` that are too many clients at once to be kept together:
    /// with persistence, and with [`service_flag::BY_SOURCE`]; zero: nobody.
    pub proxies: u32,
    /// Leading bits of an IPv4 source that have a server together.
    pub persist_v4: u8,
    /// Leading bits of an IPv6 source that have a server together.
    pub persist_v6: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

impl ServiceEntry {
    /// Members listed in all groups.
    pub fn listed(&self) -> u32 {
        self.list_sizes.iter().map(|n| u32::from(*n)).sum()
    }
}

/// Bits of [`ServiceEntry::flags`].
pub mod service_flag {
    /// NAT whose replies are recognised by flow and not by port.
    pub const REPLY_FLOWS: u16 = 1;
    /// Full NAT.
    pub const FULL_NAT: u16 = 2;
    /// NAT with backends on links of this node: clients in `LOCAL` need full NAT.
    pub const LOCAL: u16 = 4;
    /// Every flow has an entry in `FLOWS`.
    pub const FULL_TRACKING: u16 = 8;
    /// The slot follows from the source's prefix alone.
    pub const BY_SOURCE: u16 = 16;
    /// There are limits or a set of sources.
    pub const GUARDED: u16 = 1 << 8;
    /// Flows whose member serves nobody any more are reset.
    pub const RESET: u16 = 1 << 9;
}

/// Values of [`ServiceEntry::udp`].
pub mod udp {
    /// A datagram goes to its slot's member, whatever flow it belongs to.
    pub const STATELESS: u8 = 0;
    /// Flows are told apart like those of TCP.
    pub const TRACKED: u8 = 1;
    /// As above, and QUIC's Initial packets are the SYN.
    pub const QUIC: u8 = 2;
}
