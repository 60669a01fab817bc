//! How long probes took, as a histogram.

use std::time::Duration;

/// Upper bounds of the buckets in seconds.
pub const BOUNDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

/// Probes by how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Durations {
    /// By bucket, each without those of the buckets below; what took longer
    /// than the last bound is in none.
    counts: [u64; BOUNDS.len()],
    /// All of them.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Durations {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound);
        if let Some(count) = bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            *count += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// These and others.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self
    }

    /// Upper bound in seconds and how many took at most that long, ascending.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let mut sum = 0;
        let up_to = |(bound, count): (f64, u64)| {
            sum += count;
            (bound, sum)
        };
        BOUNDS.into_iter().zip(self.counts).map(up_to).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_took_at_most_their_bound() {
        let mut durations = Durations::default();
        for micros in [400, 500, 501, 60_000, 10_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        let both = durations.with(&durations);
        let cumulative = both.cumulative();
        assert_eq!(cumulative[0], (0.0005, 4));
        assert_eq!(cumulative[1], (0.001, 6));
        assert_eq!(cumulative[6], (0.05, 6));
        assert_eq!(cumulative[7], (0.1, 8));
        assert_eq!(cumulative[11], (2.5, 8));
        assert_eq!(
            (both.count, both.sum),
            (10, Duration::from_micros(20_122_802))
        );
    }
}
