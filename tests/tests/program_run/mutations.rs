//! Ten million mutated frames through the real program, each judged: it was
//! left alone, answered, or went to a backend of the service it was for; and it
//! was counted once.
//!
//! A seed that ever failed is kept in [`SEEDS`]. LB_TEST_SEED=n runs another one.

use std::{collections::BTreeMap, panic::AssertUnwindSafe};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray};
use lb_common::{
    abi::{
        LinkEntry, MemberEntry, MemberStats, ServiceEntry, map, service_flag, source, source_set,
    },
    counter::{DROP_ROW, DropReason, EVENT_ROW, Event},
    limit,
    member::MemberState,
    net::{Be16, NextHop},
    slot::SlotWord,
};
use lb_tests::{mutation::Mutation, packet::ethertype, program::INGRESS};

use crate::{
    lab::{Lab, OWN_MAC, backend_mac, ip},
    oracle::{Known, u16_at},
    random::{BATCH, FOLLOWED, Seen, Source, check, setup},
};

/// Each is the start of a run. What once failed is added and stays.
const SEEDS: [u64; 4] = [20_261_122, 7, 0xdead_beef, 0];

/// Frames of all seeds together.
const FRAMES: u32 = 10_000_000;

/// Frames from one set of frames to start from.
const CHUNK: u32 = 100_000;

fn seeds() -> Result<Vec<u64>> {
    match std::env::var("LB_TEST_SEED") {
        Ok(seed) => Ok(vec![seed.parse().context("LB_TEST_SEED is not a number")?]),
        Err(_) => Ok(SEEDS.to_vec()),
    }
}

/// The services of [`setup`], some of which track, reset, limit and deny.
fn eventful() -> Result<(Lab, Vec<Known>)> {
    let (mut lab, known) = setup()?;
    let change = |lab: &mut Lab, index: usize, change: &dyn Fn(&mut ServiceEntry)| -> Result<()> {
        let service = &known[index];
        let mut services = lab.program.hash(map::SERVICES)?;
        let (address, family) = lb_common::net::Addr::from_ip(service.vip);
        let key = lb_common::abi::ServiceKey {
            address,
            port: Be16::new(service.port),
            protocol: service.protocol,
            family,
        };
        let mut entry = services.get(&key, 0)?;
        change(&mut entry);
        Ok(services.insert(key, entry, 0)?)
    };
    // Members have the numbers of the services' backends.
    let first_slot = |index: u32| index * 101;
    for slot in 0..101 {
        lab.program
            .set_slot(first_slot(0) + slot, SlotWord::tracked(1, 2, 0))?;
        lab.program
            .set_slot(first_slot(2) + slot, SlotWord::tracked(8, 7, 0))?;
    }
    lab.change_member(7, |m| m.state = MemberState::DEAD.0)?;
    change(&mut lab, 2, &|entry| entry.flags |= service_flag::RESET)?;
    let set = source_set(known[5].id, 1);
    lab.program
        .add_source(set, (ip("2001:db8:c::"), 121), source::DENIED)?;
    change(&mut lab, 5, &|entry| {
        entry.flags |= service_flag::GUARDED;
        entry.sources = set;
        entry.core_cost = limit::cost(1000, 250);
        entry.source_cost = limit::cost(20, 250);
    })?;
    lab.program
        .configure(|c| c.second_steps = limit::second(250))?;
    Ok((lab, known))
}

/// A per-CPU array, its cores added up.
fn sums<const N: usize, V: aya::Pod>(
    lab: &mut Lab,
    name: &str,
    rows: u32,
    words: impl Fn(&V) -> [u64; N],
) -> Result<Vec<[u64; N]>> {
    let array: PerCpuArray<&mut MapData, V> = lab.program.per_cpu(name)?;
    (0..rows)
        .map(|row| {
            let mut sum = [0u64; N];
            for value in array.get(&row, 0)?.iter() {
                for (sum, word) in sum.iter_mut().zip(words(value)) {
                    *sum += word;
                }
            }
            Ok(sum)
        })
        .collect()
}

