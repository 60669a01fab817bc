//! Full NAT between two VLANs of one NIC: clients are on one with a tag, servers
//! on the one without. Packets, fragments and errors change their tags both ways.

use anyhow::Result;
use lb_common::abi::{LinkEntry, map};
use lb_tests::{
    packet::{Mac, Packet, assert_same_frame, icmp_error},
    program::action,
};

use crate::{
    full_nat::{FIRST, World, backend, cases, pool, vip},
    icmp::errors,
    lab::{Case, Observed, backend_mac, ip},
    reader,
    reply_route::{CLIENTS, NEXT_HOP, SERVERS},
};

/// The clients' VLAN, and a priority.
const VLAN: u16 = 10;
const PRIORITY: u16 = 0xa000;

/// A world whose clients' link is a VLAN of the servers' NIC.
fn world(case: Case) -> Result<World> {
    let mut world = World::new(case, 8)?;
    let (nic, device) = (world.router.servers, world.router.clients);
    let tags = [0x8100 << 16 | u32::from(VLAN), 0];
    let mut links = world.router.lab.program.array::<LinkEntry>(map::LINKS)?;
    for (match_ifindex, match_tags) in [(device, [0; 2]), (nic, tags)] {
        let entry = LinkEntry {
            match_ifindex,
            match_tags,
            device,
            ifindex: nic,
            tags,
            ..LinkEntry::plain(device, CLIENTS.1.0, 1500)
        };
        links.set(LinkEntry::place(match_ifindex, match_tags), entry, 0)?;
    }
    Ok(world)
}

/// From the clients' VLAN.
fn send(world: &mut World, packet: &Packet) -> Result<Observed> {
    let frame = packet.clone().macs(NEXT_HOP, CLIENTS.1);
    let nic = world.router.servers;
    world.router.run(nic, &frame.vlan(PRIORITY | VLAN).build())
}

const TO_CLIENT: (Mac, Mac) = (CLIENTS.1, NEXT_HOP);

fn to_backend() -> (Mac, Mac) {
    (SERVERS.1, backend_mac(0x11))
}

#[track_caller]
fn leaves(what: &str, got: &Observed, expected: &Packet, macs: (Mac, Mac)) {
    assert_eq!(got.drops, [], "{what}: dropped");
    let expected = expected.clone().ttl(63).macs(macs.0, macs.1);
    let expected = if macs == TO_CLIENT {
        expected.vlan(VLAN)
    } else {
        expected
    };
    assert_same_frame(what, &expected.build(), &got.frame);
    assert_eq!(got.action, action::TX, "{what}: action");
}

#[test]
fn packets_and_fragments_change_their_tags_both_ways() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let request = world.request(world.client);
        let answer = world.answer(0x11, FIRST);
        let parts = |packet: &Packet| {
            [
                packet.clone(),
                packet.clone().payload([0x5a; 200]).fragment(0, true),
                packet.clone().payload([0xa5; 123]).fragment(1480, true),
                packet.clone().payload([0xa5; 77]).fragment(2960, false),
            ]
        };
        for (number, packet) in parts(&request).into_iter().enumerate() {
            let got = send(&mut world, &packet)?;
            let expected = packet.source(pool).destination(server);
            let what = format!("{case:?}, request {number}");
            leaves(&what, &got, &expected, to_backend());
        }
        for (number, packet) in parts(&answer).into_iter().enumerate() {
            let got = world.reply(&packet)?;
            let expected = packet.source(vip(case.v4)).destination(world.client);
            let what = format!("{case:?}, answer {number}");
            leaves(&what, &got, &expected, TO_CLIENT);
        }
        let stats = world.router.lab.program.stats(world.service.members[0])?;
        assert_eq!((stats.packets, stats.reply_packets), (4, 4), "{case:?}");
    }
    Ok(())
}

#[test]
fn errors_change_their_tags_both_ways() -> Result<()> {
    for case in cases() {
        let mut world = world(case)?;
        let (client, vip) = (world.client, vip(case.v4));
        let (pool, server) = (pool(case.v4, FIRST), backend(case.v4, 0x11).address);
        let request = world.request(client);
        assert_eq!(send(&mut world, &request)?.drops, []);
        let between = |from, to| case.between(from, to).ttl(60).ip_packet();
        let router = ip(if case.v4 {
            "203.0.113.77"
        } else {
            "2001:db8:f::77"
        });
        for (kind, code, rest) in errors(case.v4) {
            let what = format!("{case:?}, {kind}, {code}");
            let error = |from, to, quoted: Vec<u8>| icmp_error(from, to, kind, code, rest, &quoted);
            let packet = error(router, vip.ip(), between(vip, client));
            let got = send(&mut world, &packet)?;
            let expected = error(pool.ip(), server.ip(), between(server, pool));
            leaves(&what, &got, &expected, to_backend());
            assert_eq!(got.events, [(world.service.id, "icmp_forwarded")]);
            let said = reader::read(&what, &got.frame);
            assert_eq!(said.about, (server, pool), "{what}");

            let packet = error(server.ip(), pool.ip(), between(pool, server));
            let got = world.reply(&packet.macs(backend_mac(0x11), SERVERS.1))?;
            let expected = error(vip.ip(), client.ip(), between(client, vip));
            leaves(&what, &got, &expected, TO_CLIENT);
            assert_eq!(got.events, [(world.service.id, "icmp_forwarded")]);
            let said = reader::read(&what, &got.frame);
            assert_eq!(said.about, (client, vip), "{what}");
        }
    }
    Ok(())
}
