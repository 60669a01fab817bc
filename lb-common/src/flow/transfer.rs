//! Entries of another node's table of the same size. They come without the
//! flow's hash: the bucket they were in and the tag are all that is known, so
//! that the home may be either of two buckets. Both are then said to be searched.

use super::{
    BUCKET_WORDS, CONTROL, FlowTable, FlowWord, Found, Idle, Place, alternate, exchange, find_in,
};

/// Where an entry is: bucket and word.
pub type Position = (u32, usize);

/// The entry with this tag that is meant, in `bucket` or in its other one.
pub fn find_either<T: FlowTable>(
    table: &T,
    bucket: u32,
    tag: u32,
    accept: impl Fn(FlowWord) -> bool,
) -> Option<(Found<T::Bucket>, Position)> {
    let other = alternate(tag, bucket, table.buckets());
    [bucket, other].into_iter().find_map(|index| {
        let found = find_in(table, table.bucket(index)?, tag, &accept)?;
        let word = found.word;
        Some((found, (index, word)))
    })
}

/// Whether entries whose home is the other one of this entry's buckets may be
/// in `bucket`.
pub fn is_overflowed<T: FlowTable>(table: &T, bucket: u32, entry: FlowWord) -> bool {
    let other = alternate(entry.tag(), bucket, table.buckets());
    let other = table.bucket(other);
    other.is_some_and(|other| table.load(other, CONTROL) != 0)
}

/// Puts an entry in the place of the flow's, which `is_same` tells, or where
/// it was in the other node's table, or into its other bucket. `overflowed` is
/// what [`is_overflowed`] said there. `None`: both buckets are full of living
/// entries, or a race was lost.
pub fn put<T: FlowTable>(
    table: &T,
    bucket: u32,
    entry: FlowWord,
    overflowed: bool,
    is_same: impl Fn(FlowWord) -> bool,
    (now_ticks, longest_idle): (u32, Idle),
) -> Option<Position> {
    if let Some((found, position)) = find_either(table, bucket, entry.tag(), is_same) {
        let done = exchange(
            table,
            found.bucket,
            found.word,
            found.entry,
            entry,
            Place::Free,
        );
        return done.then_some(position);
    }
    let other = alternate(entry.tag(), bucket, table.buckets());
    for (index, elsewhere) in [(bucket, other), (other, bucket)] {
        let at = table.bucket(index)?;
        let free = (CONTROL + 1..BUCKET_WORDS)
            .map(|word| (word, FlowWord(table.load(at, word))))
            .find(|(_, present)| !present.is_live(now_ticks, longest_idle));
        let Some((word, old)) = free else {
            continue;
        };
        // Before the entry appears, as in an insertion.
        if index != bucket || overflowed {
            let control = table.bucket(elsewhere)?;
            let count = table.load(control, CONTROL);
            let more = count.wrapping_add(1) | 1 << 63;
            if !table.replace(control, CONTROL, count, more) {
                return None;
            }
        }
        if exchange(table, at, word, old, entry, Place::Free) {
            return Some((index, word));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{FlowKey, Mark, find, insert, memory::MemoryTable};

    const IDLE: Idle = Idle {
        open_units: 100,
        half_units: 8,
    };

    proptest! {
        /// Whoever looks a flow up finds it in the other table where it is found
        /// in this one, however full both are.
        #[test]
        fn what_was_put_is_found(hashes in prop::collection::vec(any::<u64>(), 1..60)) {
            const BUCKETS: u32 = 5;
            let (from, to) = (MemoryTable::new(BUCKETS), MemoryTable::new(BUCKETS));
            let keys: Vec<_> = hashes.iter().map(|hash| FlowKey::new(*hash, BUCKETS)).collect();
            for (member, key) in (1u32..).zip(&keys) {
                let entry = FlowWord::new(key.tag, member, 0, Mark::Open);
                insert(&from, *key, entry, Place::Free, 0, IDLE);
            }
            for bucket in 0..BUCKETS {
                for word in CONTROL + 1..BUCKET_WORDS {
                    let entry = FlowWord(from.load(bucket, word));
                    if !entry.is_empty() {
                        let overflowed = is_overflowed(&from, bucket, entry);
                        let same = |other: FlowWord| other.member() == entry.member();
                        let at = put(&to, bucket, entry, overflowed, same, (0, IDLE));
                        prop_assert!(at.is_some(), "there is as much room as there");
                        // Told twice it is there once.
                        let again = put(&to, bucket, entry, overflowed, same, (0, IDLE));
                        prop_assert_eq!(again, at);
                    }
                }
            }
            for (member, key) in (1u32..).zip(&keys) {
                let is_it = |entry: FlowWord| entry.member() == member;
                let there = find(&from, *key, is_it).map(|found| found.entry);
                prop_assert_eq!(find(&to, *key, is_it).map(|found| found.entry), there);
            }
        }
    }

    #[test]
    fn a_full_bucket_leads_to_the_other_one() {
        let table = MemoryTable::new(8);
        let tag = 0x0123_4566;
        let other = alternate(tag, 2, 8);
        assert_ne!(other, 2);
        for word in CONTROL + 1..BUCKET_WORDS {
            let stranger = FlowWord::new(word as u32 * 2, 9, 0, Mark::Open);
            table.replace(2, word, 0, stranger.0);
        }
        let entry = FlowWord::new(tag, 1, 0, Mark::Open);
        let at = put(&table, 2, entry, false, |_| false, (0, IDLE));
        assert_eq!(at, Some((other, 1)));
        // Whichever is its home, it is found.
        for home in [2, other] {
            let key = FlowKey { tag, home };
            let found = find(&table, key, |entry| entry.member() == 1);
            assert!(found.is_some(), "{home}");
        }
        let is_it = |entry: FlowWord| entry.member() == 1;
        assert!(find_either(&table, 2, tag, is_it).is_some());
        assert!(find_either(&table, other, tag, is_it).is_some());
    }
}
