//! The compact flow table: buckets of one cache line, seven entries of one
//! word each and a control word.
//!
//! A flow's *home* bucket follows from its hash; its *alternate* one from the
//! tag and the home, such that the alternate of the alternate is the home. The
//! alternate is looked at only where the home's control word says that entries
//! overflowed. Nothing that lives is ever evicted: an insertion into two full
//! buckets is refused.
//!
//! The table is shared by all cores without a lock: every change is one
//! compare-and-exchange of one word, and losing a race is harmless.

use crate::{
    clock::UNIT_SHIFT,
    hash::{bucket_bits, scale, tag},
    load,
    member::MEMBER_LIMIT,
};

/// Words in a bucket: one cache line.
pub const BUCKET_WORDS: usize = 8;

/// Entries in a bucket.
pub const BUCKET_ENTRIES: usize = BUCKET_WORDS - 1;

/// Index of the control word: how many entries overflowed to their alternate
/// bucket since the sweeper last saw none there.
pub const CONTROL: usize = 0;

const AGE_BITS: u32 = 10;
const AGE_MASK: u32 = (1 << AGE_BITS) - 1;
const CLOSING: u64 = 1;
const CONFIRMED: u64 = 2;
const STATE: u64 = CLOSING | CONFIRMED;
const HALF: u64 = 0;
const UNSURE: u64 = CLOSING;
const OPEN: u64 = CONFIRMED;
const AGE_SHIFT: u32 = 2;
const MEMBER_SHIFT: u32 = 12;
const FULL: u64 = 1 << 32;
const TAG_SHIFT: u32 = 32;
const TAG_MASK: u32 = !1;

/// Under full tracking: units after which an entry expires that a SYN made and
/// nothing followed, or that a packet made whose flow nobody saw begin. The age
/// counts whole units, so this is one unit to two.
pub const BRIEF_UNITS: u32 = 1;

/// Under full tracking: units after which an entry expires that a FIN or RST
/// was the last to change, or that was seen after it. Two minutes, as long as
/// the kernel's own tables keep such a connection.
pub const CLOSING_UNITS: u32 = 16;

/// Buckets for `max_flows` flows: twice the room, so that a refusal at that
/// load is rare. 16 bytes a flow.
pub const fn buckets_for(max_flows: u32) -> u32 {
    let n = max_flows.div_ceil(BUCKET_WORDS as u32 / 2);
    if n < 2 { 2 } else { n }
}

/// One entry: `tag` (31 bits) `FULL` `member` (20) `age` (10, units)
/// `CONFIRMED` `CLOSING`, from the highest bit down. Zero is empty.
///
/// `FULL` entries belong to a service with full tracking. While half open or
/// open they are counted at their member ([`crate::load`]); the bit makes each
/// entry say so itself, whatever its service's mode has become since. `CLOSING`
/// alone is an entry that isn't sure of its flow: nobody saw it begin, and one
/// packet proves nothing.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowWord(pub u64);

impl FlowWord {
    /// No entry.
    pub const EMPTY: Self = Self(0);

    /// An entry seen at `ticks`.
    #[inline(always)]
    pub const fn new(tag: u32, member: u32, ticks: u32, mark: Mark) -> Self {
        let stamp = (ticks >> UNIT_SHIFT & AGE_MASK) as u64;
        let bits = match mark {
            Mark::Half => 0,
            Mark::Open => CONFIRMED,
            Mark::Closing => CONFIRMED | CLOSING,
        };
        Self(
            ((tag & TAG_MASK) as u64) << TAG_SHIFT
                | (member as u64 & (MEMBER_LIMIT as u64 - 1)) << MEMBER_SHIFT
                | stamp << AGE_SHIFT
                | bits,
        )
    }

    /// The entry under full tracking.
    #[inline(always)]
    #[must_use]
    pub const fn full(self) -> Self {
        Self(self.0 | FULL)
    }

    /// The entry as one that isn't sure of its flow yet.
    #[inline(always)]
    #[must_use]
    pub const fn unsure(self) -> Self {
        Self(self.0 & !STATE | UNSURE)
    }

