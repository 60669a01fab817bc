//! Probes of health checks: they leave as a client's packet would, and their
//! answers come back, and neither is counted.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::{
    abi::{MemberStats, PROBE_PORTS, ProbeEntry, map, method},
    net::{Addr, NextHop},
};
use lb_tests::{
    packet::{Packet, assert_same_frame, protocol, verify},
    program::{Outcome, action},
};

use crate::{
    lab::{
        Backend, Case, Lab, OTHER_LINK, OTHER_MAC, OWN_MAC, ROUTER_MAC, Spec, at, backend_mac, ip,
    },
    tunnel,
};

const FIRST_PORT: u16 = 61_000;
/// The place of the port that the tests use.
const PLACE: u16 = 7;

/// This host's address that probes are from.
fn own(v4: bool) -> SocketAddr {
    let address = ip(if v4 { "10.1.0.10" } else { "fd00:1::10" });
    SocketAddr::new(address, FIRST_PORT + PLACE)
}

fn let_in(lab: &mut Lab, from: IpAddr, member: u32) -> Result<()> {
    lab.program.configure(|config| {
        config.probe_port = FIRST_PORT.into();
        config.probe_ifindex = OTHER_LINK;
    })?;
    let entry = ProbeEntry {
        address: Addr::from_ip(from).0,
        member,
        reserved: 0,
    };
    let mut probes = lab.program.array::<ProbeEntry>(map::PROBES)?;
    Ok(probes.set(u32::from(PLACE), entry, 0)?)
}

/// Runs a frame as if this host had sent it by the probes' device, and observes.
fn send(lab: &mut Lab, frame: &[u8]) -> crate::lab::Observed {
    let outcome: Outcome = lab.program.run_probe(frame).expect("the program runs");
    lab.observe(outcome)
}

fn is_uncounted(lab: &mut Lab, member: u32) -> Result<bool> {
    let stats = lab.program.per_cpu::<MemberStats>(map::STATS)?;
    let rows = stats.get(&member, 0)?;
    Ok(rows.iter().all(|row| *row == MemberStats::default()))
}

fn of_protocol(number: u8, from: SocketAddr, to: SocketAddr) -> Packet {
    match number {
        protocol::TCP => Packet::tcp(from, to),
        _ => Packet::udp(from, to),
    }
    .macs(ROUTER_MAC, OWN_MAC)
    .payload(*b"what a check says")
}

/// A service whose backend is behind the other link.
fn behind_the_other_link(spec: Spec) -> Spec {
    let backends = spec.backends.iter();
    let backends = backends.map(|backend| Backend {
        link: OTHER_LINK,
        ..*backend
    });
    Spec {
        backends: backends.collect(),
        ..spec.clone()
    }
}

#[test]
fn a_probe_leaves_as_a_clients_packet_does() -> Result<()> {
    let plain = Case::all().into_iter().map(|case| (case.spec(), case.v4));
    let tunnels = tunnel::Case::all()
        .into_iter()
        .map(|case| (case.spec(), case.v4));
    let mut lab = Lab::new()?;
    for (spec, v4) in plain.chain(tunnels) {
        let service = lab.service(&behind_the_other_link(spec.clone()))?;
        let member = service.members[0];
        let what = format!("{spec:?}");
        let packet = of_protocol(spec.protocol, own(v4), spec.vip).build();
        let_in(&mut lab, own(v4).ip(), member)?;
        let got = send(&mut lab, &packet);
        assert_eq!(got.action, action::REDIRECT, "{what}");
        assert_eq!(
            (&got.drops[..], &got.events[..]),
            (&[][..], &[][..]),
            "{what}"
        );
        assert!(is_uncounted(&mut lab, member)?, "{what}: counted");
        let clients = lab.run(&packet);
        assert_eq!(clients.action, action::REDIRECT, "{what}");
        assert_same_frame(&what, &clients.frame, &got.frame);
        assert!(
            !is_uncounted(&mut lab, member)?,
            "{what}: clients are counted"
        );
    }
    Ok(())
}

#[test]
fn what_is_no_probe_is_left_alone() -> Result<()> {
    let mut lab = Lab::new()?;
    let case = Case::all()[0];
    let service = lab.service(&behind_the_other_link(case.spec()))?;
    let member = service.members[0];
    let from = own(case.v4);
    let packet = |from, to| of_protocol(case.protocol, from, to).build();
    let passes = |lab: &mut Lab, what: &str, frame: &[u8]| {
        let got = send(lab, frame);
        assert_eq!(got.action, action::PASS, "{what}");
        assert_same_frame(what, frame, &got.frame);
        assert_eq!((got.drops, got.events), (vec![], vec![]), "{what}");
    };
    let right = packet(from, case.vip());
    passes(&mut lab, "without ports for probes", &right);
    let_in(&mut lab, from.ip(), 0)?;
    passes(&mut lab, "a port that is nobody's", &right);
    let_in(&mut lab, ip("10.1.0.9"), member)?;
    passes(&mut lab, "another address of this host", &right);
    let_in(&mut lab, from.ip(), member)?;
    for port in [
        FIRST_PORT - 1,
        FIRST_PORT + PLACE - 1,
        FIRST_PORT + PROBE_PORTS as u16,
    ] {
        let other = SocketAddr::new(from.ip(), port);
        passes(&mut lab, "another port", &packet(other, case.vip()));
    }
    passes(&mut lab, "another VIP", &packet(from, at("192.0.2.77:80")));
    passes(
        &mut lab,
        "a fragment",
        &of_protocol(case.protocol, from, case.vip())
            .fragment(8, true)
            .build(),
    );
    for length in 0..right.len().min(60) {
        // Shorter ones the kernel refuses to run.
        if length >= 14 {
            let got = send(&mut lab, &right[..length]);
            assert_eq!(got.action, action::PASS, "{length} bytes");
        }
    }
    assert_eq!(send(&mut lab, &right).action, action::REDIRECT);
    Ok(())
}

