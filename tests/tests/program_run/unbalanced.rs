//! Packets that no backend gets: passed where they are none of ours, dropped
//! for a named reason where they are for a VIP.

use anyhow::Result;
use lb_common::abi::{LINKS, LinkEntry, map};
use lb_tests::{
    packet::{Mac, Packet, icmp_error, protocol, tcp_flags},
    program::INGRESS,
};

use crate::lab::{Lab, OWN_MAC, ROUTER_MAC, ip};

/// Fragments of all places: first, middle, last.
const FRAGMENTS: [(u16, bool); 4] = [(0, true), (8, true), (1480, true), (65_528, false)];

#[test]
fn fragments_for_a_vip_are_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        for (offset, more) in FRAGMENTS {
            let frame = case.packet().fragment(offset, more).build();
            let what = format!("{case:?}, fragment at {offset}");
            lab.drops(&what, &frame, 0, "fragment");
        }
    }
    Ok(())
}

#[test]
fn fragments_for_others_are_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        for (offset, more) in FRAGMENTS {
            let reply = case.between(case.backend(), case.client());
            let what = format!("{case:?}, fragment at {offset}");
            lab.passes(&what, &reply.fragment(offset, more).build());
        }
    }
    Ok(())
}

/// RFC 8200 §4.5 has the packet reassembled by its receiver, who is behind us.
#[test]
fn an_atomic_ipv6_fragment_is_dropped_like_others() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| !c.v4)?;
    for (case, _) in services {
        let packet = case.packet().fragment(0, false);
        lab.drops("atomic", &packet.build(), 0, "fragment");
        let packet = case.packet().hop_by_hop().fragment(0, false);
        lab.drops("behind options", &packet.build(), 0, "fragment");
    }
    Ok(())
}

#[test]
fn tagged_frames_are_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        lab.passes("one tag", &case.packet().vlan(7).build());
        lab.passes("priority tag", &case.packet().vlan(0).build());
        lab.passes("two tags", &case.packet().vlan(7).service_vlan(8).build());
    }
    Ok(())
}

#[test]
fn frames_for_other_stations_are_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let mut others = vec![
            Mac::BROADCAST,
            Mac([0x01, 0, 0x5e, 0, 0, 1]),
            Mac([0x33, 0x33, 0, 0, 0, 1]),
            Mac([0x33, 0x33, 0xff, 0, 0, 0x10]),
            Mac::default(),
        ];
        // One bit is another station.
        for bit in 0..48 {
            let mut mac = OWN_MAC;
            mac.0[bit / 8] ^= 1 << (bit % 8);
            others.push(mac);
        }
        for mac in others {
            let packet = case.packet().macs(ROUTER_MAC, mac);
            lab.passes(&format!("{case:?} to {mac}"), &packet.build());
            let echo = Packet::echo_request(case.client().ip(), case.vip().ip(), 1, 1);
            lab.passes("echo", &echo.macs(ROUTER_MAC, mac).build());
            let broken = packet.build_truncated(60);
            lab.passes("broken", &broken);
        }
    }
    Ok(())
}

#[test]
fn packets_for_addresses_that_are_no_vip_are_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let mut near = case.vip();
        near.set_ip(if case.v4 {
            ip("192.0.2.11")
        } else {
            ip("2001:db8::11")
        });
        for destination in [near, case.client(), case.backend()] {
            let packet = case.between(case.client(), destination);
            lab.passes(&format!("{case:?} to {destination}"), &packet.build());
        }
    }
    Ok(())
}

#[test]
fn protocols_that_are_not_balanced_are_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, _) in services {
        let (source, destination) = (case.client().ip(), case.vip().ip());
        for number in 0..=255u8 {
            let known = [protocol::TCP, protocol::UDP].contains(&number)
                || number
                    == if case.v4 {
                        protocol::ICMP
                    } else {
                        protocol::ICMPV6
                    }
                || !case.v4 && [0, 43, 44, 60].contains(&number);
            if known {
                continue;
            }
            let packet = Packet::other(source, destination, number)
                .macs(ROUTER_MAC, OWN_MAC)
                .payload([0; 40]);
            let what = format!("{case:?}, protocol {number}");
            lab.drops(&what, &packet.build(), 0, "unknown_protocol");
        }
    }
    Ok(())
}

#[test]
fn other_ethertypes_are_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let frame = case.packet().build();
        for kind in [
            0, 46, 0x05dc, 0x0801, 0x86dc, 0x8847, 0x8863, 0x88cc, 0xffff,
        ] {
            let mut frame = frame.clone();
            frame[12..14].copy_from_slice(&u16::to_be_bytes(kind));
            lab.passes(&format!("EtherType {kind:#06x}"), &frame);
        }
    }
    Ok(())
}

#[test]
fn a_family_under_the_others_ethertype_reaches_nobody() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let mut frame = case.packet().build();
        let other: u16 = if case.v4 { 0x86dd } else { 0x0800 };
        frame[12..14].copy_from_slice(&other.to_be_bytes());
        lab.passes(&format!("{case:?}"), &frame);
    }
    Ok(())
}

#[test]
fn icmp_other_than_echo_requests_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, _) in services {
        let (source, destination) = (case.client().ip(), case.vip().ip());
        let request = if case.v4 { 8 } else { 128 };
        for kind in 0..=255u8 {
            for code in [0, 1, 4, 255] {
                if (kind, code) == (request, 0) {
                    continue;
                }
                let packet = Packet::icmp(source, destination, kind, code, [0; 4])
                    .macs(ROUTER_MAC, OWN_MAC)
                    .payload([0; 40]);
                let what = format!("{case:?}, type {kind} code {code}");
                lab.drops(&what, &packet.build(), 0, "icmp");
            }
        }
    }
    Ok(())
}

