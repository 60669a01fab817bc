//! Errors under full NAT: from the backends' side to an address of the pool, from
//! the clients' side to a VIP, and those that the data path makes itself. Both
//! ends of the quoted packet are translated.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::{
    abi::{LinkEntry, ServiceEntry, feature, map, service_flag, source, source_set},
    member::MemberState,
};
use lb_tests::{
    packet::{Mac, Packet, assert_same_frame, icmp_error, protocol, tcp_flags, verify},
    program::action,
};

use crate::{
    full_nat::{FIRST, OPENED, World, backend, cases, pool, vip, with_flags},
    icmp::errors,
    lab::{self, Case, Lab, OWN_MAC, Observed, ROUTER_MAC, backend_mac, ip},
    reader,
    reply_route::{CLIENTS, NEXT_HOP, SERVERS},
};

type Error = (u8, u8, [u8; 4]);

/// A router on the backends' side, and one on the clients'.
fn inside(v4: bool) -> IpAddr {
    ip(if v4 { "10.1.0.77" } else { "fd00:1::77" })
}

fn outside(v4: bool) -> IpAddr {
    ip(if v4 { "203.0.113.77" } else { "2001:db8:f::77" })
}

fn message(from: IpAddr, to: IpAddr, (kind, code, rest): Error, quoted: &Packet) -> Packet {
    icmp_error(from, to, kind, code, rest, &quoted.ip_packet())
}

fn between(case: Case, from: SocketAddr, to: SocketAddr) -> Packet {
    case.between(from, to).ttl(60)
}

/// A world with one flow, which has the pool's first port.
fn world(case: Case) -> Result<World> {
    let mut world = World::new(case, 8)?;
    world.forwards(&world.request(world.client), 0x11, FIRST, OPENED);
    Ok(world)
}

/// From the backends' side, about a packet of the flow with port `FIRST`.
fn about_request(case: Case, from: IpAddr, error: Error, quoted: &Packet) -> Packet {
    message(from, pool(case.v4, FIRST).ip(), error, quoted).macs(backend_mac(0x11), SERVERS.1)
}

/// From the clients' side, about an answer.
fn about_answer(case: Case, error: Error, quoted: &Packet) -> Packet {
    message(outside(case.v4), vip(case.v4).ip(), error, quoted).macs(NEXT_HOP, CLIENTS.1)
}

/// What goes out, without its MAC addresses.
fn translated(from: SocketAddr, to: SocketAddr, error: Error, quoted: &Packet) -> Packet {
    message(from.ip(), to.ip(), error, quoted).ttl(63)
}

/// It leaves like this, counted as an error and as nothing else.
#[track_caller]
fn leaves(what: &str, world: &World, got: &Observed, expected: &Packet, macs: (Mac, Mac)) {
    assert_eq!(got.drops, [], "{what}: dropped");
    assert_eq!(got.events, [(world.service.id, "icmp_forwarded")], "{what}");
    let expected = expected.clone().macs(macs.0, macs.1).build();
    assert_same_frame(what, &expected, &got.frame);
    assert_eq!(got.action, action::REDIRECT, "{what}: action");
    verify(&got.frame).unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

const TO_CLIENT: (Mac, Mac) = (CLIENTS.1, NEXT_HOP);

fn to_backend() -> (Mac, Mac) {
    (SERVERS.1, backend_mac(0x11))
}

#[test]
fn errors_about_requests_reach_the_client_from_the_vip() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let (client, vip) = (world.client, vip(case.v4));
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let before = world.router.lab.program.binding_states()?;
        // The backend itself, and a router before it.
        for from in [server.ip(), inside(case.v4)] {
            for error in errors(case.v4) {
                let what = format!("{case:?}, {error:?} from {from}");
                let packet = about_request(case, from, error, &between(case, pool, server));
                let got = world.reply(&packet)?;
                let expected = translated(vip, client, error, &between(case, client, vip));
                leaves(&what, &world, &got, &expected, TO_CLIENT);
                let said = reader::read(&what, &got.frame);
                assert_eq!((said.from, said.to), (vip.ip(), client.ip()), "{what}");
                assert_eq!(said.about, (client, vip), "{what}");
            }
        }
        // It is no sign of life, and no answer.
        assert_eq!(before, world.router.lab.program.binding_states()?);
        let stats = world.router.lab.program.stats(world.service.members[0])?;
        assert_eq!((stats.packets, stats.reply_packets), (1, 0), "{case:?}");
    }
    Ok(())
}

