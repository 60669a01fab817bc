//! The maps, and all access to their memory.
//!
//! Every map is pinned by name, so that a restarted controller finds what runs.
//! The sizes here are the smallest; the controller sets those of its
//! configuration before it loads the object.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key,
    },
    programs::XdpContext,
};
use lb_common::{
    abi::{
        Bound, CLAIMS as CLAIM_COUNT, Claim, ClockReading, Config, FragmentEntry, FragmentKey,
        LINK_PROBES, LINKS as LINK_COUNT, LimitKey, LinkEntry, MemberEntry, MemberLoad,
        MemberStats, NAME_BYTES, NeighbourRequest, OWNERS as OWNER_COUNT, PROBE_PORTS,
        PersistEntry, PersistKey, ProbeEntry, QUOTE_BYTES, RANGE_KEY_FIXED_BITS, RangeKey,
        ReplyEntry, ReplyKey, SAMPLE_SIZE, SOURCE_KEY_FIXED_BITS, SampleEntry, Scratch, ServerKey,
        ServiceEntry, ServiceKey, SourceKey, Tags, VipEntry, VipKey, Work, program::TAILS, source,
    },
    counter::{DROP_ROW, EVENT_ROW},
    flow::BUCKET_WORDS,
    limit,
    member::MemberState,
    net::Addr,
    slot::SlotWord,
};

use crate::back::FibParameters;

pub mod bindings;
mod flows;
pub mod persistence;

pub use flows::{Flows, Indexed, count_flows, lb_find, lb_insert, load_of};

/// Memory that other cores and the controller change at any time.
type Bucket = [u64; BUCKET_WORDS];

#[map]
static ABI: Array<u32> = Array::pinned(1, 0);
#[map]
static CONFIG: Array<Config> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static SERVICES: HashMap<ServiceKey, ServiceEntry> = HashMap::pinned(64, 0);
#[map]
static RANGES: LpmTrie<RangeKey, ServiceEntry> = LpmTrie::pinned(64, 0);
#[map]
static SERVICE_NAMES: Array<[u8; NAME_BYTES]> = Array::pinned(64, 0);
#[map]
static VIPS: HashMap<VipKey, VipEntry> = HashMap::pinned(64, 0);
#[map]
static OWNERS: Array<u64> = Array::pinned(OWNER_COUNT, 0);
#[map]
static VIRTUAL_MACS: Array<u32> = Array::pinned(OWNER_COUNT, 0);
#[map]
static SLOTS: Array<u64> = Array::pinned(1024, BPF_F_MMAPABLE);
#[map]
static MEMBERS: Array<MemberEntry> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static FLOWS: Array<Bucket> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static REPLY_FLOWS: Array<Bucket> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static REPLIES: HashMap<ReplyKey, ReplyEntry> = HashMap::pinned(64, 0);
#[map]
static LINKS: Array<LinkEntry> = Array::pinned(LINK_COUNT, 0);
#[map]
static LOADS: Array<MemberLoad> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static TURNS: Array<u64> = Array::pinned(64, 0);
#[map]
static STATS: PerCpuArray<MemberStats> = PerCpuArray::pinned(64, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(64 * DROP_ROW, 0);
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::pinned(64 * EVENT_ROW, 0);
#[map]
static SAMPLE: Array<SampleEntry> = Array::pinned(SAMPLE_SIZE, BPF_F_MMAPABLE);
#[map]
static NEIGH_REQUESTS: RingBuf = RingBuf::pinned(1 << 16, 0);
#[map]
static CLOCK: Array<ClockReading> = Array::pinned(1, BPF_F_MMAPABLE);
// Pinned, too, since a program array that no process holds is emptied, and a
// new program may hand over to an old one, or the other way round, while the
// controller replaces them.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::pinned(TAILS.len() as u32, 0);
#[map]
static CHOOSER: PerCpuArray<ServiceEntry> = PerCpuArray::with_max_entries(1, 0);
#[map]
static WORK: PerCpuArray<Scratch> = PerCpuArray::pinned(1, 0);
#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::pinned(64, 0);
#[map]
static CORE_LIMITS: PerCpuArray<u64> = PerCpuArray::pinned(64, 0);
#[map]
static SOURCE_LIMITS: LruHashMap<LimitKey, u64> = LruHashMap::pinned(1024, 0);
// The least recent sources are forgotten where there is no room. A source is only
// noted by a flow's second packet, so forged SYNs and lone ACKs push nobody out.
#[map]
static PERSISTENCE: LruHashMap<PersistKey, PersistEntry> = LruHashMap::pinned(1024, 0);
#[map]
static SERVERS: HashMap<ServerKey, u32> = HashMap::pinned(64, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry> = LruHashMap::pinned(64, 0);
#[map]
static ICMP_LIMIT: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);
#[map]
static CLAIMS: LruHashMap<VipKey, Claim> = LruHashMap::pinned(CLAIM_COUNT, 0);

#[map]
static PROBES: Array<ProbeEntry> = Array::pinned(PROBE_PORTS, BPF_F_MMAPABLE);

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn service(key: &ServiceKey) -> Option<&'static ServiceEntry> {
    // SAFETY: entries are replaced as a whole by the controller; a value read
    // while it is replaced is an old or a new one, word by word, and every
    // word is right by itself in both.
    unsafe { SERVICES.get(key) }
}

