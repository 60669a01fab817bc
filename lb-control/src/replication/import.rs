//! Takes over what a peer tells of its flows. Nothing is taken that this node
//! owns itself, and nothing that it doesn't understand as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::status::{Imported, Standing};
use lb_common::{
    flow::{self, BUCKET_WORDS, FlowTable, FlowWord, Mark, Place, transfer},
    hash::{HashKey, Tuple, flow_hash, scale},
    net::{Addr, Be16, family},
    slot::SlotWord,
};

use super::record::{
    Flow, Gone, Hello, Malformed, MemberEnd, Record, Service, Share, Slot, Source, Which, decode,
};
use super::world::{Catalogue, World};

mod bindings;
mod stale;

/// What whoever has the data path has to do then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// [`Importer::adopted`] has changed.
    pub adopted: bool,
    /// The peer asks to be told everything again.
    pub asked: bool,
    /// Sources to be noted, with their servers.
    pub sources: Vec<Source>,
}

/// The shares of a service, as the peer has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Identities and shares, in the peer's order.
    pub shares: Vec<(u64, u32)>,
    /// Nobody is up: slots stay as they are.
    pub keep: bool,
}

/// Of one peer.
#[derive(Debug, Default)]
pub struct Importer {
    standing: Standing,
    services: HashMap<u32, Theirs>,
    members: HashMap<u32, (u32, MemberEnd)>,
    /// Ids here by ids there, of this version of the catalogue.
    ids: HashMap<u32, u32>,
    catalogue: u64,
    adopted: BTreeMap<Arc<str>, Adopted>,
    marks: Option<Marks>,
    /// Something was unknown since all was told.
    missed: bool,
    /// Slots of services (by id here) that were not taken since all was told, for
    /// they were this node's.
    kept: BTreeSet<u32>,
    counts: Imported,
}

/// A service of the peer.
#[derive(Debug)]
struct Theirs {
    name: Arc<str>,
    size: u32,
    expected: u32,
    adopted: Adopted,
}

/// What was told since the peer began to tell all.
#[derive(Debug)]
struct Marks {
    slots: Vec<bool>,
    flows: Vec<bool>,
    replies: Vec<bool>,
    bindings: Vec<bool>,
}

impl Marks {
    fn new<T: FlowTable>(world: &World<'_, T>) -> Self {
        let words = |table: &T| vec![false; table.buckets() as usize * BUCKET_WORDS];
        Self {
            slots: vec![false; world.slots.len()],
            flows: words(world.flows),
            replies: words(world.replies),
            bindings: vec![false; world.bindings.buckets() as usize],
        }
    }
}

/// Services that this node owns itself, by id.
pub type Own = BTreeSet<u32>;

impl Importer {
    /// The link is down, or the peer began anew. What was taken over stays, and
    /// so do the shares: the peer is gone, and its flows are to be kept.
    pub fn reset(&mut self) {
        *self = Self {
            adopted: std::mem::take(&mut self.adopted),
            counts: self.counts,
            ..Self::default()
        };
    }

    /// What is known of the peer.
    pub fn standing(&self) -> &Standing {
        match self.standing {
            Standing::InSync if self.missed => &Standing::Partial,
            _ => &self.standing,
        }
    }

    /// What was taken over.
    pub fn counts(&self) -> Imported {
        self.counts
    }

    /// The peer's shares, by service.
    pub fn adopted(&self) -> &BTreeMap<Arc<str>, Adopted> {
        &self.adopted
    }

    /// Forgets the shares of services that this node owns now. Whether there were any.
    pub fn disown(&mut self, names: &BTreeSet<Arc<str>>) -> bool {
        let before = self.adopted.len();
        self.adopted.retain(|name, _| !names.contains(name));
        self.adopted.len() != before
    }

    /// Whether all has to be told again, since ids have come to stand for something
    /// here, or since a service isn't this node's any more. Once.
    pub fn wants_again(&mut self, catalogue: &Catalogue, own: &Own) -> bool {
        if !self.kept.is_subset(own) {
            self.kept.clear();
            return true;
        }
        if self.catalogue == catalogue.version || !self.missed {
            return false;
        }
        let before = self.ids.len();
        self.learn(catalogue);
        let again = self.ids.len() > before;
        self.missed &= !again;
        again
    }

