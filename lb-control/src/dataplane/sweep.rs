//! Keeps the tables clean: zeroes what expired, and makes slots stable again
//! once all their old flows have entries. Pure, over memory that the data path
//! changes meanwhile; every change is one compare-and-exchange of one word, so
//! that a race lost is a change left to the next sweep.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::recount::Recount;
use lb_common::{
    flow::{BUCKET_WORDS, CONTROL, FlowTable, FlowWord, Idle, Place, alternate, exchange},
    hash::scale,
    member::MemberState,
    slot::SlotWord,
};

/// What a sweep needs to know of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its state.
    pub state: MemberState,
    /// Its service; zero where the id is free.
    pub service: u32,
}

/// What a sweep needs to know of a service that packets can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Its id.
    pub id: u32,
    /// First slot.
    pub offset: u32,
    /// Number of slots.
    pub size: u32,
    /// Units after which its confirmed entries expire.
    pub idle_units: u32,
    /// Its idle time in ticks: how long a slot stays tracked after its time.
    pub idle_ticks: u32,
    /// Whether flows of a member that serves no more are reset, and so have to
    /// be known.
    pub resets: bool,
    /// Every flow has an entry, and keeps it.
    pub full: bool,
    /// The slot doesn't follow from an entry's tag.
    pub by_source: bool,
}

/// The tables and what is known of them.
#[derive(Clone, Copy, Debug)]
pub struct World<'a, F, R> {
    /// Flows in tracked slots.
    pub flows: &'a F,
    /// Flows of NAT replies.
    pub reply_flows: &'a R,
    /// All slots.
    pub slots: &'a [AtomicU64],
    /// Members by id.
    pub members: &'a [MemberInfo],
    /// Services that packets can reach.
    pub services: &'a [ServiceInfo],
    /// Words of the members' `MemberLoad`s: the counts are every second one.
    pub loads: &'a [AtomicU64],
    /// Units after which an unconfirmed entry expires.
    pub half_units: u32,
    /// Now.
    pub now_ticks: u32,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Entries of `FLOWS` and `REPLY_FLOWS` by service id.
    pub services: BTreeMap<u32, ServiceFlows>,
    /// Entries that live in `FLOWS`.
    pub flows: u64,
    /// Entries that live in `REPLY_FLOWS`.
    pub reply_flows: u64,
    /// Entries that were removed.
    pub freed: u64,
    /// Members that serve nobody and that no slot and no entry named, now and
    /// in the sweep before: a packet that was on its way with an old slot may
    /// make an entry once more.
    pub unnamed_members: Vec<u32>,
}

/// What a sweep found of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceFlows {
    /// Living entries of `FLOWS` that are confirmed and not closing.
    pub living: u64,
    /// Those a FIN or RST was seen of.
    pub closing: u64,
    /// Those of which only a SYN was seen.
    pub half_open: u64,
    /// Living entries of `REPLY_FLOWS`.
    pub reply_flows: u64,
    /// Slots in which flows are looked up.
    pub tracked_slots: u32,
}

/// The sweeper's memory from one sweep to the next.
#[derive(Debug, Default)]
pub struct Sweeper {
    flows: Overflows,
    reply_flows: Overflows,
    /// Members that nothing named in the last sweep.
    unnamed: Vec<u32>,
    recount: Recount,
}

/// Control words of the last sweep that were not zero and of whose home no
/// entry was found elsewhere, by bucket.
#[derive(Debug, Default)]
pub(super) struct Overflows(Vec<(u32, u64)>);

/// One bit for each index.
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(n: usize) -> Self {
        Self(vec![0; n.div_ceil(64)])
    }

    pub(super) fn set(&mut self, index: u32) {
        if let Some(word) = self.0.get_mut(index as usize / 64) {
            *word |= 1 << (index % 64);
        }
    }

    pub(super) fn has(&self, index: u32) -> bool {
        self.0
            .get(index as usize / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }
}

/// A service's part of what a sweep looks up for every entry.
#[derive(Clone, Copy, Default)]
struct Row {
    size: u32,
    offset: u32,
    idle_units: u32,
    resets: bool,
    full: bool,
    by_source: bool,
    /// Whose entries a service by source has.
    named: Named,
    flows: ServiceFlows,
}

/// Members that entries name.
#[derive(Clone, Copy, Default)]
enum Named {
    #[default]
    Nobody,
    One(u32),
    Several,
}

