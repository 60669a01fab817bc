//! Frames made by the harness are what they say, its checks can fail, and
//! etherparse, which shares nothing with them, agrees.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_tests::packet::{
    Mac, Packet, Rng, View, arp_reply, arp_request, assert_same_frame, diff, icmp_error,
    internet_checksum, neighbor_advertisement, neighbor_solicitation, protocol, solicited_node,
    tcp_flags, verify,
};

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// (source, destination) of both families.
fn families() -> [(SocketAddr, SocketAddr); 2] {
    [
        (at("192.0.2.1:40000"), at("198.51.100.2:80")),
        (at("[2001:db8::1]:40000"), at("[2001:db8:1::2]:80")),
    ]
}

/// One of everything that has right checksums, by name.
fn catalogue() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![];
    for (s, d) in families() {
        let v = if s.is_ipv4() { "v4" } else { "v6" };
        let tcp = || Packet::tcp(s, d).payload(*b"hello");
        let udp = || Packet::udp(s, d).payload(*b"odd");
        let mut add = |name: &str, p: Packet| all.push((format!("{name} {v}"), p.build()));
        add("tcp", tcp());
        add(
            "tcp syn with options",
            tcp().flags(tcp_flags::SYN).tcp_options(&[2, 4, 5, 0xb4]),
        );
        add("tcp vlan", tcp().vlan(5));
        add("tcp two tags", tcp().vlan(5).service_vlan(6));
        add("tcp padded", Packet::tcp(s, d).padding(6));
        add("udp", udp());
        add("udp empty", Packet::udp(s, d));
        add("udp tos ttl id", udp().tos(0xb8).ttl(3).id(7));
        add("first fragment", udp().fragment(0, true));
        add(
            "later fragment",
            Packet::udp(s, d).payload([7; 16]).fragment(1480, false),
        );
        add(
            "echo request",
            Packet::echo_request(s.ip(), d.ip(), 1, 2).payload([1; 56]),
        );
        add(
            "echo reply",
            Packet::echo_reply(s.ip(), d.ip(), 1, 2).payload([1; 56]),
        );
        add("other", Packet::other(s.ip(), d.ip(), 132).payload([9; 12]));
        let (kind, code) = if s.is_ipv4() { (3, 4) } else { (2, 0) };
        add(
            "icmp error",
            icmp_error(d.ip(), s.ip(), kind, code, [0, 0, 5, 0], &tcp().ip_packet()),
        );
        if s.is_ipv4() {
            add("tcp ip options", tcp().ip_options(&[1, 1, 1, 0]));
            add("tcp most ip options", tcp().ip_options(&[1; 40]));
            add("udp without checksum", udp().no_udp_checksum());
        } else {
            add("tcp hop by hop", tcp().hop_by_hop());
            add("udp three extensions", {
                let nothing = [0, 1, 4, 0, 0, 0, 0];
                udp()
                    .hop_by_hop()
                    .extension(protocol::DESTINATION, &nothing)
                    .fragment(0, true)
            });
        }
    }
    all
}

#[test]
fn everything_in_the_catalogue_verifies() {
    for (name, frame) in catalogue() {
        verify(&frame).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    }
}

