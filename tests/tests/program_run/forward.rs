//! Packets of clients on their way to a backend, byte by byte.

use anyhow::Result;
use lb_common::abi::{MemberStats, method};
use lb_tests::{
    packet::{Packet, View, assert_same_frame, internet_checksum, protocol, tcp_flags, verify},
    program::action,
};

use crate::lab::{Backend, Case, Lab, OTHER_LINK, OTHER_MAC, OWN_MAC, Spec, at, backend_mac};

/// What the layer-4 checksum misses to be right, as one's complement.
fn residue(frame: &[u8]) -> u16 {
    let view = View::parse(frame).expect("a frame that can be taken apart");
    let (source, destination) = view.addresses().expect("IP");
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(view.layer4().len()).expect("short");
    let [a, b] = length.to_be_bytes();
    let rest = [0, view.protocol, a, b];
    internet_checksum(&[&octets(source), &octets(destination), &rest, view.layer4()])
}

#[test]
fn every_method_family_and_protocol_is_forwarded_byte_exact() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let packet = case.packet();
        let frame = packet.build();
        lab.bounces(&format!("{case:?}"), &frame, &case.forwarded(&packet));
        let stats = lab.program.stats(service.members[0])?;
        let expected = MemberStats {
            packets: 1,
            bytes: frame.len() as u64,
            ..MemberStats::default()
        };
        assert_eq!(stats, expected, "{case:?}");
    }
    Ok(())
}

#[test]
fn a_backend_behind_another_interface_is_reached_by_a_redirection() -> Result<()> {
    let mut lab = Lab::new()?;
    for case in Case::all() {
        let mut spec = Spec::new(case.vip(), case.protocol, case.method);
        spec.backends.push(Backend {
            address: case.backend(),
            mac: backend_mac(0x11),
            link: OTHER_LINK,
        });
        lab.service(&spec)?;
        let packet = case.packet();
        let mut expected = case.forwarded(&packet);
        expected[6..12].copy_from_slice(&OTHER_MAC.0);
        lab.forwards(
            &format!("{case:?}"),
            &packet.build(),
            &expected,
            action::REDIRECT,
        );
    }
    Ok(())
}

#[test]
fn a_syn_counts_as_a_connection() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, service) in services {
        for (flags, connections) in [
            (tcp_flags::SYN, 1),
            (tcp_flags::SYN | tcp_flags::ACK, 1),
            (tcp_flags::SYN | tcp_flags::RST, 1),
            (tcp_flags::SYN | tcp_flags::FIN, 1),
            (tcp_flags::ACK, 1),
            (tcp_flags::FIN | tcp_flags::ACK, 1),
            (tcp_flags::RST, 1),
            (0, 1),
            (tcp_flags::SYN | tcp_flags::PSH, 2),
        ] {
            let packet = case.packet().flags(flags);
            lab.bounces(
                &format!("flags {flags:#x}"),
                &packet.build(),
                &case.forwarded(&packet),
            );
            let stats = lab.program.stats(service.members[0])?;
            assert_eq!(stats.connections, connections, "after flags {flags:#x}");
        }
    }
    Ok(())
}

#[test]
fn every_payload_length_is_forwarded() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        for length in (0..70).chain([999, 1000, 1399, 1400, 1440]) {
            let payload: Vec<u8> = (0..length).map(|i| (i * 37 % 251) as u8).collect();
            let packet = case.packet().payload(payload);
            lab.bounces(
                &format!("{case:?}, payload of {length}"),
                &packet.build(),
                &case.forwarded(&packet),
            );
        }
    }
    Ok(())
}

#[test]
fn padding_behind_the_packet_stays() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        for bytes in [1, 2, 6, 18, 46] {
            let packet = case.packet().payload(*b"x").padding(bytes);
            let mut frame = packet.build();
            let mut expected = case.forwarded(&packet);
            // Nobody promises that padding is zero.
            let start = frame.len() - bytes;
            frame[start..].fill(0xa5);
            expected[start..].fill(0xa5);
            lab.bounces(&format!("{case:?}, {bytes} padded"), &frame, &expected);
        }
    }
    Ok(())
}

