//! Errors that the data path sends to clients: time exceeded and too big.

use anyhow::Result;
use lb_common::{
    abi::{LinkEntry, map},
    limit,
};
use lb_tests::{
    packet::{Packet, assert_same_frame, verify},
    program::{INGRESS, action},
};

use crate::lab::{
    Backend, Case, Lab, OTHER_LINK, OTHER_MAC, OWN_MAC, ROUTER_MAC, Service, backend_mac,
};

/// The error about `packet` that its sender has to get, from the VIP.
fn error(case: Case, kind: u8, code: u8, mtu: u16, packet: &Packet) -> Vec<u8> {
    let quoted = packet.ip_packet();
    let quoted = &quoted[..quoted.len().min(128) & !3];
    let [high, low] = mtu.to_be_bytes();
    let rest = [0, 0, high, low];
    Packet::icmp(case.vip().ip(), case.client().ip(), kind, code, rest)
        .payload(quoted)
        .macs(OWN_MAC, ROUTER_MAC)
        .tos(0xc0)
        .id(0)
        .build()
}

/// The packet is dropped for a reason, of which its sender is told.
#[track_caller]
fn tells(lab: &mut Lab, what: &str, packet: &Packet, reason: (u32, &'static str), expected: &[u8]) {
    let got = lab.run(&packet.build());
    assert_eq!(got.drops, [reason], "{what}");
    assert_eq!(got.events, [(reason.0, "icmp_error_sent")], "{what}");
    assert_same_frame(what, expected, &got.frame);
    assert_eq!(got.action, action::TX, "{what}: action");
    verify(&got.frame).unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

fn time_exceeded(case: Case, packet: &Packet) -> Vec<u8> {
    error(case, if case.v4 { 11 } else { 3 }, 0, 0, packet)
}

#[test]
fn a_client_whose_packet_has_no_hop_left_is_told_by_the_vip() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.is_nat())?;
    for (case, service) in services {
        let mut all = vec![case.packet().tos(0xb8), case.packet().fragment(0, true)];
        for length in (0..=12).chain([60, 80, 88, 100, 1400]) {
            all.push(case.packet().payload(vec![0xa5; length]));
        }
        all.push(if case.v4 {
            case.packet().ip_options(&[1; 40])
        } else {
            case.packet().hop_by_hop().hop_by_hop()
        });
        for (number, packet) in all.into_iter().enumerate() {
            for ttl in [0, 1] {
                let packet = packet.clone().ttl(ttl);
                let what = format!("{case:?}, packet {number}, TTL {ttl}");
                let expected = time_exceeded(case, &packet);
                let reason = (service.id, "ttl_exceeded");
                tells(&mut lab, &what, &packet, reason, &expected);
            }
        }
        assert_eq!(lab.program.stats(service.members[0])?.packets, 0);
    }
    Ok(())
}

/// Extension headers so long that the ports wouldn't be quoted: nobody could
/// tell whose packet it was.
#[test]
fn what_cannot_be_quoted_up_to_its_ports_is_dropped_in_silence() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.is_nat() && !c.v4)?;
    for (case, service) in services {
        // 88 bytes of padding options.
        let mut options = [0; 87];
        options[0] = 10;
        let packet = case.packet().extension(60, &options).ttl(1);
        lab.drops("long", &packet.build(), service.id, "ttl_exceeded");
    }
    Ok(())
}

#[test]
fn an_error_goes_back_with_the_tags_that_the_packet_came_with() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.is_nat())?;
    let tags = [[0x8100_0007, 0], [0x88a8_0008, 0x8100_0007]];
    for tags in tags {
        let entry = LinkEntry {
            match_tags: tags,
            tags,
            ..LinkEntry::plain(INGRESS, OWN_MAC.0, 1500)
        };
        let place = LinkEntry::place(INGRESS, tags);
        lab.program
            .array::<LinkEntry>(map::LINKS)?
            .set(place, entry, 0)?;
    }
    for (case, service) in services {
        let packet = case.packet().ttl(1);
        let expected = time_exceeded(case, &packet);
        let (head, rest) = expected.split_at(12);
        let one = [head, &[0x81, 0, 0, 7], rest].concat();
        let two = [head, &[0x88, 0xa8, 0, 8, 0x81, 0, 0, 7], rest].concat();
        let reason = (service.id, "ttl_exceeded");
        let tagged = packet.vlan(7);
        tells(&mut lab, "one tag", &tagged, reason, &one);
        tells(&mut lab, "two tags", &tagged.service_vlan(8), reason, &two);
    }
    Ok(())
}

