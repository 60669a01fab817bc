//! The rings of free ports.

use crate::{
    flow::{BUCKET_WORDS, FlowTable},
    net::family,
};

/// A ring of free ports of one family in the map `FREE_PORTS`, whose elements
/// are cache lines: the first line has the count of ports taken out, the second
/// that of ports put in, and further on is the place for the indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    counts: u32,
    first: u32,
    capacity: u32,
}

/// Lines of `FREE_PORTS` before the first ring's indices.
const RING_COUNTS: u32 = 4;

/// Times that another core may be faster at the same port, or that a port that
/// isn't free any more is passed over, before the data path gives up.
pub(super) const TRIES: u32 = 8;

impl Ring {
    /// Places in each ring where there are `bindings`: a power of two.
    pub const fn capacity_for(bindings: u32) -> u32 {
        let capacity = bindings.next_power_of_two();
        if capacity < BUCKET_WORDS as u32 {
            BUCKET_WORDS as u32
        } else {
            capacity
        }
    }

    /// Elements of `FREE_PORTS` for rings of `capacity`.
    pub const fn lines(capacity: u32) -> u32 {
        RING_COUNTS + 2 * (capacity / BUCKET_WORDS as u32)
    }

    /// The ring of a family; `capacity` is a power of two.
    #[inline(always)]
    pub const fn new(family: u8, capacity: u32) -> Self {
        if family == family::V4 {
            Self {
                counts: 0,
                first: RING_COUNTS,
                capacity,
            }
        } else {
            Self {
                counts: 2,
                first: RING_COUNTS + capacity / BUCKET_WORDS as u32,
                capacity,
            }
        }
    }

    #[inline(always)]
    const fn line_of(self, position: u64) -> u32 {
        self.first + (position as u32 & (self.capacity - 1)) / BUCKET_WORDS as u32
    }

    /// How many were taken out and put in so far.
    #[inline(always)]
    pub fn counts<T: FlowTable>(self, table: &T) -> Option<(u64, u64)> {
        let taken = table.load(table.bucket(self.counts)?, 0);
        let put = table.load(table.bucket(self.counts + 1)?, 0);
        Some((taken, put))
    }

    /// The index at a position between the two counts.
    #[inline(always)]
    pub fn peek<T: FlowTable>(self, table: &T, position: u64) -> Option<u32> {
        let line = table.bucket(self.line_of(position))?;
        let word = table.blur(position as usize & (BUCKET_WORDS - 1));
        Some(table.load(line, word) as u32)
    }

    /// Takes the oldest index out; zero where there is none, or others were
    /// faster too often.
    #[inline(always)]
    pub fn take<T: FlowTable>(self, table: &T) -> u32 {
        let mut tries = 0;
        while tries < TRIES {
            let Some((taken, put)) = self.counts(table) else {
                return 0;
            };
            if taken == put {
                return 0;
            }
            let Some(index) = self.peek(table, taken) else {
                return 0;
            };
            // The place can't have been filled anew if the count is the same.
            if let Some(counts) = table.bucket(self.counts)
                && table.replace(counts, 0, taken, taken.wrapping_add(1))
            {
                return index;
            }
            tries += 1;
        }
        0
    }

    /// Puts an index in; the controller alone does. `false` where the ring is full.
    pub fn put<T: FlowTable>(self, table: &T, index: u32) -> bool {
        let Some((taken, put)) = self.counts(table) else {
            return false;
        };
        if put.wrapping_sub(taken) >= u64::from(self.capacity) {
            return false;
        }
        let (Some(line), Some(counts)) = (
            table.bucket(self.line_of(put)),
            table.bucket(self.counts + 1),
        ) else {
            return false;
        };
        table.store(line, put as usize & (BUCKET_WORDS - 1), u64::from(index));
        // By an exchange, so that the index is there before it counts.
        table.replace(counts, 0, put, put.wrapping_add(1))
    }
}
