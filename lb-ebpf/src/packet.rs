//! Packet memory. Every pointer into a packet is made, checked and used here.

use core::mem::size_of;

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    net::{Addr, Be16, Mac, NextHop},
    virtual_mac,
};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A MAC address as three native words in memory order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MacWords(pub [u16; 3]);

impl MacWords {
    /// From a map's bytes.
    #[inline(always)]
    pub fn new(mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self([
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            u16::from_ne_bytes([e, f]),
        ])
    }

    /// A next hop's.
    #[inline(always)]
    pub fn of(next_hop: NextHop) -> Self {
        let word = u64::from_le(next_hop.0);
        Self([
            u16::from_le(word as u16),
            u16::from_le((word >> 16) as u16),
            u16::from_le((word >> 32) as u16),
        ])
    }

    /// As a map has it.
    #[inline(always)]
    pub fn bytes(self) -> Mac {
        let [[a, b], [c, d], [e, f]] = self.0.map(u16::to_ne_bytes);
        [a, b, c, d, e, f]
    }

    /// Zero if they are the same. Without branches: the verifier would look at all
    /// that follows once more for each.
    #[inline(always)]
    pub fn differs(self, other: Self) -> u16 {
        let [a, b, c] = self.0;
        let [d, e, f] = other.0;
        (a ^ d) | (b ^ e) | (c ^ f)
    }

    /// That of the virtual router with owner word `index`.
    #[inline(always)]
    pub fn of_virtual_router(index: u16) -> Self {
        Self::new(virtual_mac::of(index))
    }

    /// Index of the owner word of the virtual router whose address it is; beyond
    /// them if it is none's. No branch but one.
    #[inline(always)]
    pub fn virtual_router(self) -> Option<u32> {
        let [a, b, c, d] = virtual_mac::PREFIX;
        let [first, second, end] = self.0;
        let differs = (first ^ u16::from_ne_bytes([a, b])) | (second ^ u16::from_ne_bytes([c, d]));
        if differs != 0 {
            return None;
        }
        Some(virtual_mac::owner(end.to_ne_bytes()))
    }

    /// Whether the frame is for a group.
    #[inline(always)]
    pub fn is_ipv6_multicast(self) -> bool {
        self.0[0] == u16::from_ne_bytes([0x33, 0x33])
    }
}

/// The bounds of the packet's linear part.
#[derive(Clone, Copy)]
pub struct Packet {
    start: usize,
    end: usize,
}

/// A header of type `T` that lies wholly within the packet.
#[derive(Clone, Copy)]
pub struct Header<T>(*mut T);

/// Types of which every bit pattern is a value.
///
/// They have their natural alignment although packets give none: a load that
/// is declared aligned is one instruction, one that isn't is a load per byte,
/// and BPF has no aligned loads to trap in. No references are made, so that
/// nothing can be concluded from an address.
///
/// # Safety
/// Must be `repr(C)` over integers, without padding.
pub unsafe trait Wire: Copy {}

// SAFETY: bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}

// SAFETY: an integer.
unsafe impl Wire for u32 {}

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Bytes of the frame in the linear part, headers included.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The header at `offset`, if the frame reaches that far.
    #[inline(always)]
    pub fn at<T: Wire>(&self, offset: usize) -> Option<Header<T>> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        Some(Header(at as *mut T))
    }
}

/// Bytes of the frame, those beyond the linear part included.
#[inline(always)]
pub fn frame_bytes(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the program's own.
    (unsafe { bpf_xdp_get_buff_len(ctx.ctx) }) as u32
}

/// Grows or shrinks the frame at its end and gives its new bounds.
#[inline(always)]
pub fn resize(ctx: &XdpContext, by: i32) -> Option<Packet> {
    // SAFETY: the context is the program's own. All headers taken before are
    // invalid from here on; the caller takes them anew from the result.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, by) } != 0 {
        return None;
    }
    Some(Packet::new(ctx))
}

/// Grows the frame at its start by `by` bytes, or shrinks it where that is
/// negative, and gives its new bounds; nothing if there is no room.
#[inline(always)]
pub fn grow(ctx: &XdpContext, by: i32) -> Option<Packet> {
    // SAFETY: as in `resize`.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -by) } != 0 {
        return None;
    }
    Some(Packet::new(ctx))
}

impl<T: Wire> Header<T> {
    /// A copy of the header.
    #[inline(always)]
    pub fn read(self) -> T {
        // SAFETY: `Packet::at` checked the bounds, and so does the verifier.
        unsafe { self.0.read() }
    }

    /// Replaces the header.
    #[inline(always)]
    pub fn write(self, value: T) {
        // SAFETY: as in `read`.
        unsafe { self.0.write(value) };
    }
}

