use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::{collections::BTreeMap, thread, vec, vec::Vec};

use super::*;
use crate::load::Counts;

/// Members 1, 2, … of one service, in a table that holds them in turn.
struct Shop {
    table: Vec<u32>,
    list: Vec<u32>,
    max: Vec<u32>,
    weight: Vec<u32>,
    takes_new: Vec<bool>,
    counts: Vec<AtomicU64>,
    turns: AtomicU64,
}

impl Shop {
    fn new(members: u32, slots: u32) -> Self {
        let n = members as usize + 1;
        Self {
            table: (0..slots).map(|slot| slot % members + 1).collect(),
            list: (1..=members).collect(),
            max: vec![0; n],
            weight: vec![1; n],
            takes_new: vec![true; n],
            counts: (0..n).map(|_| AtomicU64::new(0)).collect(),
            turns: AtomicU64::new(0),
        }
    }

    fn open(&self, member: u32) -> u32 {
        Counts(self.counts[member as usize].load(SeqCst)).total()
    }
}

impl Meter for Shop {
    fn max(&self, member: u32) -> u32 {
        self.max[member as usize]
    }

    fn add(&self, member: u32, by: u64) -> Counts {
        Counts(self.counts[member as usize].fetch_add(by, SeqCst))
    }

    fn counts(&self, member: u32) -> Counts {
        Counts(self.counts[member as usize].load(SeqCst))
    }

    fn next(&self, _member: u32) -> u32 {
        0
    }
}

impl Members for Shop {
    fn in_slot(&self, index: u32) -> u32 {
        self.table[index as usize]
    }

    fn listed(&self, index: u32) -> u32 {
        self.list[index as usize]
    }

    fn turn(&self) -> u64 {
        self.turns.fetch_add(1, SeqCst)
    }

    fn ask(&self, member: u32, by: u64) -> u32 {
        ask(self, self.takes_new[member as usize], member, by)
    }

    fn weigh(&self, member: u32) -> u64 {
        let takes_new = self.takes_new[member as usize];
        weigh(self, takes_new, member, self.weight[member as usize])
    }
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn policy(scheduler: u8, shop: &Shop, groups: [u16; GROUPS]) -> Policy {
    Policy {
        scheduler,
        cycle: shop.table.len() as u32,
        slots: shop.table.len() as u32,
        groups,
    }
}

#[test]
fn turns_are_exact_on_four_cores_at_once() {
    let mut shop = Shop::new(3, 6);
    shop.table = vec![1, 2, 1, 3, 1, 2];
    let policy = policy(scheduler::ROUND_ROBIN, &shop, [0; GROUPS]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for hash in 0..3_000 {
                    assert!(choose(&shop, &policy, hash, 1, load::HALF).is_member());
                }
            });
        }
    });
    assert_eq!(
        [shop.open(1), shop.open(2), shop.open(3)],
        [6_000, 4_000, 2_000]
    );
}

#[test]
fn turns_go_on_where_the_counter_wraps() {
    let shop = Shop::new(3, 3);
    shop.turns.store(u64::MAX - 1, SeqCst);
    let policy = policy(scheduler::ROUND_ROBIN, &shop, [0; GROUPS]);
    for _ in 0..6 {
        assert!(choose(&shop, &policy, 0, 1, load::HALF).is_member());
    }
}

#[test]
fn least_connections_follow_the_weights_closely() {
    let mut shop = Shop::new(10, 1021);
    shop.weight = (0..11).map(|m| m * 10).collect();
    shop.table = (0..1021u64)
        .map(|slot| {
            // Members in proportion to their weights, 1 to 10.
            let at = slot * 55 / 1021;
            (1..=10).find(|m| at < m * (m + 1) / 2).unwrap_or(10) as u32
        })
        .collect();
    let policy = policy(scheduler::LEAST_CONNECTIONS, &shop, [0; GROUPS]);
    let mut seed = 1;
    for _ in 0..11_000 {
        assert!(choose(&shop, &policy, random(&mut seed), 1, load::HALF).is_member());
    }
    for member in 1..=10 {
        let wanted = f64::from(200 * member);
        let off = (f64::from(shop.open(member)) - wanted).abs() / wanted;
        assert!(off < 0.02, "{member}: {} of {wanted}", shop.open(member));
    }
}

