//! Errors and packets whose head changes: what doesn't fit into a tunnel is
//! answered with the size that does, and errors about a backend's packets go
//! through tunnels and other VLANs as the flow's own packets do.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{member::MemberState, net::NextHop, slot::SlotWord};
use lb_tests::{
    packet::{Packet, assert_same_frame, icmp_error, protocol, tcp_flags, verify},
    program::{INGRESS, action},
};

use crate::{
    icmp::errors,
    lab::{
        self, Backend, Lab, OWN_MAC, Observed, ROUTER_MAC, Service, Spec, backend_mac, client, ip,
    },
    reader::{self, Said},
    tunnel::{self, Case, spread},
};

/// What the client has to hear about `packet`.
fn too_big(case: Case, fitting: u16, packet: &Packet) -> Vec<u8> {
    let quoted = packet.ip_packet();
    let (kind, code) = if case.v4 { (3, 4) } else { (2, 0) };
    let [high, low] = fitting.to_be_bytes();
    let (vip, client) = (case.vip().ip(), client(case.v4).ip());
    Packet::icmp(vip, client, kind, code, [0, 0, high, low])
        .payload(&quoted[..quoted.len().min(128) & !3])
        .macs(OWN_MAC, ROUTER_MAC)
        .tos(0xc0)
        .id(0)
        .build()
}

/// An IP packet of `bytes`.
fn of_length(case: Case, bytes: u16) -> Packet {
    let empty = case.packet().payload([]).ip_packet().len();
    case.packet()
        .payload(vec![0x5a; usize::from(bytes) - empty])
}

#[track_caller]
fn tells(lab: &mut Lab, what: &str, case: Case, packet: &Packet, service: u32, fitting: u16) {
    let got = lab.run(&packet.build());
    assert_eq!(got.drops, [(service, "too_big")], "{what}");
    assert_eq!(got.events, [(service, "icmp_error_sent")], "{what}");
    assert_eq!(got.action, action::TX, "{what}: action");
    assert_same_frame(what, &too_big(case, fitting, packet), &got.frame);
    verify(&got.frame).unwrap_or_else(|e| panic!("{what}: {e:#}"));
    let expected = Said {
        from: case.vip().ip(),
        to: client(case.v4).ip(),
        mtu: Some(fitting.into()),
        about: (client(case.v4), case.vip()),
    };
    assert_eq!(reader::read(what, &got.frame), expected, "{what}");
}

#[test]
fn a_client_is_told_what_fits_into_the_tunnel() -> Result<()> {
    for mtu in [1500u16, 1400] {
        let (mut lab, services) = tunnel::with_cases()?;
        for (case, service) in services {
            let member = service.members[0];
            lab.change_member(member, |m| m.mtu = mtu)?;
            let fitting = mtu - u16::try_from(case.overhead())?;
            let what = format!("{case:?}, MTU {mtu}");
            for length in [fitting + 1, 1500] {
                let packet = of_length(case, length);
                tells(&mut lab, &what, case, &packet, service.id, fitting);
                if case.v4 {
                    // The data path makes no fragments; a sender that is told
                    // makes them itself.
                    let packet = packet.clone().may_fragment();
                    tells(&mut lab, &what, case, &packet, service.id, fitting);
                }
                let packet = packet.fragment(0, true);
                if packet.ip_packet().len() > fitting.into() {
                    tells(&mut lab, &what, case, &packet, service.id, fitting);
                }
            }
            assert_eq!(lab.program.stats(member)?.packets, 0, "{what}");
            let packet = of_length(case, fitting);
            let got = lab.run(&packet.build());
            assert_eq!((&got.drops[..], &got.events[..]), (&[][..], &[][..]));
            let outer = case.outer(&packet, 0, spread(&got.frame));
            assert_same_frame(&what, &outer.build(), &got.frame);
        }
    }
    Ok(())
}

/// RFC 8200 §5: nobody takes less for a link's MTU, and no IPv6 host sends less.
#[test]
fn no_client_is_told_less_than_ipv6_promises() -> Result<()> {
    let (mut lab, services) = tunnel::with_cases()?;
    for (case, service) in services {
        lab.change_member(service.members[0], |m| m.mtu = 1280)?;
        let fitting = 1280 - u16::try_from(case.overhead())?;
        let told = if case.v4 { fitting } else { 1280 };
        let packet = of_length(case, fitting + 1);
        tells(&mut lab, "small", case, &packet, service.id, told);
    }
    Ok(())
}

