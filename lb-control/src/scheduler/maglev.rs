//! Weighted Maglev with exact shares.
//!
//! As in the paper (Eisenbud et al.: "Maglev: A Fast and Reliable Software
//! Network Load Balancer", NSDI 2016, §3.4) every member walks the slots in an
//! order of its own, a permutation made of an offset and a skip, and takes the
//! free slots it meets. Two things differ.
//!
//! * **Quotas.** How many slots a member ends with is decided beforehand by
//!   the largest-remainder method, so that shares are exact to one slot.
//! * **The clock.** In the paper a turn lasts until a free slot is found.
//!   Here a turn is *eight steps* along the permutation, free slots or not,
//!   and members have turns in proportion to their shares. Until quotas are
//!   reached this is weighted rendezvous hashing, where a slot's owner doesn't
//!   depend on what other members found elsewhere; a change among the members
//!   then spreads through the quotas alone.
//!
//! Slots that moved although neither their old nor their new member changed,
//! in per cent of the slots that were not the changed member's (measured:
//! 3 seeds, a change of or an addition to each of 100 members; beside it the
//! paper's clock with the same quotas). The tests hold the bounds.
//!
//! | members, slots | change | this: median (max) | paper's clock: median (max) |
//! |---|---|---|---|
//! | 100 equal, 10,007 | one removed | 0.79 (0.99) | 2.36 (2.73) |
//! | | one added | 0.78 (1.00) | 2.30 (2.70) |
//! | | one weight + 10 % | 0.28 (0.47) | 0.54 (0.80) |
//! | 100 equal, 65,537 | one removed | 0.29 (0.37) | 0.65 (0.74) |
//! | 100 with weights 1–100, 10,007 | one removed | 0.80 (1.18) | 2.18 (2.80) |
//! | | one added | 0.99 (1.25) | 2.47 (2.85) |
//! | | one weight + 10 % | 0.29 (0.57) | 0.51 (1.03) |

use std::cmp::Reverse;

use super::mix;

/// One member of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Places the member's slots; see [`identity`](super::identity). Members
    /// of one table should have different ones.
    pub identity: u64,
    /// Its share of the slots relative to the other members' shares; 0: none.
    pub share: u32,
    /// What is written into its slots. 0 means nobody.
    pub id: u32,
}

/// One look at a slot while a table is being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The slot.
    pub slot: u32,
    /// The id of the member that looked.
    pub id: u32,
    /// Whether the slot was free, and so is the member's now.
    pub taken: bool,
}

/// The table: for each of `size` slots the id of its member.
///
/// The assignment of identities to slots depends on the members' identities
/// and shares and on the size, not on their ids or order. Each member has its
/// proportional number of slots, rounded up or down. Without members, or when
/// all shares are 0, every slot is 0.
///
/// `size` should be a prime ([`super::table_size()`]); with any
/// other the table is right but members' walks resemble each other more.
pub fn maglev(members: &[Member], size: u32) -> Vec<u32> {
    maglev_observed(members, size, |_| {})
}

/// [`maglev`] that tells `observe` each probe in order, for measurements.
pub fn maglev_observed(members: &[Member], size: u32, mut observe: impl FnMut(Probe)) -> Vec<u32> {
    let (mut walkers, mut turns) = walkers_and_turns(members, size);
    let mut slots = Slots::new(size);
    while !turns.is_empty() {
        let mut somebody_is_done = false;
        for &turn in &turns {
            let Some(walker) = walkers.get_mut(turn as usize) else {
                continue;
            };
            for _ in 0..STEPS {
                if walker.left == 0 {
                    break;
                }
                let slot = walker.step(size);
                let taken = slots.offer(slot, walker.id);
                walker.left -= u32::from(taken);
                observe(Probe {
                    slot,
                    id: walker.id,
                    taken,
                });
            }
            somebody_is_done |= walker.left == 0;
        }
        if somebody_is_done {
            turns.retain(|&turn| {
                walkers
                    .get(turn as usize)
                    .is_some_and(|walker| walker.left > 0)
            });
        }
    }
    slots.into_table()
}

/// Steps of a turn: enough for a member's state to stay in registers, which
/// makes building twice as fast, and too few to be seen in what a change moves.
const STEPS: usize = 8;

/// A member on its way through its permutation of the slots.
struct Walker {
    /// The slot it looks at next.
    slot: u32,
    /// From one slot to the next, modulo the size; coprime with the size.
    skip: u32,
    /// Slots it still has to get.
    left: u32,
    id: u32,
}

impl Walker {
    fn new(member: &Member, quota: u32, size: u32) -> Self {
        // Two independent hashes; the high half of a product scales a hash to
        // a range without the bias and the cost of a modulo.
        let scale = |hash: u64, range: u32| ((u128::from(hash) * u128::from(range)) >> 64) as u32;
        let offset_hash = mix(member.identity);
        let skip_hash = mix(offset_hash);
        let mut skip = 1 + scale(skip_hash, size.saturating_sub(1));
        while greatest_common_divisor(skip, size) != 1 {
            skip = skip % size + 1;
        }
        Self {
            slot: scale(offset_hash, size),
            skip,
            left: quota,
            id: member.id,
        }
    }

