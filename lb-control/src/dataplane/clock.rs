//! The data path's clock, read by running a program of ours.

use std::{thread, time::Duration};

use lb_common::{abi::ClockReading, clock};

/// Values of CONFIG_HZ.
const KNOWN_HZ: [u32; 4] = [100, 250, 300, 1000];

/// Time between the two readings that tell HZ.
const CALIBRATION: Duration = Duration::from_millis(60);

/// Jiffies per second, from two readings of both clocks; `None` where they fit
/// no known configuration.
pub fn hz(first: ClockReading, second: ClockReading) -> Option<u32> {
    let nanoseconds = second.monotonic_ns.checked_sub(first.monotonic_ns)?;
    let jiffies = second.jiffies.checked_sub(first.jiffies)?;
    if nanoseconds == 0 || jiffies == 0 {
        return None;
    }
    let measured = jiffies as f64 * 1e9 / nanoseconds as f64;
    KNOWN_HZ.into_iter().min_by(|a, b| {
        let distance = |hz: u32| (f64::from(hz) / measured).ln().abs();
        distance(*a).total_cmp(&distance(*b))
    })
}

/// Reads the clock twice and tells HZ.
///
/// # Errors
/// That of `read`, or `None` where the clock stood still.
pub fn calibrate<E>(mut read: impl FnMut() -> Result<ClockReading, E>) -> Result<Option<u32>, E> {
    let first = read()?;
    thread::sleep(CALIBRATION);
    Ok(hz(first, read()?))
}

/// Ticks at a reading.
pub const fn ticks_at(reading: ClockReading, hz: u32, offset: u32) -> u32 {
    ((reading.jiffies >> clock::shift_for_hz(hz)) as u32).wrapping_add(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_hz_is_found_from_jiffies_that_are_off_by_one() {
        for hz_ in KNOWN_HZ {
            for off in [-1i64, 0, 1] {
                let first = ClockReading {
                    jiffies: 4_294_937_296,
                    monotonic_ns: 5_000_000,
                };
                let second = ClockReading {
                    jiffies: (first.jiffies as i64 + i64::from(hz_) * 60 / 1000 + off) as u64,
                    monotonic_ns: first.monotonic_ns + 60_000_000,
                };
                assert_eq!(hz(first, second), Some(hz_), "{hz_} {off}");
            }
        }
    }

    #[test]
    fn a_clock_that_stands_still_has_no_hz() {
        assert_eq!(hz(ClockReading::default(), ClockReading::default()), None);
    }
}
