//! ARP (RFC 826) and neighbour discovery (RFC 4861 §4.3, §4.4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Mac, Packet, ethertype};

fn arp(
    operation: u16,
    ethernet: (Mac, Mac),
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> Vec<u8> {
    let mut out = [ethernet.1.0, ethernet.0.0].concat();
    out.extend(ethertype::ARP.to_be_bytes());
    out.extend([0, 1, 8, 0, 6, 4]);
    out.extend(operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        out.extend(mac.0);
        out.extend(ip.octets());
    }
    out
}

/// "Who has `target`?", broadcast. With an unspecified sender address, a probe
/// (RFC 5227 §2.1.1).
pub fn arp_request(sender_mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(
        1,
        (sender_mac, Mac::BROADCAST),
        (sender_mac, sender),
        (Mac::default(), target),
    )
}

/// "`sender` is at `sender_mac`", to the asker.
pub fn arp_reply(sender_mac: Mac, sender: Ipv4Addr, asker_mac: Mac, asker: Ipv4Addr) -> Vec<u8> {
    arp(
        2,
        (sender_mac, asker_mac),
        (sender_mac, sender),
        (asker_mac, asker),
    )
}

/// The solicited-node multicast address of an address, and its MAC
/// (RFC 4291 §2.7.1, RFC 2464 §7).
pub fn solicited_node(target: Ipv6Addr) -> (Ipv6Addr, Mac) {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from(b) << 8 | u16::from(c),
    );
    (group, Mac([0x33, 0x33, 0xff, a, b, c]))
}

/// "Who has `target`?", to its solicited-node group. With an unspecified
/// source a duplicate address detection probe, without the option.
pub fn neighbor_solicitation(source_mac: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let (group, group_mac) = solicited_node(target);
    let mut body = target.octets().to_vec();
    if !source.is_unspecified() {
        body.extend([1, 1]);
        body.extend(source_mac.0);
    }
    message(135, [0; 4], (source_mac, source), (group_mac, group), body)
}

/// "`target` is at `source_mac`". `flags` is the first byte of the flags:
/// 0x80 router, 0x40 solicited, 0x20 override.
pub fn neighbor_advertisement(
    source_mac: Mac,
    source: Ipv6Addr,
    to: (Mac, Ipv6Addr),
    target: Ipv6Addr,
    flags: u8,
) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    body.extend([2, 1]);
    body.extend(source_mac.0);
    message(136, [flags, 0, 0, 0], (source_mac, source), to, body)
}

fn message(
    kind: u8,
    rest: [u8; 4],
    from: (Mac, Ipv6Addr),
    to: (Mac, Ipv6Addr),
    body: Vec<u8>,
) -> Vec<u8> {
    Packet::icmp(IpAddr::V6(from.1), IpAddr::V6(to.1), kind, 0, rest)
        .macs(from.0, to.0)
        .ttl(255)
        .payload(body)
        .build()
}