    /// Takes a message.
    pub fn take<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        hello: Hello,
        own: &Own,
        message: &[u8],
    ) -> Effects {
        let mut effects = Effects::default();
        let records = match decode(message) {
            Ok(records) => records,
            Err(why) => {
                self.counts.malformed += 1;
                if let Malformed::Kind(_) = why {
                    self.standing = Standing::Incompatible(format!("a message: {why}"));
                }
                return effects;
            }
        };
        if self.catalogue != world.catalogue.version {
            self.learn(world.catalogue);
        }
        for record in records {
            self.record(world, hello, own, record, &mut effects);
        }
        effects
    }

    fn learn(&mut self, catalogue: &Catalogue) {
        self.catalogue = catalogue.version;
        self.ids.clear();
        for (id, (service, end)) in &self.members {
            let here = self.service(catalogue, *service);
            let known = here.and_then(|service| catalogue.ids.get(&(service, *end)));
            self.ids.extend(known.map(|known| (*id, *known)));
        }
    }

    /// Id here of a service there, where its table has the same size.
    fn service(&self, catalogue: &Catalogue, id: u32) -> Option<u32> {
        let theirs = self.services.get(&id)?;
        let here = *catalogue.names.get(&theirs.name)?;
        let size = catalogue.services.get(&here)?.size();
        (size == theirs.size).then_some(here)
    }

    fn record<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        hello: Hello,
        own: &Own,
        record: Record,
        effects: &mut Effects,
    ) {
        if let Record::Again = record {
            effects.asked = true;
            return;
        }
        if let Record::Hello(theirs) = record {
            self.standing = match difference(hello, theirs) {
                None => Standing::Waiting,
                Some(why) => Standing::Incompatible(why.to_owned()),
            };
            return;
        }
        match (&self.standing, &record) {
            (Standing::Waiting, Record::Begin) => {}
            (Standing::Waiting | Standing::Incompatible(_), _) => return,
            _ => {}
        }
        match record {
            Record::Hello(_) | Record::Again => {}
            Record::Begin => {
                self.standing = Standing::Bulk;
                self.services.clear();
                self.members.clear();
                self.ids.clear();
                self.missed = false;
                self.kept.clear();
                self.marks = Some(Marks::new(world));
            }
            Record::End => self.end(world, own, effects),
            Record::Service(service) => self.begin_service(service, effects),
            Record::Share(share) => self.share(share, effects),
            Record::Member(member) => {
                self.members.insert(member.id, (member.service, member.end));
                let here = self.service(world.catalogue, member.service);
                let known =
                    here.and_then(|service| world.catalogue.ids.get(&(service, member.end)));
                match known {
                    Some(known) => {
                        self.ids.insert(member.id, *known);
                    }
                    None => {
                        self.missed = true;
                        self.counts.unknown += 1;
                    }
                }
            }
            Record::Slot(slot) => self.slot(world, own, slot),
            Record::Flow(flow) => self.flow(world, own, flow),
            Record::Gone(gone) => self.gone(world, own, gone),
            Record::Source(source) => {
                self.counts.sources += 1;
                effects.sources.push(source);
            }
            Record::Binding(binding) => self.binding(world, own, binding),
        }
    }

    fn begin_service(&mut self, service: Service, effects: &mut Effects) {
        let theirs = Theirs {
            name: service.name.into(),
            size: service.size,
            expected: service.shares,
            adopted: Adopted {
                shares: Vec::new(),
                keep: service.keep,
            },
        };
        self.services.insert(service.id, theirs);
        self.adopt(service.id, effects);
    }

    fn share(&mut self, share: Share, effects: &mut Effects) {
        if let Some(theirs) = self.services.get_mut(&share.service) {
            theirs.adopted.shares.push((share.identity, share.share));
            self.adopt(share.service, effects);
        }
    }

    /// Once all shares of a service were told.
    fn adopt(&mut self, service: u32, effects: &mut Effects) {
        let Some(theirs) = self.services.get(&service) else {
            return;
        };
        if theirs.adopted.shares.len() == theirs.expected as usize {
            let before = self
                .adopted
                .insert(Arc::clone(&theirs.name), theirs.adopted.clone());
            effects.adopted |= before.as_ref() != Some(&theirs.adopted);
        }
    }

    /// Ids here of a member there and of its service.
    fn anybodys<T: FlowTable>(&mut self, world: &World<'_, T>, id: u32) -> Option<(u32, u32)> {
        let found = self.ids.get(&id).copied();
        let found = found.and_then(|here| Some((here, world.catalogue.service_of(here)?.0)));
        if found.is_none() {
            self.missed = true;
            self.counts.unknown += 1;
        }
        found
    }

    /// As [`Self::anybodys`], unless this node owns the service.
    fn member<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        own: &Own,
        id: u32,
    ) -> Option<(u32, u32)> {
        let found = self.anybodys(world, id);
        let is_own = found.is_some_and(|(_, service)| own.contains(&service));
        self.counts.own += u64::from(is_own);
        found.filter(|_| !is_own)
    }

    /// The table that is meant, where it has this bucket.
    fn table<'a, T: FlowTable>(
        &mut self,
        world: &World<'a, T>,
        which: Which,
        bucket: u32,
    ) -> Option<&'a T> {
        let table = match which {
            Which::Flows => world.flows,
            Which::Replies => world.replies,
        };
        let known = bucket < table.buckets();
        self.counts.malformed += u64::from(!known);
        known.then_some(table)
    }

    fn slot<T: FlowTable>(&mut self, world: &World<'_, T>, own: &Own, told: Slot) {
        let Some(id) = self.service(world.catalogue, told.service) else {
            self.missed = true;
            self.counts.unknown += 1;
            return;
        };
        if own.contains(&id) {
            self.counts.own += 1;
            self.kept.insert(id);
            return;
        }
        let nobody_or = |importer: &mut Self, id| match id {
            0 => Some(0),
            id => importer.member(world, own, id).map(|(here, _)| here),
        };
        let current = nobody_or(self, told.current);
        let base = nobody_or(self, told.base);
        let Some(service) = world.catalogue.services.get(&id) else {
            return;
        };
        let (Some(current), Some(base)) = (current, base) else {
            return;
        };
        let index = service.offset.saturating_add(told.slot) as usize;
        let Some(word) = world
            .slots
            .get(index)
            .filter(|_| told.slot < service.size())
        else {
            self.counts.malformed += 1;
            return;
        };
        let ticks = world.ticks_ago(told.age_ms);
        let new = match (told.tracked, told.pressed) {
            (false, _) => SlotWord::stable(current),
            (true, false) => SlotWord::tracked(current, base, ticks),
            (true, true) => SlotWord::tracked(current, base, ticks).pressed(ticks),
        };
        word.store(new.0, Relaxed);
        self.counts.slots += 1;
        if let Some(mark) = self.marks.as_mut().and_then(|m| m.slots.get_mut(index)) {
            *mark = true;
        }
    }

    fn flow<T: FlowTable>(&mut self, world: &World<'_, T>, own: &Own, told: Flow) {
        let Some((member, service)) = self.anybodys(world, told.member) else {
            return;
        };
        let Some(table) = self.table(world, told.which, told.bucket) else {
            return;
        };
        let is_theirs = |other: FlowWord| {
            let known = world.catalogue.service_of(other.member());
            known.is_some_and(|(id, _)| id == service)
        };
        // What this node knows itself is newer. What it doesn't are the last flows
        // of whoever was active until now.
        if own.contains(&service)
            && transfer::find_either(table, told.bucket, told.tag, is_theirs).is_some()
        {
            self.counts.own += 1;
            return;
        }
        let mark = if told.closing {
            Mark::Closing
        } else {
            Mark::Open
        };
        let entry = FlowWord::new(told.tag, member, world.ticks_ago(told.age_ms), mark);
        let entry = if told.full { entry.full() } else { entry };
        let times = (world.now_ticks, world.longest_idle);
        let put = transfer::put(table, told.bucket, entry, told.overflowed, is_theirs, times);
        let Some((bucket, word)) = put else {
            self.counts.refused += 1;
            return;
        };
        self.counts.flows += 1;
        if let Some(marks) = &mut self.marks {
            let marks = match told.which {
                Which::Flows => &mut marks.flows,
                Which::Replies => &mut marks.replies,
            };
            if let Some(mark) = marks.get_mut(bucket as usize * BUCKET_WORDS + word) {
                *mark = true;
            }
        }
        if told.which == Which::Flows
            && let Some(index) = watch(world, service, entry)
            && let Some(mark) = self.marks.as_mut().and_then(|m| m.slots.get_mut(index))
        {
            *mark = true;
        }
    }

    fn gone<T: FlowTable>(&mut self, world: &World<'_, T>, own: &Own, told: Gone) {
        let Some((member, _)) = self.member(world, own, told.member) else {
            return;
        };
        let Some(table) = self.table(world, told.which, told.bucket) else {
            return;
        };
        let is_it = |entry: FlowWord| entry.member() == member;
        let found = transfer::find_either(table, told.bucket, told.tag, is_it);
        if let Some((at, _)) = found
            && flow::exchange(
                table,
                at.bucket,
                at.word,
                at.entry,
                FlowWord::EMPTY,
                Place::Free,
            )
        {
            self.counts.flows += 1;
        }
    }
}