    /// Whether it was made under full tracking.
    #[inline(always)]
    pub const fn is_full(self) -> bool {
        self.0 & FULL != 0
    }

    /// What it adds to its member's counts, in [`load::HALF`] and [`load::OPEN`].
    #[inline(always)]
    pub const fn weight(self) -> u64 {
        if !self.is_full() {
            return 0;
        }
        match self.0 & STATE {
            HALF => load::HALF,
            OPEN => load::OPEN,
            _ => 0,
        }
    }

    /// Whether there is no entry.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// See [`crate::hash::tag`].
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        (self.0 >> TAG_SHIFT) as u32 & TAG_MASK
    }

    /// The member the flow belongs to.
    #[inline(always)]
    pub const fn member(self) -> u32 {
        (self.0 >> MEMBER_SHIFT) as u32 & (MEMBER_LIMIT - 1)
    }

    /// Units since the entry was last seen, modulo 1024.
    #[inline(always)]
    pub const fn age(self, now_ticks: u32) -> u32 {
        (now_ticks >> UNIT_SHIFT).wrapping_sub((self.0 >> AGE_SHIFT) as u32) & AGE_MASK
    }

    /// Whether more than a SYN was seen.
    #[inline(always)]
    pub const fn is_confirmed(self) -> bool {
        self.0 & CONFIRMED != 0
    }

    /// Whether a FIN or RST was seen.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        self.0 & STATE == STATE
    }

    /// Whether nothing is known of its flow but one packet.
    #[inline(always)]
    pub const fn is_unsure(self) -> bool {
        self.0 & STATE == UNSURE
    }

    /// Whether the entry still counts.
    #[inline(always)]
    pub const fn is_live(self, now_ticks: u32, idle: Idle) -> bool {
        let limit = match (self.is_full(), self.is_confirmed()) {
            (true, true) if self.is_closing() => CLOSING_UNITS,
            (true, false) => BRIEF_UNITS,
            (_, true) => idle.open_units,
            (false, false) => idle.half_units,
        };
        !self.is_empty() && self.age(now_ticks) <= limit
    }

    /// The entry after another packet of its flow.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self, now_ticks: u32, mark: Mark) -> Self {
        let stamp = ((now_ticks >> UNIT_SHIFT & AGE_MASK) as u64) << AGE_SHIFT;
        let kept = self.0 & !((AGE_MASK as u64) << AGE_SHIFT);
        Self(match mark {
            Mark::Half => kept & !CLOSING | stamp,
            // Of an entry that was unsure this was the second packet.
            Mark::Open if self.is_unsure() => kept & !STATE | OPEN | stamp,
            Mark::Open => kept | CONFIRMED | stamp,
            Mark::Closing => kept | STATE | stamp,
        })
    }
}

/// What a packet says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A SYN: the flow may never come to be.
    Half,
    /// Anything later.
    Open,
    /// FIN or RST.
    Closing,
}

/// How long entries live, in units ([`crate::clock::units`]).
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// After the last packet of a flow.
    pub open_units: u32,
    /// After a SYN that nothing followed.
    pub half_units: u32,
}

/// What identifies a flow in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// See [`tag`].
    pub tag: u32,
    /// Its home bucket.
    pub home: u32,
}

impl FlowKey {
    /// The key of a flow hash in a table of `buckets`.
    #[inline(always)]
    pub const fn new(hash: u64, buckets: u32) -> Self {
        Self {
            tag: tag(hash),
            home: scale(bucket_bits(hash), buckets),
        }
    }

    /// The other bucket an entry with this tag may be in.
    #[inline(always)]
    pub const fn alternate(self, buckets: u32) -> u32 {
        alternate(self.tag, self.home, buckets)
    }
}

/// The other bucket of an entry found in `bucket`; its own inverse.
#[inline(always)]
pub const fn alternate(tag: u32, bucket: u32, buckets: u32) -> u32 {
    // A multiplicative mix, so that tags of one slot spread over the table.
    let pivot = scale(tag.wrapping_mul(0x9e37_79b1) ^ tag.rotate_left(15), buckets);
    if pivot >= bucket {
        pivot - bucket
    } else {
        pivot + buckets - bucket
    }
}

