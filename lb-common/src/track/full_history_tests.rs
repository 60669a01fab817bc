//! Random histories of a service with full tracking, against what any client
//! and any operator would say.

use proptest::{prelude::*, strategy::ValueTree as _};
use std::{collections::BTreeMap, vec::Vec};

use super::*;

const MEMBERS: u32 = 4;
const FLOWS: u64 = 12;

#[derive(Clone, Debug)]
enum Step {
    Send(u64, Kind),
    Pass(u32),
    State(u32, MemberState),
    Limit(u32, u32),
    /// The table names another member for a slot.
    Table(usize, u32),
    Sweep,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Syn), 6 => Just(Kind::Data), 1 => Just(Kind::Fin), 1 => Just(Kind::Rst),
    ]
}

fn state() -> impl Strategy<Value = MemberState> {
    prop::sample::select(
        &[
            MemberState::UP,
            MemberState::UP,
            MemberState::DRAINING,
            MemberState::FAILING,
            MemberState::DEAD,
        ][..],
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (0..FLOWS, kind()).prop_map(|(flow, kind)| Step::Send(flow, kind)),
        5 => prop_oneof![9 => 1u32..20, 1 => 90u32..130].prop_map(Step::Pass),
        2 => (1..=MEMBERS, state()).prop_map(|(member, state)| Step::State(member, state)),
        2 => (1..=MEMBERS, 0u32..6).prop_map(|(member, max)| Step::Limit(member, max)),
        2 => (0..SLOTS as usize, 1..=MEMBERS).prop_map(|(slot, member)| Step::Table(slot, member)),
        1 => Just(Step::Sweep),
    ]
}

/// Hash of a flow: no two share a tag.
fn hash_of(flow: u64) -> u64 {
    (flow + 1) << 40 | (flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
}

/// A flow's living entry, if it has one that stands for a connection.
fn established(shop: &Shop, flow: u64) -> Option<u32> {
    let key = FlowKey::new(hash_of(flow), shop.flows.buckets());
    let now = shop.now.load(SeqCst);
    shop.entries()
        .map(|(_, _, entry)| entry)
        .find(|entry| entry.tag() == key.tag && entry.is_live(now, IDLE))
        .filter(|entry| entry.is_full() && entry.is_confirmed())
        .filter(|entry| !entry.is_closing() && !entry.is_unsure())
        .map(FlowWord::member)
}

/// What is checked: `buckets` says how crowded the table is.
fn history(steps: Vec<Step>, scheduler: u8, buckets: u32) -> Result<u64, TestCaseError> {
    let mut shop = Shop::new(scheduler, buckets);
    // Member and time of each flow's connection.
    let mut open: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    let mut kept = 0;
    for step in steps {
        let now = shop.now.load(SeqCst);
        match step {
            Step::Send(flow, kind) => {
                let before: Vec<u32> = (1..=MEMBERS).map(|m| shop.total(m)).collect();
                let held = open.get(&flow).copied().filter(|(member, last)| {
                    let idle = (now >> UNIT_SHIFT) - (last >> UNIT_SHIFT);
                    idle <= IDLE.open_units && shop.states[*member as usize].serves()
                });
                let decision = shop.send(hash_of(flow), kind);
                if let Some((member, _)) = held {
                    prop_assert_eq!(decision.member, member, "{:?} of flow {}", kind, flow);
                    kept += 1;
                    if matches!(kind, Kind::Syn | Kind::Data) {
                        prop_assert_eq!(established(&shop, flow), Some(member));
                    }
                }
                // (The controller takes the slots of a dead member away as well.)
                if kind == Kind::Syn && decision.entry == Entry::Inserted {
                    let to = decision.member as usize;
                    let state = shop.states[to];
                    prop_assert!(
                        state.serves(),
                        "a flow was given to {to}, which is {state:?}"
                    );
                }
                for member in 1..=MEMBERS {
                    let (max, total) = (shop.max[member as usize], shop.total(member));
                    let was = before[member as usize - 1];
                    // What was open before a limit was lowered stays open; a
                    // client that goes on is no new connection.
                    prop_assert!(
                        max == 0 || total <= max.max(was) || kind != Kind::Syn,
                        "{member} has {total} of {max}, before {was}"
                    );
                }
                match established(&shop, flow) {
                    Some(member) => drop(open.insert(flow, (member, now))),
                    None => drop(open.remove(&flow)),
                }
            }
            Step::Pass(units) => shop.pass(units),
            Step::State(member, state) => shop.states[member as usize] = state,
            Step::Limit(member, max) => shop.max[member as usize] = max,
            Step::Table(slot, member) => {
                let word = SlotWord(shop.slots[slot].load(SeqCst));
                let base_serves = shop.states[word.base() as usize].serves();
                if member != word.current() && shop.states[member as usize].takes_new() {
                    let word = word.changed(member, base_serves, now);
                    shop.slots[slot].store(word.0, SeqCst);
                }
            }
            Step::Sweep => shop.sweep(),
        }
        for member in 1..=MEMBERS {
            prop_assert_eq!(shop.counts(member), shop.recount(member), "of {}", member);
        }
    }
    // Nobody talks any more: nothing is left and nothing was lost.
    shop.pass(IDLE.open_units + IDLE.half_units + CLOSING_UNITS + BRIEF_UNITS + 2);
    shop.sweep();
    prop_assert_eq!(shop.entries().count(), 0);
    for member in 1..=MEMBERS {
        prop_assert_eq!(shop.counts(member), (0, 0));
    }
    Ok(kept)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn connections_stay_limits_hold_and_counts_are_what_the_table_holds(
        steps in prop::collection::vec(step(), 1..150), scheduler in 0u8..3,
        buckets in prop_oneof![3 => Just(64u32), 2 => Just(1u32)],
    ) {
        history(steps, scheduler, buckets)?;
    }
}

#[test]
fn histories_have_connections_that_could_have_moved() {
    // The same generator: what it makes must reach what is checked.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let steps = prop::collection::vec(step(), 150);
    let mut kept = 0;
    for _ in 0..50 {
        let steps = steps.new_tree(&mut runner).unwrap().current();
        kept += history(steps, scheduler::LEAST_CONNECTIONS, 64).unwrap();
    }
    assert!(kept > 1000, "only {kept} packets of open connections");
}
