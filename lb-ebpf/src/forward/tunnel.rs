//! Tunnels with direct return: outer headers before the client's packet, which
//! stays as it is, TTL included.

use lb_common::{
    abi::{Config, MemberEntry, method},
    net::{Be16, family, protocol},
    tunnel::{self, DONT_FRAGMENT, IPV4, IPV6, TTL, UDP_GUE},
};

use crate::{
    packet::{Gue, Header, Ipv4, Ipv6, Packet, Udp},
    parse::Parsed,
};

/// Length and traffic class of the packet as its own header says, the class in
/// the lowest byte; zero where there is no header. The frame may be longer.
#[inline(always)]
pub fn inner(packet: &Packet, parsed: &Parsed) -> u32 {
    if parsed.is_v4() {
        match parsed.ipv4(packet) {
            Some(ip) => u32::from(ip.total_length().get()) << 8 | u32::from(ip.tos()),
            None => 0,
        }
    } else {
        match parsed.ipv6(packet) {
            Some(ip) => {
                let bytes = u32::from(ip.payload_length().get()) + IPV6 as u32;
                let [second, ..] = ip.flow();
                bytes << 8 | u32::from(ip.version() << 4 | second >> 4)
            }
            None => 0,
        }
    }
}

/// Writes the outer headers from `at` on. `inner` is of [`inner`].
///
/// The traffic class is copied with its congestion bits (RFC 6040 §4.1, normal
/// mode). GUE's UDP checksum is zero in both families: the packet inside has
/// its own (RFC 6935 §5, RFC 6936 §4).
#[inline(always)]
pub fn write(
    packet: &Packet,
    at: usize,
    config: &Config,
    member: &MemberEntry,
    inner: u32,
    hash: u32,
) -> Option<()> {
    let class = inner as u8;
    let bytes = (inner >> 8) as usize;
    let kind = tunnel::inner_protocol(member.family);
    let is_gue = member.method == method::GUE;
    let (next, payload) = if is_gue {
        (protocol::UDP, bytes + UDP_GUE)
    } else {
        (kind, bytes)
    };
    let sources = &config.tunnel;
    let after = if member.outer_family == family::V4 {
        let ip: Header<Ipv4> = packet.at(at)?;
        let total = Be16::new((payload + IPV4) as u16);
        let (source, destination) = (sources.v4(hash), member.address.0[0]);
        ip.write(Ipv4 {
            version_ihl: 0x45,
            tos: class,
            total_length: total,
            id: 0,
            fragment: DONT_FRAGMENT,
            ttl_protocol: [TTL, next],
            checksum: tunnel::ipv4_checksum(class, total, next, source, destination),
            source,
            destination,
        });
        at + IPV4
    } else {
        let ip: Header<Ipv6> = packet.at(at)?;
        let [version, a, b, c] = tunnel::ipv6_start(class, hash);
        ip.write(Ipv6 {
            version,
            flow: [a, b, c],
            payload_length: Be16::new(payload as u16),
            next_header: next,
            hop_limit: TTL,
            source: sources.v6(hash),
            destination: member.address,
        });
        at + IPV6
    };
    if is_gue {
        let udp: Header<Udp> = packet.at(after)?;
        let gue: Header<Gue> = packet.at(after + UDP)?;
        udp.write(Udp {
            source_port: tunnel::source_port(hash),
            destination_port: sources.gue_port,
            length: Be16::new(payload as u16),
            checksum: 0,
        });
        gue.write(Gue {
            version_length: 0,
            inner: kind,
            flags: 0,
        });
    }
    Some(())
}

/// Bytes of a UDP header.
const UDP: usize = 8;