/// The memory of a table. Both sides implement it: the data path over its map,
/// the controller over the mapping, the tests over a vector.
pub trait FlowTable {
    /// A bucket that was found.
    type Bucket: Copy;

    /// Number of buckets.
    fn buckets(&self) -> u32;

    /// Bucket `index`; `None` beyond the end.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;

    /// The same number. The data path hides it from the verifier here.
    #[inline(always)]
    fn blur(&self, word: usize) -> usize {
        word
    }

    /// The same entry. Hidden likewise.
    #[inline(always)]
    fn hide(&self, entry: u64) -> u64 {
        entry
    }

    /// A relaxed load of word `word`, below [`BUCKET_WORDS`].
    fn load(&self, bucket: Self::Bucket, word: usize) -> u64;

    /// Replaces word `word` if it is still `current`.
    fn replace(&self, bucket: Self::Bucket, word: usize, current: u64, new: u64) -> bool;

    /// Writes word `word`, which nobody else writes at this time.
    #[inline(always)]
    fn store(&self, bucket: Self::Bucket, word: usize, value: u64) {
        self.replace(bucket, word, self.load(bucket, word), value);
    }

    /// See [`exchange`], which is what this does. The data path has it as a
    /// function of its own.
    #[inline(always)]
    fn exchange(
        &self,
        bucket: Self::Bucket,
        word: usize,
        old: FlowWord,
        new: FlowWord,
        place: Place,
    ) -> bool {
        exchange(self, bucket, word, old, new, place)
    }

    /// Adds to the counts of a member ([`load::HALF`], [`load::OPEN`] and their
    /// negatives). Nothing in tables whose entries aren't counted.
    #[inline(always)]
    fn count(&self, _member: u32, _by: u64) {}
}

/// Whether an entry's place among its member's connections is taken already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is counted with its appearance.
    Free,
    /// It was counted beforehand ([`load::admit`]); if the entry doesn't come
    /// to be, the caller gives the place back.
    Reserved,
}

/// Replaces an entry if it is still `old`, and keeps the counts of the members
/// of both. A member's count goes up before the entry appears and down after
/// it is gone, and each change of an entry has one winner: so the counts are
/// never below what the table holds, and equal to it when nobody is at work.
#[inline(always)]
pub fn exchange<T: FlowTable + ?Sized>(
    table: &T,
    bucket: T::Bucket,
    word: usize,
    old: FlowWord,
    new: FlowWord,
    place: Place,
) -> bool {
    let (from, to) = (old.weight(), new.weight());
    let moves_within = from != 0 && to != 0 && old.member() == new.member();
    let rises = to != 0 && !moves_within && matches!(place, Place::Free);
    if rises {
        table.count(new.member(), to);
    }
    if !table.replace(bucket, word, old.0, new.0) {
        if rises {
            table.count(new.member(), to.wrapping_neg());
        }
        return false;
    }
    if moves_within && matches!(place, Place::Free) {
        // Both numbers in one step, so that their sum stays.
        if from != to {
            table.count(new.member(), to.wrapping_sub(from));
        }
    } else if from != 0 {
        table.count(old.member(), from.wrapping_neg());
    }
    true
}

/// Where an entry was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<B> {
    /// Its bucket.
    pub bucket: B,
    /// Its index there.
    pub word: usize,
    /// What stood there.
    pub entry: FlowWord,
}

/// The entry of a flow with this tag that `accept`s, in one bucket.
#[inline(always)]
pub fn find_in<T: FlowTable>(
    table: &T,
    bucket: T::Bucket,
    tag: u32,
    accept: &impl Fn(FlowWord) -> bool,
) -> Option<Found<T::Bucket>> {
    let mut word = CONTROL + 1;
    while word < BUCKET_WORDS {
        let entry = FlowWord(table.load(bucket, word));
        if entry.tag() == tag && !entry.is_empty() && accept(entry) {
            return Some(Found {
                bucket,
                word: table.blur(word),
                entry: FlowWord(table.hide(entry.0)),
            });
        }
        word += 1;
    }
    None
}

