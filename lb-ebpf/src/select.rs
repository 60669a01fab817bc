//! Which member gets a packet of a service.

use lb_common::{
    abi::{Config, MemberEntry, ServiceEntry, service_flag, udp},
    counter::{DropReason, Event},
    flow::{FlowKey, FlowTable as _, Idle},
    hash::{self, scale},
    load::{self, Counts, Meter},
    member::MemberState,
    net::family,
    quic,
    schedule::{self, Choice, Members, Policy},
    slot::SlotWord,
    track::{self, Decision, Entry, Kind, Times, full},
};

use crate::{
    clock,
    frame::Frame,
    lookup,
    maps::{self, Flows, Slot},
    parse::Parsed,
    stats,
};

/// Bytes of a UDP header.
const UDP: usize = 8;

/// In the place of a member's id: nobody has room for another connection.
pub const NO_ROOM: u32 = u32::MAX;

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

/// The service that chooses.
struct Chooser {
    service: &'static ServiceEntry,
    flows: Flows,
}

impl Meter for Chooser {
    #[inline(always)]
    fn max(&self, member: u32) -> u32 {
        Loads.max(member)
    }

    #[inline(always)]
    fn add(&self, member: u32, by: u64) -> Counts {
        Loads.add(member, by)
    }
}

impl Chooser {
    /// A word of `SLOTS`.
    #[inline(always)]
    fn word(index: u32) -> u64 {
        maps::slot(index).map_or(0, |slot| slot.word.0)
    }
}

impl Members for Chooser {
    #[inline(always)]
    fn in_slot(&self, index: u32) -> u32 {
        SlotWord(Self::word(self.service.slot_offset.wrapping_add(index))).current()
    }

    #[inline(always)]
    fn listed(&self, index: u32) -> u32 {
        Self::word(self.service.list_offset.wrapping_add(index)) as u32
    }

    #[inline(always)]
    fn turn(&self) -> u64 {
        maps::turn(self.service.id)
    }

    #[inline(always)]
    fn ask(&self, member: u32, by: u64) -> u32 {
        lb_ask(self.service.id, member, by)
    }

    #[inline(always)]
    fn weigh(&self, member: u32) -> u64 {
        lb_weigh(self.service.id, member)
    }

    #[inline(always)]
    fn blur(&self, number: u64) -> u64 {
        self.flows.hide(number)
    }
}

/// The members' counts.
struct Loads;

impl Meter for Loads {
    #[inline(always)]
    fn max(&self, member: u32) -> u32 {
        maps::load_of(member).max
    }

    #[inline(always)]
    fn add(&self, member: u32, by: u64) -> Counts {
        maps::count_flows(member, by)
    }
}

#[inline(always)]
fn takes_new(service: u32, member: u32) -> bool {
    maps::member(member).is_some_and(|m| m.service == service && MemberState(m.state).takes_new())
}

/// Global like [`lb_choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_ask(service: u32, member: u32, by: u64) -> u32 {
    schedule::ask(&Loads, takes_new(service, member), member, by)
}

#[inline(never)]
fn admit(member: u32, by: u64) -> u32 {
    load::admit(&Loads, member, by) as u32
}

/// Global like [`lb_choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_weigh(service: u32, member: u32) -> u64 {
    let load = maps::load_of(member);
    let takes_new = takes_new(service, member);
    schedule::weigh(takes_new, Counts(load.counts), load.max, load.weight)
}

impl full::Service for World<'_> {
    #[inline(always)]
    fn choose(&self, hash: u64, home: u32, by: u64) -> Choice {
        maps::set_chooser(self.service);
        Choice(lb_choose(hash, by, home))
    }

    #[inline(always)]
    fn admit(&self, member: u32, by: u64) -> u32 {
        self.flows.hide(u64::from(admit(member, by))) as u32
    }

    #[inline(always)]
    fn give_back(&self, member: u32, by: u64) {
        maps::count_flows(member, by.wrapping_neg());
    }

    #[inline(always)]
    fn has_room(&self, member: u32) -> bool {
        let load = maps::load_of(member);
        load.max == 0 || Counts(load.counts).total() < load.max
    }
}

/// A global function: the verifier checks it once, for any arguments, and not
/// once for each state that a call is made in. So what it needs besides stands
/// in a map.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_choose(hash: u64, by: u64, home: u32) -> u32 {
    let (Some(service), Some(config)) = (maps::chooser(), maps::config()) else {
        return Choice::NOBODY.0;
    };
    let chooser = Chooser {
        service,
        flows: Flows::forward(config),
    };
    let policy = Policy {
        scheduler: service.scheduler,
        cycle: service.cycle,
        slots: service.slot_size,
        groups: service.list_sizes,
    };
    schedule::choose(&chooser, &policy, hash, home, by).0
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

/// The slot of a packet.
#[inline(always)]
pub fn slot(
    config: &Config,
    service: &ServiceEntry,
    parsed: &Parsed,
    flow_hash: u64,
) -> Result<Slot, DropReason> {
    let place = if !lookup::has_flag(service, service_flag::BY_SOURCE) {
        flow_hash
    } else {
        source_hash(config, service, parsed)
    };
    let index = scale(hash::tag(place), service.slot_size).wrapping_add(service.slot_offset);
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
    let prefix = if parsed.family() == family::V4 {
        service.prefix_v4
    } else {
        service.prefix_v6
    };
    hash::flow_hash(config.hash_key, &parsed.tuple().source_only(prefix))
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

#[inline(always)]
fn count(service: &ServiceEntry, decision: Decision) -> u32 {
    match decision.entry {
        Entry::Inserted => stats::event(service.id, Event::FlowInserted),
        Entry::Refused => stats::event(service.id, Event::Untracked),
        Entry::Found | Entry::None => {}
        Entry::NoRoom => return NO_ROOM,
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

/// The member of a flow under full tracking; zero if there is none, [`NO_ROOM`]
/// if nobody has room for it.
#[inline(never)]
pub fn scheduled(
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
    let question = full::Question {
        slot: slot.word,
        hash: flow_hash,
        key: FlowKey::new(flow_hash, config.flow_buckets),
        kind,
    };
    let decision = full::decide(&world, question, times(config, service));
    count(service, decision)
}
