//! Takes the steps of a plan.

use lb_common::abi::MemberEntry;

use super::{
    plan::{MapOp, SlotChange, SlotOp},
    store::{MapStore, StoreError},
};

/// What a plan changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Steps taken.
    pub ops: usize,
    /// Slots of living services that went to another member.
    pub slots_moved: usize,
    /// Slots of new services that were filled.
    pub slots_filled: usize,
}

/// Takes all steps, or stops at the first that fails: what was taken is right
/// by itself, and a new plan from a new snapshot completes it.
///
/// # Errors
/// The step that failed.
pub fn apply<S: MapStore>(
    store: &mut S,
    ops: &[MapOp],
    now_ticks: u32,
) -> Result<Applied, StoreError> {
    let mut applied = Applied::default();
    for op in ops {
        execute(store, op, now_ticks)?;
        applied.ops += 1;
        if let MapOp::Slot(slot) = op {
            match slot.change {
                SlotChange::To { .. } | SlotChange::Follow(_) => applied.slots_moved += 1,
                SlotChange::Stable(_) if slot.is_first() => applied.slots_filled += 1,
                SlotChange::Stable(_) => applied.slots_moved += 1,
                SlotChange::Rebase | SlotChange::Watch => {}
            }
        }
    }
    Ok(applied)
}

/// Takes one step.
///
/// # Errors
/// The map can't be written.
pub fn execute<S: MapStore>(store: &mut S, op: &MapOp, now_ticks: u32) -> Result<(), StoreError> {
    match op {
        MapOp::SetConfig(config) => store.set_config(config),
        MapOp::OwnAlways => store.own_always(),
        MapOp::SetLink(index, link) => store.set_link(*index, link.as_ref()),
        MapOp::SetServiceName(id, name) => store.set_service_name(*id, name.as_deref()),
        MapOp::WriteMember(id, member) => store.write_member(*id, member),
        MapOp::SetMemberState(id, state) => store.set_member_state(*id, *state),
        MapOp::SetNextHop(id, next_hop) => store.set_next_hop(*id, *next_hop),
        MapOp::SetMtu(id, mtu) => store.set_mtu(*id, *mtu),
        MapOp::FreeMember(id) => store.write_member(*id, &MemberEntry::default()),
        MapOp::SetLimits(id, limits) => store.set_limits(*id, *limits),
        MapOp::SetListed(index, member) => store.set_listed(*index, *member),
        MapOp::Slot(op) => change_slot(store, *op, now_ticks),
        MapOp::PutService(key, entry) => store.put_service(key, entry),
        MapOp::RemoveService(key) => store.remove_service(key),
        MapOp::PutRange(block, entry) => store.put_range(block, entry),
        MapOp::RemoveRange(block) => store.remove_range(block),
        MapOp::PutVip(key, entry) => store.put_vip(key, entry),
        MapOp::RemoveVip(key) => store.remove_vip(key),
        MapOp::PutSource(prefix, value) => store.put_source(prefix, *value),
        MapOp::RemoveSource(prefix) => store.remove_source(prefix),
        MapOp::PutServer(key, member) => store.put_server(key, *member),
        MapOp::RemoveServer(key) => store.remove_server(key),
        MapOp::PutReply(key, entry) => store.put_reply(key, entry),
        MapOp::RemoveReply(key) => store.remove_reply(key),
        MapOp::PutPool(key, entry) => store.put_pool(key, entry),
        MapOp::RemovePool(key) => store.remove_pool(key),
        MapOp::PutLocal(prefix, value) => store.put_local(prefix, *value),
        MapOp::RemoveLocal(prefix) => store.remove_local(prefix),
    }
}

fn change_slot<S: MapStore>(store: &mut S, op: SlotOp, now_ticks: u32) -> Result<(), StoreError> {
    // Slots of a new service hold whatever their last owner left.
    let mut seen = if op.is_first() {
        store.slot(op.index)?
    } else {
        op.seen
    };
    loop {
        match store.replace_slot(op.index, seen, op.change.applied(seen, now_ticks))? {
            Ok(()) => return Ok(()),
            Err(actual) => seen = actual,
        }
    }
}
