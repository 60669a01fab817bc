//! Checksums the slow and obvious way (RFC 1071 §4.1), for checking others.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};

use super::{View, protocol};

/// The Internet checksum over the parts one after the other; every part but
/// the last has an even length.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for word in part.chunks(2) {
            let low = word.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([word[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

/// The checksum of a layer-4 message, with the pseudo-header of its protocol.
pub(super) fn layer4(source: IpAddr, destination: IpAddr, number: u8, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let pseudo = match (source, destination) {
        _ if number == protocol::ICMP => vec![],
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut p = [s.octets(), d.octets()].concat();
            p.extend([0, number]);
            p.extend(&length.to_be_bytes()[2..]);
            p
        }
        (s, d) => {
            let bytes = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let mut p = [bytes(s), bytes(d)].concat();
            p.extend(length.to_be_bytes());
            p.extend([0, 0, 0, number]);
            p
        }
    };
    internet_checksum(&[&pseudo, message])
}

/// Checks lengths and every checksum of a frame: IPv4 header; TCP, UDP, ICMP
/// and ICMPv6 unless it is a fragment; and the header of an IPv4 packet inside
/// an ICMP error. The error says what is wrong.
pub fn verify(frame: &[u8]) -> Result<()> {
    let view = View::parse(frame)?;
    let Some((source, destination)) = view.addresses() else {
        return Ok(());
    };
    if source.is_ipv4() {
        ipv4_header(view.ip_header(), "IPv4")?;
    }
    if view.fragment.is_some() {
        return Ok(());
    }
    let message = view.layer4();
    let name = match view.protocol {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::ICMP => "ICMP",
        protocol::ICMPV6 => "ICMPv6",
        _ => return Ok(()),
    };
    let shortest = if view.protocol == protocol::TCP {
        20
    } else {
        8
    };
    ensure!(
        message.len() >= shortest,
        "{name} message of {} bytes",
        message.len()
    );
    if view.protocol == protocol::UDP {
        let length = usize::from(u16::from_be_bytes([message[4], message[5]]));
        ensure!(
            length == message.len(),
            "UDP length {length}, {} bytes there",
            message.len()
        );
        if message[6..8] == [0, 0] {
            ensure!(source.is_ipv4(), "UDP over IPv6 without a checksum");
            return Ok(());
        }
    }
    let sum = layer4(source, destination, view.protocol, message);
    if sum != 0 {
        bail!("{name} checksum is wrong: what should sum to 0 gives {sum:#06x}");
    }
    let is_error = match view.protocol {
        protocol::ICMP => matches!(message[0], 3..=5 | 11 | 12),
        protocol::ICMPV6 => message[0] < 128,
        _ => false,
    };
    match message.get(8..) {
        Some(inner) if is_error && inner.len() >= 20 && inner[0] >> 4 == 4 => {
            ipv4_header(inner, "inner IPv4")
        }
        _ => Ok(()),
    }
}

fn ipv4_header(packet: &[u8], name: &str) -> Result<()> {
    let length = usize::from(packet[0] & 0xf) * 4;
    ensure!(
        length >= 20 && packet.len() >= length,
        "{name} header length {length}"
    );
    let sum = internet_checksum(&[&packet[..length]]);
    ensure!(
        sum == 0,
        "{name} header checksum is wrong: what should sum to 0 gives {sum:#06x}"
    );
    Ok(())
}
