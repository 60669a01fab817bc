//! Services with full tracking: who gets a new flow, what is counted, and
//! where there is no room.

use std::{collections::BTreeMap, net::SocketAddr, thread};

use anyhow::{Result, ensure};
use lb_common::{
    abi::{MemberLoad, ServiceEntry, map, method, service_flag, udp},
    load::Counts,
    member::MemberState,
    schedule::scheduler,
    slot::SlotWord,
};
use lb_tests::{
    packet::{Packet, Rng, protocol, tcp_flags},
    program::Sizes,
};

use crate::lab::{Case, Lab, Service, Spec, at};

const CASE: Case = Case {
    method: method::L2_DSR,
    v4: true,
    protocol: protocol::TCP,
};

/// A service with full tracking and so many backends, their MAC addresses
/// 0x11 and up.
fn service(backends: u8, change: impl FnOnce(&mut ServiceEntry)) -> Result<(Lab, Service)> {
    service_of(CASE, backends, change)
}

fn service_of(
    case: Case,
    backends: u8,
    change: impl FnOnce(&mut ServiceEntry),
) -> Result<(Lab, Service)> {
    let mut lab = Lab::sized(Sizes {
        buckets: 8192,
        ..Sizes::default()
    })?;
    let mut spec = Spec::new(case.vip(), case.protocol, case.method);
    for n in 0..backends {
        spec = spec.backend(at(&format!("10.1.0.{}:8080", 11 + n)), 0x11 + n);
    }
    let mut service = lab.service(&spec)?;
    service.entry.flags |= service_flag::FULL_TRACKING;
    change(&mut service.entry);
    lab.add_key(&spec, service.entry)?;
    Ok((lab, service))
}

fn packet(case: Case, flow: u32, flags: u8) -> Vec<u8> {
    let [_, high, middle, low] = flow.to_be_bytes();
    let mut client = case.client();
    client.set_ip([100, high, middle, low].into());
    case.packet().source(client).flags(flags).build()
}

fn syn(flow: u32) -> Vec<u8> {
    packet(CASE, flow, tcp_flags::SYN)
}

fn ack(flow: u32) -> Vec<u8> {
    packet(CASE, flow, tcp_flags::ACK)
}

fn fin(flow: u32) -> Vec<u8> {
    packet(CASE, flow, tcp_flags::FIN | tcp_flags::ACK)
}

/// Number of the backend that got the frame, from 0.
fn sent_to(lab: &Lab, frame: &[u8]) -> Result<u8> {
    let outcome = lab.program.run(frame)?;
    ensure!(
        outcome.action == lb_tests::program::action::TX,
        "action {}",
        outcome.action
    );
    Ok(outcome.frame[5] - 0x11)
}

fn counts(lab: &mut Lab, member: u32) -> Result<(u32, u32)> {
    let loads = lab.program.array::<MemberLoad>(map::LOADS)?;
    let counts = Counts(loads.get(&member, 0)?.counts);
    Ok((counts.half(), counts.open()))
}

fn limit(lab: &mut Lab, service: &Service, max: u32) -> Result<()> {
    let mut loads = lab.program.array::<MemberLoad>(map::LOADS)?;
    for member in &service.members {
        let load = MemberLoad {
            counts: 0,
            max,
            weight: 1,
            ..MemberLoad::default()
        };
        loads.set(*member, load, 0)?;
    }
    Ok(())
}

/// Lists the members in these groups, behind all tables.
fn list(lab: &mut Lab, entry: &mut ServiceEntry, groups: [&[u32]; 4]) -> Result<()> {
    entry.list_offset = 100_000;
    let mut index = entry.list_offset;
    for (size, members) in entry.list_sizes.iter_mut().zip(groups) {
        *size = u16::try_from(members.len())?;
        for member in members {
            lab.program.set_slot(index, SlotWord(u64::from(*member)))?;
            index += 1;
        }
    }
    Ok(())
}

#[test]
fn a_connection_is_counted_from_its_syn_to_its_fin_and_stays_where_it_is() -> Result<()> {
    let (mut lab, service) = service(3, |_| {})?;
    let first = sent_to(&lab, &syn(1))?;
    let member = service.members[usize::from(first)];
    assert_eq!(counts(&mut lab, member)?, (1, 0));
    assert_eq!(sent_to(&lab, &ack(1))?, first);
    assert_eq!(counts(&mut lab, member)?, (0, 1));
    lab.set_slots(&service, SlotWord::stable(service.members[2]))?;
    assert_eq!(sent_to(&lab, &ack(1))?, first, "whatever its slot says");
    assert_eq!(sent_to(&lab, &fin(1))?, first);
    assert_eq!(counts(&mut lab, member)?, (0, 0));
    assert_eq!(sent_to(&lab, &ack(1))?, first);
    Ok(())
}

