//! Keeps the books of full NAT's ports: gives the ports of a new pool address
//! out, ends the bindings of flows that are over, lets their ports rest, and
//! puts them back. Pure, over memory that the data path changes meanwhile.
//!
//! The states of the bindings are the books: absent, free, used and resting
//! together are all ports of an address at any moment. The ring of free ports
//! follows from them: it holds every free one, but for those that a core has
//! just taken out. So it doesn't matter where a sweep is cut off by the end of
//! the daemon: a port that is free and neither in the ring nor on its way is
//! the same in two sweeps, and put back by the second.

use std::collections::BTreeMap;

use lb_common::{
    abi::{PoolEntry, VipKey},
    binding::{self, BindingState, Limits, Ring, Use},
    flow::FlowTable,
    hash::tag,
    net::{Be16, family},
};

use serde::Serialize;

use super::sweep::{Bits, MemberInfo, Overflows};

/// The tables and what is known of them.
#[derive(Clone, Copy, Debug)]
pub struct Books<'a, T> {
    /// The bindings by index.
    pub bindings: &'a T,
    /// The forward entries.
    pub flows: &'a T,
    /// The rings.
    pub free: &'a T,
    /// Places in each ring.
    pub ring_capacity: u32,
    /// The addresses.
    pub pools: &'a BTreeMap<VipKey, PoolEntry>,
    /// Members by id.
    pub members: &'a [MemberInfo],
    /// Idle time in ticks by service id.
    pub idle_ticks: &'a BTreeMap<u32, u32>,
    /// Times of bindings that aren't open; the open ones' is the service's.
    pub limits: Limits,
    /// How long a port rests.
    pub rest_ticks: u32,
    /// Now.
    pub now_ticks: u32,
}

/// The ports of one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolUse {
    /// Ready for a flow.
    pub free: u32,
    /// Given to a flow.
    pub used: u32,
    /// Given to no flow for a while.
    pub resting: u32,
    /// Taken back, since the address is being removed.
    pub removed: u32,
}

impl PoolUse {
    /// All ports.
    pub const fn size(&self) -> u32 {
        self.free + self.used + self.resting + self.removed
    }
}

/// What a look at the books found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BooksReport {
    /// The ports of each address.
    pub pools: BTreeMap<VipKey, PoolUse>,
    /// Flows with a binding, by service id.
    pub flows: BTreeMap<u32, u64>,
    /// Bindings that ended.
    pub ended: u64,
    /// Ports put back that somebody had lost.
    pub found: u64,
    /// Addresses that were removed and whose last flow is over.
    pub over: Vec<VipKey>,
}

/// The memory from one look to the next.
#[derive(Debug, Default)]
pub struct Bookkeeper {
    /// Free ports that were not in a ring, with their states.
    missing: Vec<(u32, BindingState)>,
    overflows: Overflows,
}

impl Bookkeeper {
    /// Looks at everything once. `named` gets the members that a flow has.
    pub(super) fn keep<T: FlowTable>(
        &mut self,
        books: &Books<'_, T>,
        named: &mut Bits,
    ) -> BooksReport {
        let mut report = BooksReport::default();
        let leaving = leaving(books);
        let mut in_ring = Bits::new(books.bindings.buckets() as usize);
        for family in [family::V4, family::V6] {
            if note_ring(books, family, &leaving, &mut in_ring) {
                // First, so that packets don't find what is about to go.
                tidy_ring(books, family, &leaving);
            }
        }
        let mut missing = Vec::new();
        for (address, entry) in books.pools {
            let mut usage = PoolUse::default();
            for n in 0..entry.count {
                let port = Port {
                    books,
                    address,
                    entry,
                    n,
                };
                port.keep(&mut report, &mut usage, named, &in_ring, &mut missing);
            }
            if usage.removed == entry.count {
                report.over.push(*address);
            }
            report.pools.insert(*address, usage);
        }
        for (index, state, ring) in &missing {
            if self.missing.contains_sorted(*index, *state) && ring.put(books.free, *index) {
                report.found += 1;
            }
        }
        self.missing = missing.into_iter().map(|(i, s, _)| (i, s)).collect();
        self.missing.sort_unstable_by_key(|(index, _)| *index);

        let mut freed = 0;
        self.overflows
            .sweep_table(books.flows, &mut freed, |entry| {
                books.bindings.bucket(entry.member()).is_some_and(|at| {
                    let usage = binding::state(books.bindings, at).usage();
                    matches!(usage, Use::Used | Use::Claimed)
                        && tag(binding::flow_hash(books.bindings, at)) == entry.tag()
                })
            });
        report
    }
}

trait ContainsSorted {
    fn contains_sorted(&self, index: u32, state: BindingState) -> bool;
}

impl ContainsSorted for Vec<(u32, BindingState)> {
    fn contains_sorted(&self, index: u32, state: BindingState) -> bool {
        self.binary_search_by_key(&index, |(index, _)| *index)
            .ok()
            .and_then(|i| self.get(i))
            .is_some_and(|(_, before)| *before == state)
    }
}

/// The ports of addresses that are being removed.
fn leaving<T: FlowTable>(books: &Books<'_, T>) -> Bits {
    let mut leaving = Bits::new(books.bindings.buckets() as usize);
    for entry in books.pools.values().filter(|entry| entry.draining != 0) {
        (0..entry.count).for_each(|n| leaving.set(entry.base.saturating_add(n)));
    }
    leaving
}

