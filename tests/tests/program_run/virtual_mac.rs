//! Virtual MAC addresses (RFC 9568 §7.3, §8.1.2, §8.2.2): what is sent to one, and
//! what is answered from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use lb_common::abi::{LinkEntry, link_flag, map, method, owner};
use lb_tests::{
    packet::{
        Mac, Packet, arp_reply, arp_request, assert_same_frame, ethertype, neighbor_advertisement,
        neighbor_solicitation, protocol,
    },
    program::{INGRESS, action},
};

use crate::lab::{Case, Lab, OTHER_LINK, OWN_MAC, ROUTER_MAC, Spec, at, client, ip};

const VRID: u8 = 51;
const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const ASKER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The virtual router's address in each family, IPv4 first.
const MACS: [Mac; 2] = [Mac([0, 0, 0x5e, 0, 1, VRID]), Mac([0, 0, 0x5e, 0, 2, VRID])];

/// Their owner words.
const WORDS: [u16; 2] = [VRID as u16, 256 + VRID as u16];

fn of(v4: bool) -> (Mac, u16) {
    let index = usize::from(!v4);
    (MACS[index], WORDS[index])
}

/// Says on which device the virtual router has its address.
fn place(lab: &mut Lab, word: u16, device: u32) -> Result<()> {
    let mut devices = lab.program.array::<u32>(map::VIRTUAL_MACS)?;
    Ok(devices.set(u32::from(word), device, 0)?)
}

fn own(lab: &mut Lab, value: u64) -> Result<()> {
    for word in WORDS {
        lab.set_owner(word.into(), value)?;
    }
    Ok(())
}

/// A service of each case, all of the virtual router, which this node owns and
/// which has its address on the ingress interface.
fn lab() -> Result<Lab> {
    let mut lab = Lab::new()?;
    for case in Case::all() {
        lab.service(&case.spec().owner(of(case.v4).1))?;
    }
    for word in WORDS {
        place(&mut lab, word, INGRESS)?;
    }
    own(&mut lab, owner::FOREVER)?;
    Ok(lab)
}

/// Frames of every kind to the virtual router, of which the kernel gets those
/// that the second value names.
fn others(to: Mac) -> Vec<(&'static str, Vec<u8>)> {
    let to_kernel = |packet: Packet| packet.macs(ROUTER_MAC, to).build();
    let (host4, host6) = (ip("192.0.2.99"), ip("2001:db8::99"));
    let (from4, from6) = (ip("198.51.100.7"), ip("2001:db8:c::7"));
    let mut all = vec![];
    for (source, destination) in [(from4, host4), (from6, host6)] {
        let v4 = source.is_ipv4();
        let target = (destination, 22).into();
        let tcp = Packet::tcp(client(v4), target);
        let fragment = Packet::udp(client(v4), target).payload([0; 64]);
        all.push(("a segment", to_kernel(tcp)));
        all.push((
            "echo",
            to_kernel(Packet::echo_request(source, destination, 1, 1)),
        ));
        all.push((
            "another protocol",
            to_kernel(Packet::other(source, destination, 89)),
        ));
        all.push(("a fragment", to_kernel(fragment.fragment(8, true))));
    }
    let mut arp = arp_request(ROUTER_MAC, ASKER4, Ipv4Addr::new(192, 0, 2, 99));
    arp[..6].copy_from_slice(&to.0);
    all.push(("an ARP request", arp));
    all
}

fn to_own(frame: &[u8]) -> Vec<u8> {
    [&OWN_MAC.0[..], &frame[6..]].concat()
}

/// The frame as a bridge or the kernel gets it, and nothing is counted.
#[track_caller]
fn passes_as(lab: &mut Lab, what: &str, frame: &[u8], expected: &[u8]) {
    let got = lab.run(frame);
    assert_eq!(got.drops, [], "{what}: dropped");
    assert_eq!(got.action, action::PASS, "{what}: action");
    assert_same_frame(what, expected, &got.frame);
}

#[test]
fn arp_for_an_owned_address_is_answered_from_the_virtual_mac() -> Result<()> {
    let mut lab = lab()?;
    let request = arp_request(ROUTER_MAC, ASKER4, VIP4);
    let reply = arp_reply(MACS[0], VIP4, ROUTER_MAC, ASKER4);
    lab.answers("broadcast", &request, &reply, "arp_reply");
    // A neighbour that is still there is asked alone (RFC 1122 §2.3.2.1).
    for (name, mac) in [("its virtual MAC", MACS[0]), ("the interface's", OWN_MAC)] {
        let unicast = [&mac.0[..], &request[6..]].concat();
        lab.answers(name, &unicast, &reply, "arp_reply");
    }
    Ok(())
}