#[test]
fn turns_are_exact_to_one_connection_on_two_cores_at_once() -> Result<()> {
    // Shares 3, 2, 1 in a cycle of six.
    let (mut lab, service) = service(3, |entry| {
        entry.scheduler = scheduler::ROUND_ROBIN;
        entry.cycle = 6;
    })?;
    for (slot, n) in (service.entry.slot_offset..).zip([0, 1, 0, 2, 1, 0]) {
        lab.program
            .set_slot(slot, SlotWord::stable(service.members[n]))?;
    }
    let (lab, mut sums) = (&lab, BTreeMap::new());
    let run = |first: u32| -> Result<Vec<u8>> {
        (first..first + 1500)
            .map(|n| sent_to(lab, &syn(n)))
            .collect()
    };
    let both = thread::scope(|scope| {
        let other = scope.spawn(|| run(100_000));
        let mine = run(200_000)?;
        let other = other.join().expect("no panic")?;
        anyhow::Ok([mine, other].concat())
    })?;
    for backend in both {
        *sums.entry(backend).or_insert(0) += 1;
    }
    assert_eq!(sums, [(0, 1500), (1, 1000), (2, 500)].into());
    Ok(())
}

#[test]
fn least_connections_keep_ten_backends_within_five_per_cent_of_each_other() -> Result<()> {
    let (mut lab, service) = service(10, |entry| {
        entry.scheduler = scheduler::LEAST_CONNECTIONS;
    })?;
    let mut rng = Rng::new(7);
    // Connections of mixed length: most end soon, some stay.
    let mut open: Vec<u32> = Vec::new();
    let (mut next, mut opened) = (1u32, 0);
    while open.len() < 10_000 {
        lab.program.run(&syn(next))?;
        lab.program.run(&ack(next))?;
        open.push(next);
        (next, opened) = (next + 1, opened + 1);
        if rng.next_u64().is_multiple_of(3) {
            // Longer connections are the older ones: end one of the newest.
            let newest = open.len() - 1 - (rng.next_u64() as usize % open.len().min(500));
            lab.program.run(&fin(open.swap_remove(newest)))?;
        }
    }
    let counts: Vec<u32> = service
        .members
        .iter()
        .map(|member| Ok(counts(&mut lab, *member)?.1))
        .collect::<Result<_>>()?;
    let sum: u32 = counts.iter().sum();
    assert_eq!(sum, 10_000, "{counts:?}");
    let most = counts.iter().copied().max().unwrap_or(0);
    let ratio = f64::from(most) / (f64::from(sum) / 10.0);
    println!("{opened} opened, {sum} open: {counts:?}, max/mean {ratio:.4}");
    assert!(ratio <= 1.05, "{ratio}");
    Ok(())
}

#[test]
fn a_limit_is_never_exceeded_on_two_cores_at_once_and_overflow_comes_back() -> Result<()> {
    let (mut lab, mut service) = service(4, |_| {})?;
    let members = service.members.clone();
    let [a, b, c, d] = members[..] else {
        panic!("four members");
    };
    list(&mut lab, &mut service.entry, [&[a, b], &[c, d], &[], &[]])?;
    let spec = Spec::new(CASE.vip(), CASE.protocol, CASE.method);
    lab.add_key(&spec, service.entry)?;
    for slot in 0..service.entry.slot_size {
        let member = [a, b][slot as usize % 2];
        let slot = service.entry.slot_offset + slot;
        lab.program.set_slot(slot, SlotWord::stable(member))?;
    }
    limit(&mut lab, &service, 300)?;
    let run = |lab: &Lab, first: u32, n: u32| -> Result<BTreeMap<u8, u32>> {
        let mut sums = BTreeMap::new();
        for flow in first..first + n {
            let outcome = lab.program.run(&syn(flow))?;
            if outcome.action == lb_tests::program::action::TX {
                lab.program.run(&ack(flow))?;
                *sums.entry(outcome.frame[5] - 0x11).or_insert(0) += 1;
            }
        }
        Ok(sums)
    };
    // 1,400 connections, room for 600 in the first group and 600 in the second.
    let shared = &lab;
    let both = thread::scope(|scope| {
        let other = scope.spawn(|| run(shared, 100_000, 700));
        let mine = run(shared, 200_000, 700)?;
        let mut sums = other.join().expect("no panic")?;
        for (backend, n) in mine {
            *sums.entry(backend).or_insert(0) += n;
        }
        anyhow::Ok(sums)
    })?;
    assert_eq!(both, [(0, 300), (1, 300), (2, 300), (3, 300)].into());
    for member in &members {
        assert_eq!(counts(&mut lab, *member)?, (0, 300));
    }
    let drops = lab.program.drops(service.id)?;
    assert_eq!(drops, [("max_connections", 200)].into());
    // Ends of the first group's connections make room there.
    let mut freed = 0;
    for flow in 100_000..100_050 {
        let before = counts(&mut lab, a)?.1 + counts(&mut lab, b)?.1;
        lab.program.run(&fin(flow))?;
        freed += before - counts(&mut lab, a)?.1 - counts(&mut lab, b)?.1;
    }
    assert!(freed > 10, "{freed}");
    for n in 0..freed {
        let backend = sent_to(&lab, &syn(300_000 + n))?;
        assert!(backend < 2, "number {n} went to the second group");
    }
    Ok(())
}

