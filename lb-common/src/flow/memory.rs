//! A table in ordinary memory, for tests and simulations.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::vec::Vec;

use super::{BUCKET_WORDS, FlowTable};

/// `buckets × BUCKET_WORDS` words on the heap, and the members' counts.
#[derive(Debug)]
pub struct MemoryTable(Vec<[AtomicU64; BUCKET_WORDS]>, Vec<AtomicU64>);

impl MemoryTable {
    /// An empty table that counts for nobody.
    pub fn new(buckets: u32) -> Self {
        Self::counting(buckets, 0)
    }

    /// An empty table with counts for the ids below `members`.
    pub fn counting(buckets: u32, members: u32) -> Self {
        Self(
            (0..buckets)
                .map(|_| core::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
            (0..members).map(|_| AtomicU64::new(0)).collect(),
        )
    }

    /// The counts by member id, see [`crate::load::Counts`].
    pub fn counts(&self) -> &[AtomicU64] {
        &self.1
    }
}

impl FlowTable for MemoryTable {
    type Bucket = u32;

    fn buckets(&self) -> u32 {
        self.0.len() as u32
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        (index < self.buckets()).then_some(index)
    }

    fn load(&self, bucket: u32, word: usize) -> u64 {
        self.0[bucket as usize][word].load(Relaxed)
    }

    fn replace(&self, bucket: u32, word: usize, current: u64, new: u64) -> bool {
        self.0[bucket as usize][word]
            .compare_exchange(current, new, Relaxed, Relaxed)
            .is_ok()
    }

    fn count(&self, member: u32, by: u64) {
        if let Some(counts) = self.1.get(member as usize) {
            counts.fetch_add(by, Relaxed);
        }
    }
}