#[inline(always)]
pub fn service_in_range(key: RangeKey) -> Option<&'static ServiceEntry> {
    RANGES.get(Key::new(RANGE_KEY_FIXED_BITS + 16, key))
}

#[inline(always)]
pub fn vip(key: &VipKey) -> Option<&'static VipEntry> {
    // SAFETY: as in `service`.
    unsafe { VIPS.get(key) }
}

#[inline(always)]
pub fn reply(key: &ReplyKey) -> Option<&'static ReplyEntry> {
    // SAFETY: as in `service`.
    unsafe { REPLIES.get(key) }
}

#[inline(always)]
pub fn owner(index: u16) -> u64 {
    // SAFETY: a valid element of a map of `u64`.
    OWNERS
        .get_ptr(u32::from(index))
        .map_or(0, |word| unsafe { word.read_volatile() })
}

/// Index of the device on which the virtual router with this owner word has its
/// virtual MAC address; zero: it has none.
#[inline(always)]
pub fn virtual_mac_device(index: u32) -> u32 {
    VIRTUAL_MACS.get(index).copied().unwrap_or(0)
}

/// Index of the managed device that packets with these tags come in by, or
/// that the kernel's routing names; [`NO_LINK`] where there is none.
#[inline(always)]
pub fn find_link(ifindex: u32, tags: Tags) -> u32 {
    let mut index = LinkEntry::place(ifindex, tags);
    let mut probe = 0;
    while probe < LINK_PROBES {
        if let Some(link) = LINKS.get(index)
            && link.match_ifindex == ifindex
            && link.match_tags == tags
        {
            return index;
        }
        index = (index + 1) % LINK_COUNT;
        probe += 1;
    }
    NO_LINK
}

/// No index of a link.
pub const NO_LINK: u32 = u32::MAX;

#[inline(always)]
pub fn link(index: u32) -> Option<&'static LinkEntry> {
    LINKS.get(index).filter(|link| link.ifindex != 0)
}

/// What goes with a packet from one program to the next.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: the element is this core's, and XDP programs don't nest on one.
    // This field is reached by this function alone; no two of what it gives are
    // in use at the same time.
    WORK.get_ptr_mut(0)
        .map(|scratch| unsafe { &mut (*scratch).work })
}

/// Where the first fragment of a packet went.
#[inline(always)]
pub fn fragment(key: &FragmentKey) -> Option<FragmentEntry> {
    // SAFETY: a copy is made at once. The element may be given to another packet
    // meanwhile, so its reader compares what it says with the member's record.
    unsafe { FRAGMENTS.get(key) }.copied()
}

/// Notes where the first fragment of a packet went. Where there is no room the
/// later ones are dropped.
#[inline(always)]
pub fn note_fragment(key: &FragmentKey, entry: &FragmentEntry) {
    let _ = FRAGMENTS.insert(key, entry, 0);
}

/// Takes a token from this core's bucket of ICMP errors, if `take` finds one.
#[inline(always)]
pub fn take_icmp(take: impl FnOnce(limit::Bucket) -> limit::Bucket) -> bool {
    let Some(at) = ICMP_LIMIT.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a valid element, this core's.
    unsafe { take_from(at, take) }
}