#[test]
fn errors_about_answers_reach_the_backend_from_the_pool() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let (client, vip) = (world.client, vip(case.v4));
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let before = world.router.lab.program.binding_states()?;
        for error in errors(case.v4) {
            let what = format!("{case:?}, {error:?}");
            let packet = about_answer(case, error, &between(case, vip, client));
            let got = world.send(&packet)?;
            let expected = translated(pool, server, error, &between(case, server, pool));
            leaves(&what, &world, &got, &expected, to_backend());
            let said = reader::read(&what, &got.frame);
            assert_eq!((said.from, said.to), (pool.ip(), server.ip()), "{what}");
            assert_eq!(said.about, (server, pool), "{what}");
        }
        assert_eq!(before, world.router.lab.program.binding_states()?);
        let stats = world.router.lab.program.stats(world.service.members[0])?;
        assert_eq!((stats.packets, stats.reply_packets), (1, 0), "{case:?}");
    }
    Ok(())
}

type Shape = Box<dyn Fn(Packet) -> Packet>;

#[test]
fn quotes_of_every_shape_and_length_are_translated() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let (client, vip) = (world.client, vip(case.v4));
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let mut shapes: Vec<Shape> = vec![
            Box::new(|p| p.payload(vec![7; 1300])),
            Box::new(|p| p.fragment(0, true)),
        ];
        if case.v4 {
            shapes.push(Box::new(|p| p.ip_options(&[1; 40])));
        } else {
            shapes.push(Box::new(|p| p.hop_by_hop().fragment(0, true)));
        }
        if case.protocol == protocol::UDP {
            shapes.push(Box::new(Packet::no_udp_checksum));
        }
        let error = errors(case.v4)[0];
        for (number, shape) in shapes.iter().enumerate() {
            let shaped = |from, to| shape(between(case, from, to));
            let what = format!("{case:?}, shape {number}");
            let packet = about_request(case, server.ip(), error, &shaped(pool, server));
            let got = world.reply(&packet)?;
            let expected = translated(vip, client, error, &shaped(client, vip));
            leaves(&what, &world, &got, &expected, TO_CLIENT);
            let got = world.send(&about_answer(case, error, &shaped(vip, client)))?;
            let expected = translated(pool, server, error, &shaped(server, pool));
            leaves(&what, &world, &got, &expected, to_backend());
        }
        let headers = if case.v4 { 20 } else { 40 };
        let cut = |from: IpAddr, to: IpAddr, packet: Packet, length: usize| {
            let (kind, code, rest) = error;
            icmp_error(from, to, kind, code, rest, &packet.ip_packet()[..length])
        };
        for length in (headers + 8..headers + 28).filter(|n| n - headers != 17) {
            let what = format!("{case:?}, {length} bytes");
            let packet = cut(server.ip(), pool.ip(), between(case, pool, server), length);
            let got = world.reply(&packet.macs(backend_mac(0x11), SERVERS.1))?;
            let expected = cut(vip.ip(), client.ip(), between(case, client, vip), length);
            leaves(&what, &world, &got, &expected.ttl(63), TO_CLIENT);
            let from = outside(case.v4);
            let packet = cut(from, vip.ip(), between(case, vip, client), length);
            let got = world.send(&packet.macs(NEXT_HOP, CLIENTS.1))?;
            let expected = cut(pool.ip(), server.ip(), between(case, server, pool), length);
            leaves(&what, &world, &got, &expected.ttl(63), to_backend());
        }
    }
    Ok(())
}

