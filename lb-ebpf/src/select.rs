//! Which member gets a packet of a service.

use lb_common::{
    abi::{Config, MemberEntry, ServiceEntry, service_flag, udp},
    counter::{DropReason, Event},
    flow::{FlowKey, FlowTable, Idle},
    hash::{self, Tuple, scale},
    member::MemberState,
    net::family,
    quic,
    slot::SlotWord,
    track::{self, Decision, Entry, Kind, Times},
};

use crate::{
    clock,
    frame::Frame,
    lookup,
    maps::{self, Flows, Slot},
    parse::Parsed,
    persistence, stats,
};

/// Bytes of a UDP header.
const UDP: usize = 8;

/// In the place of a member's id, with a [`DropReason`]: there is none for this
/// packet.
pub const REFUSED: u32 = 0xffff_ff00;

/// What a decision on a packet goes by: the service, the packet's slot, and the
/// flow table in the shape that the program takes it in.
pub struct World<'a, F> {
    pub flows: F,
    pub service: &'a ServiceEntry,
    pub slot: Slot,
}

impl<F: FlowTable> track::World for World<'_, F> {
    type Flows = F;

    #[inline(always)]
    fn flows(&self) -> &F {
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

/// The member of a flow in a slot as it stands.
#[inline(always)]
pub fn id(frame: &Frame<'_>, service: &ServiceEntry, parsed: &Parsed, flow_hash: u64) -> u32 {
    match slot(frame.config, service, parsed, flow_hash) {
        Ok(slot) if slot.word.is_tracked() => {
            let kind = kind(frame, service, parsed);
            tracked(frame.config, service, &slot, flow_hash, kind)
        }
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
pub fn peek(
    config: &Config,
    service: &ServiceEntry,
    tuple: &Tuple,
    flow_hash: u64,
) -> Result<u32, DropReason> {
    let place = if lookup::has_flag(service, service_flag::BY_SOURCE) {
        hash_of_source(config, service, tuple)
    } else {
        flow_hash
    };
    let slot = slot_of_flow(service, place)?;
    let is_looked_up =
        slot.word.is_tracked() || lookup::has_flag(service, service_flag::FULL_TRACKING);
    let id = if is_looked_up {
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

/// The slot of a packet.
#[inline(always)]
pub fn slot(
    config: &Config,
    service: &ServiceEntry,
    parsed: &Parsed,
    flow_hash: u64,
) -> Result<Slot, DropReason> {
    let place = if lookup::has_flag(service, service_flag::BY_SOURCE) {
        source_hash(config, service, parsed)
    } else {
        flow_hash
    };
    slot_of_flow(service, place)
}

/// The slot of a packet of a service that isn't by source.
#[inline(always)]
pub fn slot_of_flow(service: &ServiceEntry, flow_hash: u64) -> Result<Slot, DropReason> {
    let index = scale(hash::tag(flow_hash), service.slot_size).wrapping_add(service.slot_offset);
    maps::slot(index).ok_or(DropReason::Inconsistent)
}

/// The hash of a packet's flow.
#[inline(never)]
pub fn flow_hash(config: &Config, parsed: &Parsed) -> u64 {
    hash::flow_hash(config.hash_key, &parsed.tuple())
}

/// What places a packet of a service by source: the hash of its source's prefix.
#[inline(never)]
fn source_hash(config: &Config, service: &ServiceEntry, parsed: &Parsed) -> u64 {
    place_of_source(config, service, &parsed.tuple())
}

/// As [`source_hash`], of a tuple.
#[inline(never)]
fn hash_of_source(config: &Config, service: &ServiceEntry, tuple: &Tuple) -> u64 {
    place_of_source(config, service, tuple)
}

/// Sources that are many clients' are placed flow by flow.
#[inline(always)]
fn place_of_source(config: &Config, service: &ServiceEntry, tuple: &Tuple) -> u64 {
    if persistence::is_proxy(service, tuple.source) {
        return hash::flow_hash(config.hash_key, tuple);
    }
    let prefix = if tuple.family == family::V4 {
        service.prefix_v4
    } else {
        service.prefix_v6
    };
    hash::flow_hash(config.hash_key, &tuple.source_only(prefix))
}

/// What a packet means to its flow.
#[inline(always)]
pub fn kind(frame: &Frame<'_>, service: &ServiceEntry, parsed: &Parsed) -> Kind {
    let kind = match service.udp {
        udp::STATELESS => parsed.kind(),
        udp::TRACKED => Kind::Datagram,
        _ => frame
            .packet
            .at::<[u8; quic::BYTES]>(parsed.offset() + UDP)
            .map_or(Kind::Data, |first| quic::kind(first.read())),
    };
    // What follows is the same for the verifier whatever it is.
    let number = Flows::forward(frame.config).hide(u64::from(kind as u32));
    Kind::of_number(number as u32)
}

/// The times that a service's flows go by.
#[inline(always)]
pub fn times(config: &Config, service: &ServiceEntry) -> Times {
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

/// Counts what a decision did; the packet's member, or [`REFUSED`] and why.
#[inline(always)]
pub fn count(service: &ServiceEntry, decision: Decision) -> u32 {
    match decision.entry {
        Entry::Inserted => stats::event(service.id, Event::FlowInserted),
        Entry::Refused => stats::event(service.id, Event::Untracked),
        Entry::Found | Entry::None => {}
        Entry::NoRoom => return REFUSED | DropReason::MaxConnections as u32,
        Entry::Limited => return REFUSED | decision.member,
    }
    decision.member
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
    let world = World {
        flows: Flows::forward(config),
        service,
        slot: *slot,
    };
    let key = FlowKey::new(flow_hash, config.flow_buckets);
    let decision = track::decide(&world, slot.word, key, kind, times(config, service));
    count(service, decision)
}
