//! From a frame to what it is. Nothing here looks into a map.
//!
//! Whatever way a packet was parsed, the result is the same few numbers, and
//! [`Parsed::forget`] takes from the verifier what it knows of them. So it
//! verifies what follows once, and not once for every combination of family,
//! protocol and number of extension headers.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use lb_common::{
    abi::Work,
    counter::DropReason,
    hash::Tuple,
    net::{Addr, Be16, family, protocol},
    track::Kind,
};

use crate::packet::{Header, Icmp, Ipv4, Ipv6, Packet, Tcp, Udp, frame_bytes};

/// IPv6 extension headers that are walked before the packet is given up.
const MAX_EXTENSIONS: usize = 6;

/// The kind of packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Too short to tell whose it is.
    Nothing,
    /// A whole TCP or UDP packet.
    Segment,
    /// An ICMP or ICMPv6 message.
    Icmp,
    /// Something to drop, if it is addressed to a VIP.
    Bad,
}

/// What a packet is.
#[derive(Clone, Copy)]
pub struct Parsed {
    /// `what` 8 bits, `detail` (a [`Kind`], a [`DropReason`] or a message's
    /// type) 8, family 8, protocol 8, offset of the transport header 16, of the
    /// IP header 8.
    meta: u64,
    /// Ports of a segment, zero otherwise.
    ports: [Be16; 2],
    source: Addr,
    destination: Addr,
    frame_bytes: u32,
}

impl Parsed {
    /// Hides from the verifier how this came about. `noise` is any number from
    /// a map.
    #[inline(always)]
    pub fn forget(mut self, noise: u64) -> Self {
        // SAFETY: two operations on registers that cancel out; the compiler
        // doesn't look into them and the verifier doesn't relate them.
        unsafe {
            asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) self.meta, in(reg) noise, options(pure, nomem));
        }
        self
    }

    #[inline(always)]
    pub fn what(&self) -> What {
        match self.meta & 0xff {
            1 => What::Segment,
            2 => What::Icmp,
            3 => What::Bad,
            _ => What::Nothing,
        }
    }

    #[inline(always)]
    fn detail(&self) -> u32 {
        (self.meta >> 8) as u32 & 0xff
    }

    /// Of a segment.
    #[inline(always)]
    pub fn kind(&self) -> Kind {
        match self.detail() {
            0 => Kind::Syn,
            1 => Kind::Data,
            2 => Kind::Fin,
            _ => Kind::Rst,
        }
    }

    /// Number of the [`DropReason`] of a bad packet.
    #[inline(always)]
    pub fn reason(&self) -> u32 {
        self.detail()
    }

    /// Whether it is a message of neighbour or router discovery (RFC 4861 §4).
    #[inline(always)]
    pub fn is_discovery(&self) -> bool {
        !self.is_v4() && matches!(self.icmp_type(), 133..=137)
    }

    /// Type of an ICMP or ICMPv6 message.
    #[inline(always)]
    pub fn icmp_type(&self) -> u8 {
        self.detail() as u8
    }

    #[inline(always)]
    pub fn family(&self) -> u8 {
        (self.meta >> 16) as u8
    }

    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.family() == family::V4
    }

    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        (self.meta >> 24) as u8
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol() == protocol::TCP
    }

    /// Offset of the TCP, UDP or ICMP header.
    #[inline(always)]
    pub fn offset(&self) -> usize {
        (self.meta >> 32) as usize & 0x3fff
    }

    /// Offset of the IP header (or of what else follows the VLAN tags).
    #[inline(always)]
    pub fn network_offset(&self) -> usize {
        (self.meta >> 48) as usize & 0x1f
    }

    /// Bytes of the frame, Ethernet header included, check sequence not; also
    /// those that are not in the linear part.
    #[inline(always)]
    pub fn frame_bytes(&self) -> u32 {
        self.frame_bytes
    }

    #[inline(always)]
    pub fn source(&self) -> Addr {
        self.source
    }

    #[inline(always)]
    pub fn destination(&self) -> Addr {
        self.destination
    }

    #[inline(always)]
    pub fn tuple(&self) -> Tuple {
        Tuple {
            source: self.source,
            destination: self.destination,
            source_port: self.ports[0],
            destination_port: self.ports[1],
            protocol: self.protocol(),
            family: self.family(),
        }
    }

    /// The IPv4 header of a packet that has one.
    #[inline(always)]
    pub fn ipv4(&self, packet: &Packet) -> Option<Header<Ipv4>> {
        packet.at(self.network_offset())
    }

    /// The IPv6 header of a packet that has one.
    #[inline(always)]
    pub fn ipv6(&self, packet: &Packet) -> Option<Header<Ipv6>> {
        packet.at(self.network_offset())
    }

    /// A packet of which nothing is known yet but where its headers start.
    #[inline(always)]
    pub const fn nothing(network_offset: usize, frame_bytes: u32) -> Self {
        Self {
            meta: (network_offset as u64) << 48,
            ports: [Be16::new(0); 2],
            source: Addr([0; 4]),
            destination: Addr([0; 4]),
            frame_bytes,
        }
    }

    /// What another program of the data path handed over.
    #[inline(always)]
    pub fn resume(work: &Work) -> Self {
        Self {
            meta: work.meta,
            ports: work.ports,
            source: work.source,
            destination: work.destination,
            frame_bytes: work.frame_bytes,
        }
    }

    /// Leaves it to another program of the data path.
    #[inline(always)]
    pub fn leave(&self, work: &mut Work) {
        work.meta = self.meta;
        work.ports = self.ports;
        work.source = self.source;
        work.destination = self.destination;
        work.frame_bytes = self.frame_bytes;
    }

    #[inline(always)]
    fn set(&mut self, what: What, detail: u32, protocol: u8, offset: usize) {
        let kept = self.meta & 0x00ff_0000_00ff_0000;
        self.meta = what as u64
            | u64::from(detail) << 8
            | kept
            | u64::from(protocol) << 24
            | (offset as u64) << 32;
    }

    /// Whether the frame has so many bytes. Those beyond the linear part are
    /// counted only where they matter: that is a call into the kernel.
    #[inline(always)]
    fn holds(&mut self, ctx: &XdpContext, bytes: usize) -> bool {
        if bytes > self.frame_bytes as usize {
            self.frame_bytes = frame_bytes(ctx);
        }
        bytes <= self.frame_bytes as usize
    }

    #[inline(always)]
    fn bad(mut self, reason: DropReason) -> Self {
        self.set(What::Bad, reason as u32, 0, 0);
        self
    }
}

