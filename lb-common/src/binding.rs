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
    net::{Addr, Be16, family},
    track::Kind,
};

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

/// What a binding is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Belongs to no pool address, or to one that is being removed.
    Absent,
    /// In the ring of free ports, or just taken out of it.
    Free,
    /// Being written. Becomes used or rests.
    Claimed,
    /// Stands for a flow.
    Used,
    /// Stood for a flow a short while ago.
    Resting,
}

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// The backend's.
    Backend,
}

/// The first word of a binding: ticks when it was last seen (32 bits), a count
/// of its uses (16), flags (8), what it is used for (8), from the highest bit
/// down. Zero is absent.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindingState(pub u64);

impl BindingState {
    const FREE: u64 = 1;
    const CLAIMED: u64 = 2;
    const USED: u64 = 3;
    const RESTING: u64 = 4;
    const USE_MASK: u64 = 0xff;

    const OPEN: u64 = 1 << 8;
    const CLIENT_FIN: u64 = 1 << 9;
    const BACKEND_FIN: u64 = 1 << 10;
    const RST: u64 = 1 << 11;
    const FLAGS: u64 = 0xff00;

    const USES_SHIFT: u32 = 16;
    const USES_MASK: u64 = 0xffff << Self::USES_SHIFT;
    const TICKS_SHIFT: u32 = 32;

    /// What it is used for.
    pub const fn usage(self) -> Use {
        match self.0 & Self::USE_MASK {
            Self::FREE => Use::Free,
            Self::CLAIMED => Use::Claimed,
            Self::USED => Use::Used,
            Self::RESTING => Use::Resting,
            _ => Use::Absent,
        }
    }

    /// Whether a flow has it.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.0 & Self::USE_MASK == Self::USED
    }

    /// Whether it is free.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 & Self::USE_MASK == Self::FREE
    }

    /// Whether it is being written.
    #[inline(always)]
    pub const fn is_claimed(self) -> bool {
        self.0 & Self::USE_MASK == Self::CLAIMED
    }

    /// Whether both sides are done, or the connection was broken off.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        let fins = Self::CLIENT_FIN | Self::BACKEND_FIN;
        self.0 & Self::RST != 0 || self.0 & fins == fins
    }

    /// Whether the client sent more than a SYN.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    /// Ticks since it was last seen; for a resting one, since it ended.
    #[inline(always)]
    pub const fn age(self, now_ticks: u32) -> u32 {
        now_ticks.wrapping_sub((self.0 >> Self::TICKS_SHIFT) as u32)
    }

    /// Whether both are of one flow's use.
    #[inline(always)]
    pub const fn is_same_use(self, other: Self) -> bool {
        (self.0 ^ other.0) & (Self::USES_MASK | Self::USE_MASK) == 0
    }

    #[inline(always)]
    const fn stamped(self, now_ticks: u32) -> u64 {
        self.0 & 0xffff_ffff | (now_ticks as u64) << Self::TICKS_SHIFT
    }

    /// The same binding put to another use, without flags.
    #[inline(always)]
    const fn put_to(self, usage: u64, now_ticks: u32) -> Self {
        Self(self.0 & Self::USES_MASK | (now_ticks as u64) << Self::TICKS_SHIFT | usage)
    }

    /// Free from `now_ticks` on.
    #[must_use]
    pub const fn freed(self, now_ticks: u32) -> Self {
        self.put_to(Self::FREE, now_ticks)
    }

    /// Without a pool address.
    #[must_use]
    pub const fn removed(self) -> Self {
        self.put_to(0, 0)
    }

    /// Claimed for a flow whose first packet is of this kind.
    #[inline(always)]
    #[must_use]
    pub const fn claimed(self, now_ticks: u32, kind: Kind) -> Self {
        let uses = self.0.wrapping_add(1 << Self::USES_SHIFT) & Self::USES_MASK;
        let flags = match kind {
            Kind::Syn => 0,
            Kind::Data | Kind::Datagram => Self::OPEN,
            Kind::Fin => Self::OPEN | Self::CLIENT_FIN,
            Kind::Rst => Self::OPEN | Self::RST,
        };
        Self(uses | (now_ticks as u64) << Self::TICKS_SHIFT | flags | Self::CLAIMED)
    }

    /// A claimed one whose flow has it.
    #[inline(always)]
    #[must_use]
    pub const fn used(self) -> Self {
        Self(self.0 & !Self::USE_MASK | Self::USED)
    }

    /// At rest from `now_ticks` on.
    #[inline(always)]
    #[must_use]
    pub const fn ended(self, now_ticks: u32) -> Self {
        self.put_to(Self::RESTING, now_ticks)
    }

    /// After another packet. A SYN opens a closing one anew; data after an RST
    /// takes that back: whoever did break off answers with another.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self, now_ticks: u32, side: Side, kind: Kind) -> Self {
        let word = self.stamped(now_ticks);
        let is_client = matches!(side, Side::Client);
        Self(match kind {
            Kind::Syn if is_client && self.is_closing() => word & !Self::FLAGS,
            Kind::Syn => word,
            Kind::Data | Kind::Datagram if is_client => word & !Self::RST | Self::OPEN,
            Kind::Data | Kind::Datagram => word & !Self::RST,
            Kind::Fin if is_client => word | Self::OPEN | Self::CLIENT_FIN,
            Kind::Fin => word | Self::BACKEND_FIN,
            Kind::Rst => word | Self::RST,
        })
    }

    /// Whether its flow is over for want of packets. A claimed one that nobody
    /// went on with is, too.
    pub const fn has_expired(self, now_ticks: u32, limits: Limits) -> bool {
        let limit = if self.is_claimed() {
            limits.half_ticks
        } else if self.is_closing() {
            limits.closing_ticks
        } else if self.is_open() {
            limits.open_ticks
        } else {
            limits.half_ticks
        };
        // A packet may have come since the time was read.
        let age = self.age(now_ticks);
        age > limit && age < 1 << 31
    }
}