/// RFC 1122 §3.2.2: nobody is told of a later fragment, nor of an error.
#[test]
fn later_fragments_and_errors_that_fit_into_no_tunnel_are_dropped_in_silence() -> Result<()> {
    let (mut lab, services) = tunnel::with_cases()?;
    for (case, service) in services {
        let id = 7 + (u32::from(case.protocol) << 8);
        let first = case.packet().id(id).fragment(0, true);
        let got = lab.run(&first.build());
        assert_eq!((got.action, got.drops), (action::TX, vec![]), "{case:?}");
        lab.change_member(service.members[0], |m| m.mtu = 400)?;
        let later = case.packet().payload([0; 400]).id(id).fragment(1480, false);
        lab.drops("later", &later.build(), service.id, "too_big");
        let seen = case
            .packet()
            .source(case.vip())
            .destination(client(case.v4));
        let seen = seen.payload([0; 400]).ip_packet();
        let error = about(case, errors(case.v4)[0], &seen);
        lab.drops("error", &error.build(), service.id, "too_big");
    }
    Ok(())
}

fn router(v4: bool) -> std::net::IpAddr {
    ip(if v4 { "198.51.100.1" } else { "2001:db8:c::1" })
}

/// An error about `quoted`, from a router on the clients' side to the VIP.
fn about(case: Case, error: (u8, u8, [u8; 4]), quoted: &[u8]) -> Packet {
    let (kind, code, rest) = error;
    icmp_error(router(case.v4), case.vip().ip(), kind, code, rest, quoted).macs(ROUTER_MAC, OWN_MAC)
}

/// A packet that a backend sent to this client, from the VIP.
fn answer(case: Case, client: SocketAddr) -> Packet {
    case.packet().source(case.vip()).destination(client).ttl(60)
}

/// It went as nothing but an error does, and no packet was counted.
#[track_caller]
fn relayed(what: &str, service: &Service, got: &Observed) {
    assert_eq!(got.drops, [], "{what}: dropped");
    assert_eq!(got.events, [(service.id, "icmp_forwarded")], "{what}");
}

#[test]
fn errors_reach_backends_in_tunnels_by_the_way_of_the_flow() -> Result<()> {
    let (mut lab, services) = tunnel::with_cases()?;
    for (case, service) in services {
        let flow = lab.run(&case.packet().build());
        let before = lab.program.stats(service.members[0])?;
        let seen = answer(case, client(case.v4)).ip_packet();
        for error in errors(case.v4) {
            let what = format!("{case:?}, {error:?}");
            let packet = about(case, error, &seen);
            let got = lab.run(&packet.build());
            relayed(&what, &service, &got);
            assert_eq!(got.action, action::TX, "{what}");
            // The same outer source as the flow's: the network takes it along
            // the same way.
            assert_eq!(spread(&got.frame), spread(&flow.frame), "{what}");
            let outer = case.outer(&packet, 0, spread(&got.frame));
            assert_same_frame(&what, &outer.build(), &got.frame);
        }
        assert_eq!(lab.program.stats(service.members[0])?, before);
    }
    Ok(())
}

#[test]
fn errors_that_cannot_go_through_a_tunnel_are_dropped() -> Result<()> {
    let (mut lab, services) = tunnel::with_cases()?;
    for (case, service) in services {
        let seen = answer(case, client(case.v4)).ip_packet();
        let frame = about(case, errors(case.v4)[0], &seen).build();
        let outcome = lab.program.run_with_headroom(0, &frame)?;
        let got = lab.observe(outcome);
        assert_eq!(got.drops, [(service.id, "no_headroom")], "{case:?}");
        assert_eq!(got.events, [], "{case:?}");
        lab.change_member(service.members[0], |m| m.next_hop = NextHop::UNRESOLVED.0)?;
        lab.drops("no MAC", &frame, service.id, "no_neighbour");
    }
    Ok(())
}

#[test]
fn errors_follow_flows_of_tracked_slots_into_tunnels() -> Result<()> {
    let cases = Case::all();
    for case in cases.into_iter().filter(|c| c.protocol == protocol::TCP) {
        let mut lab = Lab::new()?;
        lab.program.configure(|c| c.tunnel = tunnel::prefixes())?;
        let service = lab.service(&case.spec().backend(case.backend(), 0x12))?;
        let [old, new] = service.members[..] else {
            panic!("two members");
        };
        lab.set_slots(&service, SlotWord::tracked(new, old, 0))?;
        lab.program.set_ticks(100)?;
        let from = |port| SocketAddr::new(client(case.v4).ip(), port);
        for (port, flags, mac) in [(1000, tcp_flags::ACK, 0x11), (1001, tcp_flags::SYN, 0x12)] {
            let packet = case.packet().source(from(port)).flags(flags);
            let flow = lab.run(&packet.build());
            assert_eq!(flow.frame[5], mac, "{case:?}, port {port}");
            let seen = answer(case, from(port)).ip_packet();
            let packet = about(case, errors(case.v4)[0], &seen);
            let got = lab.run(&packet.build());
            let what = format!("{case:?}, port {port}");
            relayed(&what, &service, &got);
            let outer = case.outer(&packet, 0, spread(&flow.frame));
            let outer = outer.macs(OWN_MAC, backend_mac(mac));
            assert_same_frame(&what, &outer.build(), &got.frame);
        }
        lab.change_member(old, |m| m.state = MemberState::DEAD.0)?;
        let seen = answer(case, from(1000)).ip_packet();
        let got = lab.run(&about(case, errors(case.v4)[0], &seen).build());
        assert_eq!(got.frame[5], 0x12, "{case:?}: the old one is gone");
    }
    Ok(())
}

