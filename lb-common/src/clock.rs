//! The data path's coarse time.
//!
//! A *tick* is `2^shift` jiffies, about one second: reading jiffies costs the
//! data path almost nothing, a real clock 17 ns and more. A *unit*, the
//! resolution of flow entries, is eight ticks. Both are taken modulo their
//! field's width, so they are only ever subtracted.

/// Jiffies per tick, as a power of two: the least that makes a tick at least
/// one second.
pub const fn shift_for_hz(hz: u32) -> u32 {
    let mut shift = 0;
    while (1u32 << shift) < hz {
        shift += 1;
    }
    shift
}

/// Ticks per unit, as a power of two.
pub const UNIT_SHIFT: u32 = 3;

/// Ticks in `seconds`, rounded up and then one more, so that a time-out
/// counted from the middle of a tick is never short.
pub const fn ticks(seconds_ms: u64, hz: u32) -> u64 {
    let tick_ms = (1u64 << shift_for_hz(hz)) * 1000 / hz as u64;
    seconds_ms.div_ceil(tick_ms) + 1
}

/// Units in `milliseconds`, rounded up, and one more for the same reason.
pub const fn units(milliseconds: u64, hz: u32) -> u64 {
    ticks(milliseconds, hz).div_ceil(1 << UNIT_SHIFT) + 1
}

/// The longest idle time that flow entries can tell from "just seen", with the
/// sweeper's period as margin, in units.
pub const MAX_IDLE_UNITS: u64 = 1000;

/// A SYN in a slot that changed less than this ago may be the retransmission of
/// one that went to the old member.
pub const SYN_WINDOW_MS: u64 = 3_000;

/// An entry made by a SYN that nobody followed up expires after this: the last
/// retransmission of a common client comes 63 s after the first.
pub const UNCONFIRMED_MS: u64 = 63_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_at_least_a_second_and_under_two_for_every_kernel_configuration() {
        for hz in [100, 250, 300, 1000] {
            let ms = (1u64 << shift_for_hz(hz)) * 1000 / u64::from(hz);
            assert!((1000..2000).contains(&ms), "{hz}: {ms}");
        }
    }

    #[test]
    fn the_default_tcp_idle_time_fits_the_entries_clock_for_every_kernel_configuration() {
        for hz in [100, 250, 300, 1000] {
            assert!(
                units(8_100_000, hz) <= MAX_IDLE_UNITS,
                "{hz}: {}",
                units(8_100_000, hz)
            );
        }
    }
}
