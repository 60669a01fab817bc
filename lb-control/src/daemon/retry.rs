//! When to try again what has failed.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Doubling pauses up to half a minute.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackOff {
    failures: u32,
    at: Option<Instant>,
}

impl BackOff {
    /// It has failed; tells how long to wait.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let pause = FIRST
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.at = now.checked_add(pause);
        pause
    }

    /// It has succeeded.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// When to try again; `None` while nothing has failed.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute_and_begin_anew_after_a_success() {
        let now = Instant::now();
        let mut back_off = BackOff::default();
        let seconds: Vec<u64> = (0..40).map(|_| back_off.failed(now).as_secs()).collect();
        assert_eq!(seconds.get(..7), Some(&[1, 2, 4, 8, 16, 30, 30][..]));
        assert_eq!(seconds.last(), Some(&30));
        assert_eq!(back_off.at(), Some(now + LONGEST));
        back_off.succeeded();
        assert_eq!(back_off.at(), None);
        assert_eq!(back_off.failed(now), FIRST);
    }
}
