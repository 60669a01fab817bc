//! Frames that tell a segment who has an address: gratuitous ARP (RFC 5227 §3)
//! and unsolicited neighbour advertisements (RFC 4861 §7.2.6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{self, ETHER_ARP, ETHER_IPV6, Mac, ethernet};

pub(super) const BROADCAST: Mac = [0xff; 6];
/// Of ff02::1 (RFC 2464 §7).
const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(super) const ICMPV6: u8 = 58;
/// Override and router: this host forwards (RFC 4861 §4.4).
const NA_FLAGS: u8 = 0xa0;

/// The frame that tells that `address` is at `mac`.
pub fn frame(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(address, mac),
        IpAddr::V6(address) => unsolicited_na(address, mac),
    }
}

/// A request for one's own address (RFC 9568 §6.4.2 step (385), RFC 5227 §2.3).
fn gratuitous_arp(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHER_ARP);
    // Ethernet, IPv4, lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn unsolicited_na(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    // Type, code, checksum, flags, reserved, target, its link-layer address.
    let mut message = vec![136, 0, 0, 0, NA_FLAGS, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let sum = checksum(address, ALL_NODES_V6, &message).to_be_bytes();
    message.splice(2..4, sum);

    let mut frame = ethernet(ALL_NODES, mac, ETHER_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES_V6.octets());
    frame.extend(message);
    frame
}

/// Of ICMPv6 (RFC 4443 §2.3).
pub(super) fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &[0, 0, 0, message.len() as u8, 0, 0, 0, ICMPV6],
        message,
    ]
    .concat();
    packet::checksum(&pseudo)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn arp_asks_for_its_own_address() {
        let frame = frame([192, 0, 2, 10].into(), MAC);
        assert_eq!(frame.len(), 42);
        assert_eq!(
            frame[..14],
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6]
        );
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], [192, 0, 2, 10]);
        assert_eq!(frame[38..42], [192, 0, 2, 10]);
    }

    #[test]
    fn an_advertisement_is_whole() {
        let address: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = frame(address.into(), MAC);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let message = &frame[54..];
        assert_eq!((message[0], message[4]), (136, 0xa0));
        assert_eq!(message[8..24], address.octets());
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
        // With the right checksum in it the sum is zero.
        assert_eq!(checksum(address, ALL_NODES_V6, message), 0);
    }
}