#[test]
fn nat_uses_up_a_hop_and_direct_return_none() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        for ttl in 0..=255u8 {
            let packet = case.packet().ttl(ttl);
            let what = format!("{case:?}, TTL {ttl}");
            if case.is_nat() && ttl <= 1 {
                let got = lab.run(&packet.build());
                assert_eq!(got.drops, [(service.id, "ttl_exceeded")], "{what}");
                continue;
            }
            let left = if case.is_nat() { ttl - 1 } else { ttl };
            let sent = packet.clone().macs(OWN_MAC, backend_mac(0x11)).ttl(left);
            let sent = if case.is_nat() {
                sent.destination(case.backend())
            } else {
                sent
            };
            lab.bounces(&what, &packet.build(), &sent.build());
        }
    }
    Ok(())
}

#[test]
fn ipv4_options_are_carried_along() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.v4)?;
    for (case, _) in services {
        for words in 1..=10 {
            let options: Vec<u8> = std::iter::repeat_n(1, words * 4).collect();
            let packet = case.packet().ip_options(&options);
            lab.bounces(
                &format!("{case:?}, {words} words of options"),
                &packet.build(),
                &case.forwarded(&packet),
            );
        }
    }
    Ok(())
}

#[test]
fn tcp_options_and_the_traffic_class_are_carried_along() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, _) in services {
        for words in 1..=10 {
            let options: Vec<u8> = std::iter::repeat_n(1, words * 4).collect();
            let packet = case.packet().tcp_options(&options).tos(0xb9).id(0xffff);
            lab.bounces(
                &format!("{case:?}, {words} words of options"),
                &packet.build(),
                &case.forwarded(&packet),
            );
        }
    }
    Ok(())
}

/// `count` extension headers of all kinds that are walked, of several lengths.
fn with_extensions(mut packet: Packet, count: usize) -> Packet {
    for number in 0..count {
        packet = match number % 3 {
            0 => packet.hop_by_hop(),
            1 => packet.extension(
                protocol::DESTINATION,
                &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            // A routing header whose segments are used up.
            _ => packet.extension(protocol::ROUTING, &[0, 4, 0, 0, 0, 0, 0]),
        };
    }
    packet
}

#[test]
fn ipv6_extension_headers_are_walked_to_a_bound() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| !c.v4)?;
    for (case, _) in services {
        for count in 1..=6 {
            let packet = with_extensions(case.packet(), count);
            lab.bounces(
                &format!("{case:?}, {count} extension headers"),
                &packet.build(),
                &case.forwarded(&packet),
            );
        }
        for count in 7..=9 {
            let frame = with_extensions(case.packet(), count).build();
            lab.drops(
                &format!("{case:?}, {count} extension headers"),
                &frame,
                0,
                "extension_headers",
            );
        }
    }
    Ok(())
}

#[test]
fn an_ipv6_packet_that_has_segments_left_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| !c.v4)?;
    for (case, _) in services {
        for left in [1, 2, 255] {
            let packet = case
                .packet()
                .extension(protocol::ROUTING, &[0, 4, left, 0, 0, 0, 0]);
            lab.drops("segments left", &packet.build(), 0, "extension_headers");
        }
    }
    Ok(())
}

#[test]
fn udp_without_a_checksum_keeps_having_none() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::UDP)?;
    for (case, _) in services {
        let packet = case.packet().no_udp_checksum();
        let expected = case.forwarded(&packet);
        lab.forwards(&format!("{case:?}"), &packet.build(), &expected, action::TX);
    }
    Ok(())
}

