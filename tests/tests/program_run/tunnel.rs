//! Tunnels: all pairs of families, byte by byte. What differs from flow to flow
//! (source, source port, flow label) is read from what came out, checked, and
//! put into the frame that is expected.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{
    abi::{MemberStats, Tunnel, method},
    net::{Addr, Be16, NextHop},
};
use lb_tests::{
    packet::{Packet, View, assert_same_frame, protocol, tcp_flags, verify},
    program::action,
};

use crate::lab::{
    Backend, Lab, OTHER_LINK, OTHER_MAC, OWN_MAC, ROUTER_MAC, Service, Spec, at, backend_mac,
    client, ip,
};

const GUE_PORT: u16 = 6080;

/// Everything that the treatment may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub method: u8,
    /// Family of VIP and clients.
    pub v4: bool,
    /// Family of the backend.
    pub outer_v4: bool,
    pub protocol: u8,
}

impl Case {
    pub fn all() -> Vec<Self> {
        let mut all = vec![];
        for method in [method::IPIP, method::GUE] {
            for v4 in [true, false] {
                for outer_v4 in [true, false] {
                    for protocol in [protocol::TCP, protocol::UDP] {
                        all.push(Self {
                            method,
                            v4,
                            outer_v4,
                            protocol,
                        });
                    }
                }
            }
        }
        all
    }

    pub fn vip(self) -> SocketAddr {
        let number = u16::from(self.method) * 2 + u16::from(self.outer_v4);
        at(&if self.v4 {
            format!("192.0.2.{number}:80")
        } else {
            format!("[2001:db8::{number}]:80")
        })
    }

    pub fn backend(self) -> SocketAddr {
        at(if self.outer_v4 {
            "10.1.0.11:0"
        } else {
            "[fd00:1::11]:0"
        })
    }

    pub fn packet(self) -> Packet {
        let (from, to) = (client(self.v4), self.vip());
        match self.protocol {
            protocol::TCP => Packet::tcp(from, to),
            _ => Packet::udp(from, to),
        }
        .macs(ROUTER_MAC, OWN_MAC)
        .payload(*b"a payload of odd length, 37 bytes lon")
    }

    pub fn spec(self) -> Spec {
        Spec::new(self.vip(), self.protocol, self.method).backend(self.backend(), 0x11)
    }

    pub fn overhead(self) -> usize {
        let ip = if self.outer_v4 { 20 } else { 40 };
        ip + if self.method == method::GUE { 12 } else { 0 }
    }

    /// The outer packet, with `tos`, of what is sent to the backend.
    pub fn outer(self, packet: &Packet, tos: u8, spread: Spread) -> Packet {
        let inner = packet.ip_packet();
        let number = if self.v4 {
            protocol::IPIP
        } else {
            protocol::IPV6
        };
        let to = self.backend();
        if self.method == method::GUE {
            let from = SocketAddr::new(spread.source, spread.port);
            Packet::udp(from, SocketAddr::new(to.ip(), GUE_PORT))
                .no_udp_checksum()
                .payload([&[0, number, 0, 0], &inner[..]].concat())
        } else {
            Packet::other(spread.source, to.ip(), number).payload(inner)
        }
        .id(0)
        .ttl(64)
        .tos(tos)
        .flow_label(spread.label)
        .macs(OWN_MAC, backend_mac(0x11))
    }
}

/// What differs from flow to flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spread {
    source: IpAddr,
    /// Under GUE, else 0.
    port: u16,
    /// Over IPv6, else 0.
    label: u32,
}

/// That of an outer packet.
pub fn spread(frame: &[u8]) -> Spread {
    let view = View::parse(frame).expect("a frame that can be taken apart");
    let (source, _) = view.addresses().expect("IP");
    let start: [u8; 4] = view.ip_packet()[..4].try_into().expect("a header");
    Spread {
        source,
        port: view.source().map_or(0, |from| from.port()),
        label: if source.is_ipv6() {
            u32::from_be_bytes(start) & 0xf_ffff
        } else {
            0
        },
    }
}

/// Sources from prefixes: 198.18.0.0/16 and 100::/64.
pub fn prefixes() -> Tunnel {
    let v4 = |text| Addr::from_ip(ip(text)).0.0[0];
    Tunnel {
        source_v4: v4("198.18.0.0"),
        host_v4: v4("0.0.255.255"),
        source_v6: Addr::from_ip(ip("100::")).0,
        host_v6: [u32::MAX; 2],
        gue_port: Be16::new(GUE_PORT),
        reserved: [0; 3],
    }
}