/// Dropped as it is, for one reason.
#[track_caller]
fn dropped(what: &str, packet: &Packet, got: &Observed, reason: (u32, &'static str)) {
    assert_eq!(got.drops, [reason], "{what}");
    assert_eq!(got.events, [], "{what}: events");
    assert_eq!(got.action, action::DROP, "{what}: action");
    assert_same_frame(what, &packet.build(), &got.frame);
}

#[test]
fn errors_about_no_flow_that_is_known_are_dropped() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let error = errors(case.v4)[0];
        let (client, vip) = (world.client, vip(case.v4));
        let (pool_end, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let other = Case {
            protocol: match case.protocol {
                protocol::TCP => protocol::UDP,
                _ => protocol::TCP,
            },
            ..case
        };
        let to_pool = [
            between(case, pool(case.v4, FIRST + 1), server),
            between(case, pool(case.v4, FIRST - 1), server),
            between(case, pool_end, backend(case.v4, 0x12).address),
            between(case, pool_end, (server.ip(), 8081).into()),
            between(other, pool_end, server),
            // The wrong way round, and another packet than the pool's.
            between(case, server, pool_end),
            between(case, client, server),
            between(case, pool_end, server).fragment(8, true),
        ];
        for (number, quoted) in to_pool.iter().enumerate() {
            let what = format!("{case:?}, to the pool, {number}");
            let packet = about_request(case, server.ip(), error, quoted);
            let got = world.reply(&packet)?;
            dropped(&what, &packet, &got, (0, "icmp_unmatched"));
        }
        let id = world.service.id;
        let stranger = (client.ip(), client.port() + 1).into();
        let to_vip = [
            (between(case, vip, stranger), (id, "icmp_unmatched")),
            (between(other, vip, client), (0, "icmp_unmatched")),
            (between(case, client, vip), (0, "icmp_unmatched")),
            (between(case, server, pool_end), (0, "icmp_unmatched")),
            (between(case, vip, client).fragment(8, true), (0, "icmp")),
        ];
        for (number, (quoted, reason)) in to_vip.iter().enumerate() {
            let what = format!("{case:?}, to the VIP, {number}");
            let packet = about_answer(case, error, quoted);
            let got = world.send(&packet)?;
            dropped(&what, &packet, &got, *reason);
        }
        // The flow is over when its member is.
        world.set_state(0, MemberState::DEAD)?;
        let packet = about_request(case, server.ip(), error, &between(case, pool_end, server));
        let got = world.reply(&packet)?;
        dropped("dead", &packet, &got, (0, "icmp_unmatched"));
        let packet = about_answer(case, error, &between(case, vip, client));
        let got = world.send(&packet)?;
        dropped("dead", &packet, &got, (0, "icmp_unmatched"));
    }
    Ok(())
}

#[test]
fn errors_that_cannot_be_sent_are_dropped_in_silence() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let error = errors(case.v4)[0];
        let (client, vip) = (world.client, vip(case.v4));
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let id = world.service.id;
        for ttl in [0, 1] {
            let quoted = between(case, pool, server);
            let packet = about_request(case, server.ip(), error, &quoted).ttl(ttl);
            let got = world.reply(&packet)?;
            dropped("to the client", &packet, &got, (id, "ttl_exceeded"));
            let packet = about_answer(case, error, &between(case, vip, client)).ttl(ttl);
            let got = world.send(&packet)?;
            dropped("to the backend", &packet, &got, (id, "ttl_exceeded"));
        }
        let member = world.service.members[0];
        world.router.lab.change_member(member, |m| m.next_hop = 0)?;
        let packet = about_answer(case, error, &between(case, vip, client));
        let got = world.send(&packet)?;
        dropped("no MAC", &packet, &got, (id, "no_neighbour"));
    }
    Ok(())
}