#[test]
fn a_backend_without_a_next_hop_gets_none() -> Result<()> {
    let mut lab = Lab::new()?;
    let case = Case::all()[0];
    let service = lab.service(&case.spec())?;
    let member = service.members[0];
    let_in(&mut lab, own(case.v4).ip(), member)?;
    lab.change_member(member, |entry| entry.next_hop = NextHop::default().0)?;
    let packet = of_protocol(case.protocol, own(case.v4), case.vip()).build();
    let got = send(&mut lab, &packet);
    // No traffic: a server that is switched off would else be an alarm for ever.
    assert_eq!(got.action, action::ABORTED);
    assert_eq!((got.drops, got.events), (vec![], vec![]));
    Ok(())
}

#[test]
fn answers_are_handed_to_the_probes_device_as_from_the_vip() -> Result<()> {
    let mut lab = Lab::new()?;
    for case in Case::all() {
        let service = lab.service(&case.spec())?;
        let member = service.members[0];
        let_in(&mut lab, own(case.v4).ip(), member)?;
        let source = if case.is_nat() {
            case.backend()
        } else {
            case.vip()
        };
        let answer =
            |from, to| of_protocol(case.protocol, from, to).macs(backend_mac(0x11), OWN_MAC);
        let frame = answer(source, own(case.v4)).build();
        let expected = of_protocol(case.protocol, case.vip(), own(case.v4))
            .macs(backend_mac(0x11), OTHER_MAC)
            .build();
        lab.forwards(&format!("{case:?}"), &frame, &expected, action::REDIRECT);
        verify(&expected)?;
        assert!(is_uncounted(&mut lab, member)?, "{case:?}: counted");

        // Of somebody else, or to somebody else.
        let stranger = SocketAddr::new(source.ip(), source.port() + 1);
        let other = SocketAddr::new(own(case.v4).ip(), own(case.v4).port() + 1);
        let mut left = vec![("to another port", answer(source, other))];
        if case.is_nat() {
            left.push(("from another port", answer(stranger, own(case.v4))));
        }
        for (what, packet) in left {
            let got = lab.run(&packet.build());
            assert_eq!(got.action, action::PASS, "{case:?}, {what}");
            assert_same_frame(what, &packet.build(), &got.frame);
        }
        lab.program.configure(|config| config.probe_port = 0)?;
        let got = lab.run(&frame);
        assert_eq!(got.action, action::PASS, "{case:?}, without probes");
        assert_same_frame("without probes", &frame, &got.frame);
    }
    Ok(())
}

#[test]
fn answers_through_a_tunnels_service_come_from_the_vip() -> Result<()> {
    let mut lab = Lab::new()?;
    for case in tunnel::Case::all() {
        let service = lab.service(&case.spec())?;
        let_in(&mut lab, own(case.v4).ip(), service.members[0])?;
        let frame = of_protocol(case.protocol, case.vip(), own(case.v4)).build();
        let expected = of_protocol(case.protocol, case.vip(), own(case.v4))
            .macs(ROUTER_MAC, OTHER_MAC)
            .build();
        lab.forwards(&format!("{case:?}"), &frame, &expected, action::REDIRECT);
    }
    Ok(())
}

/// Under full NAT probes keep this host's address.
#[test]
fn full_nat_keeps_the_source_of_probes() -> Result<()> {
    for (v4, number) in [(true, protocol::TCP), (false, protocol::UDP)] {
        let mut lab = Lab::new()?;
        let case = Case {
            method: method::NAT,
            v4,
            protocol: number,
        };
        let spec = Spec {
            method: method::FULL_NAT,
            ..case.spec()
        };
        let service = lab.service(&behind_the_other_link(spec))?;
        let_in(&mut lab, own(v4).ip(), service.members[0])?;
        let packet = of_protocol(number, own(v4), case.vip());
        let got = send(&mut lab, &packet.build());
        let expected = packet
            .macs(OTHER_MAC, backend_mac(0x11))
            .destination(case.backend())
            .ttl(63)
            .build();
        assert_eq!(got.action, action::REDIRECT);
        assert_same_frame("full NAT", &expected, &got.frame);
        verify(&got.frame)?;
    }
    Ok(())
}