/// What nobody but the controller writes.
fn constants(lab: &mut Lab) -> Result<(Vec<MemberEntry>, Vec<u64>, Vec<ServiceEntry>)> {
    let all = |array: Array<&mut MapData, u64>, of: std::ops::Range<u32>| {
        of.map(|i| Ok(array.get(&i, 0)?))
            .collect::<Result<Vec<u64>>>()
    };
    let members = (0..64)
        .map(|id| lab.program.member(id))
        .collect::<Result<_>>()?;
    let mut slots = all(lab.program.array(map::SLOTS)?, 101..202)?;
    slots.extend(all(lab.program.array(map::SLOTS)?, 303..2000)?);
    let services = lab
        .program
        .hash::<lb_common::abi::ServiceKey, ServiceEntry>(map::SERVICES)?;
    let mut entries: Vec<ServiceEntry> =
        services.iter().map(|e| Ok(e?.1)).collect::<Result<_>>()?;
    entries.sort_by_key(|entry| entry.id);
    Ok((members, slots, entries))
}

/// Drives `frames` through; what was counted, by name.
fn drive(seed: u64, frames: u32) -> Result<BTreeMap<&'static str, u64>> {
    let (mut lab, known) = eventful()?;
    let before = constants(&mut lab)?;
    let mut mutation = Mutation::load(seed)?;
    for service in &known {
        for (number, address, _) in &service.backends {
            let to = if service.is_nat {
                *address
            } else {
                service.vip
            };
            mutation.allow(*number, service.vip, to)?;
        }
    }
    let mut source = Source::new(seed, &known);
    for chunk in 0..frames / CHUNK {
        mutation.start_from(|| source.whole())?;
        mutation.run(lab.program.lb()?, CHUNK)?;
        mutation
            .state()?
            .ensure_right()
            .with_context(|| format!("seed {seed}, chunk {chunk}"))?;
        lab.program.set_ticks(chunk * 8 * 25)?;
    }
    let seen = mutation.state()?;
    ensure!(
        seen.unchanged + seen.answered + seen.delivered == u64::from(frames),
        "{frames} frames: {} left alone, {} answered, {} delivered",
        seen.unchanged,
        seen.answered,
        seen.delivered
    );

    ensure!(
        constants(&mut lab)? == before,
        "somebody else's words were written"
    );
    let stats = sums(&mut lab, map::STATS, 1024, |s: &MemberStats| {
        [
            s.packets,
            s.bytes,
            s.connections,
            s.reply_packets,
            s.reply_bytes,
        ]
    })?;
    let members = 1..=known.iter().map(|s| s.backends.len()).sum::<usize>();
    let mut packets = 0;
    for (id, [row_packets, bytes, connections, replies, reply_bytes]) in
        stats.into_iter().enumerate()
    {
        packets += row_packets;
        let is_sane = bytes >= 34 * row_packets && bytes <= 192 * row_packets;
        // The sample counts a UDP flow for several.
        ensure!(is_sane && connections <= 8 * row_packets, "member {id}");
        ensure!(replies == 0 && reply_bytes == 0, "member {id}: replies");
        ensure!(
            row_packets == 0 || members.contains(&id),
            "member {id} isn't there"
        );
    }

    let mut counted = BTreeMap::new();
    let services = known.len() as u32;
    let mut drops = 0;
    let rows = sums(&mut lab, map::DROPS, 64 * DROP_ROW, |n: &u64| [*n])?;
    for (index, [n]) in (0..).zip(rows) {
        let (service, reason) = (
            index / DROP_ROW,
            DropReason::ALL.get((index % DROP_ROW) as usize),
        );
        ensure!(
            n == 0 || (service <= services && reason.is_some()),
            "drop counter {index}: {n}"
        );
        drops += n;
        if let Some(reason) = reason {
            *counted.entry(reason.name()).or_default() += n;
        }
    }
    let (mut answers, mut told, mut errors) = (0, 0, 0);
    let rows = sums(&mut lab, map::EVENTS, 64 * EVENT_ROW, |n: &u64| [*n])?;
    for (index, [n]) in (0..).zip(rows) {
        let (service, event) = (
            index / EVENT_ROW,
            Event::ALL.get((index % EVENT_ROW) as usize),
        );
        ensure!(
            n == 0 || (service <= services && event.is_some()),
            "event counter {index}: {n}"
        );
        let Some(event) = event else { continue };
        *counted.entry(event.name()).or_default() += n;
        let is_answer = matches!(
            event,
            Event::ArpReply
                | Event::NeighbourAdvertisement
                | Event::EchoReply
                | Event::Reset
                | Event::IcmpErrorSent
        );
        answers += if is_answer { n } else { 0 };
        match event {
            Event::IcmpErrorSent => told += n,
            Event::IcmpForwarded => errors += n,
            _ => {}
        }
    }
    ensure!(
        packets + errors == seen.delivered,
        "{packets} and {errors} errors counted, {} delivered",
        seen.delivered
    );
    // Who is told of a drop gets an answer.
    ensure!(
        drops - told <= seen.unchanged,
        "{drops} dropped and {told} told, {} left alone",
        seen.unchanged
    );
    ensure!(
        answers == seen.answered,
        "{answers} counted, {} answered",
        seen.answered
    );
    println!(
        "seed {seed}: {frames} frames: {} delivered, {answers} answered, {drops} dropped, {} passed",
        seen.delivered,
        seen.unchanged + told - drops
    );
    Ok(counted)
}

