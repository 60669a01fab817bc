//! The flow tables, and the members' counts of what is in them.

use core::arch::asm;

use aya_ebpf::maps::Array;
use lb_common::{
    abi::{Config, MemberLoad},
    flow::{self, BUCKET_WORDS, FlowTable, FlowWord, Place},
    load::Counts,
};

use super::{Bucket, FLOWS, LOADS, REPLY_FLOWS, compare_exchange, config, fetch_add};

/// Which flow table.
pub struct Flows {
    pub(super) map: &'static Array<Bucket>,
    pub(super) buckets: u32,
    /// Whether entries are counted at their members.
    pub(super) counts: bool,
    /// Any number from a map, see `blur`.
    pub(super) noise: u64,
}

impl Flows {
    /// Flows in tracked slots.
    #[inline(always)]
    pub fn forward(config: &Config) -> Self {
        Self {
            map: &FLOWS,
            buckets: config.flow_buckets,
            counts: true,
            noise: config.hash_key[0],
        }
    }

    /// Flows whose replies are recognised one by one.
    #[inline(always)]
    pub fn replies(config: &Config) -> Self {
        Self {
            map: &REPLY_FLOWS,
            buckets: config.reply_buckets,
            counts: false,
            noise: config.hash_key[0],
        }
    }
}

impl FlowTable for Flows {
    type Bucket = *mut Bucket;

    #[inline(always)]
    fn buckets(&self) -> u32 {
        self.buckets
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut Bucket> {
        self.map.get_ptr_mut(index)
    }

    #[inline(always)]
    fn blur(&self, word: usize) -> usize {
        self.hide(word as u64) as usize & (BUCKET_WORDS - 1)
    }

    #[inline(always)]
    fn hide(&self, number: u64) -> u64 {
        hide(number, self.noise)
    }

    #[inline(always)]
    fn load(&self, bucket: *mut Bucket, word: usize) -> u64 {
        // SAFETY: `bucket` is a valid element and `word` below BUCKET_WORDS,
        // which the verifier checks as well. LLVM selects no atomic load for
        // BPF; an aligned 64-bit load is one instruction.
        unsafe { bucket.cast::<u64>().add(word).read_volatile() }
    }

    #[inline(always)]
    fn replace(&self, bucket: *mut Bucket, word: usize, current: u64, new: u64) -> bool {
        // SAFETY: as in `load`.
        compare_exchange(unsafe { bucket.cast::<u64>().add(word) }, current, new)
    }

    #[inline(always)]
    fn store(&self, bucket: *mut Bucket, word: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { bucket.cast::<u64>().add(word).write_volatile(value) };
    }

    #[inline(always)]
    fn exchange(
        &self,
        bucket: *mut Bucket,
        word: usize,
        old: FlowWord,
        new: FlowWord,
        place: Place,
    ) -> bool {
        if !self.counts {
            return self.replace(bucket, word, old.0, new.0);
        }
        // The place goes with the index: BPF functions have five arguments.
        let reserved = if place == Place::Reserved {
            RESERVED
        } else {
            0
        };
        let done = exchange_counted(bucket, word as u64 | reserved, old.0, new.0);
        self.hide(u64::from(done)) != 0
    }

    #[inline(always)]
    fn count(&self, member: u32, by: u64) {
        if self.counts {
            count_flows(member, by);
        }
    }
}

/// Beside the index of an entry: [`Place::Reserved`].
const RESERVED: u64 = 1 << 32;

/// A bucket whose entries are counted.
struct Counted(*mut Bucket);

impl FlowTable for Counted {
    type Bucket = ();

    #[inline(always)]
    fn buckets(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn bucket(&self, _: u32) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn load(&self, (): (), _: usize) -> u64 {
        0
    }

    #[inline(always)]
    fn replace(&self, (): (), word: usize, current: u64, new: u64) -> bool {
        // SAFETY: a valid element, and the index is below BUCKET_WORDS.
        compare_exchange(unsafe { self.0.cast::<u64>().add(word) }, current, new)
    }

    #[inline(always)]
    fn count(&self, member: u32, by: u64) {
        count_flows(member, by);
    }
}

#[inline(never)]
fn exchange_counted(bucket: *mut Bucket, word: u64, old: u64, new: u64) -> u32 {
    exchange(bucket, word, old, new, word & RESERVED != 0)
}

#[inline(always)]
fn exchange(bucket: *mut Bucket, word: u64, old: u64, new: u64, is_reserved: bool) -> u32 {
    let place = if is_reserved {
        Place::Reserved
    } else {
        Place::Free
    };
    let word = word as usize & (BUCKET_WORDS - 1);
    let (old, new) = (FlowWord(old), FlowWord(new));
    u32::from(flow::exchange(&Counted(bucket), (), word, old, new, place))
}

/// Adds to a member's counts; what they were.
#[inline(always)]
pub fn count_flows(member: u32, by: u64) -> Counts {
    match LOADS.get_ptr_mut(member) {
        // SAFETY: an aligned field of a valid element.
        Some(load) => Counts(fetch_add(unsafe { &raw mut (*load).counts }, by)),
        None => Counts::default(),
    }
}

/// A member's counts, its limit and its weight, read once.
#[inline(always)]
pub fn load_of(member: u32) -> MemberLoad {
    match LOADS.get_ptr(member) {
        // SAFETY: a valid element; each of its words is read once.
        Some(load) => unsafe { load.read_volatile() },
        None => MemberLoad::default(),
    }
}

/// The same number.
#[inline(always)]
fn hide(mut number: u64, noise: u64) -> u64 {
    // SAFETY: two operations on registers that cancel out. The verifier
    // takes what comes out for any number, and so checks what is done
    // with an entry once and not once for each place it may be found in.
    unsafe {
        asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) number, in(reg) noise, options(pure, nomem));
    }
    number
}

