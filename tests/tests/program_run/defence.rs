//! Who may use a service, and how much of it.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    abi::{ServiceEntry, method, service_flag, source, source_set, udp},
    limit::Bucket,
};
use lb_tests::{
    packet::{Packet, assert_same_frame, protocol, tcp_flags},
    program::{SECOND_STEPS, action},
};

use crate::lab::{Case, Lab, Service, at, ip};

const DSR: [bool; 2] = [true, false];

fn tcp(v4: bool) -> Case {
    Case {
        method: method::L2_DSR,
        v4,
        protocol: protocol::TCP,
    }
}

/// A service of one backend for the case, guarded as `change` says.
fn guarded(lab: &mut Lab, case: Case, change: impl FnOnce(&mut ServiceEntry)) -> Result<Service> {
    let mut service = lab.service(&case.spec())?;
    service.entry.flags |= service_flag::GUARDED;
    change(&mut service.entry);
    lab.add_key(&case.spec(), service.entry)?;
    Ok(service)
}

fn from(case: Case, source: &str, flags: u8) -> Packet {
    let source = SocketAddr::new(ip(source), 40_001);
    let packet = case.packet().source(source);
    match case.protocol {
        protocol::TCP => packet.flags(flags),
        _ => packet,
    }
}

#[test]
fn the_longest_prefix_that_covers_a_source_decides() -> Result<()> {
    // Prefix, length, whether it is allowed; each list for one family.
    let rules = [
        (
            true,
            vec![
                ("0.0.0.0", 0, false),
                ("198.51.0.0", 16, true),
                ("198.51.100.0", 24, false),
                ("198.51.100.7", 32, true),
            ],
            vec![
                ("198.51.1.1", true),
                ("198.51.100.8", false),
                ("198.51.100.7", true),
                ("198.52.0.1", false),
                ("9.9.9.9", false),
            ],
        ),
        (
            false,
            vec![
                ("2001:db8::", 32, false),
                ("2001:db8:c::", 48, true),
                ("2001:db8:c:1::", 64, false),
            ],
            vec![
                ("2001:db8:1::1", false),
                ("2001:db8:c::1", true),
                ("2001:db8:c:1::ffff", false),
                // No list covers it.
                ("2600::1", true),
            ],
        ),
    ];
    for protocol in [protocol::TCP, protocol::UDP] {
        for (v4, rules, sources) in &rules {
            let case = Case {
                protocol,
                ..tcp(*v4)
            };
            let mut lab = Lab::new()?;
            let set = source_set(1, 3);
            let service = guarded(&mut lab, case, |entry| entry.sources = set)?;
            for (prefix, bits, allowed) in rules {
                let value = [source::DENIED, source::ALLOWED][usize::from(*allowed)];
                lab.program.add_source(set, (ip(prefix), *bits), value)?;
            }
            // Another set of the service, and the same one of another.
            for other in [source_set(1, 2), source_set(2, 3), 0] {
                for (address, allowed) in sources {
                    let value = [source::ALLOWED, source::DENIED][usize::from(*allowed)];
                    let bits = if *v4 { 32 } else { 128 };
                    lab.program.add_source(other, (ip(address), bits), value)?;
                }
            }
            for (address, allowed) in sources {
                // Neither to open nor to go on.
                for flags in [tcp_flags::SYN, tcp_flags::ACK] {
                    let packet = from(case, address, flags);
                    if *allowed {
                        lab.bounces(address, &packet.build(), &case.forwarded(&packet));
                    } else {
                        lab.drops(address, &packet.build(), service.id, "denied");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_set_that_is_named_by_a_service_without_the_flag_is_not_looked_at() -> Result<()> {
    let case = tcp(true);
    let mut lab = Lab::new()?;
    let set = source_set(1, 1);
    guarded(&mut lab, case, |entry| {
        entry.sources = set;
        entry.flags = 0;
    })?;
    lab.program
        .add_source(set, (ip("0.0.0.0"), 0), source::DENIED)?;
    let packet = case.packet();
    lab.bounces("unguarded", &packet.build(), &case.forwarded(&packet));
    Ok(())
}

/// A bucket of ten that no test is slow enough to see filled up.
const COST: u32 = SECOND_STEPS / 10;

/// The tests' program runs on one core, on which the buckets are.
pub fn stay_on_one_core() {
    // SAFETY: a set of zeros is an empty one, and the calls only read it.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(
            usize::try_from(libc::sched_getcpu()).expect("a core"),
            &mut cores,
        );
        libc::sched_setaffinity(0, size_of_val(&cores), &raw const cores);
    }
}

#[test]
fn a_core_takes_no_more_new_flows_than_its_share() -> Result<()> {
    stay_on_one_core();
    for v4 in DSR {
        let case = tcp(v4);
        let mut lab = Lab::new()?;
        let service = guarded(&mut lab, case, |entry| entry.core_cost = COST)?;
        let syn = case.packet().flags(tcp_flags::SYN);
        for _ in 0..10 {
            lab.bounces("within", &syn.build(), &case.forwarded(&syn));
        }
        lab.drops("beyond", &syn.build(), service.id, "core_limit");
        // What is open goes on.
        for flags in [
            tcp_flags::ACK,
            tcp_flags::FIN | tcp_flags::ACK,
            tcp_flags::RST,
        ] {
            let packet = case.packet().flags(flags);
            lab.bounces("open", &packet.build(), &case.forwarded(&packet));
        }
        lab.program.lift_core_limit(service.id)?;
        lab.bounces("a second later", &syn.build(), &case.forwarded(&syn));
    }
    Ok(())
}

#[test]
fn a_source_opens_no_more_flows_than_its_share_and_costs_others_nothing() -> Result<()> {
    stay_on_one_core();
    // One source twice over, and another.
    let sources = [
        (true, ["198.51.100.7", "198.51.100.7", "198.51.100.8"]),
        (
            false,
            ["2001:db8:c::7", "2001:db8:c::8:9", "2001:db8:c:1::7"],
        ),
    ];
    for (v4, [first, same, other]) in sources {
        let case = tcp(v4);
        let mut lab = Lab::new()?;
        let service = guarded(&mut lab, case, |entry| {
            entry.source_cost = COST;
            entry.core_cost = SECOND_STEPS / 12;
        })?;
        let syn = |source| from(case, source, tcp_flags::SYN);
        for n in 0..10 {
            let packet = syn([first, same][n % 2]);
            lab.bounces("within", &packet.build(), &case.forwarded(&packet));
        }
        for _ in 0..20 {
            lab.drops("beyond", &syn(same).build(), service.id, "source_limit");
        }
        let packet = from(case, first, tcp_flags::ACK);
        lab.bounces("open", &packet.build(), &case.forwarded(&packet));
        // What the first had refused took nothing from the core's twelve.
        for _ in 0..2 {
            lab.bounces("other", &syn(other).build(), &case.forwarded(&syn(other)));
        }
        lab.drops("the core's", &syn(other).build(), service.id, "core_limit");
    }
    Ok(())
}

#[test]
fn a_limit_of_one_service_is_not_that_of_another() -> Result<()> {
    stay_on_one_core();
    let mut lab = Lab::new()?;
    let case = tcp(true);
    let service = guarded(&mut lab, case, |entry| entry.source_cost = COST)?;
    let other = case.spec();
    let mut entry = service.entry;
    entry.id += 1;
    let mut elsewhere = other.clone();
    elsewhere.vip = at("192.0.2.10:81");
    lab.add_key(&elsewhere, entry)?;
    let syn = case.packet().flags(tcp_flags::SYN);
    for _ in 0..10 {
        lab.bounces("within", &syn.build(), &case.forwarded(&syn));
    }
    lab.drops("beyond", &syn.build(), service.id, "source_limit");
    // It has no backends under that id: what counts is that it got so far.
    let got = lab.run(&syn.destination(elsewhere.vip).build());
    assert_eq!(got.action, action::DROP);
    assert_ne!(got.drops, [(entry.id, "source_limit")]);
    Ok(())
}

#[test]
fn a_flow_of_udp_takes_a_token_when_it_gets_its_entry() -> Result<()> {
    stay_on_one_core();
    for v4 in DSR {
        let case = Case {
            protocol: protocol::UDP,
            ..tcp(v4)
        };
        for (reason, core, source) in [("core_limit", COST, 0), ("source_limit", 0, COST)] {
            let mut lab = Lab::new()?;
            let service = guarded(&mut lab, case, |entry| {
                entry.flags |= service_flag::FULL_TRACKING;
                entry.udp = udp::TRACKED;
                (entry.core_cost, entry.source_cost) = (core, source);
            })?;
            let client = |n: u16| {
                let client = case.client();
                case.packet().source((client.ip(), 30_000 + n).into())
            };
            for n in 0..10 {
                let got = lab.run(&client(n).build());
                assert_eq!(got.events, [(service.id, "flow_inserted")]);
                assert_same_frame("within", &case.forwarded(&client(n)), &got.frame);
            }
            for n in 10..15 {
                lab.drops("beyond", &client(n).build(), service.id, reason);
            }
            for n in 0..10 {
                lab.bounces("known", &client(n).build(), &case.forwarded(&client(n)));
            }
        }
    }
    Ok(())
}

#[test]
fn udp_and_established_flows_take_no_token() -> Result<()> {
    stay_on_one_core();
    for v4 in DSR {
        let case = Case {
            protocol: protocol::UDP,
            ..tcp(v4)
        };
        let mut lab = Lab::new()?;
        guarded(&mut lab, case, |entry| {
            entry.core_cost = COST;
            entry.source_cost = COST;
        })?;
        for _ in 0..30 {
            let packet = case.packet();
            lab.bounces("a datagram", &packet.build(), &case.forwarded(&packet));
        }
    }
    assert_ne!(
        Bucket::default().take(1, COST, SECOND_STEPS),
        Bucket::default()
    );
    Ok(())
}