#[test]
fn ten_million_mutated_frames_go_nowhere_wrong_and_are_counted_once() -> Result<()> {
    let seeds = seeds()?;
    let each = FRAMES / u32::try_from(seeds.len())?;
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds {
        for (name, n) in drive(seed, each)? {
            *counted.entry(name).or_default() += n;
        }
    }
    println!("counted {counted:?}");
    // A run that reaches none of these proves little.
    for name in [
        "no_service",
        "not_owner",
        "malformed",
        "truncated",
        "fragment",
        "extension_headers",
        "unknown_protocol",
        "bad_source",
        "denied",
        "source_limit",
        "backend_gone",
        "arp_reply",
        "neighbour_advertisement",
        "echo_reply",
        "duplicate_vip",
        "flow_inserted",
        "reset",
        "ttl_exceeded",
        "icmp",
        "icmp_unmatched",
        "icmp_forwarded",
        "icmp_error_sent",
    ] {
        ensure!(
            counted.get(name).is_some_and(|n| *n > 100),
            "too few {name}: {counted:?}"
        );
    }
    Ok(())
}

/// Some of the same frames, byte by byte.
#[test]
fn mutated_frames_fare_as_a_simple_oracle_says() -> Result<()> {
    for seed in seeds()? {
        let (mut lab, known) = setup()?;
        let mut mutation = Mutation::load(seed)?;
        let mut source = Source::new(seed, &known);
        let seen: AssertUnwindSafe<Seen> = AssertUnwindSafe(Seen::default());
        let mut expected = vec![];
        for number in 1..=10 * BATCH {
            if number % BATCH == 1 {
                mutation.start_from(|| source.whole())?;
            }
            let frame = mutation.frame()?;
            let got = lab.program.run(&frame)?;
            let counted = std::panic::catch_unwind(|| check(&known, &seen, &frame, &got));
            let Ok(counted) = counted else {
                panic!("frame {number} of seed {seed}: {frame:02x?} became {got:02x?}");
            };
            expected.extend(counted.into_iter().filter(|(_, name)| *name != FOLLOWED));
            if number.is_multiple_of(BATCH) {
                let counted = lab.observe(got);
                let mut counted = [counted.drops, counted.events].concat();
                counted.sort_unstable();
                expected.sort_unstable();
                assert_eq!(
                    expected, counted,
                    "counted up to frame {number} of seed {seed}"
                );
                expected.clear();
                // The time that follows is longer than fragments are remembered.
                seen.borrow_mut().clear();
                let ticks = u32::try_from(number / BATCH)? * 8 * 25;
                lab.program.set_ticks(ticks)?;
            }
        }
    }
    Ok(())
}

