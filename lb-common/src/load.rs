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

    /// These and others.
    #[inline(always)]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0.wrapping_add(others.0))
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

/// Services that one pool of backends with limits may have: so long may a ring
/// of members be that are one backend's.
pub const SHARERS: u32 = 8;

/// Members' counts, changed by all cores at once.
///
/// A backend is a member of each service that uses its pool, and its limit is
/// one for all of them: its members form a ring.
pub trait Meter {
    /// Connections the member's backend may have; zero is no limit.
    fn max(&self, member: u32) -> u32;

    /// Adds to a member's counts and says what they were.
    fn add(&self, member: u32, by: u64) -> Counts;

    /// A member's counts now.
    fn counts(&self, member: u32) -> Counts;

    /// The next member of the same backend; zero, or itself, if it has no other.
    fn next(&self, member: u32) -> u32;
}

/// What the member's backend has through its other members. While the controller
/// changes the ring, members may be missing for a moment; it is never walked
/// further than [`SHARERS`].
#[inline(always)]
fn elsewhere<M: Meter>(meter: &M, member: u32) -> Counts {
    let mut sum = 0u64;
    let mut at = meter.next(member);
    let mut step = 1;
    while step < SHARERS && at != 0 && at != member {
        sum = sum.wrapping_add(meter.counts(at).0);
        at = meter.next(at);
        step += 1;
    }
    Counts(sum)
}

/// Takes a place for one more connection, if there is room: it is counted
/// first and looked at then, so that no two cores take the last place, neither
/// of one member nor of two that are one backend's.
#[inline(always)]
pub fn admit<M: Meter>(meter: &M, member: u32, by: u64) -> Room {
    let before = meter.add(member, by);
    let max = meter.max(member);
    let before = if max == 0 {
        before
    } else {
        before.and(elsewhere(meter, member))
    };
    let room = room(before, max, by);
    if !matches!(room, Room::Taken) {
        give_back(meter, member, by);
    }
    room
}

/// Whether the member's backend has fewer connections than it may.
#[inline(always)]
pub fn has_room<M: Meter>(meter: &M, member: u32) -> bool {
    let max = meter.max(member);
    max == 0 || meter.counts(member).and(elsewhere(meter, member)).total() < max
}

/// Gives a place back that [`admit`] took.
#[inline(always)]
pub fn give_back<M: Meter>(meter: &M, member: u32, by: u64) {
    meter.add(member, by.wrapping_neg());
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
    use std::{thread, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// Members from 1 on, all of one backend.
    struct Ring {
        max: u32,
        counts: Vec<AtomicU64>,
    }

    impl Ring {
        fn new(members: usize, max: u32) -> Self {
            let counts = (0..=members).map(|_| AtomicU64::new(0)).collect();
            Self { max, counts }
        }
    }

    impl Meter for Ring {
        fn max(&self, _member: u32) -> u32 {
            self.max
        }

        fn add(&self, member: u32, by: u64) -> Counts {
            Counts(self.counts[member as usize].fetch_add(by, SeqCst))
        }

        fn counts(&self, member: u32) -> Counts {
            Counts(self.counts[member as usize].load(SeqCst))
        }

        fn next(&self, member: u32) -> u32 {
            let last = self.counts.len() as u32 - 1;
            if member == last { 1 } else { member + 1 }
        }
    }

    fn never_more_than_the_limit(members: u32) {
        let ring = Ring::new(members as usize, 100);
        let (highest, held) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for core in 0..4u32 {
                let (ring, highest, held) = (&ring, &highest, &held);
                scope.spawn(move || {
                    let member = core % members + 1;
                    let mut mine = 0u32;
                    for i in 0..20_000u32 {
                        if i % 3 != 2 {
                            if admit(ring, member, OPEN) == Room::Taken {
                                mine += 1;
                                highest.fetch_max(held.fetch_add(1, SeqCst) + 1, SeqCst);
                            }
                        } else if mine > 0 {
                            held.fetch_sub(1, SeqCst);
                            give_back(ring, member, OPEN);
                            mine -= 1;
                        }
                    }
                });
            }
        });
        let all = ring.counts[1..]
            .iter()
            .map(|word| Counts(word.load(SeqCst)))
            .fold(Counts(0), Counts::and);
        assert_eq!((all.half(), all.open()), (0, held.load(SeqCst)));
        assert_eq!(highest.load(SeqCst), 100);
    }

    #[test]
    fn cores_at_once_never_exceed_the_limit_and_lose_no_place() {
        never_more_than_the_limit(1);
    }

    #[test]
    fn services_that_share_a_backend_never_exceed_its_limit_together() {
        never_more_than_the_limit(2);
        never_more_than_the_limit(4);
    }

    #[test]
    fn a_ring_is_walked_no_further_than_services_may_share_a_backend() {
        let ring = Ring::new(SHARERS as usize, 1);
        for member in 1..=SHARERS {
            ring.add(member, OPEN);
        }
        assert_eq!(elsewhere(&ring, 1).open(), SHARERS - 1);
        // One that is too long, and one that doesn't come back.
        let long = Ring::new(SHARERS as usize * 2, 1);
        for member in 1..=SHARERS * 2 {
            long.add(member, OPEN);
        }
        assert_eq!(elsewhere(&long, 3).open(), SHARERS - 1);
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
