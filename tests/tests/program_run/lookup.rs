//! Whose packet it is and which backend gets it: ports and ranges, owners,
//! slots, members.

use std::time::Duration;

use anyhow::Result;
use lb_common::{abi::method, member::MemberState, net::NextHop, slot::SlotWord};
use lb_tests::{packet::protocol, program::action};

use crate::lab::{Case, Lab, Service, Spec, at, backend_mac};

const TCP4: Case = Case {
    method: method::L2_DSR,
    v4: true,
    protocol: protocol::TCP,
};

/// The last byte of the MAC address that a packet to `port` is delivered to.
fn delivered(lab: &Lab, case: Case, port: u16) -> Result<Option<u8>> {
    let mut vip = case.vip();
    vip.set_port(port);
    let got = lab.program.run(&case.between(case.client(), vip).build())?;
    Ok((got.action == action::TX).then(|| got.frame[5]))
}

/// All ports for one case; for the others, whose look-up is the same, fewer.
fn ports(case: Case) -> Vec<u16> {
    let all = 0..=65_535u16;
    let edges = [80, 443, 1000, 1001, 8080, 9999, 10_000, 65_535];
    all.filter(|port| case == TCP4 || port.is_multiple_of(101) || edges.contains(port))
        .collect()
}

fn on_port(case: Case, port: u16) -> Spec {
    let mut vip = case.vip();
    vip.set_port(port);
    Spec::new(vip, case.protocol, case.method)
}

#[test]
fn a_service_of_several_ports_takes_these_and_no_others() -> Result<()> {
    for case in Case::all() {
        let mut lab = Lab::new()?;
        let spec = on_port(case, 80).backend(case.backend(), 1);
        let service = lab.service(&spec)?;
        for port in [443, 8080, 65_535] {
            lab.add_key(&on_port(case, port), service.entry)?;
        }
        for port in ports(case) {
            let is_served = [80, 443, 8080, 65_535].contains(&port);
            let expected = is_served.then_some(1);
            assert_eq!(delivered(&lab, case, port)?, expected, "{case:?}, {port}");
        }
    }
    Ok(())
}

/// The blocks of ports with common leading bits that a range is made of.
fn blocks(first: u32, last: u32) -> Vec<(u16, u32)> {
    let mut all = vec![];
    let mut next = first;
    while next <= last {
        let mut bits = 16;
        while bits > 0 {
            let size = 1 << (17 - bits);
            if !next.is_multiple_of(size) || next + size - 1 > last {
                break;
            }
            bits -= 1;
        }
        all.push((u16::try_from(next).expect("a port"), bits));
        next += 1 << (16 - bits);
    }
    all
}

#[test]
fn a_range_takes_exactly_its_ports() -> Result<()> {
    for case in Case::all() {
        let mut lab = Lab::new()?;
        let (first, last) = (1001, 9_999);
        let all = blocks(first, last);
        let (port, bits) = all[0];
        let spec = on_port(case, port).backend(case.backend(), 1);
        let service = lab.service(&spec.port_bits(bits))?;
        for (port, bits) in &all[1..] {
            lab.add_key(&on_port(case, *port).port_bits(*bits), service.entry)?;
        }
        for port in ports(case) {
            let expected = (first..=last).contains(&u32::from(port)).then_some(1);
            assert_eq!(delivered(&lab, case, port)?, expected, "{case:?}, {port}");
        }
    }
    Ok(())
}

#[test]
fn the_narrower_of_two_services_has_precedence() -> Result<()> {
    for case in Case::all() {
        let mut lab = Lab::new()?;
        // Any port, 8000–8015, 8004–8007, 8005, and another protocol's.
        for (number, port, bits) in [(1, 0, 0), (2, 8000, 12), (3, 8004, 14), (4, 8005, 16)] {
            let mut backend = case.backend();
            backend.set_port(9000 + u16::from(number));
            let spec = on_port(case, port).backend(backend, number);
            lab.service(&spec.port_bits(bits))?;
        }
        for (port, number) in [
            (0, 1),
            (7999, 1),
            (8000, 2),
            (8003, 2),
            (8004, 3),
            (8005, 4),
            (8006, 3),
            (8007, 3),
            (8008, 2),
            (8015, 2),
            (8016, 1),
            (65_535, 1),
        ] {
            let got = delivered(&lab, case, port)?;
            assert_eq!(got, Some(number), "{case:?}, port {port}");
        }
    }
    Ok(())
}

#[test]
fn ranges_are_looked_at_only_where_there_are_any() -> Result<()> {
    let mut lab = Lab::new()?;
    let spec = on_port(TCP4, 0).port_bits(0);
    lab.service(&spec.backend(TCP4.backend(), 1))?;
    assert_eq!(delivered(&lab, TCP4, 80)?, Some(1));
    lab.program.configure(|c| c.features = 0)?;
    assert_eq!(delivered(&lab, TCP4, 80)?, None);
    Ok(())
}