/// The flows of services with full tracking. What is done with a bucket is a
/// global function each, so a bucket is known by its index.
pub struct Indexed {
    buckets: u32,
    noise: u64,
}

impl Indexed {
    /// `FLOWS`.
    #[inline(always)]
    pub fn new(config: &Config) -> Self {
        Self {
            buckets: config.flow_buckets,
            noise: config.hash_key[0],
        }
    }
}

impl FlowTable for Indexed {
    type Bucket = u32;

    #[inline(always)]
    fn buckets(&self) -> u32 {
        self.buckets
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<u32> {
        Some(index)
    }

    #[inline(always)]
    fn blur(&self, word: usize) -> usize {
        self.hide(word as u64) as usize & (BUCKET_WORDS - 1)
    }

    #[inline(always)]
    fn hide(&self, number: u64) -> u64 {
        hide(number, self.noise)
    }

    #[inline(always)]
    fn load(&self, bucket: u32, word: usize) -> u64 {
        FLOWS.get_ptr(bucket).map_or(0, |bucket| {
            // SAFETY: a valid element, and the index is below BUCKET_WORDS.
            unsafe {
                bucket
                    .cast::<u64>()
                    .add(word & (BUCKET_WORDS - 1))
                    .read_volatile()
            }
        })
    }

    #[inline(always)]
    fn replace(&self, bucket: u32, word: usize, current: u64, new: u64) -> bool {
        self.exchange(bucket, word, FlowWord(current), FlowWord(new), Place::Free)
    }

    #[inline(always)]
    fn exchange(
        &self,
        bucket: u32,
        word: usize,
        old: FlowWord,
        new: FlowWord,
        place: Place,
    ) -> bool {
        let reserved = u32::from(place == Place::Reserved);
        let word = word as u32;
        self.hide(u64::from(lb_exchange(bucket, word, old.0, new.0, reserved))) != 0
    }
}

/// [`flow::exchange`] in `FLOWS`. A global function: the verifier checks it
/// once, for any arguments, and not once for each state that a call is made in.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_exchange(bucket: u32, word: u32, old: u64, new: u64, reserved: u32) -> u32 {
    let Some(bucket) = FLOWS.get_ptr_mut(bucket) else {
        return 0;
    };
    exchange(bucket, word.into(), old, new, reserved != 0)
}

/// [`flow::find_in`] in a bucket of `FLOWS`, for a service's own flows: the
/// entry's index, or that of the control word. Global like [`lb_exchange`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_find(bucket: u32, tag: u32, service: u32) -> u32 {
    let (Some(config), Some(bucket)) = (config(), FLOWS.get_ptr_mut(bucket)) else {
        return flow::CONTROL as u32;
    };
    let flows = Flows::forward(config);
    let is_ours = |entry: FlowWord| {
        super::member(entry.member()).is_some_and(|member| member.service == service)
    };
    match flow::find_in(&flows, bucket, tag, &is_ours) {
        Some(found) => found.word as u32,
        None => flow::CONTROL as u32,
    }
}

/// [`flow::insert`] of an entry at home in the bucket. Global like [`lb_exchange`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_insert(home: u32, entry: u64, now_ticks: u32, reserved: u32) -> u32 {
    let Some(config) = config() else {
        return 0;
    };
    let entry = FlowWord(entry);
    let key = flow::FlowKey {
        tag: entry.tag(),
        home,
    };
    let place = if reserved != 0 {
        Place::Reserved
    } else {
        Place::Free
    };
    let longest = flow::Idle {
        open_units: config.longest_idle_units,
        half_units: config.half_units,
    };
    let flows = Flows::forward(config);
    u32::from(flow::insert(&flows, key, entry, place, now_ticks, longest))
}