#[test]
fn an_empty_member_is_preferred_to_a_loaded_one_and_a_full_one_is_passed_over() {
    let mut shop = Shop::new(2, 11);
    shop.counts[1].store(Counts::new(3, 4).0, SeqCst);
    let policy = policy(scheduler::LEAST_CONNECTIONS, &shop, [0; GROUPS]);
    let mut seed = 2;
    let mut chosen = BTreeMap::new();
    for _ in 0..1_000 {
        let choice = choose(&shop, &policy, random(&mut seed), 1, 0);
        *chosen.entry(choice.0).or_insert(0) += 1;
    }
    // Nobody compares the two where all four candidates are the first.
    assert!(chosen[&1] < 120, "{chosen:?}");
    shop.max[2] = 5;
    shop.counts[2].store(Counts::new(0, 5).0, SeqCst);
    for _ in 0..100 {
        let choice = choose(&shop, &policy, random(&mut seed), 1, 0);
        assert_ne!(choice, Choice(2));
    }
}

#[test]
fn a_group_is_filled_before_the_next_and_then_nobody_has_room() {
    let mut shop = Shop::new(4, 2);
    shop.table = vec![1, 2];
    shop.max = vec![0, 10, 10, 10, 10];
    let policy = policy(scheduler::MAGLEV, &shop, [2, 0, 1, 1]);
    let mut seed = 3;
    let mut orders = Vec::new();
    for _ in 0..40 {
        let hash = random(&mut seed);
        let choice = choose(&shop, &policy, hash, 1, load::OPEN);
        assert!(choice.is_member());
        orders.push(choice.0);
    }
    assert!(
        orders[..20].iter().all(|m| [1, 2].contains(m)),
        "{orders:?}"
    );
    assert!(orders[20..30].iter().all(|m| *m == 3), "{orders:?}");
    assert!(orders[30..].iter().all(|m| *m == 4), "{orders:?}");
    let choice = choose(&shop, &policy, 5, 1, load::OPEN);
    assert_eq!(choice, Choice::FULL);
    // A place of the first group is taken before others.
    shop.add(2, load::OPEN.wrapping_neg());
    assert_eq!(choose(&shop, &policy, 5, 1, load::OPEN), Choice(2));
}

#[test]
fn half_open_flows_that_nobody_follows_up_do_not_push_clients_to_the_next_group() {
    let mut shop = Shop::new(2, 1);
    shop.max = vec![0, 100, 100];
    let policy = policy(scheduler::MAGLEV, &shop, [1, 1, 0, 0]);
    for _ in 0..25 {
        assert_eq!(choose(&shop, &policy, 1, 1, load::HALF), Choice(1));
    }
    assert_eq!(choose(&shop, &policy, 1, 1, load::HALF), Choice::CROWDED);
    assert_eq!(choose(&shop, &policy, 1, 1, load::OPEN), Choice(1));
}

#[test]
fn members_that_take_no_new_flows_are_nobody() {
    let mut shop = Shop::new(3, 3);
    shop.takes_new = vec![false; 4];
    for scheduler in [
        scheduler::MAGLEV,
        scheduler::ROUND_ROBIN,
        scheduler::LEAST_CONNECTIONS,
    ] {
        let policy = policy(scheduler, &shop, [3, 0, 0, 0]);
        assert_eq!(choose(&shop, &policy, 7, 1, load::HALF), Choice::NOBODY);
        shop.takes_new[2] = true;
        assert_eq!(choose(&shop, &policy, 7, 1, load::HALF), Choice(2));
        shop.takes_new[2] = false;
    }
}

#[test]
fn no_more_members_of_a_group_are_asked_than_its_bound() {
    let mut shop = Shop::new(200, 200);
    shop.max = vec![1; 201];
    for member in 1..=200 {
        shop.add(member, load::OPEN);
    }
    let policy = policy(scheduler::MAGLEV, &shop, [150, 50, 0, 0]);
    // The last place is behind the bound, seen from the hash's own place.
    shop.add(100, load::OPEN.wrapping_neg());
    assert_eq!(choose(&shop, &policy, 0, 1, load::OPEN), Choice::FULL);
    shop.add(170, load::OPEN.wrapping_neg());
    assert_eq!(choose(&shop, &policy, 0, 1, load::OPEN), Choice(170));
}
