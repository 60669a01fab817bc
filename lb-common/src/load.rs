//! How many connections a member has, and whether it has room for one more.
//!
//! Only flows of services with full tracking are counted, by their entries in
//! the flow table: a member's half-open and open ones are one word, so that a
//! flow that opens changes both in one step. A connection that closes doesn't
//! count any more. The word may be read while a core is between an entry's
//! change and its count's; then a number may be one off for that moment, and
//! is never below zero to the reader.

/// One half-open connection, in a word of counts.
pub const HALF: u64 = 1;

/// One open connection, in a word of counts.
pub const OPEN: u64 = 1 << 32;

/// A member's connections: half-open ones in the lower half, open ones in the
/// upper. The word is a sum of [`HALF`]s and [`OPEN`]s.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts(pub u64);

impl Counts {
    /// So many of each.
    pub const fn new(half: u32, open: u32) -> Self {
        Self(half as u64 | (open as u64) << 32)
    }

    const fn signed(self) -> (i32, i32) {
        let half = self.0 as i32;
        let open = self.0.wrapping_sub(half as i64 as u64) >> 32;
        (half, open as i32)
    }

    /// Connections of which only a SYN was seen.
    #[inline(always)]
    pub const fn half(self) -> u32 {
        let (half, _) = self.signed();
        if half < 0 { 0 } else { half as u32 }
    }

    /// Connections that are open.
    #[inline(always)]
    pub const fn open(self) -> u32 {
        let (_, open) = self.signed();
        if open < 0 { 0 } else { open as u32 }
    }

    /// Both.
    #[inline(always)]
    pub const fn total(self) -> u32 {
        let (half, open) = self.signed();
        let total = half.wrapping_add(open);
        if total < 0 { 0 } else { total as u32 }
    }
}

impl core::fmt::Debug for Counts {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (half, open) = self.signed();
        write!(f, "{half} half open, {open} open")
    }
}

/// Whether a member had room for a connection. The numbers rise with what can
/// be said of several members together.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It has as many connections as it may.
    Full = 1,
    /// It has room, but too many half-open connections.
    Crowded = 2,
    /// Yes, and its place is taken.
    Taken = 3,
}

/// Half-open connections that a member with a limit of `max` connections may
/// have, so that SYNs that nobody follows up leave room for clients.
#[inline(always)]
pub const fn half_open_limit(max: u32) -> u32 {
    let quarter = max / 4;
    if quarter < 16 { 16 } else { quarter }
}

/// Whether `by` ([`HALF`] or [`OPEN`]) has room beside what was there before. A
/// `max` of zero is no limit.
#[inline(always)]
pub const fn room(before: Counts, max: u32, by: u64) -> Room {
    if max == 0 {
        Room::Taken
    } else if before.total() >= max {
        Room::Full
    } else if by == HALF && before.half() >= half_open_limit(max) {
        Room::Crowded
    } else {
        Room::Taken
    }
}

/// A member's counts, changed by all cores at once.
pub trait Meter {
    /// Connections the member may have; zero is no limit.
    fn max(&self, member: u32) -> u32;

    /// Adds to a member's counts and says what they were.
    fn add(&self, member: u32, by: u64) -> Counts;
}

/// Takes a place for one more connection, if there is room: it is counted
/// first and looked at then, so that no two cores take the last place.
#[inline(always)]
pub fn admit<M: Meter>(meter: &M, member: u32, by: u64) -> Room {
    let room = room(meter.add(member, by), meter.max(member), by);
    if !matches!(room, Room::Taken) {
        give_back(meter, member, by);
    }
    room
}

/// Gives a place back that [`admit`] took.
#[inline(always)]
pub fn give_back<M: Meter>(meter: &M, member: u32, by: u64) {
    meter.add(member, by.wrapping_neg());
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    struct One {
        max: u32,
        counts: AtomicU64,
    }

    impl Meter for One {
        fn max(&self, _member: u32) -> u32 {
            self.max
        }

        fn add(&self, _member: u32, by: u64) -> Counts {
            Counts(self.counts.fetch_add(by, SeqCst))
        }
    }

    #[test]
    fn two_cores_at_once_never_exceed_the_limit_and_lose_no_place() {
        let one = One {
            max: 100,
            counts: AtomicU64::new(0),
        };
        let (highest, held) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut mine = 0u32;
                    for i in 0..20_000u32 {
                        if i % 3 != 2 {
                            if admit(&one, 1, OPEN) == Room::Taken {
                                mine += 1;
                                highest.fetch_max(held.fetch_add(1, SeqCst) + 1, SeqCst);
                            }
                        } else if mine > 0 {
                            held.fetch_sub(1, SeqCst);
                            give_back(&one, 1, OPEN);
                            mine -= 1;
                        }
                    }
                });
            }
        });
        let counts = Counts(one.counts.load(SeqCst));
        assert_eq!((counts.half(), counts.open()), (0, held.load(SeqCst)));
        assert_eq!(highest.load(SeqCst), 100);
    }

    #[test]
    fn half_open_connections_have_a_limit_of_their_own() {
        assert_eq!(room(Counts::new(16, 0), 20, HALF), Room::Crowded);
        assert_eq!(room(Counts::new(16, 0), 20, OPEN), Room::Taken);
        assert_eq!(room(Counts::new(15, 4), 20, HALF), Room::Taken);
        assert_eq!(room(Counts::new(15, 5), 20, HALF), Room::Full);
        assert_eq!(room(Counts::new(249, 0), 1000, HALF), Room::Taken);
        assert_eq!(room(Counts::new(250, 0), 1000, HALF), Room::Crowded);
        assert_eq!(room(Counts::new(9_999, 9_999), 0, HALF), Room::Taken);
        assert_eq!(room(Counts::new(0, 1), 1, HALF), Room::Full);
    }

    proptest! {
        #[test]
        fn a_word_reads_back_whatever_order_it_was_made_in(half in 0u32..1 << 30, open in 0u32..1 << 30, early in 0u32..3) {
            let mut word = Counts::new(half, open).0;
            prop_assert_eq!((Counts(word).half(), Counts(word).open()), (half, open));
            // Some that closed before they were seen to open.
            for _ in 0..early {
                word = word.wrapping_sub(OPEN);
            }
            prop_assert_eq!(Counts(word).half(), half);
            prop_assert_eq!(Counts(word).open(), open.saturating_sub(early));
            for _ in 0..early {
                word = word.wrapping_add(OPEN).wrapping_sub(HALF);
            }
            prop_assert_eq!(Counts(word).open(), open);
            prop_assert_eq!(Counts(word).half(), half.saturating_sub(early));
            prop_assert_eq!(Counts(word).total(), (half + open).saturating_sub(early));
        }
    }
}
