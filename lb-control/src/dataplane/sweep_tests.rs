//! The sweeper's rules, one by one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_common::{
    flow::{
        BRIEF_UNITS, CLOSING_UNITS, CONTROL, FlowKey, FlowTable as _, FlowWord, Idle, Mark, Place,
        buckets_for, insert, memory::MemoryTable,
    },
    hash::scale,
    load::{self, Counts},
    member::MemberState,
    slot::SlotWord,
};

use super::aya_maps::LOAD_WORDS;
use super::sweep::{MemberInfo, ServiceInfo, SweepReport, Sweeper, World};

const SIZE: u32 = 31;
const IDLE_UNITS: u32 = 100;
const HALF_UNITS: u32 = 9;
const IDLE_TICKS: u32 = (IDLE_UNITS + 1) * 8;

struct Fixture {
    flows: MemoryTable,
    reply_flows: MemoryTable,
    slots: Vec<AtomicU64>,
    members: Vec<MemberInfo>,
    loads: Vec<AtomicU64>,
    full: bool,
    by_source: bool,
    sweeper: Sweeper,
    resets: bool,
}

impl Fixture {
    /// Members 1 and 2 of service 1 serve; every slot is `slot`.
    fn new(slot: SlotWord) -> Self {
        let up = MemberInfo {
            state: MemberState::UP,
            service: 1,
        };
        Self {
            flows: MemoryTable::counting(buckets_for(64), 3),
            reply_flows: MemoryTable::new(buckets_for(64)),
            slots: (0..SIZE).map(|_| AtomicU64::new(slot.0)).collect(),
            members: vec![MemberInfo::default(), up, up],
            loads: (0..3 * LOAD_WORDS).map(|_| AtomicU64::new(0)).collect(),
            full: false,
            by_source: false,
            sweeper: Sweeper::default(),
            resets: false,
        }
    }

    fn key(&self, tag: u32) -> FlowKey {
        FlowKey {
            tag: tag & !1,
            home: scale(tag.wrapping_mul(0x9e37_79b1), self.flows.buckets()),
        }
    }

    fn insert(&self, tag: u32, member: u32, ticks: u32, mark: Mark) {
        let idle = Idle {
            open_units: IDLE_UNITS,
            half_units: HALF_UNITS,
        };
        let entry = FlowWord::new(tag, member, ticks, mark);
        assert!(insert(
            &self.flows,
            self.key(tag),
            entry,
            Place::Free,
            ticks,
            idle
        ));
    }

    fn has(&self, tag: u32) -> bool {
        lb_common::flow::find(&self.flows, self.key(tag), |_| true).is_some()
    }

    fn sweep(&mut self, now_ticks: u32) -> SweepReport {
        self.sweeper.sweep(World {
            flows: &self.flows,
            reply_flows: &self.reply_flows,
            slots: &self.slots,
            members: &self.members,
            services: &[ServiceInfo {
                id: 1,
                offset: 0,
                size: SIZE,
                idle_units: IDLE_UNITS,
                idle_ticks: IDLE_TICKS,
                resets: self.resets,
                full: self.full,
                by_source: self.by_source,
            }],
            loads: &self.loads,
            half_units: HALF_UNITS,
            now_ticks,
        })
    }

    fn slot(&self, tag: u32) -> SlotWord {
        SlotWord(self.slots[scale(tag, SIZE) as usize].load(Relaxed))
    }
}

#[test]
fn entries_go_when_they_expire_and_half_open_ones_sooner() {
    let mut f = Fixture::new(SlotWord::tracked(2, 1, 8000));
    f.insert(2, 1, 8000, Mark::Open);
    f.insert(4, 1, 8000, Mark::Half);
    f.insert(6, 1, 8000, Mark::Closing);
    let report = f.sweep(8000 + HALF_UNITS * 8);
    let flows = report.services[&1];
    assert_eq!((flows.living, flows.half_open, flows.closing), (1, 1, 1));
    assert_eq!(f.sweep(8000 + (HALF_UNITS + 1) * 8).freed, 1);
    assert!(f.has(2) && !f.has(4));
    assert_eq!(f.sweep(8000 + (IDLE_UNITS + 1) * 8).freed, 2);
}

