//! Fragments: the first one is forwarded like a whole packet, the later ones
//! follow it, and nothing else does.

use anyhow::Result;
use lb_common::{abi::LinkEntry, abi::map, member::MemberState};
use lb_tests::{
    packet::{Packet, assert_same_frame, protocol},
    program::{INGRESS, action},
};

use crate::{
    icmp_error::stay_on_core,
    lab::{Case, Lab, OWN_MAC, ROUTER_MAC},
    reply_route::{Behind, CLIENTS, NEXT_HOP, both_ways, client, reply_to},
};

/// Offsets and more-fragments of later fragments.
const LATER: [(u16, bool); 4] = [(1480, true), (24, true), (2960, false), (65_528, false)];

/// Ticks after which a packet's first fragment is forgotten.
const LIFE: u32 = 30;

/// In IPv6 the protocol is no part of what tells packets apart.
fn own_id(case: Case, id: u32) -> u32 {
    id + (u32::from(case.protocol) << 8)
}

fn first(case: Case, id: u32) -> Packet {
    let packet = case.packet().payload([0x5a; 200]);
    packet.id(own_id(case, id)).fragment(0, true)
}

fn later(case: Case, id: u32, (offset, more): (u16, bool)) -> Packet {
    let packet = case.packet().payload([0xa5; 123]);
    packet.id(own_id(case, id)).fragment(offset, more)
}

#[test]
fn later_fragments_follow_the_first_in_every_method() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        for id in [1, 0xeeee] {
            let packet = first(case, id);
            lab.bounces("first", &packet.build(), &case.forwarded(&packet));
            for place in LATER {
                let packet = later(case, id, place);
                let what = format!("{case:?}, {place:?}");
                lab.bounces(&what, &packet.build(), &case.forwarded(&packet));
            }
        }
        let stats = lab.program.stats(service.members[0])?;
        assert_eq!(stats.packets, 10);
        let mut shapes = vec![first(case, 7).tos(0xb8)];
        shapes.push(if case.v4 {
            first(case, 8).ip_options(&[1; 40])
        } else {
            first(case, 8).hop_by_hop()
        });
        for packet in shapes {
            lab.bounces("shape", &packet.build(), &case.forwarded(&packet));
        }
        if case.protocol == protocol::UDP {
            let packet = first(case, 9).no_udp_checksum();
            lab.bounces("no sum", &packet.build(), &case.forwarded(&packet));
        }
    }
    Ok(())
}

#[test]
fn later_fragments_follow_on_another_core() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        stay_on_core(0);
        let packet = first(case, 1);
        lab.bounces("first", &packet.build(), &case.forwarded(&packet));
        stay_on_core(1);
        let packet = later(case, 1, LATER[0]);
        lab.bounces("later", &packet.build(), &case.forwarded(&packet));
    }
    Ok(())
}

/// Two members: the later fragment goes where the ports of the first one sent
/// it, and not where another packet of the same addresses goes.
#[test]
fn later_fragments_go_to_the_member_of_their_own_packet() -> Result<()> {
    for case in Case::all() {
        let mut lab = Lab::new()?;
        lab.service(&case.spec().backend(case.backend(), 0x12))?;
        let mut went = [0; 64];
        for id in 0..64u16 {
            let mut client = case.client();
            client.set_port(2000 + id);
            let packet = first(case, id.into()).source(client);
            went[usize::from(id)] = lab.run(&packet.build()).frame[5];
        }
        assert!(went.contains(&0x11) && went.contains(&0x12));
        for id in (0..64u16).rev() {
            let got = lab.run(&later(case, id.into(), LATER[0]).build());
            assert_eq!(got.drops, []);
            assert_eq!(got.frame[5], went[usize::from(id)], "{case:?}, {id}");
        }
    }
    Ok(())
}

