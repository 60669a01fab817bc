//! Outer headers of tunnels: IP in IP (RFC 2003, RFC 2473 §3, RFC 4213 §3.5)
//! and Generic UDP Encapsulation (draft-ietf-intarea-gue, variant 0).
//!
//! The outer source, the UDP source port and the flow label differ from flow to
//! flow, so that a backend's network card spreads flows over its queues though
//! all of them come from one balancer.

use crate::{
    abi::{Tunnel, method},
    checksum::fold,
    net::{Addr, Be16, family, protocol},
};

/// TTL and hop limit of outer packets.
pub const TTL: u8 = 64;

/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Bytes of UDP's and GUE's headers.
pub const UDP_GUE: usize = 12;

/// Don't fragment, and no fragment (RFC 791 §3.1).
pub const DONT_FRAGMENT: Be16 = Be16::new(0x4000);

/// Whether a member's packets get outer headers.
#[inline(always)]
pub const fn is_tunnel(member_method: u8) -> bool {
    member_method >= method::IPIP
}

/// Bytes that a tunnel puts before a packet.
#[inline(always)]
pub const fn overhead(member_method: u8, outer_family: u8) -> usize {
    let ip = if outer_family == family::V4 {
        IPV4
    } else {
        IPV6
    };
    if member_method == method::GUE {
        ip + UDP_GUE
    } else {
        ip
    }
}

/// Zero if a packet of `bytes` fits into a tunnel that may use `mtu` bytes
/// (zero: not known, so it is tried); else the length that does.
#[inline(always)]
pub const fn fitting(bytes: u32, overhead: usize, mtu: u16) -> u16 {
    if mtu == 0 || bytes + overhead as u32 <= mtu as u32 {
        0
    } else {
        mtu.saturating_sub(overhead as u16)
    }
}

/// Protocol number of the inner packet, in the outer IP header or in GUE's.
#[inline(always)]
pub const fn inner_protocol(inner_family: u8) -> u8 {
    if inner_family == family::V4 {
        protocol::IPIP
    } else {
        protocol::IPV6
    }
}

impl Tunnel {
    /// The outer IPv4 source of a flow, network byte order.
    #[inline(always)]
    pub const fn v4(&self, hash: u32) -> u32 {
        self.source_v4 | hash & self.host_v4
    }

    /// The outer IPv6 source of a flow.
    #[inline(always)]
    pub const fn v6(&self, hash: u32) -> Addr {
        let [a, b, c, d] = self.source_v6.0;
        let [upper, lower] = self.host_v6;
        Addr([a, b, c | hash.rotate_left(16) & upper, d | hash & lower])
    }
}

/// The UDP source port of a flow: one of the dynamic ports from 32768 on.
#[inline(always)]
pub const fn source_port(hash: u32) -> Be16 {
    Be16::new(0x8000 | (hash >> 17) as u16)
}

/// The first four bytes of an IPv6 header (RFC 8200 §3): version, traffic
/// class, and the flow's label from its hash (RFC 6438).
#[inline(always)]
pub const fn ipv6_start(traffic_class: u8, hash: u32) -> [u8; 4] {
    (6 << 28 | (traffic_class as u32) << 20 | hash & 0xf_ffff).to_be_bytes()
}

