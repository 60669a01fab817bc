//! A service whose flows another node has.

use super::*;
use crate::{dataplane::desired::AdoptedShares, scheduler};

/// Shares of backends by number, as another node has them.
fn adopt(runtime: &mut Runtime, shares: &[(u8, u32)], keep: bool) {
    let identity = |n: u8| scheduler::identity(backend(n).address, backend(n).port);
    let shares = shares.iter().map(|(n, share)| (identity(*n), *share));
    let theirs = AdoptedShares {
        shares: shares.collect(),
        keep,
    };
    runtime.adopted.insert(service(1, "p").name, theirs);
}

#[test]
fn the_other_nodes_shares_make_the_table_and_no_slot_is_tracked_for_it() {
    let model = one_pool([1, 2, 3], vec![service(1, "p")]);
    // There the third one is down, and the first has more weight.
    let mut there = FakeMaps::new(CAPACITY.slots);
    let mut heavy = model.clone();
    heavy.pools.get_mut("p").unwrap().backends[0].weight = 3;
    let mut condition_there = runtime();
    condition(&mut condition_there, 3, Condition::Dead);
    let key = BackendKey {
        pool: "p".into(),
        backend: "b1".into(),
    };
    condition_there
        .backends
        .insert(key, BackendCondition::up(3));
    reconcile(&mut there, &heavy, &condition_there);

    let mut here = FakeMaps::new(CAPACITY.slots);
    reconcile(&mut here, &model, &runtime());
    let mut followed = runtime();
    adopt(&mut followed, &[(1, 3), (2, 1)], false);
    reconcile(&mut here, &model, &followed);
    assert_eq!(owners(&here), owners(&there));
    assert!(words(&here).iter().all(|word| !word.is_tracked()));

    // By itself again, it changes as ever: with its old members as bases.
    reconcile(&mut here, &model, &runtime());
    assert_eq!(owners(&here).len(), 3);
    let moved = words(&here).iter().filter(|word| word.is_tracked()).count();
    assert!(moved > 0);
}

#[test]
fn what_is_tracked_stays_so_with_the_base_it_was_told() {
    let model = one_pool([1, 2, 3], vec![service(1, "p")]);
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(&mut maps, &model, &runtime());
    let (first, third) = (id_of(&maps, 1), id_of(&maps, 3));
    let place = (0..)
        .zip(words(&maps))
        .find(|(_, word)| word.current() == third);
    let (index, seen) = place.unwrap();
    let told = SlotWord::tracked(third, first, NOW - 5);
    maps.replace_slot(index, seen, told).unwrap().unwrap();
    let mut followed = runtime();
    adopt(&mut followed, &[(2, 1)], false);
    // Though the base is down, as far as this node can see.
    condition(&mut followed, 1, Condition::Dead);
    reconcile(&mut maps, &model, &followed);
    let second = id_of(&maps, 2);
    for (slot, word) in (0..).zip(words(&maps)) {
        let wanted = if slot == index {
            SlotWord::tracked(second, first, NOW - 5)
        } else {
            SlotWord::stable(second)
        };
        assert_eq!(word, wanted, "{slot}");
    }
    assert!(ops(&maps, &model, &followed).is_empty());
}

#[test]
fn shares_of_members_that_this_node_does_not_have_are_not_taken() {
    let model = one_pool([1, 2], vec![service(1, "p")]);
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(&mut maps, &model, &runtime());
    let before = words(&maps);
    let mut followed = runtime();
    adopt(&mut followed, &[(1, 1), (9, 1)], false);
    reconcile(&mut maps, &model, &followed);
    assert_eq!(words(&maps), before);
}

#[test]
fn where_nobody_gets_flows_there_slots_stay_here() {
    let model = one_pool([1, 2], vec![service(1, "p")]);
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(&mut maps, &model, &runtime());
    let before = words(&maps);
    let mut followed = runtime();
    adopt(&mut followed, &[], true);
    reconcile(&mut maps, &model, &followed);
    assert_eq!(words(&maps), before);
}
