//! The benchmark's own XDP programs: the driver that runs a program on one
//! flow after the other under BPF_PROG_TEST_RUN, the floor, and the comparison.
#![no_std]
#![no_main]
// The attribute macros make public items that have nobody to read about them.
#![allow(missing_docs)]

#[allow(dead_code)]
mod layout;
mod lru;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};

use layout::{Drive, FRAME};

#[map]
static DRIVE: Array<Drive> = Array::with_max_entries(1, 0);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Writes a whole frame of the next flow, whatever the run before left there,
/// and goes on as the program in `TARGET`.
///
/// The index is a constant, so that the kernel makes a direct jump of the call.
/// All programs called must be loaded with the same flags as this one.
#[xdp(frags)]
pub fn bench_driver(ctx: XdpContext) -> u32 {
    if write_next(&ctx).is_some() {
        // SAFETY: nothing here needs dropping.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn write_next(ctx: &XdpContext) -> Option<()> {
    let drive = DRIVE.get_ptr_mut(0)?;
    let start = ctx.data();
    if start + FRAME > ctx.data_end() {
        return None;
    }
    let words = start as *mut u64;
    // SAFETY: `drive` is a valid element that only this core uses while it
    // runs; the frame's bounds were checked. BPF has no aligned loads to trap
    // in, and frames start at multiples of eight.
    unsafe {
        let flow = (*drive).first + next(&mut (*drive).state, (*drive).mask);
        let host = u64::from(((flow >> 12) as u16).to_be());
        let port = u64::from(((flow & 0xfff) as u16).to_be());
        let mut at = 0;
        while at < FRAME / 8 {
            let mut word = (*drive).frame[at];
            // Bytes 28 and 29, 34 and 35.
            if at == 3 {
                word |= host << 32;
            } else if at == 4 {
                word |= port << 16;
            }
            words.add(at).write(word);
            at += 1;
        }
    }
    Some(())
}

/// A flow number from `0..=mask`: each once in `mask + 1` calls, in an order
/// that neither caches nor prefetchers guess.
#[inline(always)]
fn next(state: &mut u64, mask: u64) -> u64 {
    // The lower bits of a linear congruential generator have the full period
    // (Knuth, TAOCP vol. 2, §3.2.1.2) but count nearly in order; the rest is a
    // bijection that mixes them.
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    let mut flow = *state & mask;
    flow ^= flow >> 9;
    flow = flow.wrapping_mul(0x9e37_79b1) & mask;
    flow ^ flow >> 7
}

/// The driver's own cost.
#[xdp(frags)]
pub fn bench_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The floor: no decision at all.
#[xdp(frags)]
pub fn bench_swap(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + 14 > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    let macs = start as *mut [u16; 3];
    // SAFETY: the bounds were checked.
    unsafe {
        let destination = macs.read();
        macs.write(macs.add(1).read());
        macs.add(1).write(destination);
    }
    xdp_action::XDP_TX
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
