//! ICMP errors about packets of a flow: forwarded to who sent those, with the
//! quoted headers translated, or dropped for a named reason.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{abi::map, flow::BUCKET_WORDS, member::MemberState, slot::SlotWord};
use lb_tests::{
    packet::{Packet, assert_same_frame, icmp_error, protocol, tcp_flags, verify},
    program::action,
};

use crate::lab::{Case, Lab, OWN_MAC, ROUTER_MAC, Service, backend_mac, ip};

/// Errors that are about a packet: type, code, rest of the header.
pub fn errors(v4: bool) -> Vec<(u8, u8, [u8; 4])> {
    let mtu = [0, 0, 5, 0x14];
    if v4 {
        let unreachable = (0..16).map(|code| (3, code, mtu));
        let others = [(11, 0, [0; 4]), (11, 1, [0; 4]), (12, 0, [20, 0, 0, 0])];
        unreachable.chain(others).collect()
    } else {
        let unreachable = (0..7).map(|code| (1, code, [0; 4]));
        let others = [(2, 0, mtu), (3, 0, [0; 4]), (3, 1, [0; 4])];
        let problem = (4, 0, [0, 0, 0, 6]);
        unreachable.chain(others).chain([problem]).collect()
    }
}

/// A router on the clients' side.
pub fn router(case: Case) -> std::net::IpAddr {
    ip(if case.v4 {
        "198.51.100.1"
    } else {
        "2001:db8:c::1"
    })
}

/// An error about `quoted`, from a router on the clients' side to the VIP.
fn about(case: Case, error: (u8, u8, [u8; 4]), quoted: &[u8]) -> Packet {
    let (kind, code, rest) = error;
    icmp_error(router(case), case.vip().ip(), kind, code, rest, quoted).macs(ROUTER_MAC, OWN_MAC)
}

/// What becomes of it: under NAT `original` is what the backend sent.
fn relayed(case: Case, error: (u8, u8, [u8; 4]), quoted: &[u8], original: &[u8]) -> Vec<u8> {
    let (kind, code, rest) = error;
    let packet = if case.is_nat() {
        let backend = case.backend().ip();
        icmp_error(router(case), backend, kind, code, rest, original).ttl(63)
    } else {
        about(case, error, quoted)
    };
    packet.macs(OWN_MAC, backend_mac(0x11)).build()
}

/// A packet of a backend as the client's side sees it, and as it was sent.
fn reply(case: Case, client: SocketAddr) -> (Packet, Packet) {
    let seen = case.between(case.vip(), client).ttl(60);
    let sent = if case.is_nat() {
        seen.clone().source(case.backend())
    } else {
        seen.clone()
    };
    (seen, sent)
}

#[track_caller]
fn relays(lab: &mut Lab, service: &Service, what: &str, frame: &[u8], expected: &[u8]) {
    let got = lab.run(frame);
    assert_eq!(got.drops, [], "{what}: dropped");
    assert_same_frame(what, expected, &got.frame);
    assert_eq!(got.action, action::TX, "{what}: action");
    assert_eq!(got.events, [(service.id, "icmp_forwarded")], "{what}");
    verify(&got.frame).unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

#[test]
fn errors_about_a_backends_packets_reach_that_backend() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let (seen, sent) = reply(case, case.client());
        let (seen, sent) = (seen.ip_packet(), sent.ip_packet());
        for error in errors(case.v4) {
            let frame = about(case, error, &seen).build();
            let expected = relayed(case, error, &seen, &sent);
            let what = format!("{case:?}, {error:?}");
            relays(&mut lab, &service, &what, &frame, &expected);
        }
        assert_eq!(lab.program.stats(service.members[0])?.packets, 0);
    }
    Ok(())
}

#[test]
fn quotes_of_every_length_from_eight_bytes_of_layer_4_on_are_translated() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let (seen, sent) = reply(case, case.client());
        let (seen, sent) = (seen.ip_packet(), sent.ip_packet());
        let error = errors(case.v4)[0];
        let headers = if case.v4 { 20 } else { 40 };
        for length in headers..=seen.len() {
            let (seen, sent) = (&seen[..length], &sent[..length]);
            let frame = about(case, error, seen).build();
            let what = format!("{case:?}, {length} bytes");
            if length < headers + 8 {
                lab.drops(&what, &frame, 0, "malformed");
                continue;
            }
            if case.protocol == protocol::TCP && length == headers + 17 {
                // Half a checksum is nothing to anybody.
                continue;
            }
            let expected = relayed(case, error, seen, sent);
            relays(&mut lab, &service, &what, &frame, &expected);
        }
        // What is behind the packet is not quoted.
        let short = about(case, error, &seen[..headers + 4]).padding(30);
        lab.drops("padding", &short.build(), 0, "malformed");
    }
    Ok(())
}

