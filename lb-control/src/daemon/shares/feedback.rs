//! Factors that follow measurements, which are noisy, while every change moves
//! flows: a dead band and a minimum interval.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::scheduler::Factor;

/// Changes of one pool's factors are at least so far apart.
pub const LEAST_INTERVAL: Duration = Duration::from_secs(10);

/// A backend's own reports are followed when they ask for a share that differs
/// by more than this part of the present one.
pub const LOAD_DEAD_BAND: f64 = 0.1;

/// The same for response times: seven standard deviations of what probe times
/// that jitter by half of their mean become once smoothed.
pub const RESPONSE_DEAD_BAND: f64 = 0.25;

/// A slow backend keeps at least this part of its share, a fast one gets at
/// most that: a mean says little of the worst.
const SPEEDS: (f64, f64) = (0.25, 2.0);

/// The factors in force in one pool, by backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    factors: BTreeMap<String, Factor>,
    changed: Option<Instant>,
}

impl Feedback {
    /// The factor of a backend; 1 for one that nothing is known of.
    pub fn factor(&self, backend: &str) -> Factor {
        self.factors.get(backend).copied().unwrap_or_default()
    }

    /// What follows from the factors that measurements ask for now: either
    /// what was, or all of them at once. And when it is worth looking again.
    pub fn after(
        &self,
        wanted: &BTreeMap<String, f64>,
        dead_band: f64,
        now: Instant,
    ) -> (Self, Option<Instant>) {
        let differs = |(name, wanted): (&String, &f64)| {
            let present = self.factor(name).fraction();
            (wanted / present - 1.0).abs() > dead_band
        };
        let is_stale = self.factors.keys().any(|name| !wanted.contains_key(name));
        if !is_stale && !wanted.iter().any(differs) {
            return (self.clone(), None);
        }
        let free_at = self.changed.and_then(|at| at.checked_add(LEAST_INTERVAL));
        if let Some(at) = free_at.filter(|at| *at > now) {
            return (self.clone(), Some(at));
        }
        let factors = wanted
            .iter()
            .map(|(name, wanted)| (name.clone(), Factor::of(*wanted)));
        let next = Self {
            factors: factors.collect(),
            changed: Some(now),
        };
        (next, None)
    }
}

/// How fast backends are in relation to the median of their smoothed response
/// times, within limits. With fewer than two there is nothing to compare.
pub fn relative_speed(responses: &BTreeMap<String, Duration>) -> BTreeMap<String, f64> {
    let mut seconds: Vec<f64> = responses.values().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    let middle = |from_end: usize| seconds.get(from_end).copied().unwrap_or(0.0);
    let (half, last) = (seconds.len() / 2, seconds.len().saturating_sub(1) / 2);
    let median = f64::midpoint(middle(half), middle(last));
    if seconds.len() < 2 || median <= 0.0 {
        return BTreeMap::new();
    }
    let (least, most) = SPEEDS;
    responses
        .iter()
        .map(|(name, own)| {
            let speed = median / own.as_secs_f64().max(f64::MIN_POSITIVE);
            (name.clone(), speed.clamp(least, most))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::response::Response;

    fn wanted(factors: &[f64]) -> BTreeMap<String, f64> {
        (0..)
            .zip(factors)
            .map(|(n, f)| (format!("b{n}"), *f))
            .collect()
    }

    #[test]
    fn small_differences_change_nothing_and_large_ones_all_at_once() {
        let now = Instant::now();
        let none = Feedback::default();
        assert_eq!(
            none.after(&wanted(&[1.2, 0.8]), 0.25, now),
            (none.clone(), None)
        );
        let (next, at) = none.after(&wanted(&[1.2, 0.5]), 0.25, now);
        assert_eq!(at, None);
        assert_eq!(
            (next.factor("b0"), next.factor("b1"), next.factor("b2")),
            (Factor::of(1.2), Factor::of(0.5), Factor::ONE)
        );
    }

    #[test]
    fn changes_are_ten_seconds_apart_and_the_moment_is_told() {
        let now = Instant::now();
        let (first, _) = Feedback::default().after(&wanted(&[0.5]), 0.1, now);
        let soon = now + LEAST_INTERVAL / 2;
        let (same, at) = first.after(&wanted(&[1.0]), 0.1, soon);
        assert_eq!((same, at), (first.clone(), Some(now + LEAST_INTERVAL)));
        let (second, _) = first.after(&wanted(&[1.0]), 0.1, now + LEAST_INTERVAL);
        assert_eq!(second.factor("b0"), Factor::ONE);
    }

    #[test]
    fn speeds_are_relative_to_the_median_and_clamped() {
        let of = |ms: &[u64]| -> Vec<f64> {
            let responses = (0..)
                .zip(ms)
                .map(|(n, ms)| (format!("b{n}"), Duration::from_millis(*ms)));
            relative_speed(&responses.collect()).into_values().collect()
        };
        assert_eq!(of(&[10, 20, 40]), [2.0, 1.0, 0.5]);
        assert_eq!(of(&[10, 10, 1000, 1]), [1.0, 1.0, 0.25, 2.0]);
        assert_eq!(of(&[10]), [0.0; 0]);
        assert_eq!(of(&[0, 0]), [0.0; 0]);
    }

    #[test]
    fn a_backend_that_is_three_times_as_slow_gets_a_third_of_a_share_in_few_changes() {
        let mut now = Instant::now();
        let mut feedback = Feedback::default();
        let mut responses = [Response::default(); 3];
        let mut changes = 0;
        for turn in 0..1000 {
            now += Duration::from_secs(2);
            let ms = |n| if n == 2 && turn >= 100 { 30 } else { 10 };
            for (n, response) in responses.iter_mut().enumerate() {
                *response = response.after(Duration::from_millis(ms(n)));
            }
            let next = feedback
                .after(&speeds(&responses), RESPONSE_DEAD_BAND, now)
                .0;
            changes += u32::from(next != feedback);
            feedback = next;
        }
        let slow = feedback.factor("b2").fraction();
        assert!((0.33..0.45).contains(&slow), "{slow}");
        assert!((1..=5).contains(&changes), "{changes}");
    }

    fn speeds(responses: &[Response]) -> BTreeMap<String, f64> {
        let known = (0..)
            .zip(responses)
            .filter_map(|(n, response)| Some((format!("b{n}"), response.mean()?)));
        relative_speed(&known.collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn with_probe_times_that_jitter_by_half_weights_stay_within_a_tenth_of_equal(
            seed in any::<u64>(), backends in 2usize..6,
        ) {
            // SplitMix64: a uniform factor from 0.5 to 1.5 for each probe.
            let mut state = seed;
            let mut jitter = || {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut x = state;
                x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                0.5 + ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
            };
            let mut now = Instant::now();
            let mut responses = vec![Response::default(); backends];
            let mut feedback = Feedback::default();
            let mut changes = 0;
            for _ in 0..2000 {
                now += Duration::from_secs(2);
                for response in &mut responses {
                    *response = response.after(Duration::from_secs_f64(0.01 * jitter()));
                }
                let next = feedback.after(&speeds(&responses), RESPONSE_DEAD_BAND, now).0;
                changes += u32::from(next != feedback);
                feedback = next;
                for n in 0..backends {
                    let factor = feedback.factor(&format!("b{n}")).fraction();
                    prop_assert!((0.9..=1.1).contains(&factor), "{factor}");
                }
            }
            prop_assert!(changes <= 1, "{changes} changes");
        }
    }
}
