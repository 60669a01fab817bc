//! Fragments by every way through the programs: tracked slots, NAT that expects
//! replies, tunnels, other VLANs, full NAT. The first fragment goes as a whole
//! packet does, the later ones follow it, and nothing else does.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    abi::{feature, method, service_flag, source, source_set},
    member::MemberState,
    slot::SlotWord,
};
use lb_tests::{
    packet::{Packet, assert_same_frame, protocol, tcp_flags},
    program::{INGRESS, action},
};

use crate::{
    full_nat::{self, FIRST, OPENED, World, with_flags},
    lab::{self, Backend, Case, Lab, OWN_MAC, Observed, Spec, backend_mac, ip},
    reply_route::{CLIENTS, NEXT_HOP, SERVERS},
    tunnel::{self, spread},
};

/// Offsets and more-fragments of later fragments.
const LATER: [(u16, bool); 3] = [(1480, true), (24, true), (2960, false)];

/// The packet as the first fragment of packet `id`.
fn first(packet: &Packet, id: u32) -> Packet {
    packet.clone().payload([0x5a; 200]).id(id).fragment(0, true)
}

/// A later fragment of packet `id` of the same ends.
fn later(packet: &Packet, id: u32, (offset, more): (u16, bool)) -> Packet {
    let packet = packet.clone().payload([0xa5; 123]);
    packet.id(id).fragment(offset, more)
}

fn from_port(packet: Packet, client: SocketAddr, port: u16, flags: u8) -> Packet {
    with_flags(packet.source((client.ip(), port).into()), flags)
}

#[track_caller]
fn goes_to(lab: &mut Lab, what: &str, packet: &Packet, mac: u8) -> Observed {
    let got = lab.run(&packet.build());
    assert_eq!(got.drops, [], "{what}");
    assert_eq!(got.frame[5], mac, "{what}: delivered to");
    got
}

#[test]
fn later_fragments_follow_the_flow_of_a_tracked_slot() -> Result<()> {
    let cases = Case::all();
    for case in cases.into_iter().filter(|c| c.protocol == protocol::TCP) {
        let mut lab = Lab::new()?;
        let service = lab.service(&case.spec().backend(case.backend(), 0x12))?;
        let [old, new] = service.members[..] else {
            panic!("two members");
        };
        lab.set_slots(&service, SlotWord::tracked(new, old, 0))?;
        lab.program.set_ticks(10)?;
        let flows = [(1000, tcp_flags::ACK, 0x11), (1001, tcp_flags::SYN, 0x12)];
        let what = |port| format!("{case:?}, port {port}");
        for (port, flags, mac) in flows {
            let packet = from_port(case.packet(), case.client(), port, flags);
            let head = first(&packet, port.into());
            let got = goes_to(&mut lab, &what(port), &head, mac);
            assert_eq!(got.events, [(service.id, "flow_inserted")]);
            let expected = case.forwarded_to(&head, case.backend(), mac);
            assert_same_frame(&what(port), &expected, &got.frame);
        }
        // What becomes of the slot is the same to a packet that is on its way.
        for word in [SlotWord::tracked(new, old, 0), SlotWord::stable(new)] {
            lab.set_slots(&service, word)?;
            for (port, flags, mac) in flows {
                let packet = from_port(case.packet(), case.client(), port, flags);
                for place in LATER {
                    let part = later(&packet, port.into(), place);
                    let expected = case.forwarded_to(&part, case.backend(), mac);
                    lab.bounces(&what(port), &part.build(), &expected);
                }
            }
        }
        lab.change_member(old, |m| m.state = MemberState::DEAD.0)?;
        let part = later(&case.packet(), 1000, LATER[0]);
        lab.drops("dead", &part.build(), 0, "fragment");
    }
    Ok(())
}

fn nat_cases() -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|c| c.is_nat())
}

/// Two services that share a backend and its port.
fn rivals(case: Case) -> Result<(Lab, lab::Service, SocketAddr)> {
    let mut lab = Lab::new()?;
    lab.service(&case.spec().reply_flows())?;
    let mut vip = case.vip();
    vip.set_port(81);
    let spec = Spec::new(vip, case.protocol, method::NAT);
    let second = lab.service(&spec.backend(case.backend(), 0x11).reply_flows())?;
    Ok((lab, second, vip))
}

