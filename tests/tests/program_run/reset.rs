//! Resets of connections whose backend is gone, byte by byte.

use anyhow::Result;
use lb_common::{
    abi::{RESETS_PER_SECOND, method, service_flag},
    member::MemberState,
    slot::SlotWord,
};
use lb_tests::{
    packet::{Packet, assert_same_frame, protocol, tcp_flags, verify},
    program::action,
};

use crate::lab::{Case, Lab, OWN_MAC, ROUTER_MAC, Service};

fn cases() -> Vec<Case> {
    let mut cases = Case::all();
    cases.retain(|case| case.protocol == protocol::TCP);
    cases
}

/// A service whose slots all went from its first member, which is gone, to the
/// second at tick 0; it resets.
fn bereft(case: Case) -> Result<(Lab, Service)> {
    let mut lab = Lab::new()?;
    let spec = case.spec().backend(case.backend(), 0x12);
    let mut service = lab.service(&spec)?;
    service.entry.flags |= service_flag::RESET;
    lab.add_key(&spec, service.entry)?;
    let [old, new] = service.members[..] else {
        panic!("two members");
    };
    lab.set_slots(&service, SlotWord::tracked(new, old, 0))?;
    lab.program.set_ticks(100)?;
    lab.change_member(old, |m| m.state = MemberState::DEAD.0)?;
    Ok((lab, service))
}

/// The RST that a client accepts (RFC 9293 §3.10.7.1).
fn reset(case: Case, sequence: u32, acknowledgement: Option<u32>) -> Packet {
    let ack = if acknowledgement.is_some() {
        tcp_flags::ACK
    } else {
        0
    };
    Packet::tcp(case.vip(), case.client())
        .macs(OWN_MAC, ROUTER_MAC)
        .numbers(sequence, acknowledgement.unwrap_or(0))
        .flags(tcp_flags::RST | ack)
        .window(0)
        .id(0)
}

fn padded(case: Case, packet: &Packet) -> Vec<u8> {
    packet.clone().padding(if case.v4 { 6 } else { 0 }).build()
}