impl Named {
    fn add(&mut self, member: u32) {
        *self = match *self {
            Self::Nobody => Self::One(member),
            Self::One(one) if one == member => Self::One(one),
            _ => Self::Several,
        };
    }

    /// Whether an entry may be of another member.
    fn disagrees(self, member: u32) -> bool {
        match self {
            Self::Nobody => false,
            Self::One(one) => one != member,
            Self::Several => true,
        }
    }
}

impl Sweeper {
    /// One sweep over everything, where nothing beside these tables refers to members.
    pub fn sweep<F: FlowTable, R: FlowTable>(&mut self, world: World<'_, F, R>) -> SweepReport {
        let named = Bits::new(world.members.len());
        self.sweep_with(world, named)
    }

    /// One sweep over everything. `named` are members that something beside
    /// these tables refers to. Runs through each table once, at memory
    /// speed; allocates a bit for each slot, member and bucket and nothing for
    /// an entry.
    pub(super) fn sweep_with<F: FlowTable, R: FlowTable>(
        &mut self,
        world: World<'_, F, R>,
        mut named: Bits,
    ) -> SweepReport {
        let mut report = SweepReport::default();
        let mut rows = rows(&world);
        let mut disagree = Bits::new(world.slots.len());
        let before = self.recount.begin(world.loads, world.members.len());
        let mut found = vec![0u64; world.members.len()];
        let mut seen = Seen {
            world: &world,
            rows: &mut rows,
            named: &mut named,
            found: &mut found,
        };
        self.flows
            .sweep_table(world.flows, &mut report.freed, |entry| {
                seen.flow(entry, &mut disagree)
            });
        self.reply_flows
            .sweep_table(world.reply_flows, &mut report.freed, |entry| {
                seen.reply_flow(entry)
            });
        self.recount.end(world.loads, &before, &found);
        stabilise(&world, &mut rows, &disagree, &mut named);
        rebase(&world);

        for (id, row) in (0u32..).zip(&rows) {
            if row.size > 0 {
                let f = row.flows;
                report.flows += f.living + f.closing + f.half_open;
                report.reply_flows += f.reply_flows;
                report.services.insert(id, f);
            }
        }
        let unnamed: Vec<u32> = (0u32..)
            .zip(world.members)
            .skip(1)
            .filter(|(id, m)| m.service != 0 && !m.state.serves() && !named.has(*id))
            .map(|(id, _)| id)
            .collect();
        report.unnamed_members = unnamed
            .iter()
            .copied()
            .filter(|id| self.unnamed.binary_search(id).is_ok())
            .collect();
        self.unnamed = unnamed;
        report
    }
}

fn rows<F, R>(world: &World<'_, F, R>) -> Vec<Row> {
    let highest = world.services.iter().map(|s| s.id).max().unwrap_or(0);
    let mut rows = vec![Row::default(); highest as usize + 1];
    for service in world.services {
        if let Some(row) = rows.get_mut(service.id as usize) {
            *row = Row {
                size: service.size,
                offset: service.offset,
                idle_units: service.idle_units,
                resets: service.resets,
                full: service.full,
                by_source: service.by_source,
                ..Row::default()
            };
        }
    }
    rows
}

fn slots_of<'a, F, R>(world: &World<'a, F, R>, service: &ServiceInfo) -> &'a [AtomicU64] {
    let first = service.offset as usize;
    world
        .slots
        .get(first..first.saturating_add(service.size as usize))
        .unwrap_or(&[])
}

/// One idle period after a slot's time every living old flow has an entry.
/// This comes last in a sweep, so that an entry that a packet makes by the old
/// word meanwhile is seen by the next sweep before the slot can become stable.
fn rebase<F, R>(world: &World<'_, F, R>) {
    for service in world.services {
        for slot in slots_of(world, service) {
            let word = SlotWord(slot.load(Relaxed));
            if word.is_tracked()
                && word.base() != word.current()
                && word.age(world.now_ticks) > service.idle_ticks
            {
                let _ = slot.compare_exchange(word.0, word.rebased().0, Relaxed, Relaxed);
            }
        }
    }
}

/// What is looked at and noted for each entry.
struct Seen<'a, 'b, F, R> {
    world: &'b World<'a, F, R>,
    rows: &'b mut [Row],
    named: &'b mut Bits,
    /// Weights of each member's entries that stay.
    found: &'b mut [u64],
}

