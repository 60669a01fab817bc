//! Bindings of another node, which has the same pool addresses.

use super::{Flow, NEVER, change, end, find, record, state, word};
use crate::{
    flow::{self, FlowKey, FlowTable, FlowWord, Mark, Place},
    track::Kind,
};

/// What the other node says of a flow's binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Member that has the flow.
    pub member: u32,
    /// [`super::BindingState::flags`].
    pub flags: u8,
    /// When it was last seen.
    pub seen_ticks: u32,
}

/// Gives the binding `index` to a flow that has it on the other node; whoever
/// had it here is gone. Nobody may balance the flow here meanwhile. `false`:
/// it has no pool address, or there is no room for the flow's entry.
pub fn import<B: FlowTable, F: FlowTable>(
    bindings: &B,
    flows: &F,
    index: u32,
    flow: &Flow<'_>,
    imported: Imported,
    now_ticks: u32,
) -> bool {
    let Some(at) = bindings.bucket(index) else {
        return false;
    };
    let old = state(bindings, at);
    if old.usage() == super::Use::Absent {
        return false;
    }
    if let Some(found) = find(bindings, flows, flow) {
        if found.entry.member() == index {
            let new = old.imported(imported.flags, imported.seen_ticks);
            bindings.store(
                at,
                word::MEMBER,
                record::pair(imported.member, flow.service),
            );
            return change(bindings, at, old, new);
        }
        // The other node gave it up meanwhile.
        end(bindings, flows, &found, now_ticks);
    }
    let claimed = old.claimed(now_ticks, Kind::Data);
    if !change(bindings, at, old, claimed) {
        return false;
    }
    record::write(bindings, at, flow, imported.member);
    let key = FlowKey::new(flow.hash, flows.buckets());
    let entry = FlowWord::new(key.tag, index, now_ticks, Mark::Open);
    if !flow::insert(flows, key, entry, Place::Free, now_ticks, NEVER) {
        change(bindings, at, claimed, claimed.ended(now_ticks));
        return false;
    }
    let used = claimed.imported(imported.flags, imported.seen_ticks);
    change(bindings, at, claimed, used)
}