#[test]
fn neighbour_discovery_for_an_owned_address_is_answered_from_the_virtual_mac() -> Result<()> {
    let mut lab = lab()?;
    let question = neighbor_solicitation(ROUTER_MAC, ASKER6, VIP6);
    let answer = neighbor_advertisement(MACS[1], VIP6, (ROUTER_MAC, ASKER6), VIP6, 0x60);
    lab.answers("group", &question, &answer, "neighbour_advertisement");
    // RFC 4861 §7.3.3.
    let alone = Packet::icmp(ASKER6.into(), VIP6.into(), 135, 0, [0; 4])
        .macs(ROUTER_MAC, MACS[1])
        .ttl(255)
        .payload(VIP6.octets());
    lab.answers("alone", &alone.build(), &answer, "neighbour_advertisement");
    Ok(())
}

#[test]
fn an_address_of_no_virtual_router_is_answered_for_from_the_interfaces_mac() -> Result<()> {
    let mut lab = lab()?;
    let other = Ipv4Addr::new(192, 0, 2, 77);
    lab.service(&Spec::new(
        at("192.0.2.77:80"),
        protocol::TCP,
        method::L2_DSR,
    ))?;
    let request = arp_request(ROUTER_MAC, ASKER4, other);
    let reply = arp_reply(OWN_MAC, other, ROUTER_MAC, ASKER4);
    lab.answers("always owned", &request, &reply, "arp_reply");
    // `virtual_mac: false`, or the virtual router is on another interface.
    for device in [0, OTHER_LINK] {
        for word in WORDS {
            place(&mut lab, word, device)?;
        }
        let request = arp_request(ROUTER_MAC, ASKER4, VIP4);
        let reply = arp_reply(OWN_MAC, VIP4, ROUTER_MAC, ASKER4);
        lab.answers("IPv4", &request, &reply, "arp_reply");
        let question = neighbor_solicitation(ROUTER_MAC, ASKER6, VIP6);
        let answer = neighbor_advertisement(OWN_MAC, VIP6, (ROUTER_MAC, ASKER6), VIP6, 0x60);
        lab.answers("IPv6", &question, &answer, "neighbour_advertisement");
    }
    Ok(())
}

#[test]
fn who_does_not_own_answers_nothing() -> Result<()> {
    let mut lab = lab()?;
    // Not owned; a lease that ended.
    for value in [owner::NOT_OWNED, 1] {
        own(&mut lab, value)?;
        lab.passes("ARP", &arp_request(ROUTER_MAC, ASKER4, VIP4));
        lab.passes("NS", &neighbor_solicitation(ROUTER_MAC, ASKER6, VIP6));
    }
    Ok(())
}

#[test]
fn our_own_announcements_come_back_as_no_claim() -> Result<()> {
    let mut lab = lab()?;
    let group = (Mac([0x33, 0x33, 0, 0, 0, 1]), ip("ff02::1"));
    let IpAddr::V6(nodes) = group.1 else {
        anyhow::bail!("not IPv6")
    };
    let na = |mac| neighbor_advertisement(mac, VIP6, (group.0, nodes), VIP6, 0x20);
    let arp = |mac| arp_reply(mac, VIP4, Mac::BROADCAST, VIP4);
    for (v4, v6) in [(MACS[0], MACS[1]), (OWN_MAC, OWN_MAC)] {
        lab.passes("ARP", &arp(v4));
        lab.passes("NA", &na(v6));
    }
    for (v4, v6) in [(MACS[1], MACS[0]), (ROUTER_MAC, ROUTER_MAC)] {
        lab.passes_counting("ARP", &arp(v4), &[(0, "duplicate_vip")]);
        lab.passes_counting("NA", &na(v6), &[(0, "duplicate_vip")]);
    }
    Ok(())
}

#[test]
fn packets_to_the_virtual_mac_are_balanced_and_leave_from_the_interfaces() -> Result<()> {
    let mut lab = lab()?;
    for case in Case::all() {
        let packet = case.packet();
        let expected = case.forwarded(&packet);
        let frame = packet.macs(ROUTER_MAC, of(case.v4).0).build();
        lab.bounces(&format!("{case:?}"), &frame, &expected);
    }
    // The virtual MAC of one family takes the other's, as any address of a host.
    for case in Case::all() {
        let packet = case.packet();
        let expected = case.forwarded(&packet);
        let frame = packet.macs(ROUTER_MAC, of(!case.v4).0).build();
        lab.bounces(&format!("crossed, {case:?}"), &frame, &expected);
    }
    Ok(())
}

#[test]
fn an_echo_request_to_the_virtual_mac_is_answered() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        let (source, vip): (IpAddr, IpAddr) = match v4 {
            true => (ip("198.51.100.7"), VIP4.into()),
            false => (ip("2001:db8:c::7"), VIP6.into()),
        };
        let request = Packet::echo_request(source, vip, 1, 2).macs(ROUTER_MAC, of(v4).0);
        let reply = Packet::echo_reply(vip, source, 1, 2).macs(OWN_MAC, ROUTER_MAC);
        let reply = reply.ttl(64).build();
        lab.answers("echo", &request.build(), &reply, "echo_reply");
    }
    Ok(())
}

