//! The sample of flows that people see, and the connections counted from it.

use anyhow::Result;
use lb_common::abi::{SampleEntry, sample_flag};
use lb_tests::packet::{Packet, protocol, tcp_flags};

use crate::lab::{Case, Lab, Service};

const IDLE_TICKS: u32 = 20 * 8;
const HALF_TICKS: u32 = 9 * 8;

/// All cases that the filter leaves, each with its own lab of sampled flows.
fn sampled(
    mask: u32,
    filter: impl Fn(&Case) -> bool,
    test: impl Fn(&mut Lab, Case, &Service) -> Result<()>,
) -> Result<()> {
    for case in Case::all().into_iter().filter(filter) {
        let mut lab = Lab::new()?;
        let service = lab.service(&case.spec())?;
        lab.program.configure(|c| c.sample_mask = mask)?;
        lab.program.set_ticks(1000)?;
        test(&mut lab, case, &service)?;
    }
    Ok(())
}

fn is_tcp(case: &Case) -> bool {
    case.protocol == protocol::TCP
}

fn send(lab: &mut Lab, case: Case, packet: &Packet) {
    lab.bounces("sampled", &packet.build(), &case.forwarded(packet));
}

fn only(lab: &mut Lab) -> Result<SampleEntry> {
    let mut all = lab.program.sample()?;
    assert_eq!(all.len(), 1, "{all:?}");
    Ok(all.remove(0))
}

#[test]
fn a_flow_is_recorded_with_its_tuple() -> Result<()> {
    sampled(
        0,
        |_| true,
        |lab, case, service| {
            send(lab, case, &case.packet());
            let entry = only(lab)?;
            assert_eq!(entry.family, if case.v4 { 4 } else { 6 });
            assert_eq!(entry.source.to_ip(entry.family), case.client().ip());
            assert_eq!(entry.destination.to_ip(entry.family), case.vip().ip());
            assert_eq!(entry.source_port.get(), case.client().port());
            assert_eq!(entry.destination_port.get(), case.vip().port());
            assert_eq!(entry.protocol, case.protocol);
            assert_eq!(entry.member, service.members[0]);
            assert_eq!((entry.first_ticks, entry.last_ticks), (1000, 1000));
            assert_eq!(entry.flags, sample_flag::CONFIRMED);
            Ok(())
        },
    )
}

#[test]
fn a_record_follows_its_connection() -> Result<()> {
    sampled(0, is_tcp, |lab, case, _| {
        const DONE: u16 = sample_flag::CONFIRMED | sample_flag::CLOSING;
        for (ticks, flags, expected) in [
            (1000, tcp_flags::SYN, 0),
            (1001, tcp_flags::ACK, sample_flag::CONFIRMED),
            (
                1050,
                tcp_flags::ACK | tcp_flags::PSH,
                sample_flag::CONFIRMED,
            ),
            (1051, tcp_flags::FIN | tcp_flags::ACK, DONE),
            (1052, tcp_flags::ACK, DONE),
            // The tuple's next connection.
            (1060, tcp_flags::SYN, 0),
            (1061, tcp_flags::RST, DONE),
        ] {
            lab.program.set_ticks(ticks)?;
            send(lab, case, &case.packet().flags(flags));
            let entry = only(lab)?;
            assert_eq!(entry.flags, expected, "{case:?} at {ticks}");
            assert_eq!((entry.first_ticks, entry.last_ticks), (1000, ticks));
        }
        Ok(())
    })
}

#[test]
fn a_flow_after_the_idle_time_is_a_new_one() -> Result<()> {
    sampled(
        0,
        |_| true,
        |lab, case, service| {
            let is_tcp = case.protocol == protocol::TCP;
            send(lab, case, &case.packet());
            lab.program.set_ticks(1000 + IDLE_TICKS)?;
            send(lab, case, &case.packet());
            assert_eq!(only(lab)?.first_ticks, 1000);
            let now = 1000 + 2 * IDLE_TICKS + 1;
            lab.program.set_ticks(now)?;
            send(lab, case, &case.packet());
            assert_eq!(only(lab)?.first_ticks, now);
            let stats = lab.program.stats(service.members[0])?;
            assert_eq!(stats.connections, if is_tcp { 0 } else { 2 }, "{case:?}");
            Ok(())
        },
    )
}

#[test]
fn a_syn_that_nobody_followed_up_is_forgotten_sooner() -> Result<()> {
    sampled(0, is_tcp, |lab, case, _| {
        send(lab, case, &case.packet().flags(tcp_flags::SYN));
        lab.program.set_ticks(1000 + HALF_TICKS + 1)?;
        send(lab, case, &case.packet());
        assert_eq!(only(lab)?.first_ticks, 1000 + HALF_TICKS + 1);
        Ok(())
    })
}

#[test]
fn the_mask_leaves_a_known_part_and_udp_is_counted_from_it() -> Result<()> {
    const FLOWS: u16 = 2000;
    sampled(
        7,
        |_| true,
        |lab, case, service| {
            for round in 0..2 {
                for port in 1000..1000 + FLOWS {
                    let mut client = case.client();
                    client.set_port(port);
                    lab.program.run(&case.packet().source(client).build())?;
                }
                let sampled = lab.program.sample()?.len() as u64;
                // 250 are expected, with a standard deviation of 15.
                assert!((170..330).contains(&sampled), "{case:?}: {sampled}");
                let stats = lab.program.stats(service.members[0])?;
                assert_eq!(stats.packets, u64::from(FLOWS) * (round + 1));
                let counted = stats.connections;
                match case.protocol {
                    protocol::TCP => assert_eq!(counted, 0, "{case:?}: without a SYN"),
                    // Two flows may share a place, where one counts and isn't seen.
                    _ => assert!(
                        counted.is_multiple_of(8) && counted.abs_diff(sampled * 8) <= 16 * 8,
                        "{case:?}: {counted} of {sampled} sampled"
                    ),
                }
            }
            Ok(())
        },
    )
}

#[test]
fn nothing_is_recorded_where_the_mask_leaves_nothing() -> Result<()> {
    sampled(
        u32::MAX,
        |_| true,
        |lab, case, service| {
            send(lab, case, &case.packet());
            assert_eq!(lab.program.sample()?, []);
            assert_eq!(lab.program.stats(service.members[0])?.connections, 0);
            Ok(())
        },
    )
}

#[test]
fn packets_that_are_dropped_are_not_recorded() -> Result<()> {
    sampled(
        0,
        |_| true,
        |lab, case, service| {
            lab.change_member(service.members[0], |m| m.next_hop = 0)?;
            lab.drops(
                "unresolved",
                &case.packet().build(),
                service.id,
                "no_neighbour",
            );
            assert_eq!(lab.program.sample()?, []);
            Ok(())
        },
    )
}
