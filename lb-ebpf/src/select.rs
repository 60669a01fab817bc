//! Which member gets a packet of a service.

use lb_common::{
    abi::{Config, MemberEntry, ServiceEntry, service_flag},
    counter::{DropReason, Event},
    flow::{FlowKey, Idle},
    hash::{self, scale},
    member::MemberState,
    slot::SlotWord,
    track::{self, Entry, Kind, Times},
};

use crate::{
    clock, lookup,
    maps::{self, Flows, Slot},
    stats,
};

struct World<'a> {
    flows: Flows,
    service: &'a ServiceEntry,
    slot: Slot,
}

impl track::World for World<'_> {
    type Flows = Flows;

    #[inline(always)]
    fn flows(&self) -> &Flows {
        &self.flows
    }

    #[inline(always)]
    fn state(&self, member: u32) -> MemberState {
        maps::member_state(member)
    }

    #[inline(always)]
    fn is_ours(&self, member: u32) -> bool {
        maps::member(member).is_some_and(|m| m.service == self.service.id)
    }

    #[inline(always)]
    fn resets(&self) -> bool {
        lookup::has_flag(self.service, service_flag::RESET)
    }

    #[inline(always)]
    fn replace_slot(&self, current: SlotWord, new: SlotWord) -> bool {
        self.slot.replace(current, new)
    }
}

/// The slot of a flow.
#[inline(always)]
pub fn slot(service: &ServiceEntry, flow_hash: u64) -> Result<Slot, DropReason> {
    let index = scale(hash::tag(flow_hash), service.slot_size).wrapping_add(service.slot_offset);
    maps::slot(index).ok_or(DropReason::Inconsistent)
}

/// The member of a flow in a slot as it stands.
#[inline(always)]
pub fn id(config: &Config, service: &ServiceEntry, flow_hash: u64, kind: Kind) -> u32 {
    match slot(service, flow_hash) {
        Ok(slot) if slot.word.is_tracked() => tracked(config, service, &slot, flow_hash, kind),
        Ok(slot) => slot.word.current(),
        Err(_) => 0,
    }
}

/// The record of the member that was selected.
#[inline(always)]
pub fn member(
    service: &ServiceEntry,
    id: u32,
    kind: Kind,
) -> Result<&'static MemberEntry, DropReason> {
    if id == 0 {
        return Err(DropReason::NoBackend);
    }
    let member = maps::member(id).ok_or(DropReason::Inconsistent)?;
    if !MemberState(member.state).serves() {
        let is_new = kind == Kind::Syn || !lookup::has_flag(service, service_flag::RESET);
        return Err(if is_new {
            DropReason::NoBackend
        } else {
            DropReason::BackendGone
        });
    }
    if member.service != service.id {
        return Err(DropReason::Inconsistent);
    }
    Ok(member)
}

/// Id of the member that a flow is with, for what is no sign of life of it.
/// Nothing is changed or counted.
#[inline(always)]
pub fn peek(config: &Config, service: &ServiceEntry, flow_hash: u64) -> Result<u32, DropReason> {
    let slot = slot(service, flow_hash)?;
    let id = if slot.word.is_tracked() {
        peek_tracked(config, service, &slot, flow_hash)
    } else {
        slot.word.current()
    };
    // Nobody is reset for what is no packet of the flow.
    member(service, id, Kind::Syn)?;
    Ok(id)
}

#[inline(never)]
fn peek_tracked(config: &Config, service: &ServiceEntry, slot: &Slot, flow_hash: u64) -> u32 {
    let key = FlowKey::new(flow_hash, config.flow_buckets);
    let world = World {
        flows: Flows::forward(config),
        service,
        slot: *slot,
    };
    track::peek(&world, slot.word, key, times(config, service))
}

#[inline(always)]
fn times(config: &Config, service: &ServiceEntry) -> Times {
    Times {
        now_ticks: clock::ticks(config),
        syn_window_ticks: config.syn_window_ticks,
        idle: Idle {
            open_units: service.idle_units,
            half_units: config.half_units,
        },
        longest_idle: Idle {
            open_units: config.longest_idle_units,
            half_units: config.half_units,
        },
    }
}

/// The member of a flow in a tracked slot; zero if there is none.
#[inline(never)]
pub fn tracked(
    config: &Config,
    service: &ServiceEntry,
    slot: &Slot,
    flow_hash: u64,
    kind: Kind,
) -> u32 {
    let key = FlowKey::new(flow_hash, config.flow_buckets);
    let world = World {
        flows: Flows::forward(config),
        service,
        slot: *slot,
    };
    let decision = track::decide(&world, slot.word, key, kind, times(config, service));
    match decision.entry {
        Entry::Inserted => stats::event(service.id, Event::FlowInserted),
        Entry::Refused => stats::event(service.id, Event::Untracked),
        Entry::Found | Entry::None => {}
    }
    decision.member
}