#[test]
fn later_fragments_follow_where_replies_are_expected() -> Result<()> {
    for case in nat_cases() {
        let (mut lab, second, vip) = rivals(case)?;
        let packet = case.packet();
        let early = later(&packet, 1, LATER[0]);
        lab.drops("early", &early.build(), 0, "fragment");
        let head = first(&packet, 1);
        lab.bounces("first", &head.build(), &case.forwarded(&head));
        for place in LATER {
            let part = later(&packet, 1, place);
            lab.bounces("later", &part.build(), &case.forwarded(&part));
        }
        // The client's port is taken; what is refused has no followers.
        let head = first(&packet.clone().destination(vip), 2);
        lab.drops("rival", &head.build(), second.id, "reply_conflict");
        let part = later(&packet, 2, LATER[0]);
        lab.drops("rival's", &part.build(), 0, "fragment");
    }
    Ok(())
}

#[test]
fn later_fragments_follow_into_full_nat_where_a_port_is_taken() -> Result<()> {
    for case in nat_cases() {
        let (mut lab, second, vip) = rivals(case)?;
        let pool = full_nat::pool(case.v4, FIRST);
        lab.program.add_pool(pool.ip(), 1, FIRST, 8)?;
        let pools = feature::POOL_V4 | feature::POOL_V6;
        let open = feature::OPEN_POOL_V4 | feature::OPEN_POOL_V6;
        lab.program.configure(|c| c.features |= pools | open)?;
        let packet = with_flags(case.packet(), tcp_flags::SYN);
        let mine = first(&packet, 1);
        lab.bounces("first", &mine.build(), &case.forwarded(&mine));
        let theirs = first(&packet.clone().destination(vip), 2);
        let got = lab.run(&theirs.build());
        assert_eq!(got.drops, [], "{case:?}");
        assert_eq!(got.events, [(second.id, "binding_opened")], "{case:?}");
        let expected = case.forwarded(&theirs.source(pool));
        assert_same_frame("rival", &expected, &got.frame);
        for place in LATER {
            let part = later(&packet, 1, place);
            lab.bounces("mine", &part.build(), &case.forwarded(&part));
            let part = later(&packet, 2, place);
            let expected = case.forwarded(&part.clone().source(pool));
            lab.bounces("theirs", &part.build(), &expected);
        }
    }
    Ok(())
}

#[test]
fn fragments_go_through_one_tunnel_from_one_source() -> Result<()> {
    let (mut lab, services) = tunnel::with_cases()?;
    for (case, service) in services {
        // In IPv6 the protocol is no part of what tells packets apart.
        let id = 3 + (u32::from(case.protocol) << 8);
        let packet = case.packet();
        let early = later(&packet, id, LATER[0]);
        lab.drops("early", &early.build(), 0, "fragment");
        let flow = spread(&lab.run(&packet.build()).frame);
        let mut bytes = packet.build().len();
        let parts = LATER.map(|place| later(&packet, id, place));
        for part in [first(&packet, id)].iter().chain(&parts) {
            let what = format!("{case:?}");
            let got = lab.run(&part.build());
            assert_eq!((&got.drops[..], &got.events[..]), (&[][..], &[][..]));
            let expected = case.outer(part, 0, flow).build();
            assert_same_frame(&what, &expected, &got.frame);
            assert_eq!(got.action, action::TX, "{what}");
            bytes += part.build().len();
        }
        let stats = lab.program.stats(service.members[0])?;
        assert_eq!((stats.packets, stats.bytes), (5, bytes as u64), "{case:?}");
        let other = later(&packet, id + 1, LATER[0]);
        lab.drops("another packet's", &other.build(), 0, "fragment");
    }
    Ok(())
}

/// VLAN device of the ingress interface.
const DEVICE: u32 = 210;
const VLAN: u16 = 10;

#[test]
fn fragments_go_to_another_vlan() -> Result<()> {
    for reply_flows in [false, true] {
        let mut lab = Lab::new()?;
        let tags = [0x8100 << 16 | u32::from(VLAN), 0];
        lab.program.add_vlan(INGRESS, tags, DEVICE, OWN_MAC.0)?;
        for case in Case::all()
            .into_iter()
            .filter(|c| !reply_flows || c.is_nat())
        {
            let id = 3 + (u32::from(case.protocol) << 8);
            let mut spec = Spec::new(case.vip(), case.protocol, case.method);
            spec.reply_flows = reply_flows;
            spec.backends.push(Backend {
                address: case.backend(),
                mac: backend_mac(0x11),
                link: DEVICE,
            });
            let service = lab.service(&spec)?;
            let packet = case.packet();
            let parts = LATER.map(|place| later(&packet, id, place));
            for part in [first(&packet, id)].iter().chain(&parts) {
                let mut expected = case.forwarded(part);
                expected.splice(12..12, [0x81, 0, 0xa0, 10]);
                let frame = part.clone().vlan(0xa000).build();
                let what = format!("{case:?}, by flow: {reply_flows}");
                lab.forwards(&what, &frame, &expected, action::TX);
            }
            let stats = lab.program.stats(service.members[0])?;
            assert_eq!(stats.packets, 4, "{case:?}");
        }
    }
    Ok(())
}