/// Why the flows of one can't be the other's.
fn difference(here: Hello, theirs: Hello) -> Option<&'static str> {
    if here.version != theirs.version {
        return Some("it speaks another version of replication: give both nodes the same release");
    }
    if here.key_mark != theirs.key_mark {
        return Some(
            "its flow hash has another key: give both nodes the same dataplane.hash_secret_file",
        );
    }
    if here.buckets != theirs.buckets {
        return Some(
            "its flow table has another size: give both nodes the same dataplane.max_flows",
        );
    }
    None
}

/// An entry that the slot doesn't lead to makes the slot look flows up; the slot.
fn watch<T: FlowTable>(world: &World<'_, T>, service: u32, entry: FlowWord) -> Option<usize> {
    let known = world.catalogue.services.get(&service)?;
    if known.full || known.by_source {
        return None;
    }
    let index = (known.offset + scale(entry.tag(), known.size())) as usize;
    let word = world.slots.get(index)?;
    let slot = SlotWord(word.load(Relaxed));
    if slot.is_tracked() || slot.current() == entry.member() {
        return None;
    }
    let watched = slot.watched(world.now_ticks);
    let done = word.compare_exchange(slot.0, watched.0, Relaxed, Relaxed);
    done.is_ok().then_some(index)
}

/// What a key of the flow hash makes of a flow that there isn't: nobody learns
/// the key from it.
pub fn key_mark(key: HashKey) -> u64 {
    let nobody = Tuple {
        source: Addr::default(),
        destination: Addr::default(),
        source_port: Be16::default(),
        destination_port: Be16::default(),
        protocol: u8::MAX,
        family: family::V6,
    };
    flow_hash(key, &nobody)
}
