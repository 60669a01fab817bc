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
//!   Here a turn is *one step* along the permutation, free slot or not, and
//!   members step at rates proportional to their shares. Until quotas are
//!   reached this is weighted rendezvous hashing, where a slot's owner doesn't
//!   depend on what other members found elsewhere; a change among the members
//!   then spreads through the quotas alone.
//!
//! Slots that moved although neither their old nor their new member changed,
//! in per cent of the slots that were not the changed member's (measured:
//! 5 seeds; removal and weight of each of 100 members, 20 additions each; the
//! paper's clock with the same quotas beside it). The tests hold the bounds.
//!
//! | members, slots | change | this: median (max) | paper's clock: median (max) |
//! |---|---|---|---|
//! | 100 equal, 10,007 | one removed | 0.78 (1.01) | 2.36 (2.73) |
//! | | one added | 0.77 (0.99) | 2.30 (2.70) |
//! | | one weight + 10 % | 0.26 (0.46) | 0.54 (0.80) |
//! | 100 equal, 65,537 | one removed | 0.30 (0.38) | 0.65 (0.74) |
//! | | one added | 0.30 (0.37) | 0.66 (0.74) |
//! | | one weight + 10 % | 0.12 (0.16) | 0.42 (0.48) |
//! | 100 with weights 1–100, 10,007 | one removed | 0.79 (1.21) | 2.18 (2.80) |
//! | | one added | 1.03 (1.57) | 2.47 (2.85) |
//! | | one weight + 10 % | 0.27 (0.58) | 0.51 (1.03) |
//! | 600 equal, 65,537 | one removed | 0.41 (0.48) | 0.85 (0.94) |

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
/// `size` should be a prime ([`table_size`](super::table_size)); with any
/// other the table is right but members' walks resemble each other more.
pub fn maglev(members: &[Member], size: u32) -> Vec<u32> {
    maglev_observed(members, size, |_| {})
}

/// [`maglev`] that tells `observe` each probe in order, for measurements.
pub fn maglev_observed(members: &[Member], size: u32, mut observe: impl FnMut(Probe)) -> Vec<u32> {
    let mut walkers = walkers(members, size);
    let mut slots = Slots::new(size);
    let mut turns = Turns::default();
    while !walkers.is_empty() {
        let mut somebody_is_done = false;
        for &turn in turns.of_next_round(&mut walkers) {
            let Some(walker) = walkers.get_mut(turn as usize).filter(|w| w.left > 0) else {
                continue;
            };
            let slot = walker.step(size);
            let taken = slots.offer(slot, walker.id);
            walker.left -= u32::from(taken);
            somebody_is_done |= walker.left == 0;
            observe(Probe {
                slot,
                id: walker.id,
                taken,
            });
        }
        if somebody_is_done {
            walkers.retain(|walker| walker.left > 0);
            speed_up(&mut walkers);
        }
    }
    slots.into_table()
}

/// Fixed-point position of the binary point in rates and credits.
const STEP_BITS: u32 = 32;
const ONE_STEP: u64 = 1 << STEP_BITS;

/// A member on its way through its permutation of the slots.
struct Walker {
    /// The slot it looks at next.
    slot: u32,
    /// From one slot to the next, modulo the size; coprime with the size.
    skip: u32,
    /// Slots it still has to get.
    left: u32,
    id: u32,
    /// Steps per round, in units of 1 / [`ONE_STEP`].
    rate: u64,
    /// Part of a step left over from earlier rounds, same unit.
    credit: u64,
}

impl Walker {
    fn new(member: &Member, quota: u32, size: u32, unit: u64) -> Self {
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
            rate: (u64::from(member.share) << STEP_BITS) / unit,
            credit: ONE_STEP / 2,
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

/// The walkers of the members that get slots, in the order of their identities.
fn walkers(members: &[Member], size: u32) -> Vec<Walker> {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.share > 0).collect();
    members.sort_unstable_by_key(|m| (m.identity, m.share, m.id));
    let total: u64 = members.iter().map(|m| u64::from(m.share)).sum();
    // One round moves an average member by one step or two. A power of two
    // because the unit then stays the same, and with it the order of all
    // steps, over nearly all changes of the total.
    let average = total.checked_div(members.len() as u64).unwrap_or(0).max(1);
    let unit = 1 << average.ilog2();
    members
        .iter()
        .zip(quotas(&members, size, total))
        .filter(|&(_, quota)| quota > 0)
        .map(|(member, quota)| Walker::new(member, quota, size, unit))
        .collect()
}

/// Slots of each member: its exact share rounded down, and one more for those
/// with the largest remainders (equal ones: the lowest identities).
fn quotas(sorted: &[Member], size: u32, total: u64) -> Vec<u32> {
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

/// Doubles everybody's rate until an average walker moves in at least every
/// second round. This is time running faster: relative to each other walkers
/// move as before, but light ones left alone at the end don't creep.
fn speed_up(walkers: &mut [Walker]) {
    let count = walkers.len() as u64;
    let mut sum: u64 = walkers.iter().map(|w| w.rate).sum();
    while sum > 0 && sum < count * (ONE_STEP / 2) {
        sum *= 2;
        for walker in &mut *walkers {
            walker.rate *= 2;
        }
    }
}

/// Whose turn it is, for one round at a time.
///
/// Laid out before the turns are taken because how many a walker gets (mostly
/// none, one or two) is as unpredictable as whether a slot is free.
#[derive(Default)]
struct Turns(Vec<u32>);

impl Turns {
    /// Indexes of walkers, in the order of their turns.
    fn of_next_round(&mut self, walkers: &mut [Walker]) -> &[u32] {
        let mut count = 0;
        for (index, walker) in (0..).zip(walkers) {
            let due = walker.credit + walker.rate;
            walker.credit = due & (ONE_STEP - 1);
            let steps = (due >> STEP_BITS) as usize;
            let end = count + steps;
            if self.0.len() < end + 2 {
                self.0.resize(2 * end + 2, 0);
            }
            // Two are written in any case, and what is too much of them is
            // overwritten by the next walker: no branch for the usual numbers.
            if let Some(usual) = self.0.get_mut(count..count + 2) {
                usual.fill(index);
            }
            if steps > 2
                && let Some(all) = self.0.get_mut(count..end)
            {
                all.fill(index);
            }
            count = end;
        }
        self.0.get(..count).unwrap_or_default()
    }
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