/// After how many ticks without a packet a binding ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// An open one.
    pub open_ticks: u32,
    /// One of which only a SYN was seen.
    pub half_ticks: u32,
    /// One that both sides closed.
    pub closing_ticks: u32,
}

/// Words of a binding, as [`crate::abi::Binding`] has them.
pub mod word {
    /// [`super::BindingState`].
    pub const STATE: usize = 0;
    /// The client's address, two words.
    pub const CLIENT: usize = 1;
    /// The pool's address, two words.
    pub const POOL: usize = 3;
    /// The flow's hash.
    pub const HASH: usize = 5;
    /// Ports, protocol, family.
    pub const PORTS: usize = 6;
    /// Member and service.
    pub const MEMBER: usize = 7;
}

#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    let b = word.to_ne_bytes();
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    ]
}

/// All of [`word::PORTS`] but for the pool's port.
const FLOW_PORTS: u64 = u64::from_ne_bytes([255, 255, 255, 255, 0, 0, 255, 255]);

#[inline(always)]
const fn ports(tuple: &Tuple) -> u64 {
    let client = tuple.source_port.wire().to_ne_bytes();
    let vip = tuple.destination_port.wire().to_ne_bytes();
    u64::from_ne_bytes([
        client[0],
        client[1],
        vip[0],
        vip[1],
        0,
        0,
        tuple.protocol,
        tuple.family,
    ])
}

/// What never changes in the life of a pool address: written before the port
/// is given out for the first time.
pub fn dedicate<B: FlowTable>(bindings: &B, at: B::Bucket, pool: Addr, port: Be16, family: u8) {
    bindings.store(at, word::POOL, pair(pool.0[0], pool.0[1]));
    bindings.store(at, word::POOL + 1, pair(pool.0[2], pool.0[3]));
    let port = port.wire().to_ne_bytes();
    let ports = u64::from_ne_bytes([0, 0, 0, 0, port[0], port[1], 0, family]);
    bindings.store(at, word::PORTS, ports);
}

/// The first word of a binding.
#[inline(always)]
pub fn state<B: FlowTable>(bindings: &B, at: B::Bucket) -> BindingState {
    BindingState(bindings.load(at, word::STATE))
}

/// Changes the first word if it is still `current`.
#[inline(always)]
pub fn change<B: FlowTable>(
    bindings: &B,
    at: B::Bucket,
    current: BindingState,
    new: BindingState,
) -> bool {
    bindings.replace(at, word::STATE, current.0, new.0)
}

/// The member's id.
#[inline(always)]
pub fn member<B: FlowTable>(bindings: &B, at: B::Bucket) -> u32 {
    halves(bindings.load(at, word::MEMBER))[0]
}

/// The service's id.
#[inline(always)]
pub fn service<B: FlowTable>(bindings: &B, at: B::Bucket) -> u32 {
    halves(bindings.load(at, word::MEMBER))[1]
}

/// The flow's hash.
#[inline(always)]
pub fn flow_hash<B: FlowTable>(bindings: &B, at: B::Bucket) -> u64 {
    bindings.load(at, word::HASH)
}

/// IANA number of the flow's protocol.
#[inline(always)]
pub fn protocol<B: FlowTable>(bindings: &B, at: B::Bucket) -> u8 {
    bindings.load(at, word::PORTS).to_ne_bytes()[6]
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: Addr,
    /// The port.
    pub port: Be16,
}

#[inline(always)]
fn address<B: FlowTable>(bindings: &B, at: B::Bucket, first: usize) -> Addr {
    let [a, b] = halves(bindings.load(at, first));
    let [c, d] = halves(bindings.load(at, first + 1));
    Addr([a, b, c, d])
}

#[inline(always)]
fn port<B: FlowTable>(bindings: &B, at: B::Bucket, first: usize) -> Be16 {
    let bytes = bindings.load(at, word::PORTS).to_ne_bytes();
    Be16::from_wire(u16::from_ne_bytes([bytes[first], bytes[first + 1]]))
}

