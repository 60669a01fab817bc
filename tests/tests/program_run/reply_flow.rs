//! NAT that recognises replies flow by flow: who may use a client's port
//! towards a backend, and for how long.

use anyhow::Result;
use lb_common::{
    abi::{feature, map, method},
    flow::BUCKET_WORDS,
    member::MemberState,
};
use lb_tests::{
    packet::{Packet, assert_same_frame, protocol, tcp_flags},
    program::{Sizes, action},
};

use crate::lab::{Case, Lab, Service, Spec, ip};

/// Units of the lab's configuration, and ticks in one.
const HALF_UNITS: u32 = 9;
const IDLE_UNITS: u32 = 20;
const TICKS: u32 = 8;

fn cases() -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|c| c.is_nat())
}

/// The case's service on another port of the VIP.
fn other_vip(case: Case) -> std::net::SocketAddr {
    let mut vip = case.vip();
    vip.set_port(81);
    vip
}

/// Two services that share a backend and its port.
fn rivals(case: Case) -> Result<(Lab, Service, Service)> {
    let mut lab = Lab::new()?;
    let spec = case.spec().reply_flows();
    let first = lab.service(&spec)?;
    let spec = Spec::new(other_vip(case), case.protocol, method::NAT);
    let second = lab.service(&spec.backend(case.backend(), 0x11).reply_flows())?;
    Ok((lab, first, second))
}

fn to_second(case: Case) -> Packet {
    case.packet().destination(other_vip(case))
}

/// Opens a flow of the first service.
fn open(lab: &mut Lab, case: Case) {
    let packet = case.packet();
    lab.bounces("first service", &packet.build(), &case.forwarded(&packet));
}

#[track_caller]
fn second_conflicts(lab: &mut Lab, case: Case, second: &Service) {
    let what = format!("{case:?}");
    lab.drops(&what, &to_second(case).build(), second.id, "reply_conflict");
}

#[track_caller]
fn second_goes(lab: &mut Lab, case: Case) {
    let packet = to_second(case);
    lab.bounces(
        &format!("{case:?}"),
        &packet.build(),
        &case.forwarded(&packet),
    );
}

#[test]
fn a_client_port_belongs_to_one_of_two_services_at_a_backend() -> Result<()> {
    for case in cases() {
        let (mut lab, _, second) = rivals(case)?;
        open(&mut lab, case);
        second_conflicts(&mut lab, case, &second);
        open(&mut lab, case);
        let mut client = case.client();
        client.set_port(client.port() + 1);
        let packet = to_second(case).source(client);
        lab.bounces("another port", &packet.build(), &case.forwarded(&packet));
        let packet = case.packet().source(client);
        let got = lab.run(&packet.build());
        assert_eq!(got.drops, [(1, "reply_conflict")], "the other way round");
    }
    Ok(())
}

/// With addresses to give, the second flow gets one, and keeps it when the first
/// has long ended: to the backend it is another connection than before.
#[test]
fn with_full_nat_a_client_port_serves_two_services_at_one_backend() -> Result<()> {
    const FIRST: u16 = 2000;
    for case in cases() {
        let (mut lab, _, second) = rivals(case)?;
        let addresses = [(ip("192.0.2.99"), 1), (ip("2001:db8::99"), 100)];
        for (address, base) in addresses {
            lab.program.add_pool(address, base, FIRST, 8)?;
        }
        let pools = feature::POOL_V4 | feature::POOL_V6;
        let open_pools = feature::OPEN_POOL_V4 | feature::OPEN_POOL_V6;
        lab.program
            .configure(|c| c.features |= pools | open_pools)?;
        let source = (addresses[usize::from(!case.v4)].0, FIRST).into();
        let syn = to_second(case);
        let syn = if syn.is_tcp() {
            syn.flags(tcp_flags::SYN)
        } else {
            syn
        };
        open(&mut lab, case);
        let got = lab.run(&syn.build());
        let expected = case.forwarded(&syn.clone().source(source));
        assert_same_frame("the second", &expected, &got.frame);
        assert_eq!(got.drops, []);
        assert_eq!(got.events, [(second.id, "binding_opened")], "{case:?}");
        open(&mut lab, case);
        let more = to_second(case);
        let expected = case.forwarded(&more.clone().source(source));
        lab.bounces("beside the first", &more.build(), &expected);
        for units in 1..=4 {
            lab.program.set_ticks(units * IDLE_UNITS / 2 * TICKS)?;
            lab.bounces("after the first", &more.build(), &expected);
        }
    }
    Ok(())
}