/// As it leaves for backend `number`, from the pool.
fn to_backend(case: Case, packet: &Packet, number: u8) -> Vec<u8> {
    packet
        .clone()
        .macs(SERVERS.1, backend_mac(number))
        .source(full_nat::pool(case.v4, FIRST))
        .destination(full_nat::backend(case.v4, number).address)
        .ttl(63)
        .build()
}

/// As it leaves for the client, from the VIP.
fn to_client(case: Case, packet: &Packet, client: SocketAddr) -> Vec<u8> {
    packet
        .clone()
        .macs(CLIENTS.1, NEXT_HOP)
        .source(full_nat::vip(case.v4))
        .destination(client)
        .ttl(63)
        .build()
}

#[track_caller]
fn leaves(what: &str, got: &Observed, expected: &[u8]) {
    assert_eq!((&got.drops[..], &got.events[..]), (&[][..], &[][..]));
    assert_same_frame(what, expected, &got.frame);
    assert_eq!(got.action, action::REDIRECT, "{what}");
}

#[track_caller]
fn dropped(what: &str, packet: &Packet, got: &Observed, reason: (u32, &'static str)) {
    assert_eq!(got.drops, [reason], "{what}");
    assert_eq!(got.events, [], "{what}");
    assert_eq!(got.action, action::DROP, "{what}");
    assert_same_frame(what, &packet.build(), &got.frame);
}

const ORPHAN: (u32, &str) = (0, "fragment");

#[test]
fn fragments_go_both_ways_through_full_nat() -> Result<()> {
    for case in full_nat::cases() {
        let mut world = World::new(case, 8)?;
        let client = world.client;
        let (request, answer) = (world.request(client), world.answer(0x11, FIRST));
        for place in LATER {
            let part = later(&request, 1, place);
            let got = world.send(&part)?;
            dropped("early", &part, &got, ORPHAN);
        }
        world.forwards(&first(&request, 1), 0x11, FIRST, OPENED);
        for place in LATER {
            let what = format!("{case:?}, {place:?}");
            let part = later(&request, 1, place);
            let got = world.send(&part)?;
            leaves(&what, &got, &to_backend(case, &part, 0x11));
            // Of another packet, and of somebody else's with the same number.
            let part = later(&request, 2, place);
            let got = world.send(&part)?;
            dropped(&what, &part, &got, ORPHAN);
            let part = later(&request, 1, place).source(lab::backend(case.v4));
            let got = world.send(&part)?;
            dropped(&what, &part, &got, ORPHAN);
            // The way there says nothing of the way back.
            let part = later(&answer, 1, place);
            let got = world.reply(&part)?;
            dropped(&what, &part, &got, ORPHAN);
        }
        world.replies(&first(&answer, 1), client);
        for place in LATER {
            let what = format!("{case:?}, {place:?}");
            let part = later(&answer, 1, place);
            let got = world.reply(&part)?;
            leaves(&what, &got, &to_client(case, &part, client));
            let part = later(&answer, 2, place);
            let got = world.reply(&part)?;
            dropped(&what, &part, &got, ORPHAN);
            let other = full_nat::backend(case.v4, 0x12).address;
            let part = later(&answer, 1, place).source(other);
            let got = world.reply(&part)?;
            dropped(&what, &part, &got, ORPHAN);
        }
        let stats = world.router.lab.program.stats(world.service.members[0])?;
        assert_eq!((stats.packets, stats.reply_packets), (4, 4), "{case:?}");
        world.set_state(0, MemberState::DEAD)?;
        let part = later(&request, 1, LATER[0]);
        let got = world.send(&part)?;
        dropped("dead", &part, &got, ORPHAN);
        let part = later(&answer, 1, LATER[0]);
        let got = world.reply(&part)?;
        dropped("dead", &part, &got, ORPHAN);
    }
    Ok(())
}

/// A first fragment that nobody gets has no followers.
#[test]
fn fragments_of_what_full_nat_refuses_are_dropped() -> Result<()> {
    for case in full_nat::cases() {
        let mut world = World::new(case, 8)?;
        let id = world.service.id;
        let packet = first(&world.answer(0x11, FIRST), 1);
        let got = world.reply(&packet)?;
        dropped("nobody's", &packet, &got, (0, "no_binding"));
        let part = later(&packet, 1, LATER[0]);
        let got = world.reply(&part)?;
        dropped("nobody's", &part, &got, ORPHAN);
        if case.protocol == protocol::TCP {
            let packet = world.request(world.client).flags(tcp_flags::ACK);
            let packet = first(&packet, 1);
            let got = world.send(&packet)?;
            dropped("no SYN", &packet, &got, (id, "no_binding"));
            let part = later(&packet, 1, LATER[0]);
            let got = world.send(&part)?;
            dropped("no SYN", &part, &got, ORPHAN);
        }
    }
    Ok(())
}

/// Two clients whose packets have one number, and two backends.
#[test]
fn fragments_of_two_clients_with_one_number_are_not_mixed_up() -> Result<()> {
    for case in full_nat::cases() {
        let mut world = World::with_backends(case, 8, &[0x11, 0x12])?;
        let service = world.service.clone();
        let other = ip(if case.v4 {
            "198.51.100.8"
        } else {
            "2001:db8:c::8"
        });
        let clients = [world.client, (other, world.client.port()).into()];
        for (n, client) in (0..).zip(clients) {
            let word = SlotWord::stable(service.members[usize::from(n)]);
            world.router.lab.set_slots(&service, word)?;
            let packet = first(&world.request(client), 9);
            world.forwards(&packet, 0x11 + n, FIRST + u16::from(n), OPENED);
        }
        for (n, client) in (0..).zip(clients) {
            let what = format!("{case:?}, {client}");
            let part = later(&world.request(client), 9, LATER[0]);
            let got = world.send(&part)?;
            leaves(&what, &got, &to_backend(case, &part, 0x11 + n));
            // Answers with one number too, of two backends.
            let answer = world.answer(0x11 + n, FIRST + u16::from(n));
            world.replies(&first(&answer, 9), client);
        }
        for (n, client) in (0..).zip(clients) {
            let answer = world.answer(0x11 + n, FIRST + u16::from(n));
            let part = later(&answer, 9, LATER[0]);
            let got = world.reply(&part)?;
            leaves("answer", &got, &to_client(case, &part, client));
        }
    }
    Ok(())
}

/// The lists judge the first fragment; without it the others are nobody's.
#[test]
fn fragments_of_denied_clients_are_dropped() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.program.configure(|c| c.tunnel = tunnel::prefixes())?;
    let plain = Case::all()
        .into_iter()
        .map(|c| (c.vip(), c.v4, c.protocol, c.packet(), c.spec()));
    let tunnels = tunnel::Case::all()
        .into_iter()
        .map(|c| (c.vip(), c.v4, c.protocol, c.packet(), c.spec()));
    let mut tried = 0;
    for (vip, v4, number, packet, spec) in plain.chain(tunnels) {
        tried += 1;
        let mut service = lab.service(&spec)?;
        let set = source_set(service.id, 1);
        service.entry.flags |= service_flag::GUARDED;
        service.entry.sources = set;
        lab.add_key(&spec, service.entry)?;
        let denied = lab::client(v4);
        let bits = if v4 { 32 } else { 128 };
        lab.program
            .add_source(set, (denied.ip(), bits), source::DENIED)?;
        let other = ip(if v4 { "198.51.100.8" } else { "2001:db8:c::8" });
        let what = format!("{vip}, protocol {number}");
        let id = tried;
        let head = first(&packet, id);
        lab.drops(&what, &head.build(), service.id, "denied");
        let allowed = packet.clone().source((other, denied.port()).into());
        let got = lab.run(&first(&allowed, id).build());
        assert_eq!((got.action, got.drops), (action::TX, vec![]), "{what}");
        for place in LATER {
            let part = later(&packet, id, place);
            lab.drops(&what, &part.build(), 0, "fragment");
            let got = lab.run(&later(&allowed, id, place).build());
            assert_eq!((got.action, got.drops), (action::TX, vec![]), "{what}");
        }
    }
    assert_eq!(tried, 24);
    Ok(())
}