fn is_free<T: FlowTable>(books: &Books<'_, T>, index: u32) -> bool {
    books
        .bindings
        .bucket(index)
        .is_some_and(|at| binding::state(books.bindings, at).is_free())
}

/// Notes what a ring holds. Returns whether there is anything in it that
/// doesn't belong there.
fn note_ring<T: FlowTable>(
    books: &Books<'_, T>,
    family: u8,
    leaving: &Bits,
    in_ring: &mut Bits,
) -> bool {
    let ring = Ring::new(family, books.ring_capacity);
    let Some((taken, put)) = ring.counts(books.free) else {
        return false;
    };
    let mut strays = false;
    for position in 0..put.wrapping_sub(taken).min(u64::from(books.ring_capacity)) {
        let Some(index) = ring.peek(books.free, taken.wrapping_add(position)) else {
            break;
        };
        strays |= in_ring.has(index) || leaving.has(index) || !is_free(books, index);
        in_ring.set(index);
    }
    strays
}

/// Goes once round a ring and leaves out what isn't free, what is in it twice
/// and what is leaving. Whatever is being moved when the daemon ends is found
/// missing by the next.
fn tidy_ring<T: FlowTable>(books: &Books<'_, T>, family: u8, leaving: &Bits) {
    let ring = Ring::new(family, books.ring_capacity);
    let Some((taken, put)) = ring.counts(books.free) else {
        return;
    };
    let mut seen = Bits::new(books.bindings.buckets() as usize);
    for _ in 0..put.wrapping_sub(taken).min(u64::from(books.ring_capacity)) {
        let index = ring.take(books.free);
        let Some(at) = books.bindings.bucket(index).filter(|_| index != 0) else {
            continue;
        };
        let state = binding::state(books.bindings, at);
        if leaving.has(index) && state.is_free() {
            binding::change(books.bindings, at, state, state.removed());
        } else if state.is_free() && !seen.has(index) {
            seen.set(index);
            ring.put(books.free, index);
        }
    }
}

/// One port of an address.
struct Port<'a, 'b, T> {
    books: &'b Books<'a, T>,
    address: &'b VipKey,
    entry: &'b PoolEntry,
    n: u32,
}

impl<T: FlowTable> Port<'_, '_, T> {
    fn keep(
        &self,
        report: &mut BooksReport,
        usage: &mut PoolUse,
        named: &mut Bits,
        in_ring: &Bits,
        missing: &mut Vec<(u32, BindingState, Ring)>,
    ) {
        let books = self.books;
        let index = self.entry.base.saturating_add(self.n);
        let Some(at) = books.bindings.bucket(index) else {
            return;
        };
        let ring = Ring::new(self.address.family, books.ring_capacity);
        let draining = self.entry.draining != 0;
        let now = books.now_ticks;
        let state = binding::state(books.bindings, at);
        let change = |new| binding::change(books.bindings, at, state, new);
        match state.usage() {
            Use::Absent if draining => usage.removed += 1,
            Use::Absent => {
                let port = self.entry.first_port.wrapping_add(self.n as u16);
                let (address, family) = (self.address.address, self.address.family);
                binding::dedicate(books.bindings, at, address, Be16::new(port), family);
                // Free first: in the ring it may be taken at once.
                if change(state.freed(now)) {
                    ring.put(books.free, index);
                }
                usage.free += 1;
            }
            Use::Free if draining => {
                if change(state.removed()) {
                    usage.removed += 1;
                } else {
                    usage.used += 1;
                }
            }
            Use::Free => {
                if !in_ring.has(index) {
                    missing.push((index, state, ring));
                }
                usage.free += 1;
            }
            Use::Claimed | Use::Used => {
                if self.is_over(at, state) && change(state.ended(now)) {
                    report.ended += 1;
                    usage.resting += 1;
                } else {
                    usage.used += 1;
                    named.set(binding::member(books.bindings, at));
                    let service = binding::service(books.bindings, at);
                    *report.flows.entry(service).or_default() += 1;
                }
            }
            Use::Resting => {
                // A core may have stamped it after the time was read.
                let age = state.age(now);
                let rested = age > books.rest_ticks && age < 1 << 31;
                if rested && draining && change(state.removed()) {
                    usage.removed += 1;
                } else if rested && !draining && change(state.freed(now)) {
                    ring.put(books.free, index);
                    usage.free += 1;
                } else {
                    usage.resting += 1;
                }
            }
        }
    }

    /// Whether the flow of a claimed or used binding is over.
    fn is_over(&self, at: T::Bucket, state: BindingState) -> bool {
        let books = self.books;
        let service = binding::service(books.bindings, at);
        let open_ticks = books.idle_ticks.get(&service).copied();
        let limits = Limits {
            open_ticks: open_ticks.unwrap_or(0),
            ..books.limits
        };
        if state.has_expired(books.now_ticks, limits) {
            return true;
        }
        let member = binding::member(books.bindings, at) as usize;
        let serves = books
            .members
            .get(member)
            .is_some_and(|m| m.state.serves() && m.service == service);
        state.is_used() && !serves
    }
}