/// VLAN device of the ingress interface.
const DEVICE: u32 = 210;
const VLAN: u16 = 10;

/// A lab with a VLAN that the member of every case's service is on.
fn on_vlan(reply_flows: bool) -> Result<(Lab, Vec<(lab::Case, Service)>)> {
    let mut lab = Lab::new()?;
    let tags = [0x8100 << 16 | u32::from(VLAN), 0];
    lab.program.add_vlan(INGRESS, tags, DEVICE, OWN_MAC.0)?;
    let mut services = vec![];
    for case in lab::Case::all() {
        if reply_flows && !case.is_nat() {
            continue;
        }
        let mut spec = Spec::new(case.vip(), case.protocol, case.method);
        spec.reply_flows = reply_flows;
        spec.backends.push(Backend {
            address: case.backend(),
            mac: backend_mac(0x11),
            link: DEVICE,
        });
        services.push((case, lab.service(&spec)?));
    }
    Ok((lab, services))
}

#[test]
fn errors_reach_backends_on_another_vlan() -> Result<()> {
    for reply_flows in [false, true] {
        let (mut lab, services) = on_vlan(reply_flows)?;
        for (case, service) in services {
            let seen = case.between(case.vip(), case.client()).ttl(60);
            let sent = if case.is_nat() {
                seen.clone().source(case.backend())
            } else {
                seen.clone()
            };
            for error in errors(case.v4) {
                let what = format!("{case:?}, {error:?}, by flow: {reply_flows}");
                let (kind, code, rest) = error;
                let from = router(case.v4);
                let message = |to, quoted: &Packet| {
                    icmp_error(from, to, kind, code, rest, &quoted.ip_packet())
                };
                let packet = message(case.vip().ip(), &seen).macs(ROUTER_MAC, OWN_MAC);
                let got = lab.run(&packet.clone().vlan(0xa000).build());
                relayed(&what, &service, &got);
                let expected = if case.is_nat() {
                    message(case.backend().ip(), &sent).ttl(63)
                } else {
                    packet
                };
                let expected = expected
                    .macs(OWN_MAC, backend_mac(0x11))
                    .vlan(0xa000 | VLAN)
                    .build();
                assert_same_frame(&what, &expected, &got.frame);
                assert_eq!(got.action, action::TX, "{what}");
                let said = reader::read(&what, &got.frame);
                let end = if case.is_nat() {
                    case.backend()
                } else {
                    case.vip()
                };
                assert_eq!(said.about, (end, case.client()), "{what}");
                assert_eq!((said.from, said.to), (from, end.ip()), "{what}");
            }
            assert_eq!(lab.program.stats(service.members[0])?.packets, 0);
        }
    }
    Ok(())
}

/// Where replies are recognised by flow, an error takes no entry and needs none.
#[test]
fn an_error_reserves_no_port_at_the_backend() -> Result<()> {
    for case in lab::Case::all().into_iter().filter(|c| c.is_nat()) {
        let mut lab = Lab::new()?;
        let first = lab.service(&case.spec().reply_flows())?;
        let mut vip = case.vip();
        vip.set_port(81);
        let spec = Spec::new(vip, case.protocol, case.method);
        lab.service(&spec.backend(case.backend(), 0x11).reply_flows())?;
        let error = errors(case.v4)[0];
        let seen = case.between(case.vip(), case.client());
        let (kind, code, rest) = error;
        let message = |to, quoted: &Packet| {
            icmp_error(router(case.v4), to, kind, code, rest, &quoted.ip_packet())
        };
        let frame = message(case.vip().ip(), &seen).macs(ROUTER_MAC, OWN_MAC);
        let got = lab.run(&frame.build());
        relayed("error", &first, &got);
        let sent = seen.source(case.backend());
        let expected = message(case.backend().ip(), &sent).ttl(63);
        let expected = expected.macs(OWN_MAC, backend_mac(0x11)).build();
        assert_same_frame(&format!("{case:?}"), &expected, &got.frame);
        // The client's port is still free towards the backend.
        let packet = case.packet().destination(vip);
        lab.bounces("the other", &packet.build(), &case.forwarded(&packet));
    }
    Ok(())
}
