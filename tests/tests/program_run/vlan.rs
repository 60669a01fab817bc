//! VLAN tags: none, one or two where a packet comes in, and none, the same or
//! others where it goes out, in every method, and in what is answered.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use lb_common::abi::{Tags, method};
use lb_tests::{
    packet::{
        Mac, Packet, arp_reply, arp_request, assert_same_frame, ethertype, neighbor_advertisement,
        neighbor_solicitation, protocol,
    },
    program::{INGRESS, action},
};

use crate::{
    lab::{self, Backend, Lab, OTHER_LINK, OTHER_MAC, OWN_MAC, ROUTER_MAC, Spec, backend_mac},
    tunnel,
};

/// A way in or out: tags, the device's index (the interface's own without
/// tags), its MAC address.
#[derive(Clone, Copy, Debug)]
struct Way {
    tags: &'static [(u16, u16)],
    device: u32,
    mac: Mac,
}

const Q: u16 = ethertype::VLAN;
const AD: u16 = ethertype::QINQ;

/// On the ingress interface, and the last two on the other one.
const WAYS: [Way; 7] = [
    Way {
        tags: &[],
        device: INGRESS,
        mac: OWN_MAC,
    },
    Way {
        tags: &[(Q, 10)],
        device: 210,
        mac: Mac([2, 0, 0, 0, 0, 10]),
    },
    Way {
        tags: &[(AD, 20), (Q, 10)],
        device: 220,
        mac: Mac([2, 0, 0, 0, 0, 20]),
    },
    Way {
        tags: &[(Q, 30)],
        device: 230,
        mac: Mac([2, 0, 0, 0, 0, 30]),
    },
    Way {
        tags: &[(Q, 4094), (Q, 1)],
        device: 240,
        mac: Mac([2, 0, 0, 0, 0, 40]),
    },
    Way {
        tags: &[],
        device: OTHER_LINK,
        mac: OTHER_MAC,
    },
    Way {
        tags: &[(Q, 10)],
        device: 250,
        mac: Mac([2, 0, 0, 0, 0, 50]),
    },
];

impl Way {
    fn is_on_ingress(self) -> bool {
        !matches!(self.device, OTHER_LINK | 250)
    }

    fn match_tags(self) -> Tags {
        let tag = |n| match self.tags.get(n) {
            Some((tpid, id)) => u32::from(*tpid) << 16 | u32::from(*id),
            None => 0,
        };
        [tag(0), tag(1)]
    }

    /// The tags with these priorities, or `kept` where they are the same tags.
    fn with_priorities(self, priorities: [u16; 2]) -> Vec<(u16, u16)> {
        let tag = |((tpid, id), priority): (&(u16, u16), u16)| (*tpid, id | priority);
        self.tags.iter().zip(priorities).map(tag).collect()
    }
}

/// A lab with all of [`WAYS`].
fn lab() -> Result<Lab> {
    let mut lab = Lab::new()?;
    lab.program.configure(|c| c.tunnel = tunnel::prefixes())?;
    for way in WAYS.into_iter().filter(|w| !w.tags.is_empty()) {
        let nic = if way.is_on_ingress() {
            INGRESS
        } else {
            OTHER_LINK
        };
        lab.program
            .add_vlan(nic, way.match_tags(), way.device, way.mac.0)?;
    }
    Ok(lab)
}

/// What a packet looks like that came in with the tags `came` and goes `out`.
fn tags_out(came: &[(u16, u16)], from: Way, out: Way) -> Vec<(u16, u16)> {
    let priority = |n: usize| came.get(n).map(|(_, tci)| tci & 0xf000);
    let first = priority(0).unwrap_or(0);
    if from.match_tags() == out.match_tags() {
        // Untouched, also one that has a priority only.
        return came.to_vec();
    }
    out.with_priorities([first, priority(1).unwrap_or(first)])
}

/// The tags that packets come in with, and the way that these are.
fn arrivals() -> Vec<(Vec<(u16, u16)>, Way)> {
    let mut all = vec![];
    for way in WAYS.into_iter().filter(|w| w.is_on_ingress()) {
        all.push((way.tags.to_vec(), way));
        if !way.tags.is_empty() {
            all.push((way.with_priorities([0xa000, 0x5000]), way));
        }
    }
    // A tag of VLAN 0 is none, also before another.
    all.push((vec![(Q, 0xe000)], WAYS[0]));
    all.push((vec![(AD, 0x7000), (Q, 10)], WAYS[1]));
    all
}

fn action_of(way: Way) -> u32 {
    if way.is_on_ingress() {
        action::TX
    } else {
        action::REDIRECT
    }
}

fn via(way: Way, address: std::net::SocketAddr) -> Backend {
    Backend {
        address,
        mac: backend_mac(0x11),
        link: way.device,
    }
}

