//! The devices that packets come in by and go out by.

use crate::net::Mac;

/// Entries of the `LINKS` map.
pub const LINKS: u32 = 1024;

/// Neighbouring entries of `LINKS` that are looked at for an interface.
pub const LINK_PROBES: u32 = 4;

/// VLAN tags of a frame, the outer one first: TPID in the upper half, VLAN id
/// in the lower 12 bits; zero where there is none.
pub type Tags = [u32; 2];

/// A network device that packets come in by or go out by: an interface the data
/// path is attached to, or a VLAN on one. It stands in the first free of the
/// [`LINK_PROBES`] entries from [`LinkEntry::place`] on, once for each way in
/// which it is met: as where a packet came in, and as what the kernel's routing
/// names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkEntry {
    /// Interface index under which it is looked up; zero is free.
    pub match_ifindex: u32,
    /// Tags under which it is looked up.
    pub match_tags: Tags,
    /// Index of the device itself, as the kernel's routing names it.
    pub device: u32,
    /// Index of the interface that its packets are sent by.
    pub ifindex: u32,
    /// Tags that its packets have.
    pub tags: Tags,
    /// Its MAC address.
    pub mac: Mac,
    /// See [`link_flag`].
    pub flags: u16,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl LinkEntry {
    /// An interface without tags.
    pub const fn plain(ifindex: u32, mac: Mac, mtu: u32) -> Self {
        Self {
            match_ifindex: ifindex,
            match_tags: [0; 2],
            device: ifindex,
            ifindex,
            tags: [0; 2],
            mac,
            flags: 0,
            mtu,
        }
    }

    /// Where in `LINKS` it is looked for first.
    #[inline(always)]
    pub const fn place(ifindex: u32, tags: Tags) -> u32 {
        ifindex
            .wrapping_add((tags[0] & 0xfff).wrapping_mul(37))
            .wrapping_add((tags[1] & 0xfff).wrapping_mul(101))
            % LINKS
    }
}

/// Bits of [`LinkEntry::flags`].
pub mod link_flag {
    /// A port of a Linux bridge, or the bridge: packets are rewritten and left
    /// to the bridge to forward, so that its spanning tree holds.
    pub const BRIDGE: u16 = 1;
    /// Spanning tree keeps one of the bridge's ports from forwarding: another
    /// balancer is on the way that frames take, and this one stands aside.
    pub const BLOCKED: u16 = 2;
}
