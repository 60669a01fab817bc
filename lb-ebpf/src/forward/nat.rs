//! Rewriting of addresses and ports, both ways, with the checksums they are
//! part of (RFC 1624; RFC 3022 §4.1).

use lb_common::{
    checksum::{Delta, apply_udp},
    counter::DropReason,
    net::{Addr, Be16},
};

use crate::{
    packet::{Header, Ipv4, Packet, Tcp, Udp},
    parse::Parsed,
};

/// Which end of the packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Of a packet to a backend.
    Destination,
    /// Of a reply.
    Source,
}

/// Puts `address` and `port` (zero keeps it) in the place of one end.
#[inline(always)]
pub fn rewrite(
    packet: &Packet,
    parsed: &Parsed,
    end: End,
    address: Addr,
    port: Be16,
) -> Result<(), DropReason> {
    let tuple = parsed.tuple();
    let (old_address, old_port) = match end {
        End::Destination => (tuple.destination, tuple.destination_port),
        End::Source => (tuple.source, tuple.source_port),
    };
    let port = port.or(old_port);

    // IPv6 has all of an address in the sum; the words that IPv4 leaves zero
    // change nothing.
    let addresses = Delta::NONE.replace128(old_address.0, address.0);
    if parsed.is_v4() {
        let ip = parsed.ipv4(packet).ok_or(DropReason::Malformed)?;
        match end {
            End::Destination => ip.set_destination(address.0[0]),
            End::Source => ip.set_source(address.0[0]),
        }
        ip.set_checksum(addresses.apply(ip.checksum()));
    } else {
        let ip = parsed.ipv6(packet).ok_or(DropReason::Malformed)?;
        match end {
            End::Destination => ip.set_destination(address),
            End::Source => ip.set_source(address),
        }
    }
    let delta = addresses.replace16(old_port.wire(), port.wire());
    if parsed.is_tcp() {
        let tcp: Header<Tcp> = packet.at(parsed.offset()).ok_or(DropReason::Malformed)?;
        match end {
            End::Destination => tcp.set_destination_port(port),
            End::Source => tcp.set_source_port(port),
        }
        tcp.set_checksum(delta.apply(tcp.checksum()));
    } else {
        let udp: Header<Udp> = packet.at(parsed.offset()).ok_or(DropReason::Malformed)?;
        match end {
            End::Destination => udp.set_destination_port(port),
            End::Source => udp.set_source_port(port),
        }
        udp.set_checksum(apply_udp(delta, udp.checksum()));
    }
    Ok(())
}

/// Uses up one routed hop of a packet that [`has_hop`].
#[inline(always)]
pub fn hop(packet: &Packet, parsed: &Parsed) {
    if parsed.is_v4() {
        if let Some(ip) = parsed.ipv4(packet) {
            hop_v4(ip);
        }
    } else if let Some(ip) = parsed.ipv6(packet) {
        ip.set_hop_limit(ip.hop_limit() - 1);
    }
}

#[inline(always)]
fn hop_v4(ip: Header<Ipv4>) {
    let [ttl, protocol] = ip.ttl_protocol();
    let new = [ttl - 1, protocol];
    let delta = Delta::NONE.replace16(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes(new));
    ip.set_ttl_protocol(new);
    ip.set_checksum(delta.apply(ip.checksum()));
}

/// Whether a hop is left.
#[inline(always)]
pub fn has_hop(packet: &Packet, parsed: &Parsed) -> bool {
    if parsed.is_v4() {
        parsed
            .ipv4(packet)
            .is_some_and(|ip| ip.ttl_protocol()[0] > 1)
    } else {
        parsed.ipv6(packet).is_some_and(|ip| ip.hop_limit() > 1)
    }
}