/// The entry of a flow that `accept`s; expired ones are the caller's to refuse.
#[inline(always)]
pub fn find<T: FlowTable>(
    table: &T,
    key: FlowKey,
    accept: impl Fn(FlowWord) -> bool,
) -> Option<Found<T::Bucket>> {
    let home = table.bucket(key.home)?;
    let found = find_in(table, home, key.tag, &accept);
    if found.is_some() || table.load(home, CONTROL) == 0 {
        return found;
    }
    let alternate = table.bucket(key.alternate(table.buckets()))?;
    find_in(table, alternate, key.tag, &accept)
}

#[inline(always)]
fn insert_in<T: FlowTable>(
    table: &T,
    bucket: T::Bucket,
    entry: FlowWord,
    place: Place,
    now_ticks: u32,
    idle: Idle,
) -> bool {
    let mut word = CONTROL + 1;
    while word < BUCKET_WORDS && FlowWord(table.load(bucket, word)).is_live(now_ticks, idle) {
        word += 1;
    }
    if word == BUCKET_WORDS {
        return false;
    }
    // Somebody else may take the place in between: then the alternate bucket
    // does as well, and a refusal there is one like any other.
    let word = table.blur(word);
    let old = FlowWord(table.load(bucket, word));
    !old.is_live(now_ticks, idle) && table.exchange(bucket, word, old, entry, place)
}

/// Puts an entry in the place of an empty or expired one, at home or else in
/// the alternate bucket. `false`: both are full of living entries. `idle` must
/// be the longest of all services, since a stranger's entry may be displaced.
#[inline(always)]
pub fn insert<T: FlowTable>(
    table: &T,
    key: FlowKey,
    entry: FlowWord,
    place: Place,
    now_ticks: u32,
    idle: Idle,
) -> bool {
    let Some(home) = table.bucket(key.home) else {
        return false;
    };
    if insert_in(table, home, entry, place, now_ticks, idle) {
        return true;
    }
    let Some(alternate) = table.bucket(key.alternate(table.buckets())) else {
        return false;
    };
    // The count goes up before the entry appears and is never taken back here:
    // the sweeper resets it only if it stayed the same over a whole sweep that
    // found no entry of this home elsewhere.
    let overflowed = table.load(home, CONTROL);
    if !table.replace(
        home,
        CONTROL,
        overflowed,
        overflowed.wrapping_add(1) | 1 << 63,
    ) {
        return false;
    }
    insert_in(table, alternate, entry, place, now_ticks, idle)
}

/// Notes another packet of a found flow. Losing a race loses nothing: whoever
/// won has just seen the flow too.
#[inline(always)]
pub fn touch<T: FlowTable>(table: &T, found: &Found<T::Bucket>, now_ticks: u32, mark: Mark) {
    let new = found.entry.seen(now_ticks, mark);
    if new != found.entry {
        table.exchange(found.bucket, found.word, found.entry, new, Place::Free);
    }
}

#[cfg(any(test, feature = "user"))]
pub mod memory;