#[test]
fn an_error_about_an_answer_to_a_denied_client_is_dropped() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let (client, vip) = (world.client, vip(case.v4));
        let error = errors(case.v4)[0];
        let packet = about_answer(case, error, &between(case, vip, client));
        assert_eq!(world.send(&packet)?.drops, [], "before");
        let set = source_set(world.service.id, 1);
        let entry = ServiceEntry {
            flags: world.service.entry.flags | service_flag::GUARDED,
            sources: set,
            ..world.service.entry
        };
        let lab = &mut world.router.lab;
        let bits = if case.v4 { 32 } else { 128 };
        lab.program
            .add_source(set, (client.ip(), bits), source::DENIED)?;
        lab.add_key(&lab::Spec::new(vip, case.protocol, case.method), entry)?;
        let got = world.send(&packet)?;
        dropped("denied", &packet, &got, (world.service.id, "denied"));
    }
    Ok(())
}

/// Under NAT some flows have an address of the pool, and the others don't.
#[test]
fn errors_about_answers_to_clients_on_the_backends_link_are_translated_twice() -> Result<()> {
    let open = feature::OPEN_POOL_V4 | feature::OPEN_POOL_V6;
    let pools = feature::POOL_V4 | feature::POOL_V6 | open;
    for case in Case::all().into_iter().filter(|c| c.is_nat()) {
        let mut lab = Lab::new()?;
        let service = lab.service(&case.spec())?;
        let entry = ServiceEntry {
            flags: service_flag::LOCAL,
            ..service.entry
        };
        lab.add_key(&case.spec(), entry)?;
        let (near, prefix) = if case.v4 {
            (lab::at("10.1.0.50:40000"), (ip("10.1.0.0"), 24))
        } else {
            (lab::at("[fd00:1::50]:40000"), (ip("fd00:1::"), 64))
        };
        lab.program.add_local(prefix.0, prefix.1)?;
        let pool = pool(case.v4, FIRST);
        lab.program.add_pool(pool.ip(), 1, FIRST, 4)?;
        lab.program.configure(|c| c.features |= pools)?;
        let syn = with_flags(case.between(near, case.vip()), tcp_flags::SYN);
        let got = lab.run(&syn.build());
        assert_eq!(got.events, [(service.id, "binding_opened")]);
        let error = errors(case.v4)[0];
        // Full NAT's error is from the pool; NAT's keeps who said it.
        let from = outside(case.v4);
        for (client, sent_to, from_then) in [
            (near, pool, pool.ip()),
            (case.client(), case.client(), from),
        ] {
            let what = format!("{case:?}, {client}");
            let quoted = between(case, case.vip(), client);
            let packet = message(from, case.vip().ip(), error, &quoted);
            let got = lab.run(&packet.macs(ROUTER_MAC, OWN_MAC).build());
            assert_eq!(got.drops, [], "{what}");
            assert_eq!(got.events, [(service.id, "icmp_forwarded")], "{what}");
            let sent = between(case, case.backend(), sent_to);
            let expected = message(from_then, case.backend().ip(), error, &sent).ttl(63);
            let expected = expected.macs(OWN_MAC, backend_mac(0x11)).build();
            assert_same_frame(&what, &expected, &got.frame);
            let said = reader::read(&what, &got.frame);
            assert_eq!(said.about, (case.backend(), sent_to), "{what}");
        }
    }
    Ok(())
}

/// An error that the data path makes about `packet`.
fn made(from: IpAddr, to: IpAddr, error: Error, packet: &Packet) -> Packet {
    let quoted = packet.ip_packet();
    let (kind, code, rest) = error;
    Packet::icmp(from, to, kind, code, rest)
        .payload(&quoted[..quoted.len().min(128) & !3])
        .tos(0xc0)
        .id(0)
}

