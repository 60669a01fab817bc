use std::{collections::HashMap, hash::Hasher as _};

use proptest::prelude::*;
use siphasher::sip::SipHasher13;

use super::*;
use crate::scheduler::table_size;

fn equal(count: u32, seed: u64) -> Vec<Member> {
    (1..=count)
        .map(|id| Member {
            identity: mix(mix(seed) ^ u64::from(id)),
            share: 100,
            id,
        })
        .collect()
}

fn weighted(count: u32, seed: u64) -> Vec<Member> {
    let mut members = equal(count, seed);
    for member in &mut members {
        member.share = (mix(member.identity ^ 1) % 100) as u32 + 1;
    }
    members
}

fn slots_per_member(table: &[u32]) -> HashMap<u32, u64> {
    let mut counts = HashMap::new();
    for &id in table {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// Slots per cent that moved without need: those of neither the old nor the
/// new table's `changed` member, of those that weren't its before.
fn moved_percent(before: &[u32], after: &[u32], changed: u32) -> f64 {
    let others = before.iter().filter(|&&id| id != changed).count();
    let moved = before
        .iter()
        .zip(after)
        .filter(|&(&b, &a)| b != a && b != changed && a != changed)
        .count();
    100.0 * moved as f64 / others as f64
}

struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    Spread {
        min: values[0],
        median: values[values.len() / 2],
        max: values[values.len() - 1],
    }
}

/// Applies `change` to each member of the tables of several seeds in turn.
fn over_all_members(
    make: fn(u32, u64) -> Vec<Member>,
    count: u32,
    size: u32,
    mut change: impl FnMut(&mut Vec<Member>, usize) -> u32,
) -> Spread {
    let mut moved = Vec::new();
    for seed in 0..3 {
        let members = make(count, seed);
        let before = maglev(&members, size);
        for index in 0..members.len() {
            let mut changed = members.clone();
            let id = change(&mut changed, index);
            moved.push(moved_percent(&before, &maglev(&changed, size), id));
        }
    }
    let spread = spread(moved);
    println!(
        "min {:.3} % median {:.3} % max {:.3} %",
        spread.min, spread.median, spread.max
    );
    spread
}

fn remove(members: &mut Vec<Member>, index: usize) -> u32 {
    members.remove(index).id
}

fn add(members: &mut Vec<Member>, index: usize) -> u32 {
    let id = 1_000 + index as u32;
    members.push(Member {
        identity: mix(u64::from(id)),
        share: 100,
        id,
    });
    id
}

fn ten_percent_more_weight(members: &mut [Member], index: usize) -> u32 {
    members[index].share = (members[index].share * 11).div_ceil(10);
    members[index].id
}

#[test]
fn removing_one_of_100_moves_at_most_2_percent_of_the_others_slots() {
    let coarse = over_all_members(equal, 100, table_size(100), remove);
    assert!(coarse.min > 0.2 && coarse.median < 0.9 && coarse.max < 1.3);
    let fine = over_all_members(equal, 100, 65_537, remove);
    assert!(fine.min > 0.1 && fine.median < 0.4 && fine.max < 0.5);
    let uneven = over_all_members(weighted, 100, table_size(100), remove);
    assert!(uneven.median < 1.0 && uneven.max < 1.6);
}

#[test]
fn adding_one_to_100_moves_at_most_2_percent_of_the_slots_beyond_its_own() {
    let coarse = over_all_members(equal, 100, table_size(100), add);
    assert!(coarse.median < 0.9 && coarse.max < 1.3);
    let uneven = over_all_members(weighted, 100, table_size(100), add);
    assert!(uneven.median < 1.2 && uneven.max < 1.9);
}

#[test]
fn ten_percent_more_weight_for_one_of_100_moves_less_than_one_percent_elsewhere() {
    let coarse = over_all_members(equal, 100, table_size(100), |members, index| {
        ten_percent_more_weight(members, index)
    });
    assert!(coarse.median < 0.35 && coarse.max < 0.6);
    let uneven = over_all_members(weighted, 100, table_size(100), |members, index| {
        ten_percent_more_weight(members, index)
    });
    assert!(uneven.median < 0.35 && uneven.max < 0.8);
}

#[test]
fn a_change_of_the_rounds_unit_moves_no_more_than_any_other_change() {
    // The average share falls from 128 to just below, and with it the unit.
    let mut members = equal(100, 7);
    members.iter_mut().for_each(|m| m.share = 128);
    let before = maglev(&members, 10_007);
    members[3].share = 127;
    let moved = moved_percent(&before, &maglev(&members, 10_007), members[3].id);
    assert!(moved < 1.0, "{moved} %");
}

#[test]
fn ids_don_t_influence_who_gets_a_slot() {
    let members = weighted(50, 3);
    let renumbered: Vec<Member> = members
        .iter()
        .map(|m| Member {
            id: 1_000_000 - m.id * 7,
            ..*m
        })
        .collect();
    let expected: Vec<u32> = maglev(&members, 5_003)
        .into_iter()
        .map(|id| 1_000_000 - id * 7)
        .collect();
    assert_eq!(maglev(&renumbered, 5_003), expected);
}

#[test]
fn the_same_members_make_the_same_table_in_every_version() {
    let table = maglev(&weighted(20, 0), 2_039);
    let digest = table
        .iter()
        .fold(0, |digest, &id| mix(digest ^ u64::from(id)));
    assert_eq!(
        digest, 14_501_034_777_993_122_538,
        "flows move on upgrade when tables change"
    );
}

#[test]
fn a_table_without_shares_belongs_to_nobody() {
    assert_eq!(maglev(&[], 1_021), vec![0; 1_021]);
    let mut members = equal(3, 0);
    members.iter_mut().for_each(|m| m.share = 0);
    assert_eq!(maglev(&members, 1_021), vec![0; 1_021]);
    assert_eq!(maglev(&members, 0), Vec::<u32>::new());
}

#[test]
fn members_without_a_share_have_no_slot() {
    let mut members = equal(4, 0);
    members[2].share = 0;
    let counts = slots_per_member(&maglev(&members, 1_021));
    assert_eq!(counts.len(), 3);
    assert!(!counts.contains_key(&3));
}

#[test]
fn members_of_equal_identity_share_as_all_others_do() {
    let members = [1, 2, 3].map(|id| Member {
        identity: 5,
        share: 1,
        id,
    });
    let counts = slots_per_member(&maglev(&members, 1_021));
    assert!(counts.values().all(|&count| count == 340 || count == 341));
}

#[test]
fn one_heavy_among_many_light_members_takes_no_unreasonable_time() {
    let mut members = equal(600, 0);
    members.iter_mut().for_each(|m| m.share = 1);
    members[0].share = 65_535;
    let mut probes = 0_u64;
    let table = maglev_observed(&members, 65_537, |_| probes += 1);
    assert_eq!(slots_per_member(&table)[&1], 64_943);
    // A random walk that fills the table alone needs size * ln(size).
    assert!(probes < 65_537 * 40, "{probes}");
}

#[test]
fn probes_tell_how_the_table_came_about() {
    let members = weighted(30, 1);
    let mut replayed = vec![0; 4_093];
    let table = maglev_observed(&members, 4_093, |probe| {
        assert_eq!(probe.taken, replayed[probe.slot as usize] == 0);
        if probe.taken {
            replayed[probe.slot as usize] = probe.id;
        }
    });
    assert_eq!(table, replayed);
}

#[test]
fn flows_spread_over_slots_and_members_as_chance_would() {
    // χ² has a mean of its degrees of freedom k and a variance of 2k; for
    // these k it is near enough to normal, whose p = 0.001 is at 3.09 σ.
    let critical = |k: f64| k + 3.09 * (2.0 * k).sqrt() + (2.0 / 3.0) * (3.09_f64.powi(2) - 1.0);
    for (seed, size) in [(1, 1_021), (2, 10_007), (3, 65_537)] {
        let members = weighted(100, seed);
        let table = maglev(&members, size);
        let flows = u64::from(size) * 50;
        let mut slots = vec![0_u64; size as usize];
        let mut per_member: HashMap<u32, f64> = HashMap::new();
        for flow in 0..flows {
            let slot = slot_of_flow(seed, flow, size);
            slots[slot] += 1;
            *per_member.entry(table[slot]).or_default() += 1.0;
        }
        let chi2: f64 = slots
            .iter()
            .map(|&n| (n as f64 - 50.0).powi(2) / 50.0)
            .sum();
        assert!(
            chi2 < critical(f64::from(size) - 1.0),
            "slots of {size}: {chi2}"
        );

        let counts = slots_per_member(&table);
        let chi2: f64 = counts
            .iter()
            .map(|(id, &slots)| {
                let expected = slots as f64 * 50.0;
                (per_member.get(id).unwrap_or(&0.0) - expected).powi(2) / expected
            })
            .sum();
        assert!(
            chi2 < critical(counts.len() as f64 - 1.0),
            "members at {size}: {chi2}"
        );
    }
}

/// The slot of a random 5-tuple, as the data path finds it.
fn slot_of_flow(seed: u64, flow: u64, size: u32) -> usize {
    let random = mix(mix(seed) ^ flow);
    let mut hasher = SipHasher13::new_with_keys(seed, !seed);
    hasher.write(&(random as u32).to_be_bytes());
    hasher.write(&[203, 0, 113, 10]);
    hasher.write(&((random >> 32) as u16).to_be_bytes());
    hasher.write(&443_u16.to_be_bytes());
    hasher.write(&[6]);
    let tag = hasher.finish() >> 32;
    ((tag * u64::from(size)) >> 32) as usize
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    let share = prop_oneof![0_u32..4, 1_u32..200, 0_u32..=65_535, any::<u32>()];
    proptest::collection::vec((any::<u64>(), share), 0..60).prop_map(|members| {
        (1..)
            .zip(members)
            .map(|(id, (identity, share))| Member {
                identity,
                share,
                id,
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn shares_are_exact_to_one_slot(
        members in any_members(),
        size in prop_oneof![Just(251_u32), Just(1_021), Just(4_093), 1_u32..3_000],
    ) {
        let total: u128 = members.iter().map(|m| u128::from(m.share)).sum();
        let table = maglev(&members, size);
        prop_assert_eq!(table.len(), size as usize);
        let counts = slots_per_member(&table);
        for member in &members {
            let slots = u128::from(counts.get(&member.id).copied().unwrap_or(0));
            let exact = u128::from(member.share) * u128::from(size);
            prop_assert!(slots * total < exact + total && exact < slots * total + total
                || total == 0 && slots == 0);
        }
        prop_assert_eq!(counts.contains_key(&0), total == 0);
    }

    #[test]
    fn the_order_of_the_members_does_not_matter(
        (members, shuffled) in any_members()
            .prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
    ) {
        prop_assert_eq!(maglev(&members, 1_021), maglev(&shuffled, 1_021));
    }
}