/// VLAN devices of the one NIC: where packets come in, and where backends are.
const VLANS: [(u16, u32); 2] = [(10, 210), (20, 220)];

/// The frame with a tag of this VLAN and some priority.
fn tagged(frame: &[u8], vlan: u16, priority: u16) -> Vec<u8> {
    let tag = (u32::from(ethertype::VLAN) << 16 | u32::from(priority | vlan)).to_be_bytes();
    [&frame[..12], &tag, &frame[12..]].concat()
}

/// What a frame becomes doesn't depend on its tag: the same frames, with the tag
/// of one VLAN and backends on another, become the same but for their tags.
#[test]
fn mutated_frames_fare_alike_from_one_vlan_to_another() -> Result<()> {
    for seed in seeds()? {
        let ((mut plain, known), (mut vlans, _)) = (setup()?, setup()?);
        for (vlan, device) in VLANS {
            let tags = [u32::from(ethertype::VLAN) << 16 | u32::from(vlan), 0];
            vlans.program.add_vlan(INGRESS, tags, device, OWN_MAC.0)?;
        }
        let [(came, _), (beside, device)] = VLANS;
        let link = u16::try_from(LinkEntry::place(device, [0; 2]))?;
        let backends = known.iter().flat_map(|service| &service.backends);
        for (number, ..) in backends.clone() {
            vlans.change_member(u32::from(*number), |m| {
                m.next_hop = NextHop::new(m.next_hop().mac(), link).0;
            })?;
        }
        let macs: Vec<[u8; 6]> = backends.map(|(n, ..)| backend_mac(*n).0).collect();
        let mut mutation = Mutation::load(seed)?;
        let mut source = Source::new(seed, &known);
        let mut delivered = 0;
        for number in 1..=10 * BATCH {
            if number % BATCH == 1 {
                mutation.start_from(|| source.whole())?;
            }
            let frame = mutation.frame()?;
            // A second tag would be another VLAN.
            if matches!(u16_at(&frame, 12), ethertype::VLAN | ethertype::QINQ) {
                continue;
            }
            let priority = u16::try_from(number % 16)? << 12;
            let one = plain.program.run(&frame)?;
            let other = vlans.program.run(&tagged(&frame, came, priority))?;
            let is_delivered = one.frame != frame && macs.iter().any(|mac| one.frame[..6] == *mac);
            delivered += u32::from(is_delivered);
            let vlan = if is_delivered { beside } else { came };
            let expected = tagged(&one.frame, vlan, priority);
            ensure!(
                other.action == one.action && other.frame == expected,
                "frame {number} of seed {seed}: {frame:02x?}\nbecame {one:02x?}\nand on a VLAN {other:02x?}"
            );
            if number.is_multiple_of(BATCH) {
                let (one, other) = (plain.observe(one), vlans.observe(other));
                ensure!(
                    (&one.drops, &one.events) == (&other.drops, &other.events),
                    "counted up to frame {number} of seed {seed}: {one:?}\nand on a VLAN {other:?}"
                );
                let ticks = u32::try_from(number / BATCH)? * 8 * 25;
                plain.program.set_ticks(ticks)?;
                vlans.program.set_ticks(ticks)?;
            }
        }
        ensure!(delivered > 1000, "only {delivered} were delivered");
    }
    Ok(())
}