#[test]
fn a_fragment_of_no_packet_that_is_known_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        lab.program.set_ticks(0)?;
        for place in LATER {
            lab.drops("too early", &later(case, 1, place).build(), 0, "fragment");
        }
        let packet = first(case, 1);
        lab.bounces("first", &packet.build(), &case.forwarded(&packet));
        let follows = later(case, 1, LATER[0]);
        let mut others = vec![later(case, 2, LATER[0])];
        let mut stranger = case.client();
        stranger.set_ip(crate::lab::backend(case.v4).ip());
        others.push(follows.clone().source(stranger));
        if case.v4 {
            // IPv6 doesn't count the protocol.
            let other = Packet::other(case.client().ip(), case.vip().ip(), 132);
            let other = other
                .payload([0; 64])
                .id(own_id(case, 1))
                .fragment(1480, true);
            others.push(other.macs(ROUTER_MAC, OWN_MAC));
        } else {
            others.push(later(case, 1 << 16 | 1, LATER[0]));
        }
        for (number, other) in others.iter().enumerate() {
            let what = format!("{case:?}, other {number}");
            lab.drops(&what, &other.build(), 0, "fragment");
        }
        lab.program.set_ticks(LIFE)?;
        lab.bounces("in time", &follows.build(), &case.forwarded(&follows));
        lab.program.set_ticks(LIFE + 1)?;
        lab.drops("too late", &follows.build(), 0, "fragment");

        // Whatever else is at the member's place by now.
        lab.program.set_ticks(0)?;
        lab.bounces("first", &packet.build(), &case.forwarded(&packet));
        let member = service.members[0];
        let before = lab.program.member(member)?;
        let mut elsewhere = before;
        elsewhere.service += 1;
        let mut other_vip = before;
        other_vip.vip = before.address;
        let mut dead = before;
        dead.state = MemberState::DEAD.0;
        for entry in [elsewhere, other_vip, dead] {
            lab.program.set_member(member, entry)?;
            lab.drops("another member", &follows.build(), 0, "fragment");
        }
        lab.program.set_member(member, before)?;
        lab.bounces("again", &follows.build(), &case.forwarded(&follows));
    }
    Ok(())
}

/// RFC 1858: ports in the first fragment and flags in the second, or there again.
#[test]
fn tiny_and_overlapping_fragments_of_tcp_are_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let is_tcp = case.protocol == protocol::TCP;
        let packet = first(case, 1);
        let whole = packet.build();
        let header = if is_tcp { 20 } else { 8 };
        let ip_header = if case.v4 { 20 } else { 48 };
        for length in 0..header {
            let mut frame = whole[..14 + ip_header + length].to_vec();
            let total = ip_header + length;
            if case.v4 {
                frame[16..18].copy_from_slice(&u16::try_from(total)?.to_be_bytes());
            } else {
                frame[18..20].copy_from_slice(&u16::try_from(total - 40)?.to_be_bytes());
            }
            frame.resize(64.max(frame.len()), 0);
            lab.drops(&format!("{case:?}, {length}"), &frame, 0, "malformed");
        }
        assert_eq!(lab.program.stats(service.members[0])?.packets, 0);
        lab.bounces("first", &whole, &case.forwarded(&packet));
        let second = later(case, 1, (8, true));
        if is_tcp {
            lab.drops("second", &second.build(), 0, "malformed");
        } else {
            lab.bounces("second", &second.build(), &case.forwarded(&second));
        }
    }
    Ok(())
}

#[test]
fn fragments_that_nobody_gets_have_the_reason_of_a_whole_packet() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let mut vip = case.vip();
        vip.set_port(81);
        let packet = first(case, 1).destination(vip);
        lab.drops("no service", &packet.build(), 0, "no_service");
        let packet = later(case, 1, LATER[0]);
        lab.drops("after it", &packet.build(), 0, "fragment");
        let other = Packet::other(case.client().ip(), case.vip().ip(), 132);
        let other = other.payload([0; 64]).fragment(0, true);
        let other = other.macs(ROUTER_MAC, OWN_MAC);
        lab.drops("protocol", &other.build(), 0, "unknown_protocol");
        let echo = Packet::echo_request(case.client().ip(), case.vip().ip(), 1, 1);
        let echo = echo.payload([0; 64]).macs(ROUTER_MAC, OWN_MAC);
        for (offset, more) in [(0, true), (64, false)] {
            let echo = echo.clone().fragment(offset, more);
            lab.drops("echo", &echo.build(), 0, "fragment");
        }
    }
    Ok(())
}

