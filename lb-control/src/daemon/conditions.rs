//! Condition and share of every backend from its checks, operators' decisions,
//! its pool's rules and time. Pure; the caller says what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    admin::{AdminStore, Override},
    shares::{Feedback, LOAD_DEAD_BAND, RESPONSE_DEAD_BAND, ramp, relative_speed},
};
use crate::{
    dataplane::desired::{BackendCondition, BackendKey, Condition},
    health::{HealthState, Verdict},
    model::{Backend, Model, Pool, Scheduler},
    scheduler::{Factor, Factors},
    status::AdminState,
};

mod guard;

pub use guard::{InForce, all_down_words};
use guard::{Seen, guard};

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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// The state.
    pub state: HealthState,
    /// For how long.
    pub for_time: Duration,
    /// The verdict that decided, where one speaks against it.
    pub verdict: Option<Verdict>,
    /// How long it is kept out yet, even if it passes, since it was flapping.
    pub held_for: Duration,
    /// Its smoothed response time.
    pub response: Option<Duration>,
    /// What is left of its weight by its own reports, at most 1.
    pub free: Option<f64>,
}

/// Every backend's condition, why, and when it has to be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// By pool and name.
    pub backends: BTreeMap<BackendKey, BackendCondition>,
    /// Why a backend has the share that it has, where there is something to say.
    pub why: BTreeMap<BackendKey, Vec<String>>,
    /// What is in force in each pool.
    pub pools: BTreeMap<String, InForce>,
    /// When something ends or begins without an event.
    pub next: Option<Instant>,
    memory: BTreeMap<String, PoolMemory>,
}

/// What has to be remembered of a pool from one time to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PoolMemory {
    /// By backend: whether its checks and the operator have it up, and since
    /// when if it wasn't before.
    up: BTreeMap<String, (bool, Option<Instant>)>,
    load: Feedback,
    response: Feedback,
}

/// Computes the conditions from what is known now and what was `before`. While
/// `starting`, a backend without a result counts as up, since nothing speaks
/// against it and traffic has to flow; later it is a new one, and gets traffic
/// once it has passed.
pub fn conditions(
    model: &Model,
    known: &BTreeMap<BackendKey, Known>,
    admin: &AdminStore,
    starting: bool,
    now: Now,
    before: &Conditions,
) -> Conditions {
    let mut all = Conditions::default();
    for (name, pool) in &model.pools {
        let rows = rows(model, (name, pool), known, admin, starting, now);
        let found = guard(
            &rows
                .iter()
                .filter(|row| row.takes_part())
                .map(Row::seen)
                .collect::<Vec<_>>(),
            &pool.policy,
        );
        let by_speed = model.services.iter().any(|service| {
            service.balance.scheduler == Scheduler::ResponseTime
                && model.pools_of(service).any(|(used, _)| used == name)
        });
        let old = before.memory.get(name);
        let mut memory = remember(&rows, old, now);
        let mut look_again = Vec::new();
        if let Some(old) = old {
            let (load, at) = old.load.after(&loads(&rows), LOAD_DEAD_BAND, now.instant);
            memory.load = load;
            look_again.extend(at);
            let speeds = if by_speed {
                speeds(&rows)
            } else {
                BTreeMap::new()
            };
            let (response, at) = old.response.after(&speeds, RESPONSE_DEAD_BAND, now.instant);
            memory.response = response;
            look_again.extend(at);
        }
        for row in rows {
            let mut why = Vec::new();
            let mut condition = row.condition;
            if row.takes_part() {
                if found.lets_in(row.backend, condition) {
                    why.push(if found.overloaded_share {
                        "nobody is up: overloaded ones share the load".to_owned()
                    } else {
                        format!("{condition:?}, kept in by max_ejected").to_lowercase()
                    });
                    condition = Condition::Up;
                } else if found.all_down {
                    why.push(format!("all are down: {}", all_down_words(&pool.policy)));
                }
            }
            let since = memory.up.get(row.backend).and_then(|(_, since)| *since);
            let (slow_start, at) = ramp(since, pool.policy.slow_start, now.instant);
            look_again.extend(at);
            let factors = Factors {
                slow_start,
                load: memory.load.factor(row.backend),
                response: memory.response.factor(row.backend),
            };
            if condition == Condition::Up {
                why.extend(explain(factors));
            } else if !row.known.held_for.is_zero() {
                let left = row.known.held_for.as_secs() + 1;
                why.push(format!("flapping: held down for {left} s more"));
            }
            look_again.extend(row.until);
            let key = BackendKey {
                pool: name.clone(),
                backend: row.backend.to_owned(),
            };
            if !why.is_empty() {
                all.why.insert(key.clone(), why);
            }
            let condition = BackendCondition {
                condition,
                weight: row.weight,
                factors,
            };
            all.backends.insert(key, condition);
        }
        all.next = all.next.into_iter().chain(look_again).min();
        all.pools.insert(name.clone(), found);
        all.memory.insert(name.clone(), memory);
    }
    all
}