/// Where a packet has to go out by the way it came.
#[track_caller]
fn told(what: &str, got: &Observed, reason: (u32, &'static str), expected: &[u8]) {
    assert_eq!(got.drops, [reason], "{what}");
    assert_eq!(got.events, [(reason.0, "icmp_error_sent")], "{what}");
    assert_same_frame(what, expected, &got.frame);
    assert_eq!(got.action, action::TX, "{what}: action");
    verify(&got.frame).unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

const MTU: u16 = 1400;

fn time_exceeded(case: Case) -> Error {
    (if case.v4 { 11 } else { 3 }, 0, [0; 4])
}

fn too_big(case: Case) -> Error {
    let [high, low] = MTU.to_be_bytes();
    let (kind, code) = if case.v4 { (3, 4) } else { (2, 0) };
    (kind, code, [0, 0, high, low])
}

/// Of an IP packet of `bytes`.
fn of_length(packet: &Packet, bytes: u16) -> Packet {
    let empty = packet.clone().payload([]).ip_packet().len();
    packet
        .clone()
        .payload(vec![0x5a; usize::from(bytes) - empty])
}

#[test]
fn a_client_is_told_by_the_vip_what_cannot_go_to_a_backend() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let id = world.service.id;
        let (client, vip) = (world.client, vip(case.v4));
        let told_client = |error, packet: &Packet| {
            made(vip.ip(), client.ip(), error, packet)
                .macs(CLIENTS.1, NEXT_HOP)
                .build()
        };
        let known = with_flags(world.request(client), tcp_flags::ACK);
        let new = world.request(world.client(1));
        for request in [&known, &new] {
            let packet = request.clone().ttl(1);
            let got = world.send(&packet)?;
            let expected = told_client(time_exceeded(case), &packet);
            told("no hop", &got, (id, "ttl_exceeded"), &expected);
        }
        let servers = world.router.servers;
        let entry = LinkEntry::plain(servers, SERVERS.1.0, MTU.into());
        let place = LinkEntry::place(servers, [0; 2]);
        let links = world.router.lab.program.array::<LinkEntry>(map::LINKS);
        links?.set(place, entry, 0)?;
        for request in [&known, &new] {
            let packet = of_length(request, MTU + 1);
            let got = world.send(&packet)?;
            let expected = told_client(too_big(case), &packet);
            told("long", &got, (id, "too_big"), &expected);
            let said = reader::read("long", &got.frame);
            assert_eq!(said.mtu, Some(MTU.into()), "{case:?}");
        }
        world.forwards(&of_length(&known, MTU), 0x11, FIRST, &[]);
        // What wasn't sent took no port.
        world.forwards(&new, 0x11, FIRST + 1, OPENED);
    }
    Ok(())
}

/// The kernel knows nothing of the pool, so the data path itself tells the
/// backend: of what the backend sent.
#[test]
fn a_backend_is_told_by_the_pool_what_cannot_go_to_a_client() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let id = world.service.id;
        let answer = world.answer(0x11, FIRST);
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let told_backend = |error, packet: &Packet| {
            made(pool.ip(), server.ip(), error, packet)
                .macs(SERVERS.1, backend_mac(0x11))
                .build()
        };
        let packet = answer.clone().ttl(1);
        let got = world.reply(&packet)?;
        let expected = told_backend(time_exceeded(case), &packet);
        told("no hop", &got, (id, "ttl_exceeded"), &expected);

        let mtu = MTU.to_string();
        let ns = &world.router.ns;
        ns.exec(&["ip", "link", "set", CLIENTS.0, "mtu", &mtu])?;
        let packet = of_length(&answer, MTU + 1);
        let got = world.reply(&packet)?;
        let expected = told_backend(too_big(case), &packet);
        told("long", &got, (id, "too_big"), &expected);
        let said = reader::read("long", &got.frame);
        assert_eq!(said.mtu, Some(MTU.into()), "{case:?}");
        assert_eq!(said.about, (server, pool), "{case:?}");
        world.replies(&of_length(&answer, MTU), world.client);
    }
    Ok(())
}
