//! Drives the data path with millions of mutated frames under
//! BPF_PROG_TEST_RUN, and judges what became of each.
//!
//! A program that another one calls at its end doesn't come back. So each run
//! first looks at what the run before left in the frame, then makes the next.
#![no_std]
#![no_main]
// The attribute macros make public items that have nobody to read about them.
#![allow(missing_docs)]

#[allow(dead_code)]
mod layout;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};

use layout::{
    BACKEND_MAC, BACKENDS, BYTES, Delivery, Mutator, OWN_MAC, SEEDS as SEED_COUNT, Seed, WORDS,
};

/// Shortest frame: its Ethernet header.
const SHORTEST: u64 = 14;

/// Changes are made in the first so many bytes, where the headers are.
const NEAR: u64 = 80;

#[map]
static SEEDS: Array<Seed> = Array::with_max_entries(SEED_COUNT, 0);
#[map]
static MUTATOR: Array<Mutator> = Array::with_max_entries(1, 0);
#[map]
static DELIVERIES: Array<Delivery> = Array::with_max_entries(BACKENDS, 0);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// See the module's description. All programs called must be loaded with the
/// same flags as this one.
#[xdp(frags)]
pub fn mutate(ctx: XdpContext) -> u32 {
    let Some(at) = MUTATOR.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: a valid element that only this program uses while it runs.
    let mutator = unsafe { &mut *at };
    if judge(&ctx, mutator).is_none() || mutator.ends != 0 {
        return xdp_action::XDP_ABORTED;
    }
    if make(&ctx, mutator).is_some() {
        // SAFETY: nothing here needs dropping.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Makes the next frame from one to start from.
#[inline(always)]
fn make(ctx: &XdpContext, mutator: &mut Mutator) -> Option<()> {
    let first = random(mutator);
    let seed = SEEDS.get(first as u32 % SEED_COUNT)?;
    mutator.before = seed.frame;
    let mut length = seed.length;
    if first >> 32 & 31 == 0 && length > SHORTEST {
        length = SHORTEST + (((first >> 40 & 0xffff) * (length - SHORTEST)) >> 16);
    }
    let near = if length < NEAR { length } else { NEAR };
    let mut left = first >> 60 & 3;
    let bytes = mutator.before.as_mut_ptr().cast::<u8>();
    while left > 0 {
        left -= 1;
        let change = random(mutator);
        let place = ((change >> 48) * near) >> 16;
        // The sender's MAC address stays, by which answers are known.
        if (6..12).contains(&place) || place >= BYTES as u64 {
            continue;
        }
        // SAFETY: within the frame, see above; so says the verifier.
        unsafe {
            let at = bytes.add(place as usize);
            let old = at.read_volatile();
            at.write_volatile(match change >> 16 & 3 {
                0 => (change >> 24) as u8,
                1 => old ^ 1 << (change >> 24 & 7),
                2 => old.wrapping_add((change >> 24 & 15) as u8).wrapping_sub(8),
                _ => [0, 1, 0x7f, 0x80, 0xff, 0x40, 6, 17][(change >> 24 & 7) as usize],
            });
        }
    }
    mutator.length = length;
    resize(ctx, length)?;
    store(ctx, mutator, length)
}

/// SplitMix64.
#[inline(always)]
fn random(mutator: &mut Mutator) -> u64 {
    mutator.state = mutator.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = mutator.state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[inline(always)]
fn length_of(ctx: &XdpContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}

#[inline(always)]
fn resize(ctx: &XdpContext, length: u64) -> Option<()> {
    let by = length.wrapping_sub(length_of(ctx)) as i32;
    // SAFETY: the context is the program's own.
    if by != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, by) } != 0 {
        return None;
    }
    Some(())
}

#[inline(always)]
fn store(ctx: &XdpContext, mutator: &mut Mutator, length: u64) -> Option<()> {
    if length == 0 || length > BYTES as u64 {
        return None;
    }
    let bytes = mutator.before.as_mut_ptr().cast();
    // SAFETY: `before` has so many bytes.
    let done = unsafe { bpf_xdp_store_bytes(ctx.ctx, 0, bytes, length as u32) };
    (done == 0).then_some(())
}

/// Says what became of the last frame.
#[inline(always)]
fn judge(ctx: &XdpContext, mutator: &mut Mutator) -> Option<()> {
    if mutator.length == 0 {
        return Some(());
    }
    let length = length_of(ctx);
    let held = if length > BYTES as u64 {
        BYTES as u64
    } else {
        length
    };
    if held < SHORTEST {
        return None;
    }
    // What is behind the frame's end compares equal.
    mutator.after = mutator.before;
    mutator.length_after = length;
    let bytes = mutator.after.as_mut_ptr().cast();
    // SAFETY: `after` has so many bytes.
    if unsafe { bpf_xdp_load_bytes(ctx.ctx, 0, bytes, held as u32) } != 0 {
        return None;
    }
    let is_same_length = length == mutator.length;
    let [to, from] = [mac(&mutator.after, 0), mac(&mutator.after, 1)];
    if to == mac(&mutator.before, 0) {
        if is_same_length && is_same_from(mutator, 0) {
            mutator.unchanged += 1;
        } else {
            wrong(mutator);
        }
    } else if from != OWN_MAC {
        wrong(mutator);
    } else if is_answer(mutator, to) {
        mutator.answered += 1;
    } else if is_same_length && is_delivered(mutator, to) {
        mutator.delivered += 1;
    } else {
        wrong(mutator);
    }
    Some(())
}

#[inline(always)]
fn wrong(mutator: &mut Mutator) {
    if mutator.wrong == 0 {
        mutator.wrong_before = mutator.before;
        mutator.wrong_after = mutator.after;
        mutator.wrong_lengths = mutator.length | mutator.length_after << 32;
    }
    mutator.wrong += 1;
}

/// Whether this is where an answer goes: to the sender, to what an ARP request
/// says of its sender (RFC 826), or to all nodes (RFC 4861 §7.2.4).
#[inline(always)]
fn is_answer(mutator: &Mutator, to: [u8; 6]) -> bool {
    let is_arp = half(&mutator.before, 6) == [8, 6];
    to == mac(&mutator.before, 1)
        || to == [0x33, 0x33, 0, 0, 0, 1]
        || (is_arp && to == mac_at(&mutator.before, 11))
}

/// Whether the frame went to a backend of the service that it was for.
#[inline(always)]
fn is_delivered(mutator: &Mutator, to: [u8; 6]) -> bool {
    let [a, b, c, d, e, number] = to;
    let Some(backend) = DELIVERIES.get(number.into()) else {
        return false;
    };
    if [a, b, c, d, e] != BACKEND_MAC || backend.family == 0 {
        return false;
    }
    let is_v4 = backend.family == 4;
    let kind = if is_v4 { [8, 0] } else { [0x86, 0xdd] };
    let tags = priority_tags(&mutator.before);
    if half(&mutator.before, 6 + tags) != kind || half(&mutator.after, 6 + tags) != kind {
        return false;
    }
    let mut i = 0;
    while i < 4 {
        // Halves of words: IPv4 at byte 30, IPv6 at 38.
        let at = if is_v4 { 15 } else { 19 } + tags + 2 * i;
        let [vip, address] = [
            backend.vip[i].to_ne_bytes(),
            backend.address[i].to_ne_bytes(),
        ];
        let is_there = |frame: &[u64; WORDS], word: [u8; 4]| {
            half(frame, at) == [word[0], word[1]] && half(frame, at + 1) == [word[2], word[3]]
        };
        if !is_there(&mutator.before, vip) || !is_there(&mutator.after, address) {
            return false;
        }
        if is_v4 {
            break;
        }
        i += 1;
    }
    backend.is_untouched == 0 || is_same_from(mutator, 12)
}

/// Halves of words that VLAN tags with a priority only take up, which change
/// nothing: two for each of at most two tags (IEEE 802.1Q §9.6).
#[inline(always)]
fn priority_tags(frame: &[u64; WORDS]) -> usize {
    let mut tags = 0;
    while tags < 4 {
        let [high, low] = half(frame, 7 + tags);
        let is_tag = matches!(half(frame, 6 + tags), [0x81, 0] | [0x88, 0xa8]);
        if !is_tag || high & 15 != 0 || low != 0 {
            break;
        }
        tags += 2;
    }
    tags
}

/// Two bytes of a frame.
#[inline(always)]
fn half(frame: &[u64; WORDS], index: usize) -> [u8; 2] {
    let word = frame[(index / 4) % WORDS];
    ((word >> (16 * (index % 4))) as u16).to_ne_bytes()
}

/// The first or the second MAC address.
#[inline(always)]
fn mac(frame: &[u64; WORDS], which: usize) -> [u8; 6] {
    mac_at(frame, which * 3)
}

/// The MAC address from this pair of bytes on.
#[inline(always)]
fn mac_at(frame: &[u64; WORDS], at: usize) -> [u8; 6] {
    let [a, b, c] = [half(frame, at), half(frame, at + 1), half(frame, at + 2)];
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}

/// Whether the frame was left as it was from this byte on, 0 or 12.
#[inline(always)]
fn is_same_from(mutator: &Mutator, byte: usize) -> bool {
    let mut differ = 0;
    let mut i = byte / 8;
    if byte == 12 {
        differ |= (mutator.before[1] ^ mutator.after[1]) >> 32;
        i = 2;
    }
    while i < WORDS {
        differ |= mutator.before[i] ^ mutator.after[i];
        i += 1;
    }
    differ == 0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
