//! A backend that came up gets its share little by little.

use std::time::{Duration, Instant};

use crate::scheduler::Factor;

/// Steps of the ramp. Each moves slots, so there are few.
const STEPS: u32 = 10;

/// The part of its share that a backend has which came up at `since`, and when
/// it gets more: a tenth at once, then a tenth more after each tenth of `over`
/// (the second at the second), all of it at the end.
pub fn ramp(since: Option<Instant>, over: Duration, now: Instant) -> (Factor, Option<Instant>) {
    let step = over / STEPS;
    let Some(since) = since.filter(|_| !step.is_zero()) else {
        return (Factor::ONE, None);
    };
    let passed = now.saturating_duration_since(since).as_nanos() / step.as_nanos();
    let steps = u32::try_from(passed).unwrap_or(STEPS).max(1);
    if steps >= STEPS {
        return (Factor::ONE, None);
    }
    let next = since.checked_add(step * (steps + 1));
    (Factor::of(f64::from(steps) / f64::from(STEPS)), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_by_a_tenth_after_each_tenth_of_the_time() {
        let start = Instant::now();
        let over = Duration::from_secs(30);
        let at = |seconds| ramp(Some(start), over, start + Duration::from_secs(seconds));
        let tenths = |n| Factor::of(f64::from(n) / 10.0);
        for (seconds, factor, next) in [
            (0, tenths(1), Some(6)),
            (5, tenths(1), Some(6)),
            (6, tenths(2), Some(9)),
            (12, tenths(4), Some(15)),
            (29, tenths(9), Some(30)),
            (30, Factor::ONE, None),
            (3000, Factor::ONE, None),
        ] {
            let next = next.map(|s| start + Duration::from_secs(s));
            assert_eq!(at(seconds), (factor, next), "after {seconds} s");
        }
    }

    #[test]
    fn nobody_ramps_without_a_time_or_without_having_come_up() {
        let now = Instant::now();
        assert_eq!(ramp(Some(now), Duration::ZERO, now), (Factor::ONE, None));
        assert_eq!(
            ramp(None, Duration::from_secs(30), now),
            (Factor::ONE, None)
        );
    }
}