    /// The slot to look at now; the walker moves on.
    #[inline]
    fn step(&mut self, size: u32) -> u32 {
        let slot = self.slot;
        // The sum modulo the size without a branch: below the size the
        // difference wraps to something larger. (No table has 2^31 slots.)
        let next = slot.wrapping_add(self.skip);
        self.slot = next.min(next.wrapping_sub(size));
        slot
    }
}

/// The walkers of the members that get slots, in the order of their
/// identities, and the order of their turns.
fn walkers_and_turns(members: &[Member], size: u32) -> (Vec<Walker>, Vec<u32>) {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.share > 0).collect();
    members.sort_unstable_by_key(|m| (m.identity, m.share, m.id));
    let total: u64 = members.iter().map(|m| u64::from(m.share)).sum();
    let quotas = quotas(&members, size, total);
    let (walkers, shares): (Vec<Walker>, Vec<u32>) = members
        .iter()
        .zip(quotas)
        .filter(|&(_, quota)| quota > 0)
        .map(|(member, quota)| (Walker::new(member, quota, size), member.share))
        .unzip();
    (walkers, turns(&shares))
}

/// Rounds of the sequence of turns, which is then repeated. More make the
/// rates of light members more exact (quotas are exact anyway).
const ROUNDS: usize = 32;

/// Indexes of the members in the order of their turns, to be repeated: each
/// has turns in proportion to its share, at least one, spread evenly.
///
/// Laid out once because who is next is unpredictable where shares differ: as
/// a part of the walk it makes building a table twice as slow.
fn turns(shares: &[u32]) -> Vec<u32> {
    let total: u64 = shares.iter().map(|&share| u64::from(share)).sum();
    // An average member has one turn or two in a round. A power of two because
    // the unit then stays the same, and with it the order of all turns, over
    // nearly all changes of the total.
    let average = total.checked_div(shares.len() as u64).unwrap_or(0).max(1);
    let unit_bits = average.ilog2();
    let unit = 1_u64 << unit_bits;
    // Turns that are due, times the unit; halves are rounded up.
    let mut credits = vec![unit / 2; shares.len()];
    let mut turns = Vec::with_capacity(2 * ROUNDS * shares.len());
    let mut due = Vec::with_capacity(shares.len());
    for round in 0..ROUNDS {
        for ((index, &share), credit) in (0..).zip(shares).zip(&mut credits) {
            *credit += u64::from(share);
            // Too light for one turn in all rounds: at the end of the first.
            let too_light = round == 0 && u64::from(share) * (ROUNDS as u64) < unit / 2;
            due.push((index, (*credit >> unit_bits).max(u64::from(too_light))));
            *credit &= unit - 1;
        }
        // One turn of everybody, then the second turns, and so on: half the
        // unit then makes nearly the same sequence.
        while !due.is_empty() {
            due.retain_mut(|(index, left)| {
                if *left > 0 {
                    turns.push(*index);
                    *left -= 1;
                }
                *left > 0
            });
        }
    }
    turns
}

/// Slots of each member: its exact share rounded down, and one more for those
/// with the largest remainders (equal ones: the lowest identities).
pub(super) fn quotas(sorted: &[Member], size: u32, total: u64) -> Vec<u32> {
    let exact = |m: &Member| u64::from(m.share) * u64::from(size);
    let mut quotas: Vec<u32> = sorted
        .iter()
        .map(|m| exact(m).checked_div(total).unwrap_or(0) as u32)
        .collect();
    let given: u64 = quotas.iter().map(|&quota| u64::from(quota)).sum();
    let missing = u64::from(size).saturating_sub(given) as usize;

    let mut by_remainder: Vec<(&mut u32, u64)> = quotas
        .iter_mut()
        .zip(
            sorted
                .iter()
                .map(|m| exact(m).checked_rem(total).unwrap_or(0)),
        )
        .collect();
    // Stable, so that equal remainders stay in the order of identities.
    by_remainder.sort_by_key(|&(_, remainder)| Reverse(remainder));
    for (quota, _) in by_remainder.into_iter().take(missing) {
        *quota += 1;
    }
    quotas
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The table under construction.
struct Slots {
    /// One more than there are slots: refused offers are written to the last.
    owners: Vec<u32>,
    /// A bit for each slot that is taken: small enough for the L1 cache, which
    /// the table is not.
    taken: Vec<u64>,
}

impl Slots {
    fn new(size: u32) -> Self {
        Self {
            owners: vec![0; size as usize + 1],
            taken: vec![0; (size as usize).div_ceil(64)],
        }
    }

    /// Gives the slot to `id` if it is free; says whether it was.
    ///
    /// Whether it is free can't be predicted, so there is no branch on it: a
    /// mispredicted one costs more than all the rest of a probe.
    #[inline]
    fn offer(&mut self, slot: u32, id: u32) -> bool {
        let spare = self.owners.len() - 1;
        let Some(word) = self.taken.get_mut(slot as usize / 64) else {
            return false;
        };
        let bit = 1 << (slot % 64);
        let free = *word & bit == 0;
        *word |= bit;
        let target = if free { slot as usize } else { spare };
        if let Some(owner) = self.owners.get_mut(target) {
            *owner = id;
        }
        free
    }

    fn into_table(mut self) -> Vec<u32> {
        self.owners.pop();
        self.owners
    }
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