#[test]
fn services_on_one_vip_and_on_several_are_kept_apart() -> Result<()> {
    let mut lab = Lab::new()?;
    let mut number = 0;
    let mut all = vec![];
    for vip in [
        "192.0.2.10",
        "192.0.2.20",
        "[2001:db8::10]",
        "[2001:db8::20]",
    ] {
        for protocol in [protocol::TCP, protocol::UDP] {
            for port in [80, 443] {
                number += 1;
                let vip = at(&format!("{vip}:{port}"));
                let case = Case {
                    method: method::L2_DSR,
                    v4: vip.is_ipv4(),
                    protocol,
                };
                let spec = Spec::new(vip, protocol, case.method).backend(case.backend(), number);
                all.push((case, vip, number, lab.service(&spec)?));
            }
        }
    }
    for (case, vip, number, service) in all {
        let packet = case.between(case.client(), vip);
        let expected = case.forwarded_to(&packet, case.backend(), number);
        lab.bounces(&format!("{vip}"), &packet.build(), &expected);
        assert_eq!(lab.program.stats(service.members[0])?.packets, 1);
    }
    Ok(())
}

#[test]
fn only_the_owner_of_a_vip_forwards() -> Result<()> {
    let mut lab = Lab::new()?;
    for case in Case::all() {
        let service = lab.service(&case.spec().owner(3))?;
        let packet = case.packet();
        let frame = packet.build();
        let mut closed = case.vip();
        closed.set_port(81);
        let unserved = case.between(case.client(), closed).build();
        // Nobody's word; ended leases.
        for word in [0, 1, 1000] {
            lab.set_owner(3, word)?;
            lab.drops(
                &format!("{case:?}, {word}"),
                &frame,
                service.id,
                "not_owner",
            );
            lab.drops("no service", &unserved, 0, "not_owner");
            lab.drops(
                "fragment",
                &case.packet().fragment(8, true).build(),
                0,
                "not_owner",
            );
        }
        for word in [u64::MAX, u64::MAX - 1] {
            lab.set_owner(3, word)?;
            lab.bounces(
                &format!("{case:?}, {word}"),
                &frame,
                &case.forwarded(&packet),
            );
            lab.drops("no service", &unserved, 0, "no_service");
        }
    }
    Ok(())
}

#[test]
fn a_lease_ends_by_itself() -> Result<()> {
    let mut lab = Lab::new()?;
    let service = lab.service(&TCP4.spec().owner(3))?;
    let packet = TCP4.packet();
    let end = lab.program.jiffies()? + 1000;
    lab.set_owner(3, end)?;
    lab.bounces("in time", &packet.build(), &TCP4.forwarded(&packet));
    let end = lab.program.jiffies()? + 2;
    lab.set_owner(3, end)?;
    while lab.program.jiffies()? < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    lab.drops("too late", &packet.build(), service.id, "not_owner");
    Ok(())
}

/// Changes something, sees every case dropped for a reason, and nothing else.
fn refused(reason: &'static str, change: impl Fn(&mut Lab, &Service) -> Result<()>) -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let packet = case.packet();
        lab.bounces("before", &packet.build(), &case.forwarded(&packet));
        change(&mut lab, &service)?;
        lab.drops(&format!("{case:?}"), &packet.build(), service.id, reason);
        assert_eq!(lab.program.stats(service.members[0])?.packets, 1);
    }
    Ok(())
}

#[test]
fn a_service_without_backends_drops() -> Result<()> {
    refused("no_backend", |lab, service| {
        lab.set_slots(service, SlotWord::stable(0))
    })
}

#[test]
fn a_member_that_serves_nobody_gets_nothing() -> Result<()> {
    for state in [MemberState::DEAD, MemberState::FREE] {
        refused("no_backend", |lab, service| {
            lab.change_member(service.members[0], |m| m.state = state.0)
        })?;
    }
    Ok(())
}

#[test]
fn a_member_that_drains_or_fails_keeps_the_flows_of_its_slots() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        for state in [MemberState::DRAINING, MemberState::FAILING] {
            lab.change_member(service.members[0], |m| m.state = state.0)?;
            let packet = case.packet();
            let what = format!("{case:?}, {state:?}");
            lab.bounces(&what, &packet.build(), &case.forwarded(&packet));
        }
    }
    Ok(())
}

#[test]
fn a_member_whose_mac_address_is_unknown_gets_nothing() -> Result<()> {
    refused("no_neighbour", |lab, service| {
        lab.change_member(service.members[0], |m| m.next_hop = 0)
    })
}

#[test]
fn a_member_behind_an_interface_that_is_gone_gets_nothing() -> Result<()> {
    for link in [9, 255, 256, 0xffff] {
        refused("no_neighbour", |lab, service| {
            lab.change_member(service.members[0], |m| {
                m.next_hop = NextHop::new(backend_mac(1).0, link).0;
            })
        })?;
    }
    Ok(())
}

#[test]
fn a_member_of_another_service_is_inconsistent() -> Result<()> {
    refused("inconsistent", |lab, service| {
        lab.change_member(service.members[0], |m| m.service += 1)
    })
}

#[test]
fn a_slot_that_names_a_member_beyond_the_map_is_inconsistent() -> Result<()> {
    refused("inconsistent", |lab, service| {
        lab.set_slots(service, SlotWord::stable(0xf_ffff))
    })
}

#[test]
fn a_table_beyond_the_slots_is_inconsistent() -> Result<()> {
    refused("inconsistent", |lab, service| {
        let case = Case::all()[usize::try_from(service.id - 1)?];
        let mut entry = service.entry;
        entry.slot_offset = u32::MAX - 200;
        lab.add_key(&case.spec(), entry)
    })
}
