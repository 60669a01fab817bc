//! How long a backend takes to answer, smoothed.

use std::time::Duration;

/// Weight of one probe: 1/64. With probe times that jitter by half of their
/// mean to either side, the smoothed time is within 2.6 % (one sigma).
const SMOOTHING: f64 = 1.0 / 64.0;

/// Probes before there is anything to go by.
const WARM_UP: u32 = 64;

/// The exponentially weighted moving average of probe times; at first the plain
/// mean, so that the first probe doesn't count more than the others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Response {
    mean_seconds: f64,
    probes: u32,
}

impl Response {
    /// With one more probe that was answered after `took`.
    #[must_use]
    pub fn after(self, took: Duration) -> Self {
        let probes = self.probes.saturating_add(1);
        let weight = SMOOTHING.max(1.0 / f64::from(probes));
        Self {
            mean_seconds: self.mean_seconds + weight * (took.as_secs_f64() - self.mean_seconds),
            probes,
        }
    }

    /// The smoothed time, once enough probes were answered.
    pub fn mean(&self) -> Option<Duration> {
        (self.probes >= WARM_UP)
            .then(|| Duration::try_from_secs_f64(self.mean_seconds).ok())
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nothing_to_go_by_before_enough_probes() {
        let mut response = Response::default();
        for _ in 1..WARM_UP {
            response = response.after(Duration::from_millis(4));
            assert_eq!(response.mean(), None);
        }
        let mean = response.after(Duration::from_millis(4)).mean().unwrap();
        assert!(mean.abs_diff(Duration::from_millis(4)) < Duration::from_micros(1));
    }

    #[test]
    fn a_server_that_has_become_three_times_as_slow_is_seen_within_twenty_probes() {
        let mut response = Response::default();
        for _ in 0..WARM_UP {
            response = response.after(Duration::from_millis(10));
        }
        for _ in 0..20 {
            response = response.after(Duration::from_millis(30));
        }
        assert!(response.mean().unwrap() > Duration::from_millis(15));
    }
}