#[test]
fn direct_return_and_nat_go_from_any_tags_to_any() -> Result<()> {
    for out in WAYS {
        let mut lab = lab()?;
        for case in lab::Case::all() {
            let mut spec = Spec::new(case.vip(), case.protocol, case.method);
            spec.backends.push(via(out, case.backend()));
            let service = lab.service(&spec)?;
            let mut bytes = 0;
            for (came, from) in arrivals() {
                let what = format!("{case:?}, {came:x?} to {out:?}");
                let packet = case.packet().macs(ROUTER_MAC, from.mac).tags(&came);
                let mut sent = packet
                    .clone()
                    .macs(out.mac, backend_mac(0x11))
                    .tags(&tags_out(&came, from, out));
                if case.is_nat() {
                    sent = sent.destination(case.backend()).ttl(63);
                }
                lab.forwards(&what, &packet.build(), &sent.build(), action_of(out));
                bytes += packet.build().len() as u64;
            }
            let stats = lab.program.stats(service.members[0])?;
            assert_eq!(stats.packets, arrivals().len() as u64, "{case:?}");
            assert_eq!(stats.bytes, bytes, "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn tunnels_go_from_any_tags_to_any() -> Result<()> {
    for out in WAYS {
        let mut lab = lab()?;
        for case in tunnel::Case::all() {
            let mut spec = Spec::new(case.vip(), case.protocol, case.method);
            spec.backends.push(via(out, case.backend()));
            lab.service(&spec)?;
            for (came, from) in arrivals() {
                let what = format!("{case:?}, {came:x?} to {out:?}");
                let packet = case.packet().macs(ROUTER_MAC, from.mac);
                let got = lab.run(&packet.clone().tags(&came).build());
                assert_eq!(got.drops, [], "{what}");
                let priority = |n: usize| came.get(n).map(|(_, tci)| tci & 0xf000);
                let first = priority(0).unwrap_or(0);
                let tags = out.with_priorities([first, priority(1).unwrap_or(first)]);
                let expected = case
                    .outer(&packet, 0, tunnel::spread(&got.frame))
                    .macs(out.mac, backend_mac(0x11))
                    .tags(&tags)
                    .build();
                assert_same_frame(&what, &expected, &got.frame);
                assert_eq!(got.action, action_of(out), "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_vlan_without_a_device_is_the_kernels() -> Result<()> {
    let mut lab = lab()?;
    for case in lab::Case::all() {
        lab.service(&case.spec())?;
        for tags in [
            &[(Q, 11)][..],
            &[(AD, 10)],
            &[(AD, 20)],
            &[(AD, 20), (Q, 11)],
            &[(Q, 10), (Q, 10)],
            &[(Q, 20), (Q, 10)],
            &[(Q, 10), (Q, 10), (Q, 10)],
        ] {
            for mac in WAYS.map(|w| w.mac) {
                let packet = case.packet().macs(ROUTER_MAC, mac).tags(tags);
                lab.passes(&format!("{case:?}, {tags:?}"), &packet.build());
            }
        }
        // A device's tags with another one's address.
        let packet = case.packet().macs(ROUTER_MAC, OWN_MAC).vlan(10);
        lab.passes("another MAC address", &packet.build());
    }
    Ok(())
}

#[test]
fn a_tag_that_is_cut_short_is_the_kernels() -> Result<()> {
    let mut lab = lab()?;
    let case = lab::Case::all()[0];
    lab.service(&case.spec())?;
    let packet = case.packet().macs(ROUTER_MAC, WAYS[2].mac);
    for length in 14..22 {
        let frame = packet.clone().tags(WAYS[2].tags).build_truncated(length);
        lab.passes(&format!("{length} bytes"), &frame);
    }
    Ok(())
}

#[test]
fn a_head_that_grows_by_tags_alone_needs_room_too() -> Result<()> {
    let mut lab = lab()?;
    for case in lab::Case::all() {
        let mut spec = Spec::new(case.vip(), case.protocol, case.method);
        spec.backends.push(via(WAYS[2], case.backend()));
        let service = lab.service(&spec)?;
        let outcome = lab.program.run_with_headroom(4, &case.packet().build())?;
        let got = lab.observe(outcome);
        assert_eq!(got.drops, [(service.id, "no_headroom")], "{case:?}");
    }
    Ok(())
}

/// The frame with tags behind its addresses.
fn tagged(mut frame: Vec<u8>, tags: &[(u16, u16)]) -> Vec<u8> {
    let bytes: Vec<u8> = tags
        .iter()
        .flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()])
        .flatten()
        .collect();
    frame.splice(12..12, bytes);
    frame
}

#[test]
fn answers_keep_the_tags_of_the_questions() -> Result<()> {
    let mut lab = lab()?;
    let (vip4, vip6) = ("192.0.2.10:80", "[2001:db8::10]:80");
    for vip in [vip4, vip6] {
        lab.service(&Spec::new(lab::at(vip), protocol::TCP, method::L2_DSR))?;
    }
    let (vip4, asker4) = (Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 1));
    let vip6: Ipv6Addr = "2001:db8::10".parse()?;
    let asker6: Ipv6Addr = "fe80::1".parse()?;
    for (came, way) in arrivals() {
        let what = format!("{came:x?}");
        let question = arp_request(ROUTER_MAC, asker4, vip4);
        let answer = arp_reply(way.mac, vip4, ROUTER_MAC, asker4);
        let (question, answer) = (tagged(question, &came), tagged(answer, &came));
        lab.answers(&what, &question, &answer, "arp_reply");

        let question = neighbor_solicitation(ROUTER_MAC, asker6, vip6);
        let answer = neighbor_advertisement(way.mac, vip6, (ROUTER_MAC, asker6), vip6, 0x60);
        let (question, answer) = (tagged(question, &came), tagged(answer, &came));
        lab.answers(&what, &question, &answer, "neighbour_advertisement");

        for (vip, asker) in [
            (vip4.into(), asker4.into()),
            (vip6.into(), "2001:db8::1".parse()?),
        ] {
            let question = Packet::echo_request(asker, vip, 7, 9)
                .macs(ROUTER_MAC, way.mac)
                .tags(&came);
            let answer = Packet::echo_reply(vip, asker, 7, 9)
                .macs(way.mac, ROUTER_MAC)
                .tags(&came);
            lab.answers(&what, &question.build(), &answer.build(), "echo_reply");
        }
    }
    Ok(())
}
