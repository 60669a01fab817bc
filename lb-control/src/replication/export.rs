//! Tells a peer what it needs to go on with this node's flows: the shares, the
//! slots that don't follow from them, and every entry, binding and source.
//!
//! What the peer knows stands in a copy of the tables. A pass compares them,
//! tells what differs and notes that it was told; when the link has no room it
//! goes on there later. So nothing is queued but a message, nothing overflows,
//! and what changes twice meanwhile is told once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::Ordering::Relaxed,
};

use crate::status::Exported;
use lb_common::{
    abi::{PersistEntry, PersistKey, method},
    binding::{self, BindingState, Use},
    clock::UNIT_SHIFT,
    flow::{BUCKET_WORDS, CONTROL, FlowTable, FlowWord, transfer},
    hash::scale,
    slot::SlotWord,
};

use super::{
    record::{Binding, Flow, Gone, Hello, Member, MemberEnd, Record, Service, Share, Slot, Which},
    world::{self, World},
};

mod outbox;
mod sources;

use outbox::Outbox;

/// An entry is told again after so much of its idle time.
const REFRESHED: u32 = 8;

/// How far a step got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All that differed was told.
    Done,
    /// There is more to look at.
    More,
    /// The link has no room now.
    Full,
}

/// Of one peer.
#[derive(Debug, Default)]
pub struct Exporter {
    out: Outbox,
    greeted: bool,
    /// All is being told.
    bulk: bool,
    exported: BTreeSet<u32>,
    catalogue: u64,
    services: BTreeMap<u32, world::Service>,
    members: HashMap<u32, MemberEnd>,
    /// By member: units after which an entry is told again; zero: not told.
    refresh: Vec<u32>,
    slots: Vec<u64>,
    flows: Vec<u64>,
    replies: Vec<u64>,
    bindings: Vec<u64>,
    sources: HashMap<PersistKey, PersistEntry>,
    /// Entries that the peer knows.
    known_flows: usize,
    /// A slot in which flows are looked up was seen in this pass.
    looked_up: bool,
    part: Part,
    /// Index in that part: of a slot, a word or a binding.
    at: usize,
    counts: Exported,
}

/// In this order: slots go before the entries in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Slots,
    Flows,
    Replies,
    Bindings,
}

impl Exporter {
    /// The peer knows nothing any more: all is told again.
    pub fn reset(&mut self) {
        *self = Self {
            counts: self.counts,
            ..Self::default()
        };
    }

    /// What was told.
    pub fn counts(&self) -> Exported {
        Exported {
            bytes: self.counts.bytes + self.out.bytes,
            ..self.counts
        }
    }

    /// Whether all that there was at the beginning has been told.
    pub fn is_live(&self) -> bool {
        self.greeted && !self.bulk
    }

    /// Asks the peer to tell all again.
    pub fn ask_again(&mut self) {
        self.out.put(&Record::Again);
    }

    /// Goes on, looks at `budget` words at most, and tells what differs of the
    /// services `exported` (by id).
    pub fn step<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        hello: Hello,
        exported: &BTreeSet<u32>,
        budget: usize,
        send: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Step {
        if !self.out.drain(send) {
            return Step::Full;
        }
        if !self.greeted || self.exported != *exported {
            self.begin(world, hello, exported);
        }
        if self.catalogue != world.catalogue.version {
            self.describe(world);
        }
        let step = self.scan(world, budget, send);
        if step == Step::Done && self.bulk {
            self.bulk = false;
            self.out.put(&Record::End);
        }
        self.out.close();
        if self.out.drain(send) {
            step
        } else {
            Step::Full
        }
    }

