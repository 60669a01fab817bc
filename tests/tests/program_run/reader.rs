//! ICMP errors as etherparse reads them, which shares nothing with the harness's
//! own builder: who gets them, which MTU they tell, what they quote, and whether
//! every checksum is right, also those inside.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice,
    checksum::Sum16BitWords, icmpv4::DestUnreachableHeader,
};

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub from: IpAddr,
    pub to: IpAddr,
    /// Where it is about a packet that is too long.
    pub mtu: Option<u32>,
    /// Ends of the packet that it is about.
    pub about: (SocketAddr, SocketAddr),
}

/// Reads an error and checks its checksums; that of the quoted TCP or UDP packet
/// where all of it is quoted.
#[track_caller]
pub fn read(what: &str, frame: &[u8]) -> Said {
    let packet = SlicedPacket::from_ethernet(frame).unwrap_or_else(|e| panic!("{what}: {e}"));
    match (packet.net, packet.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header().to_header();
            let sum = header.calc_header_checksum();
            assert_eq!(header.header_checksum, sum, "{what}: IPv4");
            let sum = Sum16BitWords::new().add_slice(icmp.slice());
            assert_eq!(sum.ones_complement(), 0, "{what}: ICMP");
            let mtu = match icmp.icmp_type() {
                Icmpv4Type::DestinationUnreachable(
                    DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
                ) => Some(next_hop_mtu.into()),
                _ => None,
            };
            Said {
                from: header.source.into(),
                to: header.destination.into(),
                mtu,
                about: quoted(what, icmp.payload()),
            }
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header().to_header();
            let is_right = icmp.is_checksum_valid(header.source, header.destination);
            assert!(is_right, "{what}: ICMPv6");
            let mtu = match icmp.icmp_type() {
                Icmpv6Type::PacketTooBig { mtu } => Some(mtu),
                _ => None,
            };
            Said {
                from: header.source.into(),
                to: header.destination.into(),
                mtu,
                about: quoted(what, icmp.payload()),
            }
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[track_caller]
fn quoted(what: &str, quote: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = LaxSlicedPacket::from_ip(quote).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (source, destination, is_whole): (IpAddr, IpAddr, bool) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            let sum = header.calc_header_checksum();
            assert_eq!(header.header_checksum, sum, "{what}: quoted IPv4");
            (
                header.source.into(),
                header.destination.into(),
                !ip.payload().incomplete && !ip.payload().fragmented,
            )
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            (
                header.source.into(),
                header.destination.into(),
                !ip.payload().incomplete && !ip.payload().fragmented,
            )
        }
        other => panic!("{what}: quoted {other:?}"),
    };
    let (ports, sums) = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => tcp.calc_checksum_ipv4(s.octets(), d.octets()),
                (IpAddr::V6(s), IpAddr::V6(d)) => tcp.calc_checksum_ipv6(s.octets(), d.octets()),
                _ => panic!("{what}: two families"),
            };
            let sum = sum.expect("short enough");
            let ports = (tcp.source_port(), tcp.destination_port());
            (ports, (tcp.checksum(), sum))
        }
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let body = udp.payload();
            let sum = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => {
                    header.calc_checksum_ipv4_raw(s.octets(), d.octets(), body)
                }
                (IpAddr::V6(s), IpAddr::V6(d)) => {
                    header.calc_checksum_ipv6_raw(s.octets(), d.octets(), body)
                }
                _ => panic!("{what}: two families"),
            };
            let sum = sum.expect("short enough");
            let ports = (udp.source_port(), udp.destination_port());
            (ports, (udp.checksum(), sum))
        }
        // etherparse looks into no fragments.
        None => {
            let upper = packet.ip_payload().map_or(&[][..], |p| p.payload);
            let &[a, b, c, d, ..] = upper else {
                panic!("{what}: no ports are quoted")
            };
            assert!(!is_whole, "{what}: no fragment");
            let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            (ports, (0, 0))
        }
        other => panic!("{what}: quoted {other:?}"),
    };
    if is_whole {
        assert_eq!(sums.0, sums.1, "{what}: quoted layer 4");
    }
    ((source, ports.0).into(), (destination, ports.1).into())
}