#[test]
fn entries_of_members_that_do_not_serve_go_at_once() {
    let mut f = Fixture::new(SlotWord::tracked(2, 1, 8000));
    f.insert(1, 1, 8000, Mark::Open);
    f.insert(2, 2, 8000, Mark::Open);
    f.members[1].state = MemberState::DEAD;
    assert_eq!(f.sweep(8000).freed, 1);
    assert!(!f.has(1) && f.has(2));
}

#[test]
fn entries_of_members_that_are_gone_stay_where_their_flows_are_reset() {
    let mut f = Fixture::new(SlotWord::tracked(2, 1, 8000));
    f.resets = true;
    f.insert(1, 1, 8000, Mark::Open);
    f.members[1].state = MemberState::DEAD;
    assert_eq!(f.sweep(8000 + IDLE_TICKS - 8).freed, 0);
    assert_eq!(f.slot(1).base(), 1, "those without an entry");
    // Its id may not go to another one while anything names it.
    assert!(f.sweep(8000 + IDLE_TICKS - 8).unnamed_members.is_empty());
    assert_eq!(f.sweep(8000 + IDLE_TICKS + 8).freed, 1);
    f.sweep(8000 + IDLE_TICKS + 16);
    f.sweep(8000 + IDLE_TICKS + 24);
    assert_eq!(f.sweep(8000 + IDLE_TICKS + 32).unnamed_members, [1]);
}

#[test]
fn before_the_idle_period_is_over_entries_that_agree_stay_too() {
    let mut f = Fixture::new(SlotWord::tracked(2, 1, 8000));
    f.insert(1, 2, 8000 + IDLE_TICKS, Mark::Open);
    f.sweep(8000 + IDLE_TICKS);
    assert!(f.has(1), "without it the flow would be the base's");
    assert_eq!((f.slot(1).base(), f.slot(1).is_tracked()), (1, true));
    let empty = f.slot(u32::MAX);
    assert!(empty.is_tracked(), "old flows may not have been seen yet");
}

#[test]
fn after_the_idle_period_the_base_follows_and_a_slot_without_old_flows_is_stable() {
    let mut f = Fixture::new(SlotWord::tracked(2, 1, 8000));
    let late = 8000 + IDLE_TICKS + 1;
    let (agrees, disagrees) = (1, u32::MAX);
    f.insert(agrees, 2, late, Mark::Open);
    f.insert(disagrees, 1, late, Mark::Open);
    f.sweep(late);
    assert_eq!(f.slot(agrees), SlotWord::tracked(2, 1, 8000).rebased());
    let report = f.sweep(late);
    assert!(!f.has(agrees) && f.has(disagrees));
    assert_eq!(f.slot(agrees), SlotWord::stable(2));
    assert!(f.slot(disagrees).is_tracked());
    assert_eq!(report.services[&1].tracked_slots, 1);
    // The old flow ends, and so does the tracking.
    f.sweep(late + IDLE_TICKS);
    assert_eq!(f.slot(disagrees), SlotWord::stable(2));
}

#[test]
fn an_id_is_given_back_after_two_sweeps_that_nothing_named_it_in() {
    let mut f = Fixture::new(SlotWord::stable(2));
    assert!(f.sweep(8000).unnamed_members.is_empty(), "it serves");
    f.members[1].state = MemberState::DEAD;
    assert!(f.sweep(8000).unnamed_members.is_empty());
    assert_eq!(f.sweep(8000).unnamed_members, [1]);
    f.slots[3].store(SlotWord::tracked(2, 1, 8000).0, Relaxed);
    assert!(f.sweep(8000).unnamed_members.is_empty(), "a slot names it");
}

#[test]
fn an_overflow_mark_goes_after_two_quiet_sweeps_and_stays_while_entries_are_elsewhere() {
    let mut f = Fixture::new(SlotWord::tracked(2, 1, 8000));
    let home = 3;
    let control = |f: &Fixture| f.flows.load(home, CONTROL);
    // One entry more than the home has room for.
    let idle = Idle {
        open_units: IDLE_UNITS,
        half_units: HALF_UNITS,
    };
    for tag in 1..=8u32 {
        let tag = (tag << 28 | tag) & !1 | tag << 4;
        let entry = FlowWord::new(tag, 1, 8000, Mark::Open);
        assert!(insert(
            &f.flows,
            FlowKey { tag, home },
            entry,
            Place::Free,
            8000,
            idle
        ));
    }
    assert_ne!(control(&f), 0);
    f.sweep(8000);
    f.sweep(8000);
    assert_ne!(
        control(&f),
        0,
        "an entry of this home is in its alternate bucket"
    );
    f.sweep(8000 + IDLE_TICKS);
    assert_ne!(control(&f), 0, "one quiet sweep is not enough");
    f.sweep(8000 + IDLE_TICKS);
    assert_eq!(control(&f), 0);
}