    fn begin<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        hello: Hello,
        exported: &BTreeSet<u32>,
    ) {
        let (out, counts) = (std::mem::take(&mut self.out), self.counts);
        let words = |table: &T| table.buckets() as usize * BUCKET_WORDS;
        *self = Self {
            out,
            counts,
            greeted: true,
            bulk: true,
            exported: exported.clone(),
            catalogue: world.catalogue.version.wrapping_sub(1),
            slots: vec![0; world.slots.len()],
            flows: vec![0; words(world.flows)],
            replies: vec![0; words(world.replies)],
            bindings: vec![0; world.bindings.buckets() as usize],
            ..Self::default()
        };
        self.counts.bulks += 1;
        self.out.put(&Record::Hello(hello));
        self.out.put(&Record::Begin);
    }

    /// Tells what ids stand for, where that is new.
    fn describe<T: FlowTable>(&mut self, world: &World<'_, T>) {
        let catalogue = world.catalogue;
        self.catalogue = catalogue.version;
        self.refresh = vec![0; catalogue.members.len()];
        for id in &self.exported {
            let Some(service) = catalogue.services.get(id) else {
                continue;
            };
            let same = |s: &world::Service| {
                (&s.name, s.size(), s.keep, &s.shares)
                    == (&service.name, service.size(), service.keep, &service.shares)
            };
            if !self.services.get(id).is_some_and(same) {
                self.out.put(&Record::Service(Service {
                    id: *id,
                    size: service.size(),
                    keep: service.keep,
                    shares: service.shares.len() as u32,
                    name: service.name.to_string(),
                }));
                for (identity, share) in service.shares.iter() {
                    self.out.put(&Record::Share(Share {
                        service: *id,
                        identity: *identity,
                        share: *share,
                    }));
                }
            }
            self.services.insert(*id, service.clone());
        }
        for (id, member) in (0u32..).zip(&catalogue.members) {
            let exported = member
                .as_ref()
                .filter(|(service, _)| self.exported.contains(service))
                .and_then(|(service, end)| Some((catalogue.services.get(service)?, *service, end)));
            let Some((known, service, end)) = exported else {
                continue;
            };
            if let Some(refresh) = self.refresh.get_mut(id as usize) {
                *refresh = (known.idle_units / REFRESHED).max(1);
            }
            if self.members.insert(id, *end) != Some(*end) {
                self.out.put(&Record::Member(Member {
                    id,
                    service,
                    end: *end,
                }));
            }
        }
    }

    fn scan<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        budget: usize,
        send: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Step {
        let mut left = budget;
        loop {
            let end = self.end(world);
            let until = end.min(self.at.saturating_add(left));
            left -= until.saturating_sub(self.at);
            while self.at < until {
                let told = match self.part {
                    Part::Slots => self.slots(world, until),
                    Part::Flows => self.entries(world, Which::Flows, until),
                    Part::Replies => self.entries(world, Which::Replies, until),
                    Part::Bindings => self.bindings(world, until),
                };
                if told && !self.out.drain(send) {
                    return Step::Full;
                }
            }
            if self.at < end {
                return Step::More;
            }
            self.at = 0;
            self.part = match self.part {
                Part::Slots => Part::Flows,
                Part::Flows => Part::Replies,
                Part::Replies => Part::Bindings,
                Part::Bindings => {
                    self.part = Part::Slots;
                    return Step::Done;
                }
            };
        }
    }

    /// Where the part ends; what can't have anything to tell isn't looked at.
    fn end<T: FlowTable>(&mut self, world: &World<'_, T>) -> usize {
        let has = |wanted: u8| self.members.values().any(|end| end.method == wanted);
        match self.part {
            Part::Slots => {
                if self.at == 0 {
                    let mut services = self.services.values();
                    self.looked_up = services.any(|s| s.full || s.by_source);
                }
                self.slots.len()
            }
            Part::Flows if self.looked_up || self.known_flows > 0 => self.flows.len(),
            Part::Replies if has(method::NAT) => self.replies.len(),
            Part::Bindings if !world.catalogue.pools.is_empty() => self.bindings.len(),
            Part::Flows | Part::Replies | Part::Bindings => 0,
        }
    }

    /// Up to the next word that differs, or to `until`. Whether anything was told.
    fn slots<T: FlowTable>(&mut self, world: &World<'_, T>, until: usize) -> bool {
        let position = self.at as u32;
        // Slots of services that aren't told are passed over.
        let next = self
            .services
            .iter()
            .filter(|(_, s)| s.offset + s.size() > position)
            .min_by_key(|(_, s)| s.offset);
        let Some((&id, service)) = next else {
            self.at = until;
            return false;
        };
        let first = position.max(service.offset);
        let last = (service.offset + service.size()).min(until as u32);
        for index in first..last {
            let Some(word) = world.slots.get(index as usize) else {
                break;
            };
            let word = SlotWord(word.load(Relaxed));
            self.looked_up |= word.is_tracked();
            let slot = index - service.offset;
            let as_table = service.table.get(slot as usize) == Some(&word.current());
            let wanted = if as_table && !word.is_tracked() {
                0
            } else {
                word.0
            };
            let known = self.slots.get_mut(index as usize);
            let Some(known) = known.filter(|known| **known != wanted) else {
                continue;
            };
            *known = wanted;
            self.counts.slots += 1;
            self.out.put(&Record::Slot(Slot {
                service: id,
                slot,
                current: word.current(),
                base: word.base(),
                tracked: word.is_tracked(),
                pressed: word.is_pressed(),
                age_ms: world.milliseconds(word.age(world.now_ticks)),
            }));
            self.at = index as usize + 1;
            return true;
        }
        self.at = (last.max(first) as usize).min(until);
        false
    }

    /// As [`Self::slots`].
    fn entries<T: FlowTable>(&mut self, world: &World<'_, T>, which: Which, until: usize) -> bool {
        let (table, known, mut count) = match which {
            Which::Flows => (world.flows, &mut self.flows, Some(&mut self.known_flows)),
            Which::Replies => (world.replies, &mut self.replies, None),
        };
        while self.at < until {
            let (index, word) = ((self.at / BUCKET_WORDS) as u32, self.at % BUCKET_WORDS);
            let at = self.at;
            self.at += 1;
            let (Some(bucket), Some(known)) = (table.bucket(index), known.get_mut(at)) else {
                continue;
            };
            if word == CONTROL {
                continue;
            }
            let present = table.load(bucket, word);
            if present == *known {
                continue;
            }
            let (entry, before) = (FlowWord(present), FlowWord(*known));
            let refresh = |entry: FlowWord| {
                let units = self.refresh.get(entry.member() as usize).copied();
                units.filter(|units| *units > 0 && entry.is_confirmed())
            };
            let told = refresh(entry).filter(|_| is_looked_up(world, which, entry));
            let is_same = !before.is_empty()
                && (entry.tag(), entry.member()) == (before.tag(), before.member());
            let mut has_told = false;
            let is_gone = !is_same || told.is_none();
            if !before.is_empty() && is_gone {
                *known = 0;
                if let Some(count) = &mut count {
                    **count = count.saturating_sub(1);
                }
                let is_it = |other: FlowWord| other.member() == before.member();
                if transfer::find_either(table, index, before.tag(), is_it).is_none() {
                    self.counts.flows += 1;
                    self.out.put(&Record::Gone(Gone {
                        bucket: index,
                        tag: before.tag(),
                        member: before.member(),
                        which,
                    }));
                    has_told = true;
                }
            }
            if let Some(units) = told {
                let older = before.age(world.now_ticks);
                let fresher = older.saturating_sub(entry.age(world.now_ticks)) >= units;
                let changed = entry.is_closing() != before.is_closing()
                    || entry.is_full() != before.is_full();
                if !is_same || changed || fresher {
                    if let Some(count) = count.as_mut().filter(|_| *known == 0) {
                        **count += 1;
                    }
                    *known = present;
                    self.counts.flows += 1;
                    self.out.put(&Record::Flow(Flow {
                        bucket: index,
                        tag: entry.tag(),
                        member: entry.member(),
                        age_ms: world.unit_milliseconds(entry.age(world.now_ticks)),
                        which,
                        closing: entry.is_closing(),
                        full: entry.is_full(),
                        overflowed: transfer::is_overflowed(table, index, entry),
                    }));
                    has_told = true;
                }
            }
            if has_told {
                return true;
            }
        }
        false
    }

    /// As [`Self::slots`].
    fn bindings<T: FlowTable>(&mut self, world: &World<'_, T>, until: usize) -> bool {
        let table = world.bindings;
        while self.at < until {
            let index = self.at;
            self.at += 1;
            let (Some(at), Some(known)) =
                (table.bucket(index as u32), self.bindings.get_mut(index))
            else {
                continue;
            };
            let state = binding::state(table, at);
            let member = binding::member(table, at);
            let units = self.refresh.get(member as usize).copied().unwrap_or(0);
            let is_told = state.usage() == Use::Used && units > 0;
            if !is_told && *known == 0 {
                continue;
            }
            let before = BindingState(*known);
            let fresher = before
                .age(world.now_ticks)
                .saturating_sub(state.age(world.now_ticks))
                >= units << UNIT_SHIFT;
            if is_told && *known as u32 == state.0 as u32 && !fresher {
                continue;
            }
            *known = if is_told { state.0 } else { 0 };
            let (pool, client) = (binding::pool(table, at), binding::client(table, at));
            self.counts.bindings += 1;
            self.out.put(&Record::Binding(Binding {
                pool: pool.address,
                client: client.address,
                hash: binding::flow_hash(table, at),
                ports: [pool.port, client.port, binding::vip_port(table, at)],
                family: binding::family(table, at),
                protocol: binding::protocol(table, at),
                flags: is_told.then(|| state.flags()),
                member,
                age_ms: world.milliseconds(state.age(world.now_ticks)),
            }));
            return true;
        }
        false
    }
}

/// Whether flows are looked up in the entry's slot: elsewhere it says nothing.
fn is_looked_up<T: FlowTable>(world: &World<'_, T>, which: Which, entry: FlowWord) -> bool {
    if which == Which::Replies {
        return true;
    }
    let Some((_, service)) = world.catalogue.service_of(entry.member()) else {
        return false;
    };
    let index = service.offset + scale(entry.tag(), service.size());
    let slot = world.slots.get(index as usize);
    service.full
        || service.by_source
        || slot.is_some_and(|slot| SlotWord(slot.load(Relaxed)).is_tracked())
}