/// Room for the binding at hand.
#[inline(always)]
pub fn bound() -> Option<&'static mut Bound> {
    // SAFETY: as in `work`.
    WORK.get_ptr_mut(0)
        .map(|scratch| unsafe { &mut (*scratch).bound })
}

/// Room for a question to the kernel's routing.
#[inline(always)]
pub fn route() -> Option<&'static mut FibParameters> {
    // SAFETY: as in `work`. There is room for it, as it says itself.
    WORK.get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *(&raw mut (*scratch).route).cast() })
}

/// Room for what is quoted of a packet.
#[inline(always)]
pub fn quote() -> Option<&'static mut [u32; QUOTE_BYTES / 4]> {
    // SAFETY: as in `work`.
    WORK.get_ptr_mut(0)
        .map(|scratch| unsafe { &mut (*scratch).quote })
}

/// Goes on as the program at `place`; comes back where there is none.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, place: u32) {
    // SAFETY: nothing here needs dropping.
    unsafe { PROGRAMS.tail_call(ctx, place) };
}

#[inline(always)]
pub fn member(id: u32) -> Option<&'static MemberEntry> {
    MEMBERS.get(id)
}

/// Where the probe from the port at `index` goes.
#[inline(always)]
pub fn probe(index: u32) -> Option<&'static ProbeEntry> {
    PROBES.get(index)
}

/// State of a member, read once.
#[inline(always)]
pub fn member_state(id: u32) -> MemberState {
    MEMBERS.get_ptr(id).map_or(MemberState::FREE, |m| {
        // SAFETY: `m` is a valid element; the controller stores the word atomically.
        MemberState(unsafe { (&raw const (*m).state).read_volatile() })
    })
}

/// Whether a set of sources says this of an address: a value of [`mod@source`].
/// Set zero says nothing of anybody.
#[inline(always)]
pub fn source_is(set: u32, address: Addr, value: u32) -> bool {
    if set == 0 {
        return false;
    }
    let key = Key::new(SOURCE_KEY_FIXED_BITS + 128, SourceKey { set, address });
    SOURCES.get(key).copied().unwrap_or(source::ALLOWED) == value
}

/// Takes a token from one of this core's buckets, if `take` finds one.
#[inline(always)]
pub fn take_from_core(row: u32, take: impl FnOnce(limit::Bucket) -> limit::Bucket) -> bool {
    let Some(at) = CORE_LIMITS.get_ptr_mut(row) else {
        return true;
    };
    // SAFETY: a valid element, this core's.
    unsafe { take_from(at, take) }
}

/// Takes a token from a source's bucket, if `take` finds one. What two cores
/// do at once may count once: a source gets one flow more, and nothing else.
#[inline(always)]
pub fn take_from_source(key: &LimitKey, take: impl FnOnce(limit::Bucket) -> limit::Bucket) -> bool {
    match SOURCE_LIMITS.get_ptr_mut(key) {
        // SAFETY: a valid element. It may be given to another source
        // meanwhile, whose limit is off by a second at most.
        Some(at) => unsafe { take_from(at, take) },
        None => {
            let first = take(limit::Bucket::default());
            // Where there is no room, the limit of the core is what holds.
            let _ = SOURCE_LIMITS.insert(key, first.0, 0);
            true
        }
    }
}

/// # Safety
/// `at` must be an element of a map.
#[inline(always)]
unsafe fn take_from(at: *mut u64, take: impl FnOnce(limit::Bucket) -> limit::Bucket) -> bool {
    // SAFETY: see above.
    unsafe {
        let before = at.read_volatile();
        let after = take(limit::Bucket(before)).0;
        at.write_volatile(after);
        after != before
    }
}

/// A slot's address in its table, and its word, read once.
#[derive(Clone, Copy)]
pub struct Slot {
    at: *mut u64,
    pub word: SlotWord,
}

#[inline(always)]
pub fn slot(index: u32) -> Option<Slot> {
    let at = SLOTS.get_ptr_mut(index)?;
    // SAFETY: a valid element of a map of `u64`.
    let word = unsafe { at.read_volatile() };
    Some(Slot {
        at,
        word: SlotWord(word),
    })
}

impl Slot {
    #[inline(always)]
    pub fn replace(&self, current: SlotWord, new: SlotWord) -> bool {
        compare_exchange(self.at, current.0, new.0)
    }
}

