//! From a frame to what it is. Nothing here looks into a map.

use lb_common::{
    counter::DropReason,
    hash::Tuple,
    net::{Addr, Be16, family, protocol},
    track::Kind,
};

use crate::packet::{ETHERNET, Header, Icmp, Ipv4, Ipv6, Packet, Tcp, Udp};

/// IPv6 extension headers that are walked before the packet is given up.
const MAX_EXTENSIONS: usize = 6;

/// Either IP header.
#[derive(Clone, Copy)]
pub enum Ip {
    V4(Header<Ipv4>),
    V6(Header<Ipv6>),
}

/// Either transport header.
#[derive(Clone, Copy)]
pub enum Transport {
    Tcp(Header<Tcp>),
    Udp(Header<Udp>),
}

/// A whole TCP or UDP packet.
#[derive(Clone, Copy)]
pub struct Segment {
    pub ip: Ip,
    pub transport: Transport,
    pub tuple: Tuple,
    pub kind: Kind,
}

/// A packet addressed to somebody that can't be balanced.
#[derive(Clone, Copy)]
pub struct Other {
    pub ip: Ip,
    pub destination: Addr,
    pub family: u8,
    pub what: What,
}

/// Why it can't.
#[derive(Clone, Copy)]
pub enum What {
    /// An ICMP or ICMPv6 message.
    Icmp(Header<Icmp>),
    /// Something to drop, if it is addressed to a VIP.
    Bad(DropReason),
}

/// What an IP packet is. `Err(None)`: too short to tell whose it is.
pub type Parsed = Result<Segment, Option<Other>>;

/// Parses an IPv4 packet behind the Ethernet header (RFC 791 §3.1).
#[inline(always)]
pub fn ipv4(packet: &Packet) -> Parsed {
    let ip: Header<Ipv4> = packet.at(ETHERNET).ok_or(None)?;
    let header = ip.read();
    let destination = Addr::v4(header.destination);
    let other = |what| {
        Some(Other {
            ip: Ip::V4(ip),
            destination,
            family: family::V4,
            what,
        })
    };
    let bad = |reason| other(What::Bad(reason));

    let header_bytes = usize::from(header.version_ihl & 0x0f) * 4;
    let total = usize::from(header.total_length.get());
    if header.version_ihl >> 4 != 4 || header_bytes < 20 || total < header_bytes {
        return Err(bad(DropReason::Malformed));
    }
    if ETHERNET + total > packet.len() {
        return Err(bad(DropReason::Truncated));
    }
    // More-fragments or an offset; "don't fragment" is bit 14.
    if header.fragment.get() & 0x3fff != 0 {
        return Err(bad(DropReason::Fragment));
    }
    let base = Tuple {
        source: Addr::v4(header.source),
        destination,
        source_port: Be16::default(),
        destination_port: Be16::default(),
        protocol: header.ttl_protocol[1],
        family: family::V4,
    };
    let offset = ETHERNET + header_bytes;
    match header.ttl_protocol[1] {
        protocol::TCP | protocol::UDP => {
            transport(packet, Ip::V4(ip), offset, total - header_bytes, base).map_err(bad)
        }
        protocol::ICMP => Err(match packet.at::<Icmp>(offset) {
            Some(icmp) if total - header_bytes >= 8 => other(What::Icmp(icmp)),
            _ => bad(DropReason::Malformed),
        }),
        _ => Err(bad(DropReason::UnknownProtocol)),
    }
}

/// Parses an IPv6 packet behind the Ethernet header (RFC 8200 §3, §4).
#[inline(always)]
pub fn ipv6(packet: &Packet) -> Parsed {
    let ip: Header<Ipv6> = packet.at(ETHERNET).ok_or(None)?;
    let header = ip.read();
    let destination = header.destination;
    let other = |what| {
        Some(Other {
            ip: Ip::V6(ip),
            destination,
            family: family::V6,
            what,
        })
    };
    let bad = |reason| other(What::Bad(reason));

    let mut left = usize::from(header.payload_length.get());
    if header.version >> 4 != 6 {
        return Err(bad(DropReason::Malformed));
    }
    if ETHERNET + 40 + left > packet.len() {
        return Err(bad(DropReason::Truncated));
    }
    let mut base = Tuple {
        source: header.source,
        destination,
        source_port: Be16::default(),
        destination_port: Be16::default(),
        protocol: header.next_header,
        family: family::V6,
    };
    let mut offset = ETHERNET + 40;
    let mut walked = 0;
    loop {
        match base.protocol {
            protocol::TCP | protocol::UDP => {
                return transport(packet, Ip::V6(ip), offset, left, base).map_err(bad);
            }
            protocol::ICMPV6 => {
                return Err(match packet.at::<Icmp>(offset) {
                    Some(icmp) if left >= 8 => other(What::Icmp(icmp)),
                    _ => bad(DropReason::Malformed),
                });
            }
            // Fragment header (§4.5).
            44 => return Err(bad(DropReason::Fragment)),
            // Hop-by-hop (§4.3), routing (§4.4), destination options (§4.6).
            0 | 43 | 60 => {}
            _ => return Err(bad(DropReason::UnknownProtocol)),
        }
        let Some(extension) = packet.at::<[u8; 4]>(offset) else {
            return Err(bad(DropReason::Malformed));
        };
        let [next, length, _, segments_left] = extension.read();
        let bytes = (usize::from(length) + 1) * 8;
        if bytes > left {
            return Err(bad(DropReason::Malformed));
        }
        // Segments left: this address is not the last one.
        if walked == MAX_EXTENSIONS || (base.protocol == 43 && segments_left != 0) {
            return Err(bad(DropReason::ExtensionHeaders));
        }
        base.protocol = next;
        offset += bytes;
        left -= bytes;
        walked += 1;
    }
}

/// The transport header at `offset`; `length` is what IP says it has room for.
#[inline(always)]
fn transport(
    packet: &Packet,
    ip: Ip,
    offset: usize,
    length: usize,
    base: Tuple,
) -> Result<Segment, DropReason> {
    if base.protocol == protocol::TCP {
        let tcp: Header<Tcp> = packet.at(offset).ok_or(DropReason::Malformed)?;
        let header_bytes = usize::from(tcp.data_offset() >> 4) * 4;
        if header_bytes < 20 || header_bytes > length {
            return Err(DropReason::Malformed);
        }
        return Ok(Segment {
            ip,
            transport: Transport::Tcp(tcp),
            tuple: Tuple {
                source_port: tcp.source_port(),
                destination_port: tcp.destination_port(),
                ..base
            },
            kind: Kind::of_tcp(tcp.flags()),
        });
    }
    let udp: Header<Udp> = packet.at(offset).ok_or(DropReason::Malformed)?;
    let udp_length = usize::from(udp.length().get());
    if udp_length < 8 || udp_length > length {
        return Err(DropReason::Malformed);
    }
    Ok(Segment {
        ip,
        transport: Transport::Udp(udp),
        tuple: Tuple {
            source_port: udp.source_port(),
            destination_port: udp.destination_port(),
            ..base
        },
        kind: Kind::Data,
    })
}