/// An entry of a service with full tracking, counted.
fn insert_full(f: &Fixture, tag: u32, member: u32, ticks: u32, mark: Mark) {
    let entry = FlowWord::new(tag, member, ticks, mark).full();
    let idle = Idle {
        open_units: IDLE_UNITS,
        half_units: HALF_UNITS,
    };
    assert!(insert(
        &f.flows,
        f.key(tag),
        entry,
        Place::Free,
        ticks,
        idle
    ));
}

fn counts(f: &Fixture, member: usize) -> (u32, u32) {
    let counts = Counts(f.flows.counts()[member].load(Relaxed));
    (counts.half(), counts.open())
}

#[test]
fn under_full_tracking_entries_that_agree_stay_and_slots_are_settled_without_them() {
    let mut f = Fixture::new(SlotWord::tracked(2, 2, 8000));
    f.full = true;
    insert_full(&f, 2, 1, 8000, Mark::Open);
    insert_full(&f, 4, 2, 8000, Mark::Open);
    f.sweep(8000);
    assert!(f.has(2) && f.has(4));
    assert_eq!(f.slot(2), SlotWord::stable(2));
}

#[test]
fn what_expires_under_full_tracking_is_not_counted_any_more() {
    let mut f = Fixture::new(SlotWord::stable(1));
    f.full = true;
    insert_full(&f, 2, 1, 8000, Mark::Half);
    insert_full(&f, 4, 1, 8000, Mark::Open);
    insert_full(&f, 6, 2, 8000, Mark::Closing);
    assert_eq!((counts(&f, 1), counts(&f, 2)), ((1, 1), (0, 0)));
    f.sweep(8000 + BRIEF_UNITS * 8);
    assert_eq!(counts(&f, 1), (1, 1));
    f.sweep(8000 + (BRIEF_UNITS + 1) * 8);
    assert_eq!(counts(&f, 1), (0, 1));
    f.sweep(8000 + CLOSING_UNITS * 8);
    assert!(f.has(6));
    f.sweep(8000 + (CLOSING_UNITS + 1) * 8);
    assert!(!f.has(6) && f.has(4));
    f.members[1].state = MemberState::DEAD;
    f.sweep(8000 + (CLOSING_UNITS + 1) * 8);
    assert_eq!(counts(&f, 1), (0, 0));
}

#[test]
fn by_source_a_slot_is_tracked_until_no_entry_can_be_anothers() {
    let mut f = Fixture::new(SlotWord::tracked(2, 2, 8000));
    f.by_source = true;
    f.insert(2, 1, 8000, Mark::Open);
    f.insert(4, 2, 8000, Mark::Open);
    f.sweep(8000);
    assert!(f.has(2) && f.has(4), "their slots aren't known");
    assert!(f.slot(2).is_tracked());
    f.members[1].state = MemberState::DEAD;
    f.sweep(8000);
    assert!(!f.has(2) && f.has(4));
    assert!(!f.slot(2).is_tracked(), "what is left agrees");
}

#[test]
fn a_count_that_a_killed_daemon_left_wrong_is_put_right_once_nothing_moves() {
    let mut f = Fixture::new(SlotWord::stable(1));
    f.full = true;
    insert_full(&f, 2, 1, 8000, Mark::Open);
    let set = |f: &Fixture, counts: Counts| f.loads[LOAD_WORDS].store(counts.0, Relaxed);
    let count = |f: &Fixture| Counts(f.loads[LOAD_WORDS].load(Relaxed));
    set(&f, Counts::new(0, 3));
    f.sweep(8000);
    assert_eq!(count(&f), Counts::new(0, 3), "once may be chance");
    set(&f, Counts::new(1, 3));
    f.sweep(8000);
    assert_eq!(count(&f), Counts::new(1, 3), "something moved");
    f.sweep(8000);
    assert_eq!(count(&f), Counts::new(0, 1));
    // From here on the data path's word is taken for it.
    f.loads[LOAD_WORDS].fetch_add(load::OPEN, Relaxed);
    f.sweep(8000);
    f.sweep(8000);
    assert_eq!(count(&f), Counts::new(0, 2));
}
