//! The data path's time, see `lb_common::clock`.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use lb_common::abi::{ClockReading, Config};

use crate::maps;

/// `jiffies_64`.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_jiffies64() }
}

/// Ticks now.
#[inline(always)]
pub fn ticks(config: &Config) -> u32 {
    ((jiffies() >> (config.clock_shift & 63)) as u32).wrapping_add(config.clock_offset)
}

/// Leaves both clocks in the `CLOCK` map.
#[inline(always)]
pub fn publish() {
    let jiffies = jiffies();
    // SAFETY: no preconditions.
    let monotonic_ns = unsafe { bpf_ktime_get_ns() };
    maps::publish_clock(ClockReading {
        jiffies,
        monotonic_ns,
    });
}
