//! Which member gets a packet of a service with full tracking.

use lb_common::{
    abi::{Config, ServiceEntry, service_flag, udp},
    flow::{CONTROL, FlowKey, FlowTable as _, FlowWord, Found, Place},
    load::{self, Counts, Meter},
    member::MemberState,
    schedule::{self, Choice, Members, Policy},
    slot::SlotWord,
    track::{Kind, Times, full},
};

use crate::{
    defence, lookup,
    maps::{self, Indexed, Slot, lb_find, lb_insert},
    parse::Parsed,
    persistence,
    select::{self, World},
};

/// The service that chooses.
struct Chooser {
    service: &'static ServiceEntry,
    flows: Indexed,
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

    #[inline(always)]
    fn counts(&self, member: u32) -> Counts {
        Loads.counts(member)
    }

    #[inline(always)]
    fn next(&self, member: u32) -> u32 {
        Loads.next(member)
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

    #[inline(always)]
    fn counts(&self, member: u32) -> Counts {
        Counts(maps::load_of(member).counts)
    }

    #[inline(always)]
    fn next(&self, member: u32) -> u32 {
        maps::load_of(member).next
    }
}

/// Global like [`lb_choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_has_room(member: u32) -> u32 {
    u32::from(load::has_room(&Loads, member))
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

/// Global like [`lb_choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_admit(member: u32, by: u64) -> u32 {
    load::admit(&Loads, member, by) as u32
}

/// Whether the service takes a new flow now of the source of the packet at
/// hand: zero, or a `DropReason`. Global like [`lb_choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_limit() -> u32 {
    let (Some(service), Some(config), Some(work)) = (maps::chooser(), maps::config(), maps::work())
    else {
        return 0;
    };
    let parsed = Parsed::resume(work);
    defence::limit(config, service, parsed.source(), parsed.family())
}

/// Global like [`lb_choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_weigh(service: u32, member: u32) -> u64 {
    let weight = maps::load_of(member).weight;
    schedule::weigh(&Loads, takes_new(service, member), member, weight)
}

impl full::Service for World<'_, Indexed> {
    #[inline(always)]
    fn find(&self, key: FlowKey) -> Option<Found<u32>> {
        let mut bucket = key.home;
        let mut word = lb_find(bucket, key.tag, self.service.id);
        if word == CONTROL as u32 && self.flows.load(bucket, CONTROL) != 0 {
            bucket = key.alternate(self.flows.buckets());
            word = lb_find(bucket, key.tag, self.service.id);
        }
        let bucket = self.flows.hide(bucket.into()) as u32;
        let word = self.flows.blur(word as usize);
        let entry = FlowWord(self.flows.hide(self.flows.load(bucket, word)));
        // Somebody else's by now: this packet's flow has none.
        let word = if entry.tag() == key.tag {
            word
        } else {
            CONTROL
        };
        Some(Found {
            bucket,
            word,
            entry,
        })
    }

    #[inline(always)]
    fn insert(&self, key: FlowKey, entry: FlowWord, place: Place, times: Times) -> bool {
        let reserved = u32::from(place == Place::Reserved);
        let done = lb_insert(key.home, entry.0, times.now_ticks, reserved);
        self.flows.hide(done.into()) != 0
    }

    #[inline(always)]
    fn rejoin(&self, by: u64) -> u32 {
        self.flows
            .hide(persistence::rejoin(self.service, by).into()) as u32
    }

    #[inline(always)]
    fn remember(&self, member: u32) {
        persistence::remember(self.service, member);
    }

    #[inline(always)]
    fn choose(&self, hash: u64, home: u32, by: u64) -> Choice {
        maps::set_chooser(self.service);
        Choice(lb_choose(hash, by, home))
    }

    #[inline(always)]
    fn admit(&self, member: u32, by: u64) -> u32 {
        self.flows.hide(u64::from(lb_admit(member, by))) as u32
    }

    #[inline(always)]
    fn give_back(&self, member: u32, by: u64) {
        maps::count_flows(member, by.wrapping_neg());
    }

    #[inline(always)]
    fn limit(&self) -> u32 {
        // Of TCP every SYN has been counted.
        let is_guarded = lookup::has_flag(self.service, service_flag::GUARDED);
        if self.service.udp == udp::STATELESS || !is_guarded {
            return 0;
        }
        maps::set_chooser(self.service);
        self.flows.hide(lb_limit().into()) as u32
    }

    #[inline(always)]
    fn has_room(&self, member: u32) -> bool {
        self.flows.hide(lb_has_room(member).into()) != 0
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
        flows: Indexed::new(config),
    };
    let policy = Policy {
        scheduler: service.scheduler,
        cycle: service.cycle,
        slots: service.slot_size,
        groups: service.list_sizes,
    };
    schedule::choose(&chooser, &policy, hash, home, by).0
}

/// The member of a flow; zero if there is none, [`select::REFUSED`] and why if
/// it is to have none.
#[inline(never)]
pub fn member(
    config: &Config,
    service: &ServiceEntry,
    slot: &Slot,
    flow_hash: u64,
    kind: Kind,
) -> u32 {
    let world = World {
        flows: Indexed::new(config),
        service,
        slot: *slot,
    };
    let question = full::Question {
        slot: slot.word,
        hash: flow_hash,
        key: FlowKey::new(flow_hash, config.flow_buckets),
        kind,
    };
    let decision = full::decide(&world, question, select::times(config, service));
    select::count(service, decision)
}