/// The kernel takes a frame to another address than its own for another host's.
#[test]
fn the_kernel_gets_what_is_not_balanced_with_the_interfaces_mac() -> Result<()> {
    let mut lab = lab()?;
    for mac in MACS {
        for (what, frame) in others(mac) {
            passes_as(&mut lab, what, &frame, &to_own(&frame));
        }
    }
    Ok(())
}

#[test]
fn nothing_to_the_virtual_mac_of_another_nodes_virtual_router_is_passed() -> Result<()> {
    let mut lab = lab()?;
    for value in [owner::NOT_OWNED, 1] {
        own(&mut lab, value)?;
        for mac in MACS {
            for (what, frame) in others(mac) {
                lab.drops(what, &frame, 0, "not_owner");
            }
        }
        for case in Case::all() {
            let frame = case.packet().macs(ROUTER_MAC, of(case.v4).0).build();
            lab.drops(&format!("{case:?}"), &frame, 0, "not_owner");
        }
        let unicast = [&MACS[0].0[..], &arp_request(ROUTER_MAC, ASKER4, VIP4)[6..]].concat();
        lab.drops("ARP for the VIP", &unicast, 0, "not_owner");
    }
    Ok(())
}

/// Each family has a word of its own, and so has its address.
#[test]
fn one_family_may_be_owned_without_the_other() -> Result<()> {
    let mut lab = lab()?;
    lab.set_owner(WORDS[1].into(), owner::NOT_OWNED)?;
    let (_, frame) = others(MACS[0]).remove(0);
    passes_as(&mut lab, "IPv4", &frame, &to_own(&frame));
    let (_, frame) = others(MACS[1]).remove(0);
    lab.drops("IPv6", &frame, 0, "not_owner");
    Ok(())
}

#[test]
fn somebody_elses_virtual_router_is_another_host() -> Result<()> {
    let mut lab = lab()?;
    let foreign = [
        Mac([0, 0, 0x5e, 0, 1, VRID + 1]),
        Mac([0, 0, 0x5e, 0, 2, VRID - 1]),
        Mac([0, 0, 0x5e, 0, 1, 0]),
        Mac([0, 0, 0x5e, 0, 2, 0]),
        Mac([0, 0, 0x5e, 0, 0, VRID]),
        Mac([0, 0, 0x5e, 0, 3, VRID]),
        Mac([0, 0, 0x5e, 0, 255, VRID]),
        Mac([0, 0, 0x5e, 1, 1, VRID]),
        Mac([0, 0, 0x5f, 0, 1, VRID]),
        Mac([0, 1, 0x5e, 0, 1, VRID]),
        Mac([2, 0, 0x5e, 0, 1, VRID]),
    ];
    for mac in foreign {
        for (what, frame) in others(mac) {
            lab.passes(&format!("{what} to {mac}"), &frame);
        }
        let frame = Case::all()[0].packet().macs(ROUTER_MAC, mac).build();
        lab.passes(&format!("to the VIP at {mac}"), &frame);
    }
    // The same VRID on another interface is another virtual router.
    for word in WORDS {
        place(&mut lab, word, OTHER_LINK)?;
    }
    for (what, frame) in others(MACS[0]) {
        lab.passes(&format!("{what} on another interface"), &frame);
    }
    Ok(())
}

#[test]
fn a_bridge_carries_frames_on_to_the_node_that_owns() -> Result<()> {
    let mut lab = lab()?;
    let index = LinkEntry::place(INGRESS, [0; 2]);
    let mut links = lab.program.array::<LinkEntry>(map::LINKS)?;
    let mut link = links.get(&index, 0)?;
    link.flags |= link_flag::BRIDGE;
    links.set(index, link, 0)?;

    let (_, frame) = others(MACS[0]).remove(0);
    passes_as(&mut lab, "owned", &frame, &to_own(&frame));
    own(&mut lab, owner::NOT_OWNED)?;
    for mac in MACS {
        for (what, frame) in others(mac) {
            lab.passes(what, &frame);
        }
        let frame = Case::all()[0].packet().macs(ROUTER_MAC, mac).build();
        lab.passes("to the VIP", &frame);
    }
    Ok(())
}

#[test]
fn a_vlan_has_virtual_routers_of_its_own() -> Result<()> {
    const VLAN: u32 = 210;
    const TAGS: [(u16, u16); 1] = [(ethertype::VLAN, 10)];
    let vlan_mac = Mac([2, 0, 0, 0, 0, 10]);
    let mut lab = lab()?;
    let tags = [u32::from(ethertype::VLAN) << 16 | 10, 0];
    lab.program.add_vlan(INGRESS, tags, VLAN, vlan_mac.0)?;
    let (source, host) = (ip("198.51.100.7"), ip("192.0.2.99"));
    let packet = |to: Mac| {
        let packet = Packet::echo_request(source, host, 1, 1).macs(ROUTER_MAC, to);
        packet.tags(&TAGS).build()
    };
    lab.passes("that of the untagged interface", &packet(MACS[0]));
    for word in WORDS {
        place(&mut lab, word, VLAN)?;
    }
    passes_as(&mut lab, "its own", &packet(MACS[0]), &packet(vlan_mac));
    Ok(())
}