/// A backend by its checks and the operator alone.
struct Row<'a> {
    backend: &'a str,
    known: Known,
    condition: Condition,
    until: Option<Instant>,
    enabled: bool,
    weight: u16,
}

impl Row<'_> {
    fn takes_part(&self) -> bool {
        self.enabled && self.weight > 0
    }

    fn seen(&self) -> Seen<'_> {
        Seen {
            name: self.backend,
            condition: self.condition,
            verdict: self.known.verdict,
            for_time: self.known.for_time,
        }
    }
}

fn rows<'a>(
    model: &Model,
    (name, pool): (&str, &'a Pool),
    known: &BTreeMap<BackendKey, Known>,
    admin: &AdminStore,
    starting: bool,
    now: Now,
) -> Vec<Row<'a>> {
    let of = |backend: &Backend| {
        let key = BackendKey {
            pool: name.to_owned(),
            backend: backend.name.clone(),
        };
        (known.get(&key).copied().unwrap_or_default(), admin.of(&key))
    };
    let all_unknown = pool
        .backends
        .iter()
        .all(|backend| of(backend).0.state == HealthState::Unknown);
    let row = |backend: &'a Backend| {
        let (known, decided) = of(backend);
        let by_health = if pool.health.is_empty() {
            (Condition::Up, None)
        } else {
            by_health(
                known,
                starting || all_unknown,
                model.dataplane.dead_after,
                now,
            )
        };
        let (condition, until) = by_admin(decided, by_health, model.dataplane.drain_timeout, now);
        Row {
            backend: &backend.name,
            known,
            condition,
            until,
            enabled: decided.admin_state() == AdminState::Enabled,
            weight: decided.weight.unwrap_or(backend.weight),
        }
    };
    pool.backends.iter().map(row).collect()
}

/// Who is up, and since when if it came up while we looked. A backend that is
/// added to a pool comes up, too; those of a new pool are simply there.
fn remember(rows: &[Row<'_>], old: Option<&PoolMemory>, now: Now) -> PoolMemory {
    let up = rows.iter().map(|row| {
        let is_up = row.condition == Condition::Up;
        let was = match old {
            Some(old) => old.up.get(row.backend).copied().unwrap_or((false, None)),
            None => (is_up, None),
        };
        let since = match was {
            _ if !is_up => None,
            (true, since) => since,
            (false, _) => Some(now.instant),
        };
        (row.backend.to_owned(), (is_up, since))
    });
    PoolMemory {
        up: up.collect(),
        ..PoolMemory::default()
    }
}

/// What backends that are up ask for by their own reports.
fn loads(rows: &[Row<'_>]) -> BTreeMap<String, f64> {
    rows.iter()
        .filter_map(|row| Some((row.backend.to_owned(), row.known.free?)))
        .collect()
}

/// How fast those that are up are.
fn speeds(rows: &[Row<'_>]) -> BTreeMap<String, f64> {
    let responses = rows
        .iter()
        .filter(|row| row.condition == Condition::Up)
        .filter_map(|row| Some((row.backend.to_owned(), row.known.response?)));
    relative_speed(&responses.collect())
}

/// Factors that aren't 1, in words.
fn explain(factors: Factors) -> Vec<String> {
    let percent = |factor: Factor| (factor.fraction() * 100.0).round();
    let mut why = Vec::new();
    if factors.slow_start != Factor::ONE {
        why.push(format!("slow start {} %", percent(factors.slow_start)));
    }
    if factors.load != Factor::ONE {
        why.push(format!("load leaves {} %", percent(factors.load)));
    }
    if factors.response != Factor::ONE {
        why.push(format!("response time {:.2}", factors.response.fraction()));
    }
    why
}

type Until = (Condition, Option<Instant>);

fn by_health(verdict: Known, nothing_known: bool, dead_after: Duration, now: Now) -> Until {
    match verdict.state {
        HealthState::Up => (Condition::Up, None),
        HealthState::Unknown if nothing_known => (Condition::Up, None),
        HealthState::Unknown => (Condition::Draining, None),
        HealthState::Overloaded => (Condition::Overloaded, None),
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