#[cfg(any(test, feature = "user"))]
pub mod transfer;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{memory::MemoryTable, *};

    const IDLE: Idle = Idle {
        open_units: 990,
        half_units: 9,
    };

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills a table for `max_flows` with that many flows times `load`;
    /// returns the share of insertions that were refused.
    fn refused(max_flows: u32, load: f64) -> f64 {
        let table = MemoryTable::new(buckets_for(max_flows));
        let n = (f64::from(max_flows) * load) as u32;
        let (mut seed, mut refusals) = (1, 0u32);
        for _ in 0..n {
            let key = FlowKey::new(random(&mut seed), table.buckets());
            let entry = FlowWord::new(key.tag, 1, 0, Mark::Open);
            refusals += u32::from(!insert(&table, key, entry, Place::Free, 0, IDLE));
        }
        f64::from(refusals) / f64::from(n)
    }

    #[test]
    fn refusals_are_as_rare_as_documented() {
        // docs/ARCHITECTURE.md publishes these figures.
        let at_capacity = refused(200_000, 1.0);
        let at_half = refused(200_000, 0.5);
        let at_125 = refused(200_000, 1.25);
        let at_150 = refused(200_000, 1.5);
        std::println!(
            "refused: 0.5 {at_half:.2e}, 1.0 {at_capacity:.2e}, 1.25 {at_125:.2e}, 1.5 {at_150:.2e}"
        );
        assert_eq!(at_half, 0.0);
        assert!(at_capacity < 2e-3, "{at_capacity}");
        assert!(at_125 < 3e-2, "{at_125}");
        assert!(at_150 < 0.13, "{at_150}");
    }

    #[test]
    fn an_entry_in_the_alternate_bucket_is_found_and_its_home_says_so() {
        let table = MemoryTable::new(64);
        let mut placed = std::vec::Vec::new();
        let mut seed = 7;
        for i in 0..=BUCKET_ENTRIES as u32 {
            let key = FlowKey {
                tag: tag(random(&mut seed)),
                home: 5,
            };
            assert!(insert(
                &table,
                key,
                FlowWord::new(key.tag, i + 1, 0, Mark::Open),
                Place::Free,
                0,
                IDLE
            ));
            placed.push((key, i + 1));
        }
        assert_ne!(table.load(5, CONTROL), 0);
        for (key, member) in placed {
            let found = find(&table, key, |_| true).map(|f| f.entry.member());
            assert_eq!(found, Some(member));
        }
    }

    #[test]
    fn living_entries_are_never_displaced_and_expired_ones_are() {
        let table = MemoryTable::new(2);
        let mut seed = 3;
        let mut inserted = 0;
        for _ in 0..100 {
            let key = FlowKey::new(random(&mut seed), 2);
            inserted += u32::from(insert(
                &table,
                key,
                FlowWord::new(key.tag, 1, 0, Mark::Half),
                Place::Free,
                0,
                IDLE,
            ));
        }
        assert_eq!(inserted, 14);
        let key = FlowKey::new(random(&mut seed), 2);
        let entry = |ticks| FlowWord::new(key.tag, 2, ticks, Mark::Open);
        assert!(!insert(
            &table,
            key,
            entry(9 << UNIT_SHIFT),
            Place::Free,
            9 << UNIT_SHIFT,
            IDLE
        ));
        assert!(insert(
            &table,
            key,
            entry(10 << UNIT_SHIFT),
            Place::Free,
            10 << UNIT_SHIFT,
            IDLE
        ));
    }

    #[test]
    fn a_syn_that_was_followed_up_lives_on() {
        let word = FlowWord::new(1, 2, 0, Mark::Half);
        assert!(!word.is_live(80, IDLE));
        assert!(word.seen(8, Mark::Open).is_live(990 * 8, IDLE));
        assert!(!word.seen(8, Mark::Open).is_live(993 * 8, IDLE));
        let closing = word.seen(8, Mark::Closing);
        assert!(closing.is_closing() && closing.seen(9, Mark::Open).is_closing());
        assert!(!closing.seen(9, Mark::Half).is_closing());
        assert!(closing.seen(9, Mark::Half).is_confirmed());
    }

    proptest! {
        #[test]
        fn the_alternate_of_the_alternate_is_the_home(hash in any::<u64>(), buckets in 2u32..5_000_000) {
            let key = FlowKey::new(hash, buckets);
            let other = key.alternate(buckets);
            prop_assert!(key.home < buckets && other < buckets);
            prop_assert_eq!(alternate(key.tag, other, buckets), key.home);
        }

        #[test]
        fn an_entrys_fields_do_not_touch_one_another(
            tag in any::<u32>(), member in 1u32..MEMBER_LIMIT, then in any::<u32>(), later in 0u32..1024,
        ) {
            let word = FlowWord::new(tag, member, then, Mark::Open);
            let tag = tag & !1;
            prop_assert_eq!((word.tag(), word.member(), word.is_full()), (tag, member, false));
            prop_assert_eq!((word.full().tag(), word.full().is_full()), (tag, true));
            prop_assert_eq!(word.age((then & !7).wrapping_add(later << UNIT_SHIFT)), later);
            let seen = word.seen(then.wrapping_add(800), Mark::Closing);
            prop_assert_eq!((seen.tag(), seen.member(), seen.age(then.wrapping_add(800))), (tag, member, 0));
        }
    }
}