pub fn with_cases() -> Result<(Lab, Vec<(Case, Service)>)> {
    let mut lab = Lab::new()?;
    lab.program.configure(|c| c.tunnel = prefixes())?;
    let mut services = vec![];
    for case in Case::all() {
        services.push((case, lab.service(&case.spec())?));
    }
    Ok((lab, services))
}

/// The frame comes out as the packet in its tunnel; the whole of it is compared.
#[track_caller]
fn carries(lab: &mut Lab, what: &str, case: Case, packet: &Packet, tos: u8) -> Spread {
    let got = lab.run(&packet.build());
    assert_eq!(got.drops, [], "{what}: dropped");
    assert_eq!(got.events, [], "{what}: events");
    assert_eq!(got.action, action::TX, "{what}: action");
    let spread = spread(&got.frame);
    let expected = case.outer(packet, tos, spread).build();
    assert_same_frame(what, &expected, &got.frame);
    // The header checksum of IPv4 among others.
    if let Err(e) = verify(&got.frame) {
        assert!(
            case.method == method::GUE && !case.outer_v4,
            "{what}: {e:#}"
        );
    }
    spread
}

#[test]
fn every_tunnel_and_pair_of_families_is_byte_exact() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, service) in services {
        let packet = case.packet();
        carries(&mut lab, &format!("{case:?}"), case, &packet, 0);
        let expected = MemberStats {
            packets: 1,
            bytes: packet.build().len() as u64,
            ..MemberStats::default()
        };
        let stats = lab.program.stats(service.members[0])?;
        assert_eq!(stats, expected, "{case:?}");
    }
    Ok(())
}

#[test]
fn every_payload_length_is_carried() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, _) in services {
        for length in (0..40).chain([999, 1000, 1399]) {
            let payload: Vec<u8> = (0..length).map(|i| (i * 37 % 251) as u8).collect();
            let packet = case.packet().payload(payload);
            carries(&mut lab, &format!("{case:?}, {length}"), case, &packet, 0);
        }
    }
    Ok(())
}

#[test]
fn traffic_class_and_congestion_bits_are_copied_and_the_ttl_stays() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, _) in services {
        for tos in [0, 1, 2, 3, 0xb8, 0xb9, 0xba, 0xbb, 0xff] {
            for ttl in [0, 1, 2, 64, 255] {
                let packet = case.packet().tos(tos).ttl(ttl);
                let what = format!("{case:?}, {tos:#x}, {ttl}");
                carries(&mut lab, &what, case, &packet, tos);
            }
        }
    }
    Ok(())
}

#[test]
fn options_and_extension_headers_are_carried_along() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, _) in services {
        let packet = if case.v4 {
            case.packet().ip_options(&[1; 40]).id(0xbeef)
        } else {
            case.packet().hop_by_hop().hop_by_hop().flow_label(0xabcde)
        };
        carries(&mut lab, &format!("{case:?}"), case, &packet, 0);
    }
    Ok(())
}

#[test]
fn padding_is_not_part_of_the_outer_packet() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, _) in services {
        let packet = case.packet().payload(*b"x");
        let frame = packet.clone().padding(7).build();
        let got = lab.run(&frame);
        let outer = case.outer(&packet, 0, spread(&got.frame)).padding(7);
        assert_same_frame(&format!("{case:?}"), &outer.build(), &got.frame);
    }
    Ok(())
}

#[test]
fn a_flow_keeps_its_outer_source_and_flows_differ_in_it() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, _) in services {
        let mut seen = HashSet::new();
        for port in 2000..2300 {
            let mut from = client(case.v4);
            from.set_port(port);
            let packet = case.packet().source(from);
            let what = format!("{case:?}, port {port}");
            let first = carries(&mut lab, &what, case, &packet, 0);
            let again = packet.payload(*b"another");
            assert_eq!(first, carries(&mut lab, &what, case, &again, 0), "{what}");
            match first.source {
                IpAddr::V4(source) => assert_eq!(source.octets()[..2], [198, 18], "{what}"),
                IpAddr::V6(source) => {
                    assert_eq!(source.segments()[..4], [0x100, 0, 0, 0], "{what}");
                }
            }
            if case.method == method::GUE {
                assert!(first.port >= 32_768, "{what}: {first:?}");
            }
            seen.insert((first.source, first.port));
        }
        assert!(seen.len() > 290, "{case:?}: {} of 300 differ", seen.len());
    }
    Ok(())
}