/// A lab with one service of each case, whose member is behind a link of
/// another MTU.
fn behind(mtu: u32) -> Result<(Lab, Vec<(Case, Service)>)> {
    let mut lab = Lab::new()?;
    let place = LinkEntry::place(OTHER_LINK, [0; 2]);
    let entry = LinkEntry::plain(OTHER_LINK, OTHER_MAC.0, mtu);
    lab.program
        .array::<LinkEntry>(map::LINKS)?
        .set(place, entry, 0)?;
    let mut services = vec![];
    for case in Case::all() {
        let mut spec = case.spec();
        spec.backends = vec![Backend {
            address: case.backend(),
            mac: backend_mac(0x11),
            link: OTHER_LINK,
        }];
        services.push((case, lab.service(&spec)?));
    }
    Ok((lab, services))
}

/// Of an IP packet of `bytes`.
fn of_length(case: Case, bytes: usize) -> Packet {
    let empty = case.packet().payload([]).ip_packet().len();
    case.packet().payload(vec![0x5a; bytes - empty])
}

#[test]
fn a_packet_longer_than_the_members_link_carries_is_answered_with_the_mtu() -> Result<()> {
    for mtu in [1280u16, 1400, 1499] {
        let (mut lab, services) = behind(mtu.into())?;
        for (case, service) in services {
            for length in [mtu + 1, 1500] {
                let packet = of_length(case, length.into());
                let (kind, code) = if case.v4 { (3, 4) } else { (2, 0) };
                let expected = error(case, kind, code, mtu, &packet);
                let what = format!("{case:?}, {length} bytes, MTU {mtu}");
                let reason = (service.id, "too_big");
                tells(&mut lab, &what, &packet, reason, &expected);
                if case.v4 {
                    // The data path makes no fragments; a sender that is told
                    // makes them itself.
                    let packet = packet.may_fragment();
                    let expected = error(case, kind, code, mtu, &packet);
                    tells(&mut lab, &what, &packet, reason, &expected);
                }
            }
            let packet = of_length(case, mtu.into());
            let got = lab.run(&packet.build());
            assert_eq!((got.action, got.drops), (action::REDIRECT, vec![]));
            let sent = case.forwarded(&packet.macs(ROUTER_MAC, OTHER_MAC));
            assert_eq!(got.frame[14..], sent[14..], "{case:?}");
        }
    }
    Ok(())
}

/// The kernel puts packets together before generic XDP sees them (GRO), and
/// takes them apart again.
#[test]
fn what_is_longer_than_its_own_link_carries_is_forwarded() -> Result<()> {
    let (mut lab, services) = behind(1400)?;
    for (case, _) in services {
        let packet = of_length(case, 1501);
        let got = lab.run(&packet.build());
        assert_eq!(
            (got.action, got.drops),
            (action::REDIRECT, vec![]),
            "{case:?}"
        );
    }
    Ok(())
}

/// Keeps the calling thread on one core, whose bucket it is.
pub fn stay_on_core(core: usize) {
    // SAFETY: plain data, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is far below the set's size.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: a whole set of the calling thread.
    let rc = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(rc, 0, "core {core}");
}

#[test]
fn errors_beyond_the_rate_are_not_sent_and_counted() -> Result<()> {
    stay_on_core(0);
    let (mut lab, services) = Lab::with_cases(|c| c.is_nat())?;
    let (case, service) = services[0].clone();
    // Of a kernel whose jiffies are so slow that the test is over in one.
    lab.program.configure(|c| {
        c.second_steps = u32::MAX;
        c.icmp_cost = u32::MAX / 3;
    })?;
    let packet = case.packet().ttl(1);
    let expected = time_exceeded(case, &packet);
    let reason = (service.id, "ttl_exceeded");
    for _ in 0..3 {
        tells(&mut lab, "within", &packet, reason, &expected);
    }
    for _ in 0..3 {
        let got = lab.run(&packet.build());
        assert_eq!(got.action, action::DROP);
        assert_eq!(got.drops, [reason]);
        assert_eq!(got.events, [(service.id, "icmp_limited")]);
        assert_same_frame("untouched", &packet.build(), &got.frame);
    }
    // Each core has a bucket of its own.
    stay_on_core(1);
    tells(&mut lab, "another core", &packet, reason, &expected);
    lab.program.configure(|c| {
        c.second_steps = limit::second(250);
        c.icmp_cost = 0;
    })?;
    let got = lab.run(&packet.build());
    assert_eq!((got.action, got.drops), (action::DROP, vec![reason]));
    assert_eq!(got.events, [(service.id, "icmp_limited")]);
    Ok(())
}