#[test]
fn etherparse_reads_the_same_from_the_catalogue() {
    for (name, frame) in catalogue() {
        let theirs = SlicedPacket::from_ethernet(&frame).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ours = View::parse(&frame).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let (source, destination, ttl) = match theirs.net.as_ref() {
            Some(NetSlice::Ipv4(p)) => {
                let h = p.header();
                assert_eq!(
                    h.header_checksum(),
                    h.to_header().calc_header_checksum(),
                    "{name}"
                );
                (
                    IpAddr::V4(h.source_addr()),
                    IpAddr::V4(h.destination_addr()),
                    h.ttl(),
                )
            }
            Some(NetSlice::Ipv6(p)) => {
                let h = p.header();
                (
                    h.source_addr().into(),
                    h.destination_addr().into(),
                    h.hop_limit(),
                )
            }
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(ours.addresses(), Some((source, destination)), "{name}");
        assert_eq!(ours.ttl, ttl, "{name}");
        let vlans: Vec<u16> = theirs.vlan_ids().iter().map(|v| v.value()).collect();
        assert_eq!(ours.vlans, vlans, "{name}");
        if ours.fragment.is_some() {
            continue;
        }
        match (theirs.transport.as_ref(), source, destination) {
            (Some(TransportSlice::Tcp(t)), s, d) => {
                assert_eq!(ours.source(), Some((s, t.source_port()).into()), "{name}");
                assert_eq!(
                    ours.destination(),
                    Some((d, t.destination_port()).into()),
                    "{name}"
                );
                assert_eq!(ours.payload(), t.payload(), "{name}");
                let sum = match (s, d) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => t.calc_checksum_ipv4(s.octets(), d.octets()),
                    (IpAddr::V6(s), IpAddr::V6(d)) => t.calc_checksum_ipv6(s.octets(), d.octets()),
                    _ => panic!("{name}: two families"),
                };
                assert_eq!(sum.expect("short enough"), t.checksum(), "{name}");
            }
            (Some(TransportSlice::Udp(u)), s, d) => {
                assert_eq!(ours.source(), Some((s, u.source_port()).into()), "{name}");
                assert_eq!(ours.payload(), u.payload(), "{name}");
                let header = u.to_header();
                let sum = match (s, d) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => {
                        header.calc_checksum_ipv4_raw(s.octets(), d.octets(), u.payload())
                    }
                    (IpAddr::V6(s), IpAddr::V6(d)) => {
                        header.calc_checksum_ipv6_raw(s.octets(), d.octets(), u.payload())
                    }
                    _ => panic!("{name}: two families"),
                };
                if u.checksum() != 0 {
                    assert_eq!(sum.expect("short enough"), u.checksum(), "{name}");
                }
            }
            (Some(TransportSlice::Icmpv4(i)), ..) => {
                assert_eq!(ours.protocol, protocol::ICMP, "{name}");
                assert_eq!(ours.payload(), i.payload(), "{name}");
            }
            (Some(TransportSlice::Icmpv6(i)), IpAddr::V6(s), IpAddr::V6(d)) => {
                assert_eq!(ours.payload(), i.payload(), "{name}");
                assert!(i.is_checksum_valid(s.octets(), d.octets()), "{name}");
            }
            (None, ..) => assert!(name.starts_with("other"), "{name}"),
            (other, ..) => panic!("{name}: {other:?}"),
        }
    }
}

/// RFC 1071 §3's own example.
#[test]
fn the_checksum_is_that_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(internet_checksum(&[&bytes]), !0xddf2);
    assert_eq!(internet_checksum(&[&bytes[..4], &bytes[4..]]), !0xddf2);
    assert_eq!(internet_checksum(&[&[0xff]]), 0x00ff);
}

#[test]
fn a_wrong_checksum_is_made_and_found() {
    for (s, d) in families() {
        for packet in [
            Packet::tcp(s, d).bad_layer4_checksum(),
            Packet::udp(s, d).bad_layer4_checksum(),
            Packet::echo_request(s.ip(), d.ip(), 1, 1).bad_layer4_checksum(),
        ] {
            let error = verify(&packet.build())
                .expect_err("wrong checksum")
                .to_string();
            assert!(error.contains("checksum is wrong"), "{error}");
        }
    }
    let [(s, d), _] = families();
    let error = verify(&Packet::tcp(s, d).bad_ip_checksum().build()).expect_err("wrong checksum");
    assert!(
        error.to_string().contains("IPv4 header checksum is wrong"),
        "{error}"
    );
    let inner = Packet::tcp(s, d).bad_ip_checksum().ip_packet();
    let error = verify(&icmp_error(d.ip(), s.ip(), 3, 1, [0; 4], &inner).build());
    let error = error.expect_err("wrong inner checksum").to_string();
    assert!(error.contains("inner IPv4 header"), "{error}");
}

#[test]
fn no_udp_checksum_is_an_error_over_ipv6_alone() {
    let [v4, v6] = families().map(|(s, d)| Packet::udp(s, d).no_udp_checksum().build());
    verify(&v4).expect("RFC 768 allows it");
    verify(&v6).expect_err("RFC 8200 §8.1 forbids it");
}

#[test]
fn every_flipped_bit_of_an_ipv4_packet_is_found() {
    let [(s, d), _] = families();
    let frame = Packet::tcp(s, d).payload(*b"hello").build();
    for bit in 14 * 8..frame.len() * 8 {
        let mut flipped = frame.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(
            verify(&flipped).is_err(),
            "bit {} of byte {}",
            bit % 8,
            bit / 8
        );
    }
}