/// Leaves a service for [`chooser`].
#[inline(always)]
pub fn set_chooser(service: &ServiceEntry) {
    if let Some(at) = CHOOSER.get_ptr_mut(0) {
        // SAFETY: a valid element, this core's.
        unsafe { at.write(*service) };
    }
}

/// The service that a member is chosen of.
#[inline(always)]
pub fn chooser() -> Option<&'static ServiceEntry> {
    CHOOSER.get(0)
}

/// The number of a service's next turn.
#[inline(always)]
pub fn turn(service: u32) -> u64 {
    TURNS
        .get_ptr_mut(service)
        .map_or(0, |turns| fetch_add(turns, 1))
}

#[inline(always)]
fn compare_exchange(at: *mut u64, current: u64, new: u64) -> bool {
    // SAFETY: every caller passes an aligned element of a map. The BPF
    // target's `AtomicU64` has no compare-and-exchange, the instruction exists.
    let (_, done) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            at, current, new,
        )
    };
    done
}

#[inline(always)]
fn fetch_add(at: *mut u64, by: u64) -> u64 {
    // SAFETY: every caller passes an aligned element of a map.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(at, by) }
}

/// This core's row of a member's statistics.
#[inline(always)]
pub fn with_stats(member: u32, change: impl FnOnce(&mut MemberStats)) {
    if let Some(row) = STATS.get_ptr_mut(member) {
        // SAFETY: the row is this core's, and XDP programs don't nest on one.
        change(unsafe { &mut *row });
    }
}

#[inline(always)]
pub fn count_drop(index: u32) {
    increment(DROPS.get_ptr_mut(index));
}

#[inline(always)]
pub fn count_event(index: u32) {
    increment(EVENTS.get_ptr_mut(index));
}

#[inline(always)]
fn increment(counter: Option<*mut u64>) {
    if let Some(counter) = counter {
        // SAFETY: a valid element, this core's.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

#[inline(always)]
pub fn sample(index: u32) -> Option<*mut SampleEntry> {
    SAMPLE.get_ptr_mut(index)
}

/// Reads a sample's record; it may be torn, which its reader detects.
#[inline(always)]
pub fn read_sample(at: *mut SampleEntry) -> SampleEntry {
    // SAFETY: `at` came from `sample`.
    unsafe { at.read_volatile() }
}

/// Writes a whole record so that no reader takes half of it for one.
#[inline(always)]
pub fn write_sample(at: *mut SampleEntry, new: &SampleEntry) {
    // SAFETY: `at` came from `sample`. `check` is zero while the rest changes.
    unsafe {
        (&raw mut (*at).check).write_volatile(0);
        at.write_volatile(SampleEntry { check: 0, ..*new });
        (&raw mut (*at).check).write_volatile(new.check);
    }
}

/// Notes another packet in a record, whose other fields stay.
#[inline(always)]
pub fn touch_sample(at: *mut SampleEntry, member: u32, flags: u16, last_ticks: u32) {
    // SAFETY: `at` came from `sample`.
    unsafe {
        (&raw mut (*at).member).write_volatile(member);
        (&raw mut (*at).flags).write_volatile(flags);
        (&raw mut (*at).last_ticks).write_volatile(last_ticks);
    }
}

/// Asks the controller to have a next hop resolved; a full ring loses nothing
/// but time.
#[inline(always)]
pub fn request_neighbour(request: NeighbourRequest) {
    let _ = NEIGH_REQUESTS.output::<NeighbourRequest>(&request, 0);
}

/// Remembers who claimed a VIP, unless somebody did in the same tick.
#[inline(always)]
pub fn note_claim(vip: &VipKey, claim: &Claim) {
    let is_noted = CLAIMS.get_ptr(vip).is_some_and(|at| {
        // SAFETY: a valid element. It may be given to another VIP meanwhile;
        // then this claim isn't noted, and the next one is.
        unsafe { (&raw const (*at).ticks).read_volatile() == claim.ticks }
    });
    if !is_noted {
        let _ = CLAIMS.insert(vip, claim, 0);
    }
}

#[inline(always)]
pub fn publish_clock(reading: ClockReading) {
    if let Some(at) = CLOCK.get_ptr_mut(0) {
        // SAFETY: a valid element.
        unsafe { at.write_volatile(reading) };
    }
}
