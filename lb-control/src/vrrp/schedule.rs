//! When addresses are announced.

use std::time::{Duration, Instant};

/// After it became active: announcements may be lost, and switches slow.
const AFTER: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Switches forget an address that stays silent: after five minutes, where nobody
/// said otherwise (IEEE 802.1D-2004 table 7-5).
pub const EVERY: Duration = Duration::from_secs(60);

/// The announcements that are still to come.
#[derive(Debug, Default)]
pub struct Schedule {
    due: Vec<Instant>,
}

impl Schedule {
    /// It has just been announced for the first time.
    pub fn begin(&mut self, now: Instant) {
        let times = AFTER.iter();
        self.due = times.filter_map(|after| now.checked_add(*after)).collect();
    }

    /// Nothing is announced any more.
    pub fn end(&mut self) {
        self.due.clear();
    }

    /// The next one.
    pub fn next(&self) -> Option<Instant> {
        self.due.iter().min().copied()
    }

    /// Whether one is due; it is taken for made.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.next().is_none_or(|at| at > now) {
            return false;
        }
        self.due.retain(|at| *at > now);
        if self.due.is_empty() {
            self.due.extend(now.checked_add(EVERY));
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "some moment to begin at")]
mod tests {
    use super::*;

    /// Milliseconds after the first at which more follow, if it is looked at when
    /// it asks for that.
    fn announced(within: Duration) -> Vec<u128> {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.begin(start);
        let mut times = Vec::new();
        while let Some(at) = schedule.next().filter(|at| *at <= start + within) {
            assert!(!schedule.take(at - Duration::from_nanos(1)));
            assert!(schedule.take(at));
            times.push((at - start).as_millis());
        }
        times
    }

    #[test]
    fn it_is_repeated_soon_and_then_every_minute() {
        assert_eq!(
            announced(Duration::from_secs(190)),
            [100, 1000, 5000, 65_000, 125_000, 185_000]
        );
    }

    /// RFC 9568 has no number; bridges forget after 300 s, and one may be lost.
    #[test]
    fn no_silence_is_as_long_as_a_bridge_remembers() {
        let mut last = 0;
        for at in announced(Duration::from_secs(3600)) {
            assert!(at - last <= 60_000, "silent from {last} to {at}");
            last = at;
        }
    }

    #[test]
    fn who_comes_late_announces_once() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.begin(start);
        let late = start + Duration::from_secs(3600);
        assert!(schedule.take(late));
        assert!(!schedule.take(late));
        assert_eq!(schedule.next(), Some(late + EVERY));
    }

    #[test]
    fn who_has_let_go_announces_nothing() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(), None);
        schedule.begin(start);
        schedule.end();
        assert_eq!(schedule.next(), None);
        assert!(!schedule.take(start + Duration::from_secs(3600)));
    }
}