#[test]
fn a_whole_address_is_the_source_of_all() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    lab.program.configure(|c| {
        c.tunnel = Tunnel {
            source_v4: Addr::from_ip(ip("192.0.2.250")).0.0[0],
            host_v4: 0,
            source_v6: Addr::from_ip(ip("2001:db8::fa")).0,
            host_v6: [0; 2],
            ..prefixes()
        };
    })?;
    for (case, _) in services {
        let expected = ip(if case.outer_v4 {
            "192.0.2.250"
        } else {
            "2001:db8::fa"
        });
        for port in 2000..2010 {
            let mut from = client(case.v4);
            from.set_port(port);
            let packet = case.packet().source(from);
            let spread = carries(&mut lab, &format!("{case:?}"), case, &packet, 0);
            assert_eq!(spread.source, expected, "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn a_syn_in_a_tunnel_counts_as_a_connection() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, service) in services {
        if case.protocol == protocol::TCP {
            let packet = case.packet().flags(tcp_flags::SYN);
            carries(&mut lab, &format!("{case:?}"), case, &packet, 0);
            let stats = lab.program.stats(service.members[0])?;
            assert_eq!((stats.packets, stats.connections), (1, 1), "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn a_packet_that_does_not_fit_with_its_outer_headers_is_too_big() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, service) in services {
        let packet = case.packet().payload(vec![7; 1300]);
        let bytes = packet.ip_packet().len() + case.overhead();
        for (mtu, fits) in [
            (bytes, true),
            (bytes - 1, false),
            (bytes + 1, true),
            (1280, false),
            (0, true),
        ] {
            let what = format!("{case:?}, MTU {mtu} for {bytes}");
            let limit = u16::try_from(mtu)?;
            lab.change_member(service.members[0], |m| m.mtu = limit)?;
            if fits {
                carries(&mut lab, &what, case, &packet, 0);
            } else {
                // What the client is told of it: `icmp_head`.
                let got = lab.run(&packet.build());
                assert_eq!(got.drops, [(service.id, "too_big")], "{what}");
                assert_eq!(got.events, [(service.id, "icmp_error_sent")], "{what}");
            }
        }
        // Padding isn't sent on as part of the packet.
        lab.change_member(service.members[0], |m| m.mtu = bytes as u16)?;
        let got = lab.run(&packet.clone().padding(60).build());
        assert_eq!(got.action, action::TX, "{case:?}: {:?}", got.drops);
    }
    Ok(())
}

#[test]
fn a_driver_without_room_before_the_frame_is_told() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, service) in services {
        let frame = case.packet().build();
        let outcome = lab.program.run_with_headroom(16, &frame)?;
        let got = lab.observe(outcome);
        assert_eq!(got.drops, [(service.id, "no_headroom")], "{case:?}");
        assert_eq!(got.action, action::DROP, "{case:?}");
        let stats = lab.program.stats(service.members[0])?;
        assert_eq!(stats, MemberStats::default(), "{case:?}: counted as sent");
    }
    Ok(())
}

#[test]
fn a_tunnel_without_a_next_hop_drops() -> Result<()> {
    let (mut lab, services) = with_cases()?;
    for (case, service) in services {
        lab.change_member(service.members[0], |m| {
            m.next_hop = NextHop::UNRESOLVED.0;
        })?;
        let frame = case.packet().build();
        lab.drops(&format!("{case:?}"), &frame, service.id, "no_neighbour");
    }
    Ok(())
}

#[test]
fn a_tunnel_out_of_another_interface_is_a_redirection() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.program.configure(|c| c.tunnel = prefixes())?;
    for case in Case::all() {
        let mut spec = Spec::new(case.vip(), case.protocol, case.method);
        spec.backends.push(Backend {
            address: case.backend(),
            mac: backend_mac(0x11),
            link: OTHER_LINK,
        });
        lab.service(&spec)?;
        let packet = case.packet();
        let got = lab.run(&packet.build());
        let outer = case.outer(&packet, 0, spread(&got.frame));
        let outer = outer.macs(OTHER_MAC, backend_mac(0x11));
        assert_same_frame(&format!("{case:?}"), &outer.build(), &got.frame);
        assert_eq!(got.action, action::REDIRECT, "{case:?}");
    }
    Ok(())
}