/// The client.
#[inline(always)]
pub fn client<B: FlowTable>(bindings: &B, at: B::Bucket) -> End {
    End {
        address: address(bindings, at, word::CLIENT),
        port: port(bindings, at, 0),
    }
}

/// The pool address and port: the source towards the backend.
#[inline(always)]
pub fn pool<B: FlowTable>(bindings: &B, at: B::Bucket) -> End {
    End {
        address: address(bindings, at, word::POOL),
        port: port(bindings, at, 4),
    }
}

/// The port the client's packets are addressed to.
#[inline(always)]
pub fn vip_port<B: FlowTable>(bindings: &B, at: B::Bucket) -> Be16 {
    port(bindings, at, 2)
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
        && uses(before) == uses(state(bindings, at))
}

#[inline(always)]
const fn uses(state: BindingState) -> u64 {
    state.0 & BindingState::USES_MASK
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

/// A ring of free ports of one family in the map `FREE_PORTS`, whose elements
/// are cache lines: the first line has the count of ports taken out, the second
/// that of ports put in, and further on is the place for the indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    counts: u32,
    first: u32,
    capacity: u32,
}

/// Lines of `FREE_PORTS` before the first ring's indices.
const RING_COUNTS: u32 = 4;

/// Times that another core may be faster at the same port, or that a port that
/// isn't free any more is passed over, before the data path gives up.
const TRIES: u32 = 8;

impl Ring {
    /// Places in each ring where there are `bindings`: a power of two.
    pub const fn capacity_for(bindings: u32) -> u32 {
        let capacity = bindings.next_power_of_two();
        if capacity < BUCKET_WORDS as u32 {
            BUCKET_WORDS as u32
        } else {
            capacity
        }
    }

    /// Elements of `FREE_PORTS` for rings of `capacity`.
    pub const fn lines(capacity: u32) -> u32 {
        RING_COUNTS + 2 * (capacity / BUCKET_WORDS as u32)
    }

    /// The ring of a family; `capacity` is a power of two.
    #[inline(always)]
    pub const fn new(family: u8, capacity: u32) -> Self {
        if family == family::V4 {
            Self {
                counts: 0,
                first: RING_COUNTS,
                capacity,
            }
        } else {
            Self {
                counts: 2,
                first: RING_COUNTS + capacity / BUCKET_WORDS as u32,
                capacity,
            }
        }
    }

    #[inline(always)]
    const fn line_of(self, position: u64) -> u32 {
        self.first + (position as u32 & (self.capacity - 1)) / BUCKET_WORDS as u32
    }

    /// How many were taken out and put in so far.
    #[inline(always)]
    pub fn counts<T: FlowTable>(self, table: &T) -> Option<(u64, u64)> {
        let taken = table.load(table.bucket(self.counts)?, 0);
        let put = table.load(table.bucket(self.counts + 1)?, 0);
        Some((taken, put))
    }

    /// The index at a position between the two counts.
    #[inline(always)]
    pub fn peek<T: FlowTable>(self, table: &T, position: u64) -> Option<u32> {
        let line = table.bucket(self.line_of(position))?;
        let word = table.blur(position as usize & (BUCKET_WORDS - 1));
        Some(table.load(line, word) as u32)
    }

    /// Takes the oldest index out; zero where there is none, or others were
    /// faster too often.
    #[inline(always)]
    pub fn take<T: FlowTable>(self, table: &T) -> u32 {
        let mut tries = 0;
        while tries < TRIES {
            let Some((taken, put)) = self.counts(table) else {
                return 0;
            };
            if taken == put {
                return 0;
            }
            let Some(index) = self.peek(table, taken) else {
                return 0;
            };
            // The place can't have been filled anew if the count is the same.
            if let Some(counts) = table.bucket(self.counts)
                && table.replace(counts, 0, taken, taken.wrapping_add(1))
            {
                return index;
            }
            tries += 1;
        }
        0
    }

    /// Puts an index in; the controller alone does. `false` where the ring is full.
    pub fn put<T: FlowTable>(self, table: &T, index: u32) -> bool {
        let Some((taken, put)) = self.counts(table) else {
            return false;
        };
        if put.wrapping_sub(taken) >= u64::from(self.capacity) {
            return false;
        }
        let (Some(line), Some(counts)) = (
            table.bucket(self.line_of(put)),
            table.bucket(self.counts + 1),
        ) else {
            return false;
        };
        table.store(line, put as usize & (BUCKET_WORDS - 1), u64::from(index));
        // By an exchange, so that the index is there before it counts.
        table.replace(counts, 0, put, put.wrapping_add(1))
    }
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
    let [a, b, c, d] = flow.tuple.source.0;
    bindings.store(at, word::CLIENT, pair(a, b));
    bindings.store(at, word::CLIENT + 1, pair(c, d));
    bindings.store(at, word::HASH, flow.hash);
    bindings.store(at, word::MEMBER, pair(member, flow.service));
    let kept = bindings.load(at, word::PORTS) & !FLOW_PORTS;
    bindings.store(at, word::PORTS, kept | ports(flow.tuple));

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
