//! Full NAT's bindings: which client stands behind a port of a pool address.
//!
//! A binding is one cache line in the array `BINDINGS`, at an index that
//! follows from the pool address and the port ([`crate::abi::PoolEntry`]), so
//! that a reply's destination is the index. The way there from a client is an
//! entry of a compact flow table that holds the index in place of a member;
//! since the binding has the whole tuple, no flow is ever taken for another.
//!
//! The first word tells what the binding is used for, and changes by
//! compare-and-exchange only. Free ports stand in a ring ([`Ring`]): the data
//! path takes them out, the controller alone puts them in. `ABSENT`, `FREE`,
//! `CLAIMED`, `USED` and `RESTING` together are always all of them.

use crate::{
    flow::{self, BUCKET_WORDS, CONTROL, FlowKey, FlowTable, FlowWord, Found, Idle, Mark},
    hash::Tuple,
    member::MEMBER_LIMIT,
    track::Kind,
};

mod record;
mod ring;
mod state;
#[cfg(any(test, feature = "user"))]
mod transfer;

pub use record::{
    End, change, client, dedicate, family, flow_hash, member, pool, protocol, service, state,
    vip_port, word,
};
use record::{FLOW_PORTS, pair, ports};
pub use ring::Ring;
use ring::TRIES;
pub use state::{BindingState, Limits, Side, Use};
#[cfg(any(test, feature = "user"))]
pub use transfer::{Imported, import};

/// One more than the highest index of a binding: a flow entry has 20 bits for
/// it. Index zero is no binding.
pub const BINDING_LIMIT: u32 = MEMBER_LIMIT;

/// After FIN from both sides, or RST, a binding ends this long after the last packet.
pub const CLOSING_MS: u64 = 60_000;

/// A port rests this long before it is given to another flow.
pub const REST_MS: u64 = 60_000;

/// Buckets of the flow table for this many bindings.
pub const fn buckets_for(bindings: u32) -> u32 {
    flow::buckets_for(bindings)
}

/// Whose flow it is: the tuple, its hash (which stands for the VIP) and the
/// service's id.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// As the client sends it.
    pub tuple: &'a Tuple,
    /// Its hash.
    pub hash: u64,
    /// The service's id.
    pub service: u32,
}

/// Whether a binding is this flow's. What was read belongs together: its use
/// didn't change meanwhile.
#[inline(always)]
fn is_of<B: FlowTable>(bindings: &B, at: B::Bucket, flow: &Flow<'_>) -> bool {
    let before = state(bindings, at);
    let [a, b, c, d] = flow.tuple.source.0;
    (before.is_used() || before.is_claimed())
        && bindings.load(at, word::HASH) == flow.hash
        && bindings.load(at, word::CLIENT) == pair(a, b)
        && bindings.load(at, word::CLIENT + 1) == pair(c, d)
        && bindings.load(at, word::PORTS) & FLOW_PORTS == ports(flow.tuple)
        && service(bindings, at) == flow.service
        && before.uses() == state(bindings, at).uses()
}

/// The entry of a flow; its `member` is the index of the binding.
#[inline(always)]
pub fn find<B: FlowTable, F: FlowTable>(
    bindings: &B,
    flows: &F,
    flow: &Flow<'_>,
) -> Option<Found<F::Bucket>> {
    let key = FlowKey::new(flow.hash, flows.buckets());
    flow::find(flows, key, |entry| {
        bindings
            .bucket(entry.member())
            .is_some_and(|at| is_of(bindings, at, flow))
    })
}

/// Notes another packet. Losing a race loses nothing but a flag that the next
/// packet sets: whoever won has just seen the flow, too. Whoever writes a
/// claimed one is not disturbed.
#[inline(always)]
pub fn touch<B: FlowTable>(bindings: &B, at: B::Bucket, now_ticks: u32, side: Side, kind: Kind) {
    let mut tries = 0;
    while tries < 2 {
        let old = state(bindings, at);
        let new = old.seen(now_ticks, side, kind);
        if !old.is_used() || new == old || change(bindings, at, old, new) {
            return;
        }
        tries += 1;
    }
}

/// Ends a flow's binding and takes its entry away. `false`: somebody else did
/// something with it meanwhile.
#[inline(always)]
pub fn end<B: FlowTable, F: FlowTable>(
    bindings: &B,
    flows: &F,
    found: &Found<F::Bucket>,
    now_ticks: u32,
) -> bool {
    let Some(at) = bindings.bucket(found.entry.member()) else {
        return false;
    };
    let old = state(bindings, at);
    if !old.is_used() || !change(bindings, at, old, old.ended(now_ticks)) {
        return false;
    }
    flows.replace(found.bucket, found.word, found.entry.0, FlowWord::EMPTY.0);
    true
}