impl<F, R> Seen<'_, '_, F, R> {
    /// The service of a living entry that is needed.
    fn row(&mut self, entry: FlowWord, is_reply: bool) -> Option<&mut Row> {
        let member = self.world.members.get(entry.member() as usize)?;
        let row = self.rows.get_mut(member.service as usize)?;
        let idle = Idle {
            open_units: row.idle_units,
            half_units: self.world.half_units,
        };
        let is_needed = member.state.serves() || (row.resets && !is_reply);
        let stays = row.size > 0 && is_needed && entry.is_live(self.world.now_ticks, idle);
        stays.then_some(row)
    }

    /// Whether the entry stays.
    fn flow(&mut self, entry: FlowWord, disagree: &mut Bits) -> bool {
        let slots = self.world.slots;
        let Some(row) = self.row(entry, false) else {
            return false;
        };
        let index = row.offset + scale(entry.tag(), row.size);
        let slot = SlotWord(slots.get(index as usize).map_or(0, |s| s.load(Relaxed)));
        let is_settled = !slot.is_tracked() || slot.base() == slot.current();
        let knows_slot = !row.full && !row.by_source;
        if knows_slot && is_settled && slot.current() == entry.member() {
            return false;
        }
        row.named.add(entry.member());
        if entry.is_closing() {
            row.flows.closing += 1;
        } else if entry.is_confirmed() {
            row.flows.living += 1;
        } else {
            row.flows.half_open += 1;
        }
        disagree.set(index);
        self.named.set(entry.member());
        if let Some(found) = self.found.get_mut(entry.member() as usize) {
            *found = found.wrapping_add(entry.weight());
        }
        true
    }

    fn reply_flow(&mut self, entry: FlowWord) -> bool {
        let Some(row) = self.row(entry, true) else {
            return false;
        };
        row.flows.reply_flows += 1;
        self.named.set(entry.member());
        true
    }
}

/// Ends the tracking of slots without an entry that disagrees.
fn stabilise<F, R>(world: &World<'_, F, R>, rows: &mut [Row], disagree: &Bits, named: &mut Bits) {
    for service in world.services {
        let mut tracked = 0;
        let named_by = rows
            .get(service.id as usize)
            .map_or(Named::Nobody, |row| row.named);
        for (index, slot) in (service.offset..).zip(slots_of(world, service)) {
            let word = SlotWord(slot.load(Relaxed));
            let has_others = if service.full {
                false
            } else if service.by_source {
                named_by.disagrees(word.current())
            } else {
                disagree.has(index)
            };
            let done = word.is_tracked() && word.base() == word.current() && !has_others;
            let stable = SlotWord::stable(word.current());
            if !(done
                && slot
                    .compare_exchange(word.0, stable.0, Relaxed, Relaxed)
                    .is_ok())
            {
                tracked += u32::from(word.is_tracked());
            }
            named.set(word.current());
            named.set(word.base());
        }
        if let Some(row) = rows.get_mut(service.id as usize) {
            row.flows.tracked_slots = tracked;
        }
    }
}

impl Overflows {
    /// Frees the entries that don't `stay`, and the control words that stayed
    /// the same since the last sweep while no entry of their home was in its
    /// alternate bucket, in either sweep.
    pub(super) fn sweep_table<T: FlowTable>(
        &mut self,
        table: &T,
        freed: &mut u64,
        mut stays: impl FnMut(FlowWord) -> bool,
    ) {
        let buckets = table.buckets();
        let mut overflowed = Bits::new(buckets as usize);
        let mut controls = Vec::new();
        for index in 0..buckets {
            let Some(bucket) = table.bucket(index) else {
                break;
            };
            let control = table.load(bucket, CONTROL);
            if control != 0 {
                controls.push((index, control));
            }
            for word in CONTROL + 1..BUCKET_WORDS {
                let entry = FlowWord(table.load(bucket, word));
                if entry.is_empty() {
                    continue;
                }
                if !stays(entry)
                    && exchange(table, bucket, word, entry, FlowWord::EMPTY, Place::Free)
                {
                    *freed += 1;
                } else {
                    // It isn't known which of the two is the home, so it
                    // counts for the other one, which is right either way.
                    overflowed.set(alternate(entry.tag(), index, buckets));
                }
            }
        }
        controls.retain(|(index, _)| !overflowed.has(*index));
        for &(index, control) in &controls {
            if self.0.binary_search(&(index, control)).is_ok()
                && let Some(bucket) = table.bucket(index)
            {
                table.replace(bucket, CONTROL, control, 0);
            }
        }
        self.0 = controls;
    }
}