#[test]
fn services_that_share_a_backend_keep_its_limit_together_on_two_cores_at_once() -> Result<()> {
    let (mut lab, http) = service(1, |_| {})?;
    let other = SocketAddr::new(CASE.vip().ip(), 443);
    let spec = Spec::new(other, CASE.protocol, CASE.method).backend(at("10.1.0.11:8080"), 0x11);
    let mut https = lab.service(&spec)?;
    https.entry.flags |= service_flag::FULL_TRACKING;
    lab.add_key(&spec, https.entry)?;
    let members = [http.members[0], https.members[0]];
    let mut loads = lab.program.array::<MemberLoad>(map::LOADS)?;
    for (member, next) in [(0, 1), (1, 0)] {
        let load = MemberLoad {
            max: 300,
            weight: 1,
            next: members[next],
            ..MemberLoad::default()
        };
        loads.set(members[member], load, 0)?;
    }
    let to = |port: u16, flow: u32, flags| {
        let target = SocketAddr::new(CASE.vip().ip(), port);
        let mut client = CASE.client();
        client.set_ip(
            [
                100,
                flow.to_be_bytes()[1],
                flow.to_be_bytes()[2],
                flow.to_be_bytes()[3],
            ]
            .into(),
        );
        CASE.between(client, target).flags(flags).build()
    };
    let shared = &lab;
    let run = |port: u16| -> Result<u32> {
        let mut opened = 0;
        for flow in 0..400 {
            let outcome = shared.program.run(&to(port, flow, tcp_flags::SYN))?;
            if outcome.action == lb_tests::program::action::TX {
                shared.program.run(&to(port, flow, tcp_flags::ACK))?;
                opened += 1;
            }
        }
        Ok(opened)
    };
    let port = CASE.vip().port();
    let (mine, others) = thread::scope(|scope| {
        let others = scope.spawn(|| run(443));
        let mine = run(port)?;
        anyhow::Ok((mine, others.join().expect("no panic")?))
    })?;
    let (first, second) = (counts(&mut lab, members[0])?, counts(&mut lab, members[1])?);
    assert_eq!((first, second), ((0, mine), (0, others)));
    // Both cores may ask for the last place and both be told that it is taken.
    assert!((298..=300).contains(&(mine + others)), "{mine} + {others}");
    for (port, flow) in [(port, 10_000), (443, 10_001), (port, 10_002), (443, 10_003)] {
        lab.program.run(&to(port, flow, tcp_flags::SYN))?;
    }
    let full = |lab: &mut Lab| -> Result<u32> {
        let all = [counts(lab, members[0])?, counts(lab, members[1])?];
        Ok(all.iter().map(|(half, open)| half + open).sum())
    };
    assert_eq!(full(&mut lab)?, 300, "neither goes past it afterwards");
    // What ends in one service (the one that got more) makes room in the other.
    let (ends, opens, member) = if mine >= others {
        (port, 443, members[1])
    } else {
        (443, port, members[0])
    };
    for flow in 0..400 {
        lab.program
            .run(&to(ends, flow, tcp_flags::FIN | tcp_flags::ACK))?;
    }
    let before = counts(&mut lab, member)?;
    let outcome = lab.program.run(&to(opens, 20_000, tcp_flags::SYN))?;
    assert_eq!(outcome.action, lb_tests::program::action::TX);
    assert_eq!(counts(&mut lab, member)?.0, before.0 + 1);
    Ok(())
}

#[test]
fn a_flood_of_syns_takes_a_quarter_of_the_places_and_clients_get_the_rest() -> Result<()> {
    let (mut lab, service) = service(1, |_| {})?;
    limit(&mut lab, &service, 100)?;
    for flow in 0..500 {
        sent_to(&lab, &syn(flow))?;
    }
    assert_eq!(counts(&mut lab, service.members[0])?, (25, 0));
    // A client's SYN leaves no entry; its next packets make one.
    sent_to(&lab, &syn(1_000))?;
    sent_to(&lab, &ack(1_000))?;
    assert_eq!(counts(&mut lab, service.members[0])?, (25, 0));
    sent_to(&lab, &ack(1_000))?;
    assert_eq!(counts(&mut lab, service.members[0])?, (25, 1));
    Ok(())
}