#[test]
fn services_with_backends_of_their_own_never_conflict() -> Result<()> {
    for case in cases() {
        let mut lab = Lab::new()?;
        lab.service(&case.spec().reply_flows())?;
        let mut backend = case.backend();
        backend.set_port(8081);
        let spec = Spec::new(other_vip(case), case.protocol, method::NAT).backend(backend, 0x12);
        lab.service(&spec.reply_flows())?;
        open(&mut lab, case);
        let packet = to_second(case);
        let expected = case.forwarded_to(&packet, backend, 0x12);
        lab.bounces("another port", &packet.build(), &expected);
    }
    Ok(())
}

#[test]
fn a_port_is_free_again_when_the_flow_is_idle_for_too_long() -> Result<()> {
    for case in cases() {
        let (mut lab, _, second) = rivals(case)?;
        open(&mut lab, case);
        lab.program.set_ticks(IDLE_UNITS * TICKS + TICKS - 1)?;
        second_conflicts(&mut lab, case, &second);
        lab.program.set_ticks((IDLE_UNITS + 1) * TICKS)?;
        second_goes(&mut lab, case);
    }
    Ok(())
}

#[test]
fn a_packet_keeps_the_port_for_another_idle_period() -> Result<()> {
    for case in cases() {
        let (mut lab, _, second) = rivals(case)?;
        open(&mut lab, case);
        lab.program.set_ticks(IDLE_UNITS * TICKS)?;
        open(&mut lab, case);
        lab.program.set_ticks(2 * IDLE_UNITS * TICKS)?;
        second_conflicts(&mut lab, case, &second);
        lab.program.set_ticks((2 * IDLE_UNITS + 1) * TICKS)?;
        second_goes(&mut lab, case);
    }
    Ok(())
}

#[test]
fn a_syn_alone_keeps_the_port_for_a_short_time() -> Result<()> {
    for case in cases().filter(|c| c.protocol == protocol::TCP) {
        let (mut lab, _, second) = rivals(case)?;
        let syn = case.packet().flags(tcp_flags::SYN);
        lab.bounces("SYN", &syn.build(), &case.forwarded(&syn));
        lab.program.set_ticks(HALF_UNITS * TICKS)?;
        second_conflicts(&mut lab, case, &second);
        lab.program.set_ticks((HALF_UNITS + 1) * TICKS)?;
        second_goes(&mut lab, case);
    }
    Ok(())
}

#[test]
fn a_port_is_free_again_when_the_client_closed() -> Result<()> {
    for case in cases().filter(|c| c.protocol == protocol::TCP) {
        for flags in [tcp_flags::FIN | tcp_flags::ACK, tcp_flags::RST] {
            let (mut lab, _, _) = rivals(case)?;
            open(&mut lab, case);
            let last = case.packet().flags(flags);
            lab.bounces("the last", &last.build(), &case.forwarded(&last));
            second_goes(&mut lab, case);
        }
    }
    Ok(())
}

#[test]
fn a_port_is_free_again_when_the_member_is_dead() -> Result<()> {
    for case in cases() {
        let (mut lab, first, _) = rivals(case)?;
        open(&mut lab, case);
        lab.change_member(first.members[0], |m| m.state = MemberState::DEAD.0)?;
        second_goes(&mut lab, case);
    }
    Ok(())
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() -> Result<()> {
    for case in cases() {
        let mut lab = Lab::sized(Sizes {
            buckets: 2,
            ..Sizes::default()
        })?;
        let service = lab.service(&case.spec().reply_flows())?;
        // Insertions reckon with the longest idle time of all services.
        lab.program
            .configure(|c| c.longest_idle_units = IDLE_UNITS)?;
        let packet = |port| {
            let mut client = case.client();
            client.set_port(port);
            case.packet().source(client)
        };
        let (mut taken, mut refused) = (vec![], vec![]);
        for port in 1000..1100 {
            let got = lab.run(&packet(port).build());
            if got.action == action::TX {
                taken.push(port);
            } else {
                assert_eq!(got.drops, [(service.id, "reply_table_full")]);
                assert_eq!(got.frame, packet(port).build(), "{case:?}: changed");
                refused.push(port);
            }
        }
        let room = 2 * (BUCKET_WORDS - 1);
        assert_eq!(taken.len(), room, "{case:?}: flows in two buckets");
        for port in &taken {
            let packet = packet(*port);
            lab.bounces("known", &packet.build(), &case.forwarded(&packet));
        }
        for port in refused {
            lab.drops(
                "still full",
                &packet(port).build(),
                service.id,
                "reply_table_full",
            );
        }
        lab.program.set_ticks((IDLE_UNITS + 1) * TICKS)?;
        let packet = packet(2000);
        lab.bounces("room again", &packet.build(), &case.forwarded(&packet));
    }
    Ok(())
}

#[test]
fn replies_recognised_by_port_cost_no_entry() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        open(&mut lab, case);
    }
    let table = lab.program.array::<[u64; BUCKET_WORDS]>(map::REPLY_FLOWS)?;
    for bucket in table.iter() {
        assert_eq!(bucket?, [0; BUCKET_WORDS]);
    }
    Ok(())
}