/// RFC 1122 §3.2.2: nobody is told of a later fragment.
#[test]
fn later_fragments_that_cannot_be_sent_are_dropped_in_silence() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let packet = first(case, 1);
        lab.bounces("first", &packet.build(), &case.forwarded(&packet));
        let follows = later(case, 1, LATER[0]);
        if case.is_nat() {
            let spent = follows.clone().ttl(1).build();
            lab.drops("no hop left", &spent, service.id, "ttl_exceeded");
        }
        let member = service.members[0];
        let next_hop = lab.program.member(member)?.next_hop;
        lab.change_member(member, |m| m.next_hop = 0)?;
        lab.drops("no MAC", &follows.build(), service.id, "no_neighbour");
        lab.change_member(member, |m| m.next_hop = next_hop)?;
    }
    Ok(())
}

#[test]
fn a_later_fragment_that_is_too_big_is_dropped_in_silence() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let packet = first(case, 1);
        lab.bounces("first", &packet.build(), &case.forwarded(&packet));
        let other = crate::lab::OTHER_LINK;
        let entry = LinkEntry::plain(other, crate::lab::OTHER_MAC.0, 100);
        let place = LinkEntry::place(other, [0; 2]);
        lab.program
            .array::<LinkEntry>(map::LINKS)?
            .set(place, entry, 0)?;
        let member = service.members[0];
        lab.change_member(member, |m| {
            let hop = m.next_hop();
            let link = u16::try_from(place).expect("a place");
            m.next_hop = lb_common::net::NextHop::new(hop.mac(), link).0;
        })?;
        let follows = later(case, 1, LATER[0]);
        lab.drops("too big", &follows.build(), service.id, "too_big");
        assert_ne!(other, INGRESS);
    }
    Ok(())
}

/// RFC 6946: a fragment header without fragments.
#[test]
fn an_atomic_ipv6_fragment_is_a_whole_packet() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| !c.v4)?;
    for (case, _) in services {
        for packet in [
            case.packet().fragment(0, false),
            case.packet().hop_by_hop().fragment(0, false),
        ] {
            lab.bounces("atomic", &packet.build(), &case.forwarded(&packet));
        }
    }
    Ok(())
}

#[test]
fn fragments_of_replies_leave_from_the_vip() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, client| {
        let reply = reply_to(case, client)
            .payload([0x5a; 200])
            .id(own_id(case, 1));
        let early = reply.clone().fragment(1480, false);
        router.untouched(&early, &[])?;
        for (offset, more) in [(0, true), (1480, true), (2960, false)] {
            let packet = reply.clone().fragment(offset, more);
            let got = router.reply(&packet)?;
            let expected = packet
                .source(case.vip())
                .macs(CLIENTS.1, NEXT_HOP)
                .ttl(63)
                .build();
            assert_same_frame(&format!("{case:?} at {offset}"), &expected, &got.frame);
            assert_eq!(got.action, action::REDIRECT);
            assert_eq!((got.drops, got.events), (vec![], vec![]));
        }
        let stats = router.lab.program.stats(service.members[0])?;
        assert_eq!(stats.reply_packets, 3);
        // Of another packet.
        router.untouched(&early.id(77), &[])
    })
}

#[test]
fn fragments_of_what_is_no_reply_are_passed_untouched() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, _| {
        let by_flow = service.entry.flags != 0;
        let other = client(case.v4, Behind::ServersLink);
        let mut other_port = case.backend();
        other_port.set_port(22);
        let packet = reply_to(case, other).source(other_port);
        for (offset, more) in [(0, true), (1480, true), (2960, false)] {
            let packet = packet.clone().payload([1; 64]).fragment(offset, more);
            router.untouched(&packet, &[])?;
        }
        let mine = reply_to(case, other).payload([1; 64]).fragment(0, true);
        if by_flow {
            router.untouched(&mine, &[(0, "reply_unmatched")])?;
        }
        Ok(())
    })?;
    Ok(())
}