/// Parses an IPv4 packet behind the Ethernet header (RFC 791 §3.1). `parsed`
/// says where.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext, packet: &Packet, mut parsed: Parsed) -> Parsed {
    let Some(ip) = parsed.ipv4(packet) else {
        return parsed;
    };
    parsed.meta |= u64::from(family::V4) << 16;
    parsed.source = Addr::v4(ip.source());
    parsed.destination = Addr::v4(ip.destination());

    let version_ihl = ip.version_ihl();
    let header_bytes = usize::from(version_ihl & 0x0f) * 4;
    let total = usize::from(ip.total_length().get());
    if version_ihl >> 4 != 4 || header_bytes < 20 || total < header_bytes {
        return parsed.bad(DropReason::Malformed);
    }
    let network = parsed.network_offset();
    if !parsed.holds(ctx, network + total) {
        return parsed.bad(DropReason::Truncated);
    }
    // More-fragments or an offset; "don't fragment" is bit 14.
    if ip.fragment().get() & 0x3fff != 0 {
        return parsed.bad(DropReason::Fragment);
    }
    let [_, protocol] = ip.ttl_protocol();
    upper(
        packet,
        parsed,
        protocol,
        protocol::ICMP,
        network + header_bytes,
        total - header_bytes,
    )
}

/// Parses an IPv6 packet behind the Ethernet header (RFC 8200 §3, §4).
/// `parsed` says where.
#[inline(always)]
pub fn ipv6(ctx: &XdpContext, packet: &Packet, mut parsed: Parsed) -> Parsed {
    let Some(ip) = parsed.ipv6(packet) else {
        return parsed;
    };
    parsed.meta |= u64::from(family::V6) << 16;
    parsed.source = ip.source();
    parsed.destination = ip.destination();

    let mut left = usize::from(ip.payload_length().get());
    if ip.version() >> 4 != 6 {
        return parsed.bad(DropReason::Malformed);
    }
    let network = parsed.network_offset();
    if !parsed.holds(ctx, network + 40 + left) {
        return parsed.bad(DropReason::Truncated);
    }
    let mut next = ip.next_header();
    let mut offset = network + 40;
    let mut walked = 0;
    // Hop-by-hop (§4.3), routing (§4.4), destination options (§4.6).
    while matches!(next, 0 | 43 | 60) {
        let Some(extension) = packet.at::<[u8; 4]>(offset) else {
            return parsed.bad(DropReason::Malformed);
        };
        let [following, length, _, segments_left] = extension.read();
        let bytes = (usize::from(length) + 1) * 8;
        if bytes > left {
            return parsed.bad(DropReason::Malformed);
        }
        // Segments left: this address is not the last one.
        if walked == MAX_EXTENSIONS || (next == 43 && segments_left != 0) {
            return parsed.bad(DropReason::ExtensionHeaders);
        }
        next = following;
        offset += bytes;
        left -= bytes;
        walked += 1;
    }
    // Fragment header (§4.5).
    if next == 44 {
        return parsed.bad(DropReason::Fragment);
    }
    upper(packet, parsed, next, protocol::ICMPV6, offset, left)
}

/// The header at `offset`, of which IP says that it has `length` bytes.
#[inline(always)]
fn upper(
    packet: &Packet,
    mut parsed: Parsed,
    protocol: u8,
    icmp: u8,
    offset: usize,
    length: usize,
) -> Parsed {
    if protocol == protocol::TCP {
        let Some(tcp) = packet.at::<Tcp>(offset) else {
            return parsed.bad(DropReason::Malformed);
        };
        let header_bytes = usize::from(tcp.data_offset() >> 4) * 4;
        if header_bytes < 20 || header_bytes > length {
            return parsed.bad(DropReason::Malformed);
        }
        parsed.ports = [tcp.source_port(), tcp.destination_port()];
        parsed.set(
            What::Segment,
            Kind::of_tcp(tcp.flags()) as u32,
            protocol,
            offset,
        );
    } else if protocol == protocol::UDP {
        let Some(udp) = packet.at::<Udp>(offset) else {
            return parsed.bad(DropReason::Malformed);
        };
        let udp_length = usize::from(udp.length().get());
        if udp_length < 8 || udp_length > length {
            return parsed.bad(DropReason::Malformed);
        }
        parsed.ports = [udp.source_port(), udp.destination_port()];
        parsed.set(What::Segment, Kind::Data as u32, protocol, offset);
    } else if protocol == icmp {
        let Some(header) = packet.at::<Icmp>(offset) else {
            return parsed.bad(DropReason::Malformed);
        };
        if length < 8 {
            return parsed.bad(DropReason::Malformed);
        }
        let [kind, _] = header.type_code();
        parsed.set(What::Icmp, u32::from(kind), protocol, offset);
    } else {
        return parsed.bad(DropReason::UnknownProtocol);
    }
    parsed
}
