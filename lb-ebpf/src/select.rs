//! Which member gets a packet of a service.

use lb_common::{
    abi::{Config, MemberEntry, ServiceEntry},
    counter::{DropReason, Event},
    flow::{FlowKey, Idle},
    hash::{self, scale},
    member::MemberState,
    slot::SlotWord,
    track::{self, Entry, Kind, Times},
};

use crate::{
    clock,
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
    fn replace_slot(&self, current: SlotWord, new: SlotWord) {
        self.slot.replace(current, new);
    }
}

/// The member's id and record.
#[inline(always)]
pub fn member(
    config: &Config,
    service: &ServiceEntry,
    flow_hash: u64,
    kind: Kind,
) -> Result<(u32, &'static MemberEntry), DropReason> {
    let index = scale(hash::tag(flow_hash), service.slot_size).wrapping_add(service.slot_offset);
    let slot = maps::slot(index).ok_or(DropReason::Inconsistent)?;
    let id = if slot.word.is_tracked() {
        tracked(config, service, &slot, flow_hash, kind)
    } else {
        slot.word.current()
    };
    if id == 0 {
        return Err(DropReason::NoBackend);
    }
    let member = maps::member(id).ok_or(DropReason::Inconsistent)?;
    if !MemberState(member.state).serves() {
        return Err(DropReason::NoBackend);
    }
    if member.service != service.id {
        return Err(DropReason::Inconsistent);
    }
    Ok((id, member))
}

/// Id of the member that a flow is with, for what is no sign of life of it. Nothing is
/// changed or counted.
#[inline(always)]
pub fn peek(config: &Config, service: &ServiceEntry, flow_hash: u64) -> Result<u32, DropReason> {
    let index = scale(hash::tag(flow_hash), service.slot_size).wrapping_add(service.slot_offset);
    let slot = maps::slot(index).ok_or(DropReason::Inconsistent)?;
    let id = if slot.word.is_tracked() {
        peek_tracked(config, service, &slot, flow_hash)
    } else {
        slot.word.current()
    };
    let member = maps::member(id).ok_or(DropReason::Inconsistent)?;
    if id == 0 || !MemberState(member.state).serves() {
        return Err(DropReason::NoBackend);
    }
    if member.service != service.id {
        return Err(DropReason::Inconsistent);
    }
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

#[inline(never)]
fn tracked(
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