#[test]
fn a_member_that_takes_no_new_flows_gets_none_and_keeps_its_own() -> Result<()> {
    let (mut lab, service) = service(2, |entry| {
        entry.scheduler = scheduler::LEAST_CONNECTIONS;
    })?;
    let old: Vec<u32> = (0..50).collect();
    let mut mine = vec![];
    for flow in old {
        if sent_to(&lab, &syn(flow))? == 0 {
            mine.push(flow);
        }
    }
    // As the controller does it: the state first, then the table.
    lab.change_member(service.members[0], |m| m.state = MemberState::DRAINING.0)?;
    lab.set_slots(&service, SlotWord::stable(service.members[1]))?;
    for flow in 100..150 {
        assert_eq!(sent_to(&lab, &syn(flow))?, 1);
    }
    assert!(mine.len() > 10);
    for flow in mine {
        assert_eq!(sent_to(&lab, &ack(flow))?, 0);
    }
    Ok(())
}

const UDP: Case = Case {
    protocol: protocol::UDP,
    ..CASE
};

fn datagram(flow: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = flow.to_be_bytes();
    let mut client = UDP.client();
    client.set_ip([100, high, middle, low].into());
    Packet::udp(client, UDP.vip())
        .macs(crate::lab::ROUTER_MAC, crate::lab::OWN_MAC)
        .payload(payload.to_vec())
        .build()
}

#[test]
fn quic_opens_flows_with_initial_packets_alone() -> Result<()> {
    let (mut lab, service) = service_of(UDP, 2, |entry| {
        entry.udp = udp::QUIC;
        entry.scheduler = scheduler::ROUND_ROBIN;
        entry.cycle = 2;
    })?;
    let initial = [0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4];
    let initial_v2 = [0xd3, 0x6b, 0x33, 0x43, 0xcf, 8, 1, 2, 3, 4];
    let handshake = [0xe3, 0, 0, 0, 1, 8, 1, 2, 3, 4];
    let (first, second) = (service.members[0], service.members[1]);
    assert_eq!(sent_to(&lab, &datagram(1, &initial))?, 0);
    assert_eq!(counts(&mut lab, first)?, (1, 0));
    assert_eq!(sent_to(&lab, &datagram(2, &initial_v2))?, 1);
    assert_eq!(counts(&mut lab, second)?, (1, 0));
    assert_eq!(sent_to(&lab, &datagram(1, &handshake))?, 0);
    assert_eq!(counts(&mut lab, first)?, (0, 1));
    // Neither of these opens a flow: the slot says where they go.
    lab.set_slots(&service, SlotWord::stable(second))?;
    for flow in 10..14 {
        assert_eq!(sent_to(&lab, &datagram(flow, &handshake))?, 1);
        assert_eq!(sent_to(&lab, &datagram(flow + 10, &[0x40]))?, 1);
    }
    assert_eq!(counts(&mut lab, second)?, (1, 0));
    Ok(())
}

#[test]
fn tracked_udp_takes_a_datagram_of_the_first_idle_period_for_an_old_flows() -> Result<()> {
    let (mut lab, service) = service_of(UDP, 2, |entry| {
        entry.flags = 0;
        entry.udp = udp::TRACKED;
    })?;
    let (old, new) = (service.members[0], service.members[1]);
    lab.set_slots(&service, SlotWord::tracked(new, old, 0))?;
    lab.program.set_ticks(8)?;
    assert_eq!(sent_to(&lab, &datagram(1, b"x"))?, 0);
    // idle_units is 20 in the lab.
    lab.program.set_ticks(21 * 8)?;
    assert_eq!(sent_to(&lab, &datagram(2, b"x"))?, 0);
    lab.program.set_ticks(21 * 8 + 1)?;
    assert_eq!(sent_to(&lab, &datagram(3, b"x"))?, 1);
    assert_eq!(sent_to(&lab, &datagram(2, b"x"))?, 0, "it has an entry");
    Ok(())
}

#[test]
fn by_source_all_flows_of_a_prefix_have_one_slot() -> Result<()> {
    let (lab, _) = service(5, |entry| {
        entry.flags = service_flag::BY_SOURCE;
        entry.prefix_v4 = 24;
    })?;
    let mut used = BTreeMap::new();
    for prefix in 0..40u32 {
        let mut seen = BTreeMap::new();
        for host in 0..20 {
            let mut client = at("0.0.0.0:1000");
            client.set_ip([100, 1, prefix as u8, host].into());
            client.set_port(1000 + u16::from(host) * 7);
            let frame = CASE.packet().source(client).flags(tcp_flags::ACK).build();
            *seen.entry(sent_to(&lab, &frame)?).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
        used.extend(seen);
    }
    assert_eq!(used.len(), 5, "prefixes spread");
    Ok(())
}
