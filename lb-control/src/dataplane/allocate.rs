//! Ids and slot ranges, given out from what the maps already hold.

use std::collections::BTreeSet;

/// Numbers `1..=limit` that aren't taken, lowest first.
#[derive(Debug)]
pub struct Ids {
    taken: BTreeSet<u32>,
    next: u32,
    limit: u32,
}

impl Ids {
    /// Ids up to `limit` of which some are `taken`.
    pub fn new(taken: impl IntoIterator<Item = u32>, limit: u32) -> Self {
        Self {
            taken: taken.into_iter().collect(),
            next: 1,
            limit,
        }
    }

    /// The lowest free id.
    pub fn take(&mut self) -> Option<u32> {
        while self.next <= self.limit {
            let id = self.next;
            self.next += 1;
            if self.taken.insert(id) {
                return Some(id);
            }
        }
        None
    }
}

/// First-fit allocator of slot ranges.
#[derive(Debug)]
pub struct SlotRanges {
    /// (first, end) of ranges in use, by their first slot.
    used: BTreeSet<(u32, u32)>,
    capacity: u32,
}

impl SlotRanges {
    /// `capacity` slots of which some (first slot, number) are `used`.
    pub fn new(used: impl IntoIterator<Item = (u32, u32)>, capacity: u32) -> Self {
        Self {
            used: used
                .into_iter()
                .map(|(first, n)| (first, first.saturating_add(n)))
                .collect(),
            capacity,
        }
    }

    /// The first slot of the lowest gap of `size` slots.
    pub fn take(&mut self, size: u32) -> Option<u32> {
        let mut first = 0u32;
        for &(used_first, used_end) in &self.used {
            if used_first.saturating_sub(first) >= size {
                break;
            }
            first = first.max(used_end);
        }
        let end = first.checked_add(size).filter(|e| *e <= self.capacity)?;
        self.used.insert((first, end));
        Some(first)
    }

    /// Slots in no range.
    pub fn free(&self) -> u32 {
        let used: u32 = self.used.iter().map(|(first, end)| end - first).sum();
        self.capacity.saturating_sub(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_given_out_until_none_is_left() {
        let mut ids = Ids::new([1, 3], 4);
        assert_eq!(
            (ids.take(), ids.take(), ids.take()),
            (Some(2), Some(4), None)
        );
    }

    #[test]
    fn a_range_goes_into_the_first_gap_that_holds_it() {
        let mut ranges = SlotRanges::new([(10, 10), (30, 10)], 100);
        assert_eq!(ranges.take(11), Some(40));
        assert_eq!(ranges.take(10), Some(0));
        assert_eq!(ranges.take(10), Some(20));
        assert_eq!(ranges.free(), 49);
        assert_eq!(ranges.take(50), None);
        assert_eq!(ranges.take(49), Some(51));
    }
}
