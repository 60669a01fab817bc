//! Whether members' counts are what the flow table holds.
//!
//! They always are, but for one case: a daemon that was killed between an
//! entry's removal and its count's left a member with one connection too many.
//! So after a start each member's count is compared with its entries, until
//! both were seen to be equal, or different by the same in two sweeps during
//! and between which nothing changed: then the count is put right.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::aya_maps::LOAD_WORDS;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Recount {
    verified: BTreeSet<u32>,
    /// Count and sum of the entries where they differed, by member.
    suspects: BTreeMap<u32, (u64, u64)>,
}

/// The first word of a member's record.
fn count(loads: &[AtomicU64], member: u32) -> Option<&AtomicU64> {
    loads.get(member as usize * LOAD_WORDS)
}

impl Recount {
    /// The counts of the members that aren't verified, before a sweep.
    pub(super) fn begin(&self, loads: &[AtomicU64], members: usize) -> Vec<(u32, u64)> {
        (1u32..)
            .take(members.saturating_sub(1))
            .filter(|id| !self.verified.contains(id))
            .filter_map(|id| Some((id, count(loads, id)?.load(Relaxed))))
            .collect()
    }

    /// Compares them with what the sweep `found`, by member.
    pub(super) fn end(&mut self, loads: &[AtomicU64], before: &[(u32, u64)], found: &[u64]) {
        let mut suspects = BTreeMap::new();
        for &(id, counted) in before {
            let (Some(word), Some(&found)) = (count(loads, id), found.get(id as usize)) else {
                continue;
            };
            let changed = word.load(Relaxed) != counted;
            if !changed && counted == found {
                self.verified.insert(id);
            } else if !changed && self.suspects.get(&id) == Some(&(counted, found)) {
                if word
                    .compare_exchange(counted, found, Relaxed, Relaxed)
                    .is_ok()
                {
                    self.verified.insert(id);
                }
            } else if !changed {
                suspects.insert(id, (counted, found));
            }
        }
        self.suspects = suspects;
    }
}
