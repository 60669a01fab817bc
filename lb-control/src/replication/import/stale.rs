//! What a peer doesn't have any more, though it is here.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use lb_common::{
    binding,
    flow::{self, BUCKET_WORDS, CONTROL, FlowTable, FlowWord, Place},
    slot::SlotWord,
};

use super::{Effects, Importer, Own};
use crate::{replication::world::World, status::Standing};

impl Importer {
    /// What the peer has told is all there is: what else is here is from another
    /// time, when this node owned the service or heard of it.
    pub(super) fn end<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        own: &Own,
        effects: &mut Effects,
    ) {
        self.standing = Standing::InSync;
        let Some(marks) = self.marks.take() else {
            return;
        };
        let theirs: BTreeSet<u32> = self
            .services
            .keys()
            .filter_map(|id| self.service(world.catalogue, *id))
            .filter(|id| !own.contains(id) && !self.kept.contains(id))
            .collect();
        let names: BTreeSet<Arc<str>> = self.services.values().map(|s| s.name.clone()).collect();
        let before = self.adopted.len();
        self.adopted.retain(|name, _| names.contains(name));
        effects.adopted |= self.adopted.len() != before;
        for id in &theirs {
            let Some(service) = world.catalogue.services.get(id) else {
                continue;
            };
            for index in service.offset..service.offset.saturating_add(service.size()) {
                let index = index as usize;
                let (Some(word), Some(false)) = (world.slots.get(index), marks.slots.get(index))
                else {
                    continue;
                };
                let slot = SlotWord(word.load(Relaxed));
                if slot.is_tracked() {
                    word.store(SlotWord::stable(slot.current()).0, Relaxed);
                    self.counts.stale += 1;
                }
            }
        }
        let is_theirs = |member: u32| {
            let known = world.catalogue.service_of(member);
            known.is_some_and(|(id, _)| theirs.contains(&id))
        };
        for (table, marks) in [(world.flows, &marks.flows), (world.replies, &marks.replies)] {
            self.counts.stale += drop_stale(table, marks, is_theirs);
        }
        for (index, marked) in (0u32..).zip(&marks.bindings) {
            let Some(at) = world.bindings.bucket(index).filter(|_| !marked) else {
                continue;
            };
            let state = binding::state(world.bindings, at);
            if state.is_used()
                && is_theirs(binding::member(world.bindings, at))
                && binding::change(world.bindings, at, state, state.ended(world.now_ticks))
            {
                self.counts.stale += 1;
            }
        }
    }
}

fn drop_stale<T: FlowTable>(table: &T, marks: &[bool], is_theirs: impl Fn(u32) -> bool) -> u64 {
    let mut dropped = 0;
    for (index, marks) in (0u32..).zip(marks.chunks(BUCKET_WORDS)) {
        let Some(bucket) = table.bucket(index) else {
            break;
        };
        for (word, marked) in marks.iter().enumerate().skip(CONTROL + 1) {
            let entry = FlowWord(table.load(bucket, word));
            if !marked
                && !entry.is_empty()
                && is_theirs(entry.member())
                && flow::exchange(table, bucket, word, entry, FlowWord::EMPTY, Place::Free)
            {
                dropped += 1;
            }
        }
    }
    dropped
}