/// All 65,536 values of one word of the payload: the checksum before and after
/// takes every value, 0 and 0xffff among them.
#[test]
fn checksums_of_every_value_are_rewritten() -> Result<()> {
    let (lab, services) = Lab::with_cases(|c| c.is_nat())?;
    for (case, _) in services {
        let base = case.packet().payload(vec![0; 2]);
        let (mut zero, mut ones) = (false, false);
        for word in 0..=u16::MAX {
            // Around the two ends all of them, in between a few.
            let packet = base.clone().payload(word.to_be_bytes());
            let frame = packet.build();
            let expected = case.forwarded(&packet);
            let at = expected.len() - if case.protocol == protocol::TCP { 6 } else { 4 };
            let sum = |f: &[u8]| u16::from_be_bytes([f[at], f[at + 1]]);
            let special = |v: u16| !(4..=0xfffb).contains(&v);
            let is_special = special(sum(&frame)) || special(sum(&expected));
            if !is_special && !word.is_multiple_of(61) {
                continue;
            }
            zero |= sum(&expected) == 0;
            ones |= sum(&expected) == 0xffff;
            let got = lab.program.run(&frame)?;
            assert_eq!(got.action, action::TX, "{case:?}, word {word:#06x}");
            assert_same_frame(
                &format!("{case:?}, word {word:#06x}"),
                &expected,
                &got.frame,
            );
            verify(&got.frame)?;
        }
        if case.protocol == protocol::UDP {
            assert!(ones && !zero, "{case:?}: UDP sends 0 as 0xffff");
        } else {
            assert!(zero, "{case:?}: TCP sends 0 as it is");
        }
    }
    Ok(())
}

#[test]
fn a_wrong_checksum_stays_just_as_wrong() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let frame = case.packet().bad_layer4_checksum().build();
        assert!(verify(&frame).is_err());
        let got = lab.run(&frame);
        assert_eq!(got.action, action::TX, "{case:?}");
        assert!(verify(&got.frame).is_err(), "{case:?}: repaired");
        assert_eq!(residue(&frame), residue(&got.frame), "{case:?}");
    }
    Ok(())
}

#[test]
fn a_wrong_ipv4_header_checksum_stays_wrong() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.v4)?;
    for (case, _) in services {
        let frame = case.packet().bad_ip_checksum().build();
        let got = lab.run(&frame);
        let sum = |f: &[u8]| internet_checksum(&[&f[14..34]]);
        assert_eq!(got.action, action::TX, "{case:?}");
        assert_ne!(sum(&frame), 0);
        assert_eq!(sum(&got.frame), sum(&frame), "{case:?}");
    }
    Ok(())
}

#[test]
fn nat_keeps_the_port_where_the_backend_names_none() -> Result<()> {
    let mut lab = Lab::new()?;
    for case in Case::all() {
        if case.method != method::NAT {
            continue;
        }
        let mut target = case.backend();
        target.set_port(0);
        lab.service(&Spec::new(case.vip(), case.protocol, case.method).backend(target, 0x11))?;
        let packet = case.packet();
        target.set_port(case.vip().port());
        let sent = packet
            .clone()
            .macs(OWN_MAC, backend_mac(0x11))
            .ttl(63)
            .destination(target);
        lab.bounces(&format!("{case:?}"), &packet.build(), &sent.build());
    }
    Ok(())
}

#[test]
fn clients_of_many_addresses_and_ports_reach_one_of_the_backends() -> Result<()> {
    let mut lab = Lab::new()?;
    for case in Case::all() {
        let mut spec = Spec::new(case.vip(), case.protocol, case.method);
        let targets: Vec<_> = (1..=5u8)
            .map(|n| {
                if case.v4 {
                    at(&format!("10.1.0.{n}:{}", 8000 + u16::from(n)))
                } else {
                    at(&format!("[fd00:1::{n}]:{}", 8000 + u16::from(n)))
                }
            })
            .collect();
        for (n, target) in (1..).zip(&targets) {
            spec = spec.backend(*target, n);
        }
        let service = lab.service(&spec)?;
        let mut seen = [0u64; 5];
        for port in 1000..1200 {
            let mut client = case.client();
            client.set_port(port);
            let packet = case.packet().source(client);
            let got = lab.run(&packet.build());
            let n = got.frame[5];
            assert!((1..=5).contains(&n), "{case:?}: delivered to {n}");
            seen[usize::from(n) - 1] += 1;
            let sent = packet.macs(OWN_MAC, backend_mac(n));
            let expected = if case.is_nat() {
                sent.destination(targets[usize::from(n) - 1]).ttl(63)
            } else {
                sent
            };
            assert_same_frame("one of five", &expected.build(), &got.frame);
        }
        for (member, seen) in service.members.iter().zip(seen) {
            assert!(seen > 10, "{case:?}: member {member} got {seen} of 200");
            assert_eq!(lab.program.stats(*member)?.packets, seen);
        }
    }
    Ok(())
}