macro_rules! fields {
    ($($header:ident { $($field:ident: $set:ident, $t:ty;)+ })+) => {
        $(impl Header<$header> {
            $(
                #[inline(always)]
                #[allow(dead_code)]
                pub fn $field(self) -> $t {
                    // SAFETY: within the header, whose bounds were checked.
                    unsafe { (&raw const (*self.0).$field).read() }
                }
                #[inline(always)]
                #[allow(dead_code)]
                pub fn $set(self, value: $t) {
                    // SAFETY: within the header, whose bounds were checked.
                    unsafe { (&raw mut (*self.0).$field).write(value) };
                }
            )+
        }
        // SAFETY: `repr(C)` over integers, see below.
        unsafe impl Wire for $header {})+
    };
}

/// IEEE 802.3.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ethernet {
    pub destination: MacWords,
    pub source: MacWords,
    pub ether_type: Be16,
}

/// What follows a TPID (IEEE 802.1Q §9.6): priority and VLAN id, and the type
/// of what comes next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vlan {
    pub tci: Be16,
    pub ether_type: Be16,
}

/// RFC 791 §3.1, without options. Checksum and addresses as they stand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: Be16,
    pub id: u16,
    pub fragment: Be16,
    /// TTL and protocol, as one word for the checksum.
    pub ttl_protocol: [u8; 2],
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

/// RFC 8200 §3.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    pub version: u8,
    pub flow: [u8; 3],
    pub payload_length: Be16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: Addr,
    pub destination: Addr,
}

/// RFC 9293 §3.1, without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub source_port: Be16,
    pub destination_port: Be16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub data_offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

/// RFC 768.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Udp {
    pub source_port: Be16,
    pub destination_port: Be16,
    pub length: Be16,
    pub checksum: u16,
}

/// draft-ietf-intarea-gue §3, variant 0, without optional fields.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gue {
    /// Variant, control bit and length of the optional fields: all zero.
    pub version_length: u8,
    /// IP protocol number of what follows.
    pub inner: u8,
    pub flags: u16,
}

/// The first bytes of ICMP (RFC 792) and ICMPv6 (RFC 4443).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Icmp {
    pub type_code: [u8; 2],
    pub checksum: u16,
    pub rest: u32,
}

/// RFC 826 for IPv4 over Ethernet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arp {
    pub hardware: Be16,
    pub protocol: Be16,
    pub lengths: [u8; 2],
    pub operation: Be16,
    pub sender_mac: MacWords,
    pub sender: [u16; 2],
    pub target_mac: MacWords,
    pub target: [u16; 2],
}

/// Neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4) without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Neighbour {
    pub type_code: [u8; 2],
    pub checksum: u16,
    pub flags: u32,
    pub target: Addr,
}

/// A link-layer address option (RFC 4861 §4.6.1).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LinkLayerOption {
    pub kind_length: [u8; 2],
    pub mac: MacWords,
}

fields! {
    Ethernet {
        destination: set_destination, MacWords;
        source: set_source, MacWords;
        ether_type: set_ether_type, Be16;
    }
    Vlan {
        tci: set_tci, Be16;
        ether_type: set_vlan_ether_type, Be16;
    }
    Ipv4 {
        version_ihl: set_version_ihl, u8;
        tos: set_tos, u8;
        total_length: set_total_length, Be16;
        id: set_id, u16;
        fragment: set_fragment, Be16;
        ttl_protocol: set_ttl_protocol, [u8; 2];
        checksum: set_checksum, u16;
        source: set_source, u32;
        destination: set_destination, u32;
    }
    Ipv6 {
        version: set_version, u8;
        flow: set_flow, [u8; 3];
        payload_length: set_payload_length, Be16;
        next_header: set_next_header, u8;
        hop_limit: set_hop_limit, u8;
        source: set_source, Addr;
        destination: set_destination, Addr;
    }
    Tcp {
        source_port: set_source_port, Be16;
        destination_port: set_destination_port, Be16;
        data_offset: set_data_offset, u8;
        flags: set_flags, u8;
        checksum: set_checksum, u16;
    }
    Udp {
        source_port: set_source_port, Be16;
        destination_port: set_destination_port, Be16;
        length: set_length, Be16;
        checksum: set_checksum, u16;
    }
    Gue {
        inner: set_inner, u8;
    }
    Icmp {
        type_code: set_type_code, [u8; 2];
        checksum: set_checksum, u16;
    }
    Arp {
        sender_mac: set_sender_mac, MacWords;
    }
    Neighbour {
        type_code: set_type_code, [u8; 2];
        target: set_target, Addr;
    }
    LinkLayerOption {
        mac: set_mac, MacWords;
    }
}