#[track_caller]
fn resets(lab: &mut Lab, service: &Service, what: &str, frame: &[u8], expected: &[u8]) {
    let got = lab.run(frame);
    assert_eq!(got.drops, [], "{what}: dropped");
    assert_same_frame(what, expected, &got.frame);
    assert_eq!(got.action, action::TX, "{what}: action");
    assert_eq!(got.events, [(service.id, "reset")], "{what}: events");
    verify(&got.frame).unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

#[test]
fn an_old_flow_is_told_by_the_vip_under_every_method() -> Result<()> {
    for case in cases() {
        let (mut lab, service) = bereft(case)?;
        let packet = case.packet().numbers(1000, 0xffff_fff0);
        let expected = padded(case, &reset(case, 0xffff_fff0, None));
        for flags in [
            tcp_flags::ACK,
            tcp_flags::ACK | tcp_flags::FIN,
            tcp_flags::ACK | tcp_flags::SYN,
        ] {
            let frame = packet.clone().flags(flags).build();
            resets(&mut lab, &service, "with an ACK", &frame, &expected);
        }
        // 37 bytes of payload, and one for the FIN.
        for (flags, bytes) in [(0, 37), (tcp_flags::FIN, 38)] {
            let packet = packet.clone().numbers(u32::MAX - 5, 3).flags(flags);
            let expected = reset(case, 0, Some(bytes - 6));
            let expected = padded(case, &expected);
            resets(&mut lab, &service, "without", &packet.build(), &expected);
        }
    }
    Ok(())
}

#[test]
fn options_extension_headers_and_padding_are_left_out() -> Result<()> {
    for case in cases() {
        let (mut lab, service) = bereft(case)?;
        let packet = case.packet().numbers(1, 77).flags(tcp_flags::ACK);
        let expected = padded(case, &reset(case, 77, None));
        let longer = if case.v4 {
            packet.clone().ip_options(&[1; 8])
        } else {
            packet.clone().hop_by_hop()
        };
        let longer = longer.tcp_options(&[1; 12]);
        resets(&mut lab, &service, "options", &longer.build(), &expected);
        let padded_frame = packet.clone().padding(11).build();
        resets(&mut lab, &service, "padding", &padded_frame, &expected);
        // Too short to be filled up: it stays as long as it was.
        let short = packet.clone().payload([]).build();
        let expected = reset(case, 77, None).build();
        resets(&mut lab, &service, "short", &short, &expected);
        // Data that stands in the frame is not data of the packet.
        let no_ack = packet
            .payload([])
            .numbers(5, 0)
            .flags(0)
            .padding(40)
            .build();
        let expected = padded(case, &reset(case, 0, Some(5)));
        resets(&mut lab, &service, "no data", &no_ack, &expected);
    }
    Ok(())
}

#[test]
fn a_reset_is_never_answered_and_new_flows_go_to_the_new_member() -> Result<()> {
    for case in cases() {
        let (mut lab, service) = bereft(case)?;
        let rst = case.packet().flags(tcp_flags::RST);
        lab.drops("an RST", &rst.build(), service.id, "backend_gone");
        let syn = case.packet().flags(tcp_flags::SYN);
        let got = lab.run(&syn.build());
        assert_eq!(got.events, [(service.id, "flow_inserted")]);
        assert_same_frame(
            "a SYN",
            &case.forwarded_to(&syn, case.backend(), 0x12),
            &got.frame,
        );
        let data = case.packet().flags(tcp_flags::ACK);
        let expected = case.forwarded_to(&data, case.backend(), 0x12);
        lab.bounces("its data", &data.build(), &expected);
    }
    Ok(())
}

#[test]
fn a_flow_whose_entry_names_a_member_that_is_gone_is_reset() -> Result<()> {
    for case in cases() {
        let (mut lab, service) = bereft(case)?;
        let [old, new] = service.members[..] else {
            panic!("two members");
        };
        lab.change_member(old, |m| m.state = MemberState::UP.0)?;
        let data = case.packet().numbers(1, 9).flags(tcp_flags::ACK);
        lab.run(&data.build());
        // Now the entry alone says whose it was.
        lab.set_slots(&service, SlotWord::tracked(new, new, 0))?;
        lab.change_member(old, |m| m.state = MemberState::DEAD.0)?;
        let expected = padded(case, &reset(case, 9, None));
        resets(&mut lab, &service, "by its entry", &data.build(), &expected);
    }
    Ok(())
}

#[test]
fn a_flow_of_a_dead_member_is_reset_under_full_tracking() -> Result<()> {
    for case in cases() {
        let (mut lab, mut service) = bereft(case)?;
        let [old, new] = service.members[..] else {
            panic!("two members");
        };
        service.entry.flags |= service_flag::FULL_TRACKING;
        lab.add_key(&case.spec(), service.entry)?;
        lab.change_member(old, |m| m.state = MemberState::UP.0)?;
        lab.set_slots(&service, SlotWord::stable(old))?;
        let syn = case.packet().flags(tcp_flags::SYN);
        let data = case.packet().numbers(1, 9).flags(tcp_flags::ACK);
        for packet in [&syn, &data] {
            let got = lab.run(&packet.build());
            let expected = case.forwarded_to(packet, case.backend(), 0x11);
            assert_same_frame("while it serves", &expected, &got.frame);
        }
        lab.set_slots(&service, SlotWord::stable(new))?;
        lab.change_member(old, |m| m.state = MemberState::DEAD.0)?;
        let expected = padded(case, &reset(case, 9, None));
        resets(&mut lab, &service, "by its entry", &data.build(), &expected);
        let got = lab.run(&syn.build());
        let expected = case.forwarded_to(&syn, case.backend(), 0x12);
        assert_same_frame("a new one", &expected, &got.frame);
    }
    Ok(())
}

#[test]
fn a_member_that_is_gone_from_a_stable_slot_resets_what_is_open() -> Result<()> {
    for case in cases() {
        let (mut lab, service) = bereft(case)?;
        lab.set_slots(&service, SlotWord::stable(service.members[0]))?;
        let data = case.packet().numbers(1, 9).flags(tcp_flags::ACK);
        let expected = padded(case, &reset(case, 9, None));
        resets(&mut lab, &service, "stable", &data.build(), &expected);
        let syn = case.packet().flags(tcp_flags::SYN);
        lab.drops("a SYN", &syn.build(), service.id, "no_backend");
    }
    Ok(())
}

#[test]
fn a_service_that_does_not_reset_moves_the_flow() -> Result<()> {
    for case in cases() {
        let (mut lab, mut service) = bereft(case)?;
        service.entry.flags &= !service_flag::RESET;
        lab.add_key(&case.spec(), service.entry)?;
        let data = case.packet().flags(tcp_flags::ACK);
        let got = lab.run(&data.build());
        let expected = case.forwarded_to(&data, case.backend(), 0x12);
        assert_same_frame("moved", &expected, &got.frame);
    }
    Ok(())
}

#[test]
fn a_core_sends_so_many_resets_a_second_and_no_more() -> Result<()> {
    crate::defence::stay_on_one_core();
    let case = Case {
        method: method::NAT,
        v4: true,
        protocol: protocol::TCP,
    };
    let (mut lab, service) = bereft(case)?;
    let frame = case.packet().flags(tcp_flags::ACK).build();
    for _ in 0..RESETS_PER_SECOND {
        assert_eq!(lab.program.run(&frame)?.action, action::TX);
    }
    let events = lab.program.events(service.id)?;
    assert_eq!(events.get("reset"), Some(&u64::from(RESETS_PER_SECOND)));
    assert_eq!(lab.program.run(&frame)?.action, action::DROP);
    assert_eq!(lab.program.drops(service.id)?.get("backend_gone"), Some(&1));
    Ok(())
}