#[test]
fn icmp_errors_about_replies_are_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let inner = case.between(case.vip(), case.client()).ip_packet();
        let (kind, code, rest) = if case.v4 {
            (3, 4, [0, 0, 5, 0x14])
        } else {
            (2, 0, [0, 0, 5, 0x14])
        };
        let (source, vip) = (case.client().ip(), case.vip().ip());
        let packet = icmp_error(source, vip, kind, code, rest, &inner).macs(ROUTER_MAC, OWN_MAC);
        lab.drops("packet too big", &packet.build(), 0, "icmp");
    }
    Ok(())
}

/// Sources that no answer would ever reach, and their neighbours that do.
const SOURCES: [(&str, bool); 21] = [
    ("0.0.0.0", false),
    ("0.0.0.1", false),
    ("0.255.255.255", false),
    ("1.0.0.0", true),
    ("126.255.255.255", true),
    ("127.0.0.1", false),
    ("127.255.255.255", false),
    ("128.0.0.0", true),
    ("223.255.255.255", true),
    ("224.0.0.1", false),
    ("239.255.255.255", false),
    ("240.0.0.1", false),
    ("255.255.255.255", false),
    ("::", false),
    ("::1", false),
    ("::2", true),
    ("fe80::1", true),
    ("feff::1", true),
    ("ff00::1", false),
    ("ff02::1", false),
    ("ffff::", false),
];

#[test]
fn a_source_that_cannot_be_replied_to_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        for (source, is_good) in SOURCES {
            let source = ip(source);
            if source.is_ipv4() != case.v4 {
                continue;
            }
            let packet = case.packet().source((source, 40_001).into());
            let what = format!("{case:?} from {source}");
            if is_good {
                lab.bounces(&what, &packet.build(), &case.forwarded(&packet));
            } else {
                lab.drops(&what, &packet.build(), service.id, "bad_source");
            }
        }
    }
    Ok(())
}

#[test]
fn a_packet_from_the_vip_to_itself_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let mut source = case.vip();
        let land = case.packet().source(source);
        lab.drops("land", &land.build(), service.id, "bad_source");
        source.set_port(1234);
        let packet = case.packet().source(source);
        lab.drops("own address", &packet.build(), service.id, "bad_source");
    }
    Ok(())
}

#[test]
fn an_echo_request_from_a_source_that_cannot_be_replied_to_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, _) in services {
        let vip = case.vip().ip();
        let bad = SOURCES.iter().filter(|s| !s.1).map(|s| ip(s.0));
        for source in bad.chain([vip]) {
            if source.is_ipv4() != case.v4 {
                continue;
            }
            let echo = Packet::echo_request(source, vip, 1, 1).macs(ROUTER_MAC, OWN_MAC);
            let what = format!("echo from {source}");
            lab.drops(&what, &echo.build(), 0, "bad_source");
        }
    }
    Ok(())
}

#[test]
fn packets_of_an_interface_that_is_not_managed_are_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    lab.program
        .array::<LinkEntry>(map::LINKS)?
        .set(INGRESS, LinkEntry::default(), 0)?;
    for (case, _) in services {
        lab.passes(&format!("{case:?}"), &case.packet().build());
        let syn = case.client().ip();
        let echo = Packet::echo_request(syn, case.vip().ip(), 1, 1).macs(ROUTER_MAC, OWN_MAC);
        lab.passes("echo", &echo.build());
    }
    Ok(())
}

/// The entry of a link may stand up to three places behind its own.
#[test]
fn a_link_whose_place_was_taken_is_found_behind_it() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| !c.is_nat())?;
    for place in 1..=4 {
        let mut links = lab.program.array::<LinkEntry>(map::LINKS)?;
        let own = LinkEntry::plain(INGRESS, OWN_MAC.0, 1500);
        let stranger = LinkEntry::plain(INGRESS + LINKS * place, OWN_MAC.0, 1500);
        for taken in 0..place {
            links.set(INGRESS + taken, stranger, 0)?;
        }
        links.set(INGRESS + place, own, 0)?;
        for (case, service) in &services {
            let member = service.members[0];
            let link = u16::try_from(INGRESS + place)?;
            lab.change_member(member, |m| {
                m.next_hop = lb_common::net::NextHop::new(m.next_hop().mac(), link).0;
            })?;
            let packet = case.packet();
            let what = format!("{case:?}, place {place}");
            if place < 4 {
                lab.bounces(&what, &packet.build(), &case.forwarded(&packet));
            } else {
                lab.passes(&what, &packet.build());
            }
        }
    }
    Ok(())
}

#[test]
fn a_port_without_a_service_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        for port in [0, 1, 79, 81, 8080, 65_535] {
            let mut vip = case.vip();
            vip.set_port(port);
            let packet = case.between(case.client(), vip);
            lab.drops(&format!("port {port}"), &packet.build(), 0, "no_service");
        }
    }
    Ok(())
}

#[test]
fn a_protocol_without_a_service_is_dropped() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, _) in services {
        let udp = Packet::udp(case.client(), case.vip()).macs(ROUTER_MAC, OWN_MAC);
        lab.drops("UDP", &udp.build(), 0, "no_service");
        let syn = case.packet().flags(tcp_flags::SYN);
        lab.bounces("TCP", &syn.build(), &case.forwarded(&syn));
    }
    Ok(())
}
