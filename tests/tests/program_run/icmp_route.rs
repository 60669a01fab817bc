//! ICMP errors from the backends' side of NAT, and replies that are too long.

use anyhow::Result;
use lb_tests::{
    packet::{Packet, assert_same_frame, icmp_error, verify},
    program::action,
};

use crate::{
    icmp::errors,
    lab::{Case, backend_mac, ip},
    reply_route::{Behind, CLIENTS, NEXT_HOP, SERVERS, both_ways, reply_to},
};

/// An error from the inside about `quoted`, to the client.
fn about(case: Case, from: &str, error: (u8, u8, [u8; 4]), quoted: &Packet) -> Packet {
    let (kind, code, rest) = error;
    let client = ip(if case.v4 {
        "198.51.100.7"
    } else {
        "2001:db8:c::7"
    });
    icmp_error(ip(from), client, kind, code, rest, &quoted.ip_packet())
        .macs(backend_mac(0x11), SERVERS.1)
}

#[test]
fn errors_about_a_clients_packets_reach_the_client_from_the_vip() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, client| {
        let inside = case.between(client, case.backend()).ttl(60);
        let outside = inside.clone().destination(case.vip());
        let from = if case.v4 {
            ["10.1.0.11", "10.1.0.77"]
        } else {
            ["fd00:1::11", "fd00:1::77"]
        };
        for from in from {
            for error in errors(case.v4) {
                let got = router.reply(&about(case, from, error, &inside))?;
                let (kind, code, rest) = error;
                let (vip, to) = (case.vip().ip(), client.ip());
                let expected = icmp_error(vip, to, kind, code, rest, &outside.ip_packet())
                    .macs(CLIENTS.1, NEXT_HOP)
                    .ttl(63)
                    .build();
                assert_same_frame(&format!("{case:?} {error:?}"), &expected, &got.frame);
                assert_eq!(got.action, action::REDIRECT);
                assert_eq!(got.drops, []);
                assert_eq!(got.events, [(service.id, "icmp_forwarded")]);
                verify(&got.frame)?;
            }
        }
        Ok(())
    })
}

#[test]
fn errors_that_are_not_about_a_flow_are_passed_untouched() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, _, client| {
        let error = errors(case.v4)[0];
        let from = if case.v4 { "10.1.0.11" } else { "fd00:1::11" };
        let mut other_port = case.backend();
        other_port.set_port(22);
        let mut other_client = client;
        other_client.set_ip(ip(if case.v4 {
            "198.51.100.8"
        } else {
            "2001:db8:c::8"
        }));
        let cases = [
            case.between(client, other_port),
            case.between(other_client, case.backend()),
            case.between(case.backend(), client),
            case.between(client, case.backend()).fragment(8, true),
        ];
        for quoted in cases {
            router.untouched(&about(case, from, error, &quoted), &[])?;
        }
        let spent = about(case, from, error, &case.between(client, case.backend()));
        router.untouched(&spent.ttl(1), &[])
    })
}

/// The kernel tells the backend: what it quotes has to be what the backend sent.
#[test]
fn a_reply_that_is_too_long_for_the_clients_link_is_left_to_the_kernel() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, client| {
        router
            .ns
            .exec(&["ip", "link", "set", "out0", "mtu", "1400"])?;
        let empty = reply_to(case, client).payload([]).ip_packet().len();
        let fits = reply_to(case, client).payload(vec![0; 1400 - empty]);
        assert_eq!(router.reply(&fits)?.action, action::REDIRECT);
        let long = reply_to(case, client).payload(vec![0; 1401 - empty]);
        router.untouched(&long, &[])?;
        if case.v4 {
            // The kernel makes fragments of it.
            let long = long.may_fragment();
            let got = router.reply(&long)?;
            assert_same_frame("long", &long.source(case.vip()).build(), &got.frame);
            assert_eq!(got.action, action::PASS);
            assert_eq!(got.events, [(service.id, "reply_unresolved")]);
        }
        router
            .ns
            .exec(&["ip", "link", "set", "out0", "mtu", "1500"])?;
        Ok(())
    })
}
