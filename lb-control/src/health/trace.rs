//! The steps of a probe, for its result in words and for `lbctl probe`.

#![allow(clippy::disallowed_methods, reason = "steps are told with their times")]

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Something that a probe did or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What, in words: "connecting".
    pub what: &'static str,
    /// When it began, since the probe did.
    pub at: Duration,
}

/// What a probe has done so far.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    steps: Mutex<Vec<Step>>,
    certificate_expiry: Mutex<Option<i64>>,
}

impl Trace {
    /// A probe begins.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            steps: Mutex::default(),
            certificate_expiry: Mutex::default(),
        }
    }

    /// The probe goes on with this.
    pub fn step(&self, what: &'static str) {
        let at = self.elapsed();
        self.steps().push(Step { what, at });
    }

    /// The server showed a certificate that ends then, in seconds since the Unix
    /// epoch.
    pub fn certificate(&self, expiry: Option<i64>) {
        *lock(&self.certificate_expiry) = expiry;
    }

    /// The same again.
    pub fn certificate_expiry(&self) -> Option<i64> {
        *lock(&self.certificate_expiry)
    }

    /// Since the probe began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What it does or waits for now.
    pub fn last(&self) -> Option<&'static str> {
        self.steps().last().map(|step| step.what)
    }

    /// All of its steps, each with the time it took; the last one until now.
    pub fn finish(&self) -> Vec<(Step, Duration)> {
        let steps = self.steps();
        let ends = steps.iter().skip(1).map(|step| step.at);
        let ends = ends.chain([self.elapsed()]);
        let timed = steps.iter().zip(ends);
        timed
            .map(|(step, end)| (*step, end.saturating_sub(step.at)))
            .collect()
    }

    fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        lock(&self.steps)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_step_lasts_until_the_next_one_begins() {
        let trace = Trace::start();
        trace.step("one");
        time::advance(Duration::from_millis(3)).await;
        trace.step("two");
        time::advance(Duration::from_millis(5)).await;
        let taken: Vec<_> = trace
            .finish()
            .into_iter()
            .map(|(step, took)| (step.what, took.as_millis()))
            .collect();
        assert_eq!(taken, [("one", 3), ("two", 5)]);
        assert_eq!(trace.last(), Some("two"));
    }
}