/// The checksum of an outer IPv4 header: no options, identification zero (RFC
/// 6864 §4.1: nothing fragments it), [`DONT_FRAGMENT`], [`TTL`]; addresses in
/// network byte order.
#[inline(always)]
pub const fn ipv4_checksum(
    tos: u8,
    total: Be16,
    protocol: u8,
    source: u32,
    destination: u32,
) -> u16 {
    let sum = u16::from_ne_bytes([0x45, tos]) as u32
        + total.wire() as u32
        + DONT_FRAGMENT.wire() as u32
        + u16::from_ne_bytes([TTL, protocol]) as u32
        + (source & 0xffff)
        + (source >> 16)
        + (destination & 0xffff)
        + (destination >> 16);
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;

    fn tunnel(v4: &str, v4_bits: u32, v6: &str, v6_bits: u32) -> Tunnel {
        let v4: Ipv4Addr = v4.parse().unwrap();
        let v6: Ipv6Addr = v6.parse().unwrap();
        let host = (1u64 << (128 - v6_bits)).wrapping_sub(1).to_be_bytes();
        let [a, b, c, d, e, f, g, h] = host;
        Tunnel {
            source_v4: u32::from_ne_bytes(v4.octets()),
            host_v4: ((1u64 << (32 - v4_bits)) as u32).wrapping_sub(1).to_be(),
            source_v6: Addr::from_bytes(v6.octets()),
            host_v6: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
            ],
            gue_port: Be16::new(6080),
            reserved: [0; 3],
        }
    }

    #[test]
    fn the_hash_fills_in_the_host_bits_and_no_other() {
        let t = tunnel("198.18.0.0", 16, "100::", 68);
        let (mut v4, mut v6) = (HashSet::new(), HashSet::new());
        for n in 0..1000u32 {
            let hash = n.wrapping_mul(0x9e37_79b9);
            let IpAddr::V4(one) = Addr::v4(t.v4(hash)).to_ip(family::V4) else {
                unreachable!()
            };
            let IpAddr::V6(other) = t.v6(hash).to_ip(family::V6) else {
                unreachable!()
            };
            assert_eq!(one.octets()[..2], [198, 18]);
            assert_eq!(other.segments()[..4], [0x100, 0, 0, 0]);
            assert_eq!(other.segments()[4] >> 12, 0);
            v4.insert(one);
            v6.insert(other);
        }
        assert!(
            v4.len() > 950 && v6.len() > 990,
            "{} {}",
            v4.len(),
            v6.len()
        );
    }

    #[test]
    fn a_whole_address_is_one_fixed_source() {
        let t = tunnel("192.0.2.1", 32, "2001:db8::1", 128);
        for hash in [0, 1, 0x1234_5678, u32::MAX] {
            assert_eq!(Addr::v4(t.v4(hash)).to_ip(4).to_string(), "192.0.2.1");
            assert_eq!(t.v6(hash).to_ip(6).to_string(), "2001:db8::1");
        }
    }

    #[test]
    fn source_ports_are_dynamic_ones() {
        for hash in [0, 1, 1 << 17, 0xffff_ffff, 0x8000_0000] {
            assert!(source_port(hash).get() >= 32_768);
        }
        assert_eq!(source_port(u32::MAX).get(), 65_535);
    }

    #[test]
    fn overheads_are_those_of_the_headers() {
        let of = |m| [overhead(m, family::V4), overhead(m, family::V6)];
        assert_eq!(of(method::IPIP), [20, 40]);
        assert_eq!(of(method::GUE), [32, 52]);
    }

    #[test]
    fn what_does_not_fit_is_told_what_does() {
        assert_eq!(fitting(1480, 20, 1500), 0);
        assert_eq!(fitting(1481, 20, 1500), 1480);
        assert_eq!(fitting(65_535, 52, 1500), 1448);
        assert_eq!(fitting(65_535, 52, 0), 0, "an unknown MTU");
    }

    #[test]
    fn an_ipv6_header_starts_with_version_class_and_label() {
        assert_eq!(ipv6_start(0xb9, 0xfff1_2345), [0x6b, 0x91, 0x23, 0x45]);
    }

    #[test]
    fn the_ipv4_checksum_makes_the_header_sum_up_to_ones() {
        for (tos, total, source) in [(0, 20, [198, 18, 0, 0]), (0xb9, 1500, [255; 4])] {
            let source = u32::from_ne_bytes(source);
            let destination = u32::from_ne_bytes([10, 1, 0, 11]);
            let check = ipv4_checksum(tos, Be16::new(total), 4, source, destination);
            let [a, b] = total.to_be_bytes();
            let mut header = std::vec![0x45, tos, a, b, 0, 0, 0x40, 0, 64, 4];
            header.extend(check.to_ne_bytes());
            header.extend(source.to_ne_bytes());
            header.extend(destination.to_ne_bytes());
            let mut sum: u32 = header
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff);
        }
    }
}