#[test]
fn a_frame_cut_anywhere_is_an_error_and_no_panic() {
    for (name, frame) in catalogue() {
        let padding = if name.contains("padded") { 6 } else { 0 };
        for length in 0..frame.len() - padding {
            assert!(
                verify(&frame[..length]).is_err(),
                "{name} cut to {length} bytes"
            );
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut rng = Rng::new(1);
    for (_, frame) in catalogue() {
        for _ in 0..2_000 {
            let mut frame = frame.clone();
            for _ in 0..3 {
                let r = rng.next_u64();
                let at = usize::try_from(r >> 8).expect("64 bits") % frame.len();
                frame[at] = r.to_le_bytes()[0];
            }
            let _ = verify(&frame);
            let _ = diff(&frame, b"");
        }
    }
}

#[test]
fn truncation_keeps_the_first_bytes() {
    let [(s, d), _] = families();
    let packet = Packet::tcp(s, d);
    assert_eq!(packet.build_truncated(20), packet.build()[..20]);
    assert_eq!(packet.build_truncated(1_000), packet.build());
}

#[test]
fn the_difference_names_the_field() {
    let [(s, d), _] = families();
    let packet = Packet::tcp(s, d).vlan(3);
    assert_eq!(diff(&packet.build(), &packet.build()), None);
    let ttl = diff(&packet.build(), &packet.clone().ttl(63).build()).expect("they differ");
    assert!(ttl.contains("IPv4 TTL: expected 40, got 3f"), "{ttl}");
    assert!(ttl.contains("IPv4 checksum"), "{ttl}");
    assert!(!ttl.contains("TCP checksum"), "{ttl}");
    let longer = diff(&packet.build(), &packet.padding(2).build()).expect("they differ");
    assert!(
        longer.contains("beyond the end: expected nothing, got 0000"),
        "{longer}"
    );
}

#[test]
#[should_panic(expected = "what it was: frames differ")]
fn comparing_different_frames_panics() {
    assert_same_frame("what it was", &[1, 2], &[1, 3]);
}

/// Bytes as tcpdump shows them for `arping` and RFC 826.
#[test]
fn arp_has_the_known_bytes() {
    let (a, b) = (Mac([2, 0, 0, 0, 0, 0xa]), Mac([2, 0, 0, 0, 0, 0xb]));
    let request = arp_request(a, [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let bytes = [
        255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 0xa, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0,
        0, 0xa, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
    ];
    assert_same_frame("request", &bytes, &request);
    let reply = arp_reply(b, [10, 0, 0, 2].into(), a, [10, 0, 0, 1].into());
    let bytes = [
        2, 0, 0, 0, 0, 0xa, 2, 0, 0, 0, 0, 0xb, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 0xb,
        10, 0, 0, 2, 2, 0, 0, 0, 0, 0xa, 10, 0, 0, 1,
    ];
    assert_same_frame("reply", &bytes, &reply);
}

/// RFC 4291 §2.7.1's example, and RFC 4861 §4.3 and §7.1.1.
#[test]
fn neighbour_discovery_is_valid() {
    let (group, mac) = solicited_node("4037::1:800:200e:8c6c".parse().expect("an address"));
    assert_eq!(IpAddr::V6(group), ip("ff02::1:ff0e:8c6c"));
    assert_eq!(mac.to_string(), "33:33:ff:0e:8c:6c");
    let me = (
        Mac([2, 0, 0, 0, 0, 1]),
        "fe80::1".parse().expect("an address"),
    );
    let target = "2001:db8::5".parse().expect("an address");
    let solicitation = neighbor_solicitation(me.0, me.1, target);
    let advertisement = neighbor_advertisement(me.0, target, me, target, 0x60);
    let probe = neighbor_solicitation(me.0, std::net::Ipv6Addr::UNSPECIFIED, target);
    for (frame, kind, length) in [
        (&solicitation, 135, 32),
        (&advertisement, 136, 32),
        (&probe, 135, 24),
    ] {
        verify(frame).expect("right checksums");
        let view = View::parse(frame).expect("a frame");
        assert_eq!((view.ttl, view.protocol), (255, protocol::ICMPV6));
        assert_eq!((view.layer4()[0], view.layer4().len()), (kind, length));
    }
}
