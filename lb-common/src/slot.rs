//! The slot word: who gets the flows that hash to a slot.
//!
//! `current` (20 bits) `base` (20 bits) `TRACKED` `PRESSED` `time` (22 bits of
//! ticks), from the highest bit down. All of it changes in one atomic write,
//! so there is no order to get wrong.

use crate::member::MEMBER_LIMIT;

const TIME_BITS: u32 = 22;
const TIME_MASK: u32 = (1 << TIME_BITS) - 1;
const PRESSED: u64 = 1 << TIME_BITS;
const TRACKED: u64 = 1 << (TIME_BITS + 1);
const BASE_SHIFT: u32 = 24;
const CURRENT_SHIFT: u32 = 44;
const MEMBER_MASK: u64 = MEMBER_LIMIT as u64 - 1;

/// One slot. See the module's description.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotWord(pub u64);

impl SlotWord {
    /// A slot in which every flow belongs to `member`.
    pub const fn stable(member: u32) -> Self {
        Self(Self::members(member, member))
    }

    /// A slot that went from `base` to `current` at `ticks`.
    pub const fn tracked(current: u32, base: u32, ticks: u32) -> Self {
        Self(Self::members(current, base) | TRACKED | (ticks & TIME_MASK) as u64)
    }

    const fn members(current: u32, base: u32) -> u64 {
        (current as u64 & MEMBER_MASK) << CURRENT_SHIFT | (base as u64 & MEMBER_MASK) << BASE_SHIFT
    }

    /// Member for new flows; in a stable slot for all.
    #[inline(always)]
    pub const fn current(self) -> u32 {
        (self.0 >> CURRENT_SHIFT) as u32
    }

    /// Member of the flows that are older than the change and have no entry.
    #[inline(always)]
    pub const fn base(self) -> u32 {
        (self.0 >> BASE_SHIFT & MEMBER_MASK) as u32
    }

    /// Whether flows of this slot are looked up.
    #[inline(always)]
    pub const fn is_tracked(self) -> bool {
        self.0 & TRACKED != 0
    }

    /// Whether the time is that of a refused insertion and not of the change.
    #[inline(always)]
    pub const fn is_pressed(self) -> bool {
        self.0 & PRESSED != 0
    }

    /// Ticks since the last change or refused insertion, modulo 2^22 (48 days).
    #[inline(always)]
    pub const fn age(self, now_ticks: u32) -> u32 {
        now_ticks.wrapping_sub(self.0 as u32) & TIME_MASK
    }

    /// The slot after an insertion was refused at `ticks`: it has to stay
    /// tracked for a whole idle period from here.
    #[inline(always)]
    #[must_use]
    pub const fn pressed(self, ticks: u32) -> Self {
        Self(self.0 & !(TIME_MASK as u64) | (ticks & TIME_MASK) as u64 | PRESSED)
    }

    /// The slot when its table names `new` from `ticks` on. `base_serves` is
    /// whether the base still serves its old flows; where it doesn't, the
    /// flows without an entry are those of the present member.
    #[must_use]
    pub const fn changed(self, new: u32, base_serves: bool, ticks: u32) -> Self {
        let base = if self.is_tracked() && base_serves {
            self.base()
        } else {
            self.current()
        };
        Self::tracked(new, base, ticks)
    }

    /// The slot when flows of its members that have entries are to stay there
    /// from `ticks` on, though nothing changes for the others.
    #[must_use]
    pub const fn watched(self, ticks: u32) -> Self {
        let base = if self.is_tracked() {
            self.base()
        } else {
            self.current()
        };
        Self::tracked(self.current(), base, ticks)
    }

    /// The slot with another member for new flows, the rest as it is.
    #[must_use]
    pub const fn led_to(self, member: u32) -> Self {
        let kept = self.0 & !(MEMBER_MASK << CURRENT_SHIFT);
        Self(kept | (member as u64 & MEMBER_MASK) << CURRENT_SHIFT)
    }

    /// The slot when its base stopped serving, or its old flows all have entries.
    #[must_use]
    pub const fn rebased(self) -> Self {
        Self(self.0 & !(MEMBER_MASK << BASE_SHIFT) | (self.current() as u64) << BASE_SHIFT)
    }
}

impl core::fmt::Debug for SlotWord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SlotWord")
            .field("current", &self.current())
            .field("base", &self.base())
            .field("tracked", &self.is_tracked())
            .field("pressed", &self.is_pressed())
            .field("time", &(self.0 as u32 & TIME_MASK))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_one_another() {
        let s = SlotWord::tracked(0xf_ffff, 1, 0x3f_fff0);
        assert_eq!(
            (s.current(), s.base(), s.is_tracked(), s.is_pressed()),
            (0xf_ffff, 1, true, false)
        );
        let p = s.pressed(0);
        assert_eq!(
            (p.current(), p.base(), p.is_tracked(), p.is_pressed()),
            (0xf_ffff, 1, true, true)
        );
        assert_eq!((p.age(5), s.age(0)), (5, 0x10));
        assert_eq!(s.rebased().base(), 0xf_ffff);
        assert_eq!(p.led_to(3), SlotWord::tracked(3, 1, 0).pressed(0));
        assert!(!SlotWord::stable(7).is_tracked());
        assert_eq!(
            (SlotWord::stable(7).current(), SlotWord::stable(7).base()),
            (7, 7)
        );
    }

    #[test]
    fn a_watched_slot_keeps_its_members_and_looks_flows_up() {
        assert_eq!(SlotWord::stable(3).watched(9), SlotWord::tracked(3, 3, 9));
        let changing = SlotWord::tracked(3, 2, 4);
        assert_eq!(changing.watched(9), SlotWord::tracked(3, 2, 9));
    }

    #[test]
    fn a_second_change_keeps_the_first_base_while_it_serves() {
        let first = SlotWord::stable(1).changed(2, true, 10);
        assert_eq!((first.current(), first.base()), (2, 1));
        let second = first.changed(3, true, 20);
        assert_eq!((second.current(), second.base(), second.age(25)), (3, 1, 5));
        // The base stopped serving before the second change: flows without an
        // entry are those that the first change left with member 2.
        let second = first.changed(3, false, 20);
        assert_eq!((second.current(), second.base()), (3, 2));
    }
}