#[test]
fn quoted_packets_of_every_shape_are_translated() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let (seen, sent) = reply(case, case.client());
        let mut shapes: Vec<Box<dyn Fn(Packet) -> Packet>> = vec![
            Box::new(|p| p.tos(0xb8)),
            Box::new(|p| p.payload(vec![7; 1300])),
            Box::new(|p| p.fragment(0, true)),
        ];
        if case.v4 {
            shapes.push(Box::new(|p| p.ip_options(&[1; 40])));
        } else {
            shapes.push(Box::new(|p| p.hop_by_hop().hop_by_hop()));
            shapes.push(Box::new(|p| p.hop_by_hop().fragment(0, true)));
        }
        if case.protocol == protocol::UDP {
            shapes.push(Box::new(Packet::no_udp_checksum));
        }
        for (number, shape) in shapes.iter().enumerate() {
            let seen = shape(seen.clone()).ip_packet();
            let sent = shape(sent.clone()).ip_packet();
            for error in errors(case.v4) {
                let frame = about(case, error, &seen).build();
                let expected = relayed(case, error, &seen, &sent);
                let what = format!("{case:?}, shape {number}");
                relays(&mut lab, &service, &what, &frame, &expected);
            }
        }
    }
    Ok(())
}

/// All words of the flow table.
fn table(lab: &mut Lab) -> Result<Vec<[u64; BUCKET_WORDS]>> {
    let table = lab.program.array::<[u64; BUCKET_WORDS]>(map::FLOWS)?;
    let words = table.iter().collect::<Result<_, _>>()?;
    Ok(words)
}

#[test]
fn an_error_follows_its_flow_and_leaves_the_flow_table_alone() -> Result<()> {
    for case in Case::all()
        .into_iter()
        .filter(|c| c.protocol == protocol::TCP)
    {
        let mut lab = Lab::new()?;
        let service = lab.service(&case.spec().backend(case.backend(), 0x12))?;
        let [old, new] = service.members[..] else {
            panic!("two members");
        };
        lab.set_slots(&service, SlotWord::tracked(new, old, 0))?;
        lab.program.set_ticks(100)?;
        // An old flow, a new one, and one of which nothing is known.
        let ports = [1000, 1001, 1002];
        let client = |port| SocketAddr::new(case.client().ip(), port);
        let from = |port, flags| case.between(client(port), case.vip()).flags(flags).build();
        assert_eq!(lab.run(&from(1000, tcp_flags::ACK)).frame[5], 0x11);
        assert_eq!(lab.run(&from(1001, tcp_flags::SYN)).frame[5], 0x12);
        lab.program.set_ticks(120)?;
        let before = table(&mut lab)?;
        for (port, mac) in ports.into_iter().zip([0x11, 0x12, 0x11]) {
            let (seen, _) = reply(case, client(port));
            let frame = about(case, errors(case.v4)[0], &seen.ip_packet()).build();
            let got = lab.run(&frame);
            assert_eq!(got.drops, []);
            assert_eq!(got.frame[5], mac, "{case:?}, port {port}");
            assert_eq!(got.events, [(service.id, "icmp_forwarded")]);
        }
        assert_eq!(before, table(&mut lab)?, "{case:?}");
        lab.change_member(old, |m| m.state = MemberState::DEAD.0)?;
        let (seen, _) = reply(case, client(1000));
        let frame = about(case, errors(case.v4)[0], &seen.ip_packet()).build();
        assert_eq!(lab.run(&frame).frame[5], 0x12, "{case:?}");
    }
    Ok(())
}

#[test]
fn errors_that_belong_to_no_flow_are_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let error = errors(case.v4)[0];
        let mut other_port = case.vip();
        other_port.set_port(81);
        let cases = [
            ("no service", case.between(other_port, case.client())),
            // What a client sent to the VIP, or what never was ours.
            ("wrong way", case.between(case.client(), case.vip())),
            ("other source", case.between(case.backend(), case.client())),
        ];
        for (what, quoted) in cases {
            let frame = about(case, error, &quoted.ip_packet()).build();
            lab.drops(what, &frame, 0, "icmp_unmatched");
        }
    }
    Ok(())
}

#[test]
fn errors_about_errors_and_later_fragments_are_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let error = errors(case.v4)[0];
        let (vip, client) = (case.vip().ip(), case.client().ip());
        let (seen, _) = reply(case, case.client());
        let (kind, code, rest) = error;
        let cases = [
            icmp_error(vip, client, kind, code, rest, &seen.ip_packet()),
            Packet::echo_reply(vip, client, 1, 1),
            Packet::other(vip, client, 47).payload([0; 40]),
            seen.clone().fragment(8, true),
            seen.fragment(1480, false),
        ];
        for (number, quoted) in cases.iter().enumerate() {
            let frame = about(case, error, &quoted.ip_packet()).build();
            lab.drops(&format!("{case:?}, {number}"), &frame, 0, "icmp");
        }
    }
    Ok(())
}

#[test]
fn errors_that_cannot_be_forwarded_are_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let (seen, _) = reply(case, case.client());
        let packet = about(case, errors(case.v4)[0], &seen.ip_packet());
        if case.is_nat() {
            for ttl in [0, 1] {
                let frame = packet.clone().ttl(ttl).build();
                lab.drops("no hop left", &frame, service.id, "ttl_exceeded");
            }
        }
        let member = service.members[0];
        lab.change_member(member, |m| m.next_hop = 0)?;
        lab.drops("no MAC", &packet.build(), service.id, "no_neighbour");
        lab.change_member(member, |m| m.state = MemberState::DEAD.0)?;
        lab.drops("dead", &packet.build(), service.id, "no_backend");
        let mut wrong = seen.ip_packet();
        wrong[0] ^= 0xf0;
        let frame = about(case, errors(case.v4)[0], &wrong).build();
        lab.drops("version", &frame, 0, "malformed");
    }
    Ok(())
}
