//! Rewriting of addresses and ports, both ways, with the checksums they are
//! part of (RFC 1624; RFC 3022 §4.1).

use lb_common::{
    checksum::{Delta, apply_udp},
    net::{Addr, Be16},
};

use crate::{
    packet::{Header, Ipv4},
    parse::{Ip, Segment, Transport},
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
pub fn rewrite(segment: &Segment, end: End, address: Addr, port: Be16) {
    let tuple = &segment.tuple;
    let (old_address, old_port) = match end {
        End::Destination => (tuple.destination, tuple.destination_port),
        End::Source => (tuple.source, tuple.source_port),
    };
    let port = if port.is_zero() { old_port } else { port };

    let addresses = match segment.ip {
        Ip::V4(ip) => {
            let delta = Delta::NONE.replace32(old_address.0[0], address.0[0]);
            match end {
                End::Destination => ip.set_destination(address.0[0]),
                End::Source => ip.set_source(address.0[0]),
            }
            ip.set_checksum(delta.apply(ip.checksum()));
            delta
        }
        Ip::V6(ip) => {
            match end {
                End::Destination => ip.set_destination(address),
                End::Source => ip.set_source(address),
            }
            Delta::NONE.replace128(old_address.0, address.0)
        }
    };
    let delta = addresses.replace16(old_port.wire(), port.wire());
    match segment.transport {
        Transport::Tcp(tcp) => {
            match end {
                End::Destination => tcp.set_destination_port(port),
                End::Source => tcp.set_source_port(port),
            }
            tcp.set_checksum(delta.apply(tcp.checksum()));
        }
        Transport::Udp(udp) => {
            match end {
                End::Destination => udp.set_destination_port(port),
                End::Source => udp.set_source_port(port),
            }
            udp.set_checksum(apply_udp(delta, udp.checksum()));
        }
    }
}

/// Uses up one routed hop; `false` if there was none left.
#[inline(always)]
pub fn hop(ip: Ip) -> bool {
    match ip {
        Ip::V4(ip) => hop_v4(ip),
        Ip::V6(ip) => {
            let left = ip.hop_limit();
            if left > 1 {
                ip.set_hop_limit(left - 1);
            }
            left > 1
        }
    }
}

#[inline(always)]
fn hop_v4(ip: Header<Ipv4>) -> bool {
    let [ttl, protocol] = ip.ttl_protocol();
    if ttl <= 1 {
        return false;
    }
    let new = [ttl - 1, protocol];
    let delta = Delta::NONE.replace16(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes(new));
    ip.set_ttl_protocol(new);
    ip.set_checksum(delta.apply(ip.checksum()));
    true
}

/// Whether a hop is left, without using it up.
#[inline(always)]
pub fn has_hop(ip: Ip) -> bool {
    match ip {
        Ip::V4(ip) => ip.ttl_protocol()[0] > 1,
        Ip::V6(ip) => ip.hop_limit() > 1,
    }
}