/// Takes a free port out and claims its binding. Zero: there is none.
#[inline(always)]
pub fn claim<B: FlowTable, T: FlowTable>(
    bindings: &B,
    free: &T,
    ring: Ring,
    now_ticks: u32,
    kind: Kind,
) -> u32 {
    let mut tries = 0;
    while tries < TRIES {
        let index = ring.take(free);
        let Some(at) = bindings.bucket(index) else {
            return 0;
        };
        if index == 0 {
            return 0;
        }
        let old = state(bindings, at);
        // A port of an address that is being removed, or one that is in the
        // ring twice, isn't free: the next one.
        if old.is_free() && change(bindings, at, old, old.claimed(now_ticks, kind)) {
            return index;
        }
        tries += 1;
    }
    0
}

/// What became of a claimed binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is the flow's.
    Mine,
    /// Another core gave the flow another binding, which is found by now; the
    /// claimed one rests.
    Theirs,
    /// There was no room for the flow's entry; the claimed one rests.
    Refused,
}

/// Gives a claimed binding to a flow that has none. Where two cores do this for
/// the same flow at the same time, exactly one wins: each publishes its entry,
/// then looks for others', so one of the two sees the other at least. Who sees
/// a used one gives way; of two that are both still claimed the lower index
/// wins, and takes the other's claim away, so that it can't be used any more.
#[inline(always)]
pub fn open<B: FlowTable, F: FlowTable>(
    bindings: &B,
    flows: &F,
    index: u32,
    flow: &Flow<'_>,
    member: u32,
    now_ticks: u32,
) -> Opened {
    let Some(at) = bindings.bucket(index) else {
        return Opened::Refused;
    };
    let claimed = state(bindings, at);
    record::write(bindings, at, flow, member);

    let key = FlowKey::new(flow.hash, flows.buckets());
    let entry = FlowWord::new(key.tag, index, now_ticks, Mark::Open);
    if !flow::insert(flows, key, entry, flow::Place::Free, now_ticks, NEVER) {
        change(bindings, at, claimed, claimed.ended(now_ticks));
        return Opened::Refused;
    }
    let gives_way = contested(bindings, flows, key, index, flow, now_ticks);
    if !gives_way && change(bindings, at, claimed, claimed.used()) {
        return Opened::Mine;
    }
    // Somebody may have taken the claim away.
    change(bindings, at, claimed, claimed.ended(now_ticks));
    withdraw(flows, key, entry);
    Opened::Theirs
}

/// Entries of this table end with their bindings, whatever their own age.
const NEVER: Idle = Idle {
    open_units: u32::MAX,
    half_units: u32::MAX,
};

/// Whether another binding of the flow has precedence. Those without it lose
/// their claim.
#[inline(always)]
fn contested<B: FlowTable, F: FlowTable>(
    bindings: &B,
    flows: &F,
    key: FlowKey,
    index: u32,
    flow: &Flow<'_>,
    now_ticks: u32,
) -> bool {
    let mut bucket = key.home;
    let mut turn = 0;
    while turn < 2 {
        let Some(at) = flows.bucket(bucket) else {
            return false;
        };
        let mut word = CONTROL + 1;
        while word < BUCKET_WORDS {
            let entry = FlowWord(flows.load(at, word));
            if entry.tag() == key.tag
                && !entry.is_empty()
                && entry.member() != index
                && yields_to(bindings, entry.member(), index, flow, now_ticks)
            {
                return true;
            }
            word += 1;
        }
        bucket = key.alternate(flows.buckets());
        turn += 1;
    }
    false
}

/// Whether the flow's binding `index` has to give way to `other`.
#[inline(always)]
fn yields_to<B: FlowTable>(
    bindings: &B,
    other: u32,
    index: u32,
    flow: &Flow<'_>,
    now_ticks: u32,
) -> bool {
    let Some(at) = bindings.bucket(other) else {
        return false;
    };
    let theirs = state(bindings, at);
    if !is_of(bindings, at, flow) {
        return false;
    }
    // What isn't claimed any more when it should end has become used.
    theirs.is_used()
        || other < index
        || (theirs.is_claimed()
            && !change(bindings, at, theirs, theirs.ended(now_ticks))
            && is_of(bindings, at, flow))
}

#[inline(always)]
fn withdraw<F: FlowTable>(flows: &F, key: FlowKey, entry: FlowWord) {
    let found = flow::find(flows, key, |other| other.0 == entry.0);
    if let Some(found) = found {
        flows.replace(found.bucket, found.word, entry.0, FlowWord::EMPTY.0);
    }
}

#[cfg(test)]
#[path = "binding_tests.rs"]
mod tests;
