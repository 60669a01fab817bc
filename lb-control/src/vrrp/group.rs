//! Advertisements to the group as whole frames, for the sake of their source's MAC
//! address, which a raw IP socket doesn't let one choose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    codec::{Ends, PROTOCOL, TTL},
    packet::{ETHER_IPV4, ETHER_IPV6, Mac, checksum, ethernet},
    socket::TRAFFIC_CLASS,
};

const IPV4_BYTES: usize = 20;

/// The frame with a VRRP message to a group. `None` if its destination is none, or
/// the ends are of two families.
pub fn frame(message: &[u8], ends: &Ends, from: Mac) -> Option<Vec<u8>> {
    if !ends.destination.is_multicast() {
        return None;
    }
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(group)) => v4(message, source, group, from),
        (IpAddr::V6(source), IpAddr::V6(group)) => v6(message, source, group, from),
        _ => None,
    }
}

/// RFC 791 §3.1, not to be fragmented, and so without an identification (RFC 6864
/// §4.1). The group's MAC address is that of RFC 1112 §6.4.
fn v4(message: &[u8], source: Ipv4Addr, group: Ipv4Addr, from: Mac) -> Option<Vec<u8>> {
    let length = u16::try_from(IPV4_BYTES + message.len()).ok()?;
    let [high, low] = length.to_be_bytes();
    let mut header = vec![
        0x45,
        TRAFFIC_CLASS,
        high,
        low,
        0,
        0,
        0x40,
        0,
        TTL,
        PROTOCOL,
        0,
        0,
    ];
    header.extend(source.octets());
    header.extend(group.octets());
    let sum = checksum(&header).to_be_bytes();
    header.splice(10..12, sum);
    let [_, b, c, d] = group.octets();
    let frame = ethernet([1, 0, 0x5e, b & 0x7f, c, d], from, ETHER_IPV4);
    Some([frame, header, message.to_vec()].concat())
}

/// RFC 8200 §3; the group's MAC address is that of RFC 2464 §7.
fn v6(message: &[u8], source: Ipv6Addr, group: Ipv6Addr, from: Mac) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(message.len()).ok()?.to_be_bytes();
    let mut header = vec![
        0x60 | TRAFFIC_CLASS >> 4,
        TRAFFIC_CLASS << 4,
        0,
        0,
        high,
        low,
        PROTOCOL,
        TTL,
    ];
    header.extend(source.octets());
    header.extend(group.octets());
    let [.., a, b, c, d] = group.octets();
    let frame = ethernet([0x33, 0x33, a, b, c, d], from, ETHER_IPV6);
    Some([frame, header, message.to_vec()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vrrp::codec::{GROUP_V4, GROUP_V6};

    const FROM: Mac = [0, 0, 0x5e, 0, 1, 51];

    fn ends(source: &str, destination: impl Into<IpAddr>) -> Ends {
        Ends {
            source: source.parse().unwrap(),
            destination: destination.into(),
        }
    }

    #[test]
    fn over_ipv4_it_is_a_datagram_with_a_right_checksum() {
        let frame = frame(b"abcde", &ends("192.0.2.1", GROUP_V4), FROM).unwrap();
        assert_eq!(
            frame[..14],
            [1, 0, 0x5e, 0, 0, 0x12, 0, 0, 0x5e, 0, 1, 51, 8, 0]
        );
        let header = &frame[14..34];
        assert_eq!(header[..4], [0x45, 0xc0, 0, 25]);
        assert_eq!(header[8..10], [255, 112]);
        assert_eq!(header[12..], [192, 0, 2, 1, 224, 0, 0, 18]);
        // With the right checksum in it the sum is zero.
        assert_eq!(checksum(header), 0);
        assert_eq!(&frame[34..], b"abcde");
    }

    #[test]
    fn over_ipv6_it_is_a_packet() {
        let frame = frame(b"abcde", &ends("fe80::1", GROUP_V6), FROM).unwrap();
        assert_eq!(
            frame[..14],
            [0x33, 0x33, 0, 0, 0, 0x12, 0, 0, 0x5e, 0, 1, 51, 0x86, 0xdd]
        );
        assert_eq!(frame[14..22], [0x6c, 0, 0, 0, 0, 5, 112, 255]);
        assert_eq!(
            frame[22..38],
            "fe80::1".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(frame[38..54], GROUP_V6.octets());
        assert_eq!(&frame[54..], b"abcde");
    }

    #[test]
    fn what_goes_to_one_node_is_none() {
        let peer: IpAddr = "192.0.2.2".parse().unwrap();
        assert_eq!(frame(b"abcde", &ends("192.0.2.1", peer), FROM), None);
        assert_eq!(frame(b"abcde", &ends("fe80::1", GROUP_V4), FROM), None);
    }
}
