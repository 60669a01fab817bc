//! Round robin and weighted round robin: whose turn it is.
//!
//! A *cycle* gives every member as many turns as its share says, spread evenly:
//! member by member the turns are the points `(n + phase) / share`, and the
//! cycle is all members' points in their order. Members of equal shares have
//! phases that are spread as well, so that they don't come all at once. A table
//! holds cycle after cycle; the data path walks the first one.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
};

use super::{Member, maglev::quotas};

/// A table of turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// For each slot the id of its member, cycle after cycle; without members 0.
    pub slots: Vec<u32>,
    /// Slots of a cycle; 0 where nobody has a share.
    pub cycle: u32,
}

/// The turns of some members in a table of `size` slots.
///
/// A cycle has the sum of the shares, divided by their greatest common
/// divisor. Where that is more than the table has slots the table is one cycle,
/// in which each member has its share of the slots, rounded up or down. The
/// order depends on identities and shares, not on ids or the members' order.
pub fn turns(members: &[Member], size: u32) -> Turns {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.share > 0).collect();
    members.sort_unstable_by_key(|m| (m.identity, m.share, m.id));
    let divisor = members.iter().map(|m| m.share).fold(0, gcd).max(1);
    let sum: u64 = members.iter().map(|m| u64::from(m.share)).sum();
    let shares: Vec<u32> = if sum / u64::from(divisor) <= u64::from(size) {
        members.iter().map(|m| m.share / divisor).collect()
    } else {
        quotas(&members, size, sum)
    };
    let order = order(&shares);
    let cycle = order.len() as u32;
    let slots = order
        .iter()
        .cycle()
        .take(if cycle == 0 { 0 } else { size as usize })
        .map(|&index| members.get(index).map_or(0, |m| m.id))
        .collect::<Vec<_>>();
    Turns {
        slots: if cycle == 0 {
            vec![0; size as usize]
        } else {
            slots
        },
        cycle,
    }
}

/// A member's next turn, at `(2 of done + 2 number + 1) / (2 of share)` of the
/// cycle: it is number `number` of `of` members with this share.
struct Next {
    done: u32,
    share: u32,
    number: u32,
    of: u32,
    index: usize,
}

impl Next {
    /// Numerator and half of the denominator: below 2^65 and 2^64.
    fn at(&self) -> (u128, u128) {
        let of = u128::from(self.of);
        (
            2 * (of * u128::from(self.done) + u128::from(self.number)) + 1,
            of * u128::from(self.share),
        )
    }
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> Ordering {
        // Fractions compared by cross multiplication; no table is so large that
        // this overflows.
        let ((a, below_a), (b, below_b)) = (self.at(), other.at());
        (a * below_b)
            .cmp(&(b * below_a))
            .then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Next {}

/// Indexes of the members in the order of their turns.
fn order(shares: &[u32]) -> Vec<usize> {
    let mut equals: HashMap<u32, u32> = HashMap::new();
    for &share in shares {
        *equals.entry(share).or_default() += 1;
    }
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    let mut heap = BinaryHeap::new();
    for (index, &share) in shares.iter().enumerate().filter(|(_, share)| **share > 0) {
        let number = numbers.entry(share).or_default();
        heap.push(Reverse(Next {
            done: 0,
            share,
            number: *number,
            of: equals.get(&share).copied().unwrap_or(1),
            index,
        }));
        *number += 1;
    }
    let mut order = Vec::new();
    while let Some(Reverse(mut next)) = heap.pop() {
        order.push(next.index);
        next.done += 1;
        if next.done < next.share {
            heap.push(Reverse(next));
        }
    }
    order
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(shares: &[u32]) -> Vec<Member> {
        (1..)
            .zip(shares)
            .map(|(id, &share)| Member {
                identity: u64::from(id),
                share,
                id,
            })
            .collect()
    }

    #[test]
    fn equal_shares_take_turns_one_after_another() {
        let turns = turns(&members(&[100, 100, 100]), 7);
        assert_eq!((turns.cycle, turns.slots), (3, vec![1, 2, 3, 1, 2, 3, 1]));
    }

    #[test]
    fn unequal_shares_are_spread_over_the_cycle_and_not_given_in_a_row() {
        let turns = turns(&members(&[500, 100, 100]), 14);
        assert_eq!(turns.cycle, 7);
        assert_eq!(turns.slots, [1, 2, 1, 1, 1, 3, 1, 1, 2, 1, 1, 1, 3, 1]);
    }

    #[test]
    fn without_anybody_nobody_has_a_turn() {
        for members in [vec![], members(&[0, 0])] {
            let turns = turns(&members, 5);
            assert_eq!((turns.cycle, turns.slots), (0, vec![0; 5]));
        }
    }

    #[test]
    fn a_cycle_that_does_not_fit_becomes_one_of_proportional_slots() {
        let turns = turns(&members(&[60_000, 7, 30_001]), 1021);
        assert_eq!((turns.cycle, turns.slots.len()), (1021, 1021));
        let of = |id| turns.slots.iter().filter(|s| **s == id).count();
        assert_eq!((of(1), of(2), of(3)), (681, 0, 340));
    }

    proptest! {
        #[test]
        fn every_cycle_has_each_members_share_and_any_run_is_at_most_a_turn_or_two_off(
            shares in proptest::collection::vec(1u32..40, 1..12), rotation in 0usize..12, start in 0usize..400, run in 1usize..400,
        ) {
            let mut order = members(&shares);
            let size = 1021;
            let cycle = turns(&order, size).cycle as usize;
            let divisor = shares.iter().copied().fold(0, gcd);
            prop_assert_eq!(cycle as u32, shares.iter().sum::<u32>() / divisor);
            let turns_1 = turns(&order, size);
            let by = rotation % order.len();
            order.rotate_left(by);
            prop_assert_eq!(&turns(&order, size), &turns_1, "the members' order doesn't matter");
            let sum: f64 = shares.iter().map(|s| f64::from(*s)).sum();
            for member in &order {
                let of = |slots: &mut dyn Iterator<Item = usize>| {
                    slots.filter(|slot| turns_1.slots[slot % cycle] == member.id).count()
                };
                prop_assert_eq!(of(&mut (start..start + cycle)) as u32, member.share / divisor);
                let expected = run as f64 * f64::from(member.share) / sum;
                let got = of(&mut (start..start + run)) as f64;
                let most = 1.0 + shares.len() as f64 / 2.0;
                prop_assert!((got - expected).abs() <= most, "{got} of {expected}");
            }
        }
    }
}
