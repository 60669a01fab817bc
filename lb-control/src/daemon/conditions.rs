//! Condition of every backend from its checks, operators' decisions and time.
//! Pure; the caller says what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::admin::{AdminStore, Override};
use crate::{
    dataplane::desired::{BackendCondition, BackendKey, Condition},
    health::HealthState,
    model::Model,
    status::AdminState,
};

/// The time, by the two clocks that matter.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For what began in this process.
    pub instant: Instant,
    /// For what was written to a file: seconds since the Unix epoch.
    pub unix: u64,
}

impl Now {
    /// This moment.
    #[allow(clippy::disallowed_methods, reason = "the shell's clocks")]
    pub fn read() -> Self {
        Self {
            instant: Instant::now(),
            unix: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }
}

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The state.
    pub state: HealthState,
    /// For how long.
    pub for_time: Duration,
}

/// Every backend's condition, and when it has to be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// By pool and name.
    pub backends: BTreeMap<BackendKey, BackendCondition>,
    /// When a time-out ends next.
    pub next: Option<Instant>,
}

/// Computes the conditions. While `starting`, a backend without a result
/// counts as up, since nothing speaks against it and traffic has to flow;
/// later it is a new one, and gets traffic once it has passed.
pub fn conditions(
    model: &Model,
    verdicts: &BTreeMap<BackendKey, Verdict>,
    admin: &AdminStore,
    starting: bool,
    now: Now,
) -> Conditions {
    let mut all = Conditions::default();
    for (pool_name, pool) in &model.pools {
        let keys: Vec<BackendKey> = pool
            .backends
            .iter()
            .map(|backend| BackendKey {
                pool: pool_name.clone(),
                backend: backend.name.clone(),
            })
            .collect();
        let all_unknown = keys.iter().all(|key| {
            verdicts
                .get(key)
                .is_none_or(|verdict| verdict.state == HealthState::Unknown)
        });
        for (key, backend) in keys.into_iter().zip(&pool.backends) {
            let decided = admin.of(&key);
            let by_health = if pool.health.is_empty() {
                (Condition::Up, None)
            } else {
                let verdict = verdicts.get(&key).copied().unwrap_or(Verdict {
                    state: HealthState::Unknown,
                    for_time: Duration::ZERO,
                });
                by_health(
                    verdict,
                    starting || all_unknown,
                    model.dataplane.dead_after,
                    now,
                )
            };
            let (condition, until) =
                by_admin(decided, by_health, model.dataplane.drain_timeout, now);
            all.next = all.next.into_iter().chain(until).min();
            all.backends.insert(
                key,
                BackendCondition {
                    condition,
                    weight: decided.weight.unwrap_or(backend.weight),
                },
            );
        }
    }
    all
}

type Until = (Condition, Option<Instant>);

fn by_health(verdict: Verdict, nothing_known: bool, dead_after: Duration, now: Now) -> Until {
    match verdict.state {
        HealthState::Up => (Condition::Up, None),
        HealthState::Unknown if nothing_known => (Condition::Up, None),
        HealthState::Unknown => (Condition::Draining, None),
        HealthState::Down => match dead_after.checked_sub(verdict.for_time) {
            Some(left) if !left.is_zero() => (Condition::Failing, now.instant.checked_add(left)),
            _ => (Condition::Dead, None),
        },
    }
}

fn by_admin(decided: Override, by_health: Until, drain_timeout: Duration, now: Now) -> Until {
    match decided.admin_state() {
        AdminState::Enabled => by_health,
        AdminState::Disabled => (Condition::Disabled, None),
        AdminState::Draining => {
            // A clock that was set back must not drain for ever.
            let drained = Duration::from_secs(now.unix.saturating_sub(decided.since));
            let left = drain_timeout.saturating_sub(drained);
            if left.is_zero() {
                return (Condition::Disabled, None);
            }
            let end = now.instant.checked_add(left);
            match by_health {
                // What is drained and fails its checks is as dead as any other.
                (Condition::Dead, _) => (Condition::Dead, end),
                (Condition::Failing, until) => {
                    (Condition::Failing, until.into_iter().chain(end).min())
                }
                _ => (Condition::Draining, end),
            }
        }
    }
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
