//! What the machine shows of its backends.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{BackendEntry, Machine};
use crate::health::{
    BackendHealth, BackendKey, CheckHealth, Durations, HealthState, Results, load::Free,
};

impl Machine {
    /// Every backend as of now.
    pub fn snapshot(&self, now: Instant) -> BTreeMap<BackendKey, BackendHealth> {
        self.backends
            .iter()
            .map(|(key, backend)| (key.clone(), self.describe(now, backend)))
            .collect()
    }

    fn describe(&self, now: Instant, backend: &BackendEntry) -> BackendHealth {
        let checks: Vec<CheckHealth> = backend
            .checks
            .iter()
            .filter_map(|id| self.checks.get(id))
            .map(|check| CheckHealth {
                kind: check.key.kind.clone(),
                certificate_expiry: check.certificate_expiry,
                target: check.key.target,
                service: check.key.through.as_ref().map(|t| t.service.clone()),
                state: check.standing.state,
                reason: check.reason.clone(),
                last_duration: check.last_duration,
                results: check.results,
                durations: check.durations,
            })
            .collect();
        BackendHealth {
            state: backend.state,
            in_state_for: now.saturating_duration_since(backend.since),
            reason: backend.reason.clone(),
            verdict: backend.verdict,
            held_for: self.held_for(now, backend),
            response: self.of(backend, |check| check.response.mean()).max(),
            free: self
                .of(backend, |check| check.free.map(Free::fraction))
                .reduce(f64::min),
            last_duration: checks.iter().filter_map(|check| check.last_duration).max(),
            results: checks
                .iter()
                .fold(Results::default(), |sum, check| sum.with(&check.results)),
            durations: checks.iter().fold(Durations::default(), |sum, check| {
                sum.with(&check.durations)
            }),
            certificate_expiry: checks
                .iter()
                .filter_map(|check| check.certificate_expiry)
                .min(),
            checks,
        }
    }

    /// How long its checks, which pass, keep it out yet since they flap.
    fn held_for(&self, now: Instant, backend: &BackendEntry) -> Duration {
        let held = self.of(backend, |check| {
            let is_out = check.standing.state != HealthState::Up;
            is_out.then(|| check.standing.held_for(&check.timing.rules(), now))
        });
        held.max().unwrap_or_default()
    }
}
