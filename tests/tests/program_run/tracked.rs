//! Slots whose member changed: old flows stay, new ones go to the new member.
//! The rules are proven over a model elsewhere; this is their place in the
//! program.

use anyhow::Result;
use lb_common::{
    abi::{map, method},
    flow::BUCKET_WORDS,
    member::MemberState,
    slot::SlotWord,
};
use lb_tests::{
    packet::{Packet, protocol, tcp_flags},
    program::Sizes,
};

use crate::lab::{Case, Lab, Observed, Service};

const WINDOW: u32 = 4;
const IDLE_TICKS: u32 = 21 * 8;

fn tcp(v4: bool) -> Case {
    Case {
        method: method::L2_DSR,
        v4,
        protocol: protocol::TCP,
    }
}

/// A service with two members whose slots all went from the first to the
/// second at tick 0.
fn changed(case: Case, buckets: u32) -> Result<(Lab, Service)> {
    let mut lab = Lab::sized(Sizes {
        buckets,
        ..Sizes::default()
    })?;
    let service = lab.service(&case.spec().backend(case.backend(), 0x12))?;
    let [old, new] = service.members[..] else {
        panic!("two members");
    };
    lab.set_slots(&service, SlotWord::tracked(new, old, 0))?;
    Ok((lab, service))
}

fn from_port(case: Case, port: u16, flags: u8) -> Packet {
    let mut client = case.client();
    client.set_port(port);
    case.packet().source(client).flags(flags)
}

#[track_caller]
fn goes_to(lab: &mut Lab, packet: &Packet, mac: u8) -> Observed {
    let got = lab.run(&packet.build());
    assert_eq!(got.drops, []);
    assert_eq!(got.frame[5], mac, "delivered to");
    got
}

#[test]
fn flows_that_are_older_than_the_change_stay() -> Result<()> {
    for case in [tcp(true), tcp(false)] {
        let (mut lab, service) = changed(case, 64)?;
        let inserted = [(service.id, "flow_inserted")];
        lab.program.set_ticks(100)?;
        let old = from_port(case, 1000, tcp_flags::ACK);
        assert_eq!(goes_to(&mut lab, &old, 0x11).events, inserted);
        assert_eq!(goes_to(&mut lab, &old, 0x11).events, []);
        // Its entry holds when the slot is the new member's alone.
        let new = service.members[1];
        lab.set_slots(&service, SlotWord::tracked(new, new, 0))?;
        assert_eq!(goes_to(&mut lab, &old, 0x11).events, []);
        lab.program.set_ticks(100 + IDLE_TICKS)?;
        goes_to(&mut lab, &old, 0x12);
    }
    Ok(())
}

#[test]
fn new_flows_go_to_the_new_member_and_stay_there() -> Result<()> {
    for case in [tcp(true), tcp(false)] {
        let (mut lab, service) = changed(case, 64)?;
        lab.program.set_ticks(WINDOW)?;
        let syn = from_port(case, 1000, tcp_flags::SYN);
        let got = goes_to(&mut lab, &syn, 0x12);
        assert_eq!(got.events, [(service.id, "flow_inserted")]);
        goes_to(&mut lab, &from_port(case, 1000, tcp_flags::ACK), 0x12);
        assert_eq!(lab.program.stats(service.members[1])?.connections, 1);
    }
    Ok(())
}

#[test]
fn a_syn_right_after_the_change_may_be_a_retransmission() -> Result<()> {
    for case in [tcp(true), tcp(false)] {
        let (mut lab, _) = changed(case, 64)?;
        lab.program.set_ticks(WINDOW - 1)?;
        let syn = from_port(case, 1000, tcp_flags::SYN);
        goes_to(&mut lab, &syn, 0x11);
        lab.program.set_ticks(WINDOW)?;
        goes_to(&mut lab, &syn, 0x11);
    }
    Ok(())
}

#[test]
fn old_flows_of_a_dead_member_go_to_the_new_one() -> Result<()> {
    for case in [tcp(true), tcp(false)] {
        let (mut lab, service) = changed(case, 64)?;
        let packet = from_port(case, 1000, tcp_flags::ACK);
        goes_to(&mut lab, &packet, 0x11);
        lab.change_member(service.members[0], |m| m.state = MemberState::DEAD.0)?;
        goes_to(&mut lab, &packet, 0x12);
    }
    Ok(())
}

#[test]
fn a_full_table_keeps_flows_where_they_are_and_says_so() -> Result<()> {
    for case in [tcp(true), tcp(false)] {
        let (mut lab, service) = changed(case, 2)?;
        lab.program.set_ticks(100)?;
        let (mut inserted, mut refused) = (0, 0);
        for port in 1000..1100 {
            let got = goes_to(&mut lab, &from_port(case, port, tcp_flags::ACK), 0x11);
            match got.events[..] {
                [(_, "flow_inserted")] => inserted += 1,
                [(_, "untracked")] => refused += 1,
                ref other => panic!("{other:?}"),
            }
        }
        assert_eq!(inserted, 2 * (BUCKET_WORDS - 1));
        assert_eq!(inserted + refused, 100);
        let pressed = (service.entry.slot_offset..service.entry.slot_size)
            .map(|slot| lab.program.slot(slot))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .filter(|slot| slot.is_pressed() && slot.age(100) == 0)
            .count();
        assert!(pressed > 20, "{pressed} slots stay tracked for longer");
    }
    Ok(())
}

#[test]
fn a_stable_slot_costs_no_entry() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let packet = case.packet();
        lab.bounces("stable", &packet.build(), &case.forwarded(&packet));
    }
    let table = lab.program.array::<[u64; BUCKET_WORDS]>(map::FLOWS)?;
    for bucket in table.iter() {
        assert_eq!(bucket?, [0; BUCKET_WORDS]);
    }
    Ok(())
}
