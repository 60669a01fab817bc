//! When checks run and what their results mean, without a clock or a socket.
//!
//! The driver tells the time with [`Machine::handle_timeout`], executes what
//! [`Machine::next_action`] hands out, returns results with
//! [`Machine::handle_result`] and sleeps until [`Machine::poll_timeout`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

mod view;

use super::{
    BackendKey, CheckKey, CheckedBackend, Durations, HealthChange, HealthState, Remembered,
    Results, Timing, Verdict,
    load::{Free, Load},
    response::Response,
    standing::Standing,
    turns,
};

/// Names a check while it is configured; never used again afterwards, so that
/// a late result of a check that is gone finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckId(u64);

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a probe and return its result.
    Probe {
        /// To be returned with the result.
        id: CheckId,
        /// What to probe.
        key: CheckKey,
        /// How long it may take.
        timing: Timing,
    },
    /// Tell that a backend's state changed.
    Changed(HealthChange),
}

#[derive(Debug)]
struct CheckEntry {
    key: CheckKey,
    certificate_expiry: Option<i64>,
    timing: Timing,
    standing: Standing,
    /// Start of the check's grid of nominal times.
    origin: Instant,
    /// Number of the turn that is due or running.
    turn: u64,
    /// When it is due; `None` while it waits for its turn or for its result.
    due: Option<Instant>,
    reason: String,
    last_duration: Option<Duration>,
    results: Results,
    durations: Durations,
    response: Response,
    free: Option<Free>,
}

#[derive(Debug)]
struct BackendEntry {
    checks: Vec<CheckId>,
    state: HealthState,
    since: Instant,
    reason: String,
    /// The verdict that decided.
    verdict: Option<Verdict>,
}

/// All checks of all backends.
#[derive(Debug)]
pub struct Machine {
    seed: u64,
    epoch: Instant,
    max_in_flight: usize,
    next_id: u64,
    ids: HashMap<CheckKey, CheckId>,
    checks: HashMap<CheckId, CheckEntry>,
    backends: BTreeMap<BackendKey, BackendEntry>,
    timers: BTreeSet<(Instant, CheckId)>,
    /// Due checks that wait for one in flight to end.
    ready: VecDeque<CheckId>,
    in_flight: HashSet<CheckId>,
    changes: VecDeque<HealthChange>,
    /// Of backends that have not been configured yet: what an earlier daemon
    /// knew of them, and since when.
    remembered: BTreeMap<BackendKey, (Remembered, Instant)>,
}

impl Machine {
    /// Without checks. The seed spreads the checks of different nodes; at most
    /// `max_in_flight` probes (at least one) run at a time.
    pub fn new(now: Instant, seed: u64, max_in_flight: usize) -> Self {
        Self {
            seed,
            epoch: now,
            max_in_flight: max_in_flight.max(1),
            next_id: 0,
            ids: HashMap::new(),
            checks: HashMap::new(),
            backends: BTreeMap::new(),
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            in_flight: HashSet::new(),
            changes: VecDeque::new(),
            remembered: BTreeMap::new(),
        }
    }

    /// What an earlier daemon knew: backends that the first [`Self::update`]
    /// configures at the same addresses start with it.
    pub fn remember(&mut self, now: Instant, known: BTreeMap<BackendKey, Remembered>) {
        let since = |known: &Remembered| now.checked_sub(known.for_time).unwrap_or(now);
        self.remembered = known
            .into_iter()
            .map(|(key, known)| {
                let since = since(&known);
                (key, (known, since))
            })
            .collect();
    }

    /// What a later daemon should know.
    pub fn to_remember(&self, now: Instant) -> BTreeMap<BackendKey, Remembered> {
        let known = self.backends.iter().filter_map(|(key, backend)| {
            let mut checks = backend.checks.iter().filter_map(|id| self.checks.get(id));
            let first = checks.next()?;
            (backend.state != HealthState::Unknown).then(|| {
                let known = Remembered {
                    state: backend.state,
                    for_time: now.saturating_duration_since(backend.since),
                    address: first.key.server(),
                    reason: backend.reason.clone(),
                };
                (key.clone(), known)
            })
        });
        known.collect()
    }

    /// From now on these backends are checked. A check that stays keeps its
    /// verdict, counters and turn. A backend that gets another check keeps its
    /// state until the set of results is complete, unless its address changed:
    /// then it is another server.
    pub fn update(&mut self, now: Instant, backends: &[CheckedBackend]) {
        let mut gone: HashSet<CheckId> = self.checks.keys().copied().collect();
        let mut before = std::mem::take(&mut self.backends);
        for backend in backends {
            let old = before.remove(&backend.key);
            let old_addresses: HashSet<IpAddr> = old
                .iter()
                .flat_map(|entry| &entry.checks)
                .filter_map(|id| self.checks.get(id))
                .map(|check| check.key.server())
                .collect();
            let same_server = old_addresses.is_empty()
                || backend.checks.is_empty()
                || backend
                    .checks
                    .iter()
                    .any(|(key, _)| old_addresses.contains(&key.server()));
            let checks = backend
                .checks
                .iter()
                .map(|(key, timing)| {
                    let id = self.configure(now, key, *timing);
                    gone.remove(&id);
                    id
                })
                .collect();
            if let Some(old) = &old
                && !same_server
                && old.state != HealthState::Unknown
            {
                self.changes.push_back(HealthChange {
                    key: backend.key.clone(),
                    was: old.state,
                    state: HealthState::Unknown,
                    reason: "has another address, not checked yet".to_owned(),
                });
            }
            let is_new = old.is_none();
            let mut entry = match old.filter(|_| same_server) {
                Some(old) => BackendEntry { checks, ..old },
                None => BackendEntry {
                    checks,
                    state: HealthState::Unknown,
                    since: now,
                    reason: "not checked yet".to_owned(),
                    verdict: None,
                },
            };
            if is_new {
                self.recall(&backend.key, &mut entry);
            }
            self.backends.insert(backend.key.clone(), entry);
            self.judge(now, &backend.key);
        }
        for id in gone {
            self.forget(id);
        }
        self.remembered.clear();
    }

    /// Gives a new backend the state that an earlier daemon left.
    fn recall(&mut self, key: &BackendKey, entry: &mut BackendEntry) {
        let Some((known, since)) = self.remembered.remove(key) else {
            return;
        };
        let is_same = entry
            .checks
            .iter()
            .filter_map(|id| self.checks.get(id))
            .any(|check| check.key.server() == known.address);
        if !is_same {
            return;
        }
        for id in &entry.checks {
            if let Some(check) = self.checks.get_mut(id) {
                check.standing = Standing::restored(known.state);
                check.reason.clone_from(&known.reason);
            }
        }
        entry.state = known.state;
        entry.since = since;
        entry.reason = known.reason;
    }

    /// A probe has ended, after `took`; `words` says how.
    pub fn handle_result(
        &mut self,
        now: Instant,
        id: CheckId,
        verdict: Verdict,
        words: &str,
        took: Duration,
    ) {
        self.in_flight.remove(&id);
        let Some(check) = self.checks.get_mut(&id) else {
            return;
        };
        check.results.count(verdict);
        check.standing = check.standing.after(verdict, &check.timing.rules(), now);
        words.clone_into(&mut check.reason);
        check.last_duration = Some(took);
        if verdict != Verdict::NotMade {
            check.durations.observe(took);
        }
        if matches!(verdict, Verdict::Pass | Verdict::Slow) {
            check.response = check.response.after(took);
        }
        let (turn, due) = match check.timing.fast_interval {
            Some(fast) if check.standing.is_changing(&check.timing.rules()) => {
                let due = now + fast.saturating_sub(took);
                (turns::at(check.origin, check.timing.interval, due), due)
            }
            _ => turns::next(
                self.seed,
                &check.key,
                check.timing,
                (check.origin, check.turn),
                now,
            ),
        };
        check.turn = turn;
        check.due = Some(due);
        self.timers.insert((due, id));
        let backend = check.key.backend.clone();
        self.judge(now, &backend);
    }

    /// A server has shown a certificate that ends then, in seconds since the Unix
    /// epoch.
    pub fn handle_certificate(&mut self, id: CheckId, expiry: i64) {
        if let Some(check) = self.checks.get_mut(&id) {
            check.certificate_expiry = Some(expiry);
        }
    }

    /// A backend has told of its own load, in the answer to a probe.
    pub fn handle_load(&mut self, id: CheckId, load: Load) {
        if let Some(check) = self.checks.get_mut(&id) {
            check.free = Some(Free::after(check.free, load));
        }
    }

    /// The time is now `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((due, id)) = self.timers.first().copied() {
            if due > now {
                break;
            }
            self.timers.pop_first();
            if let Some(check) = self.checks.get_mut(&id) {
                check.due = None;
                self.ready.push_back(id);
            }
        }
    }

    /// When [`Machine::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// What to do next; `None` until something else happens.
    pub fn next_action(&mut self) -> Option<Action> {
        if let Some(change) = self.changes.pop_front() {
            return Some(Action::Changed(change));
        }
        while self.in_flight.len() < self.max_in_flight {
            let id = self.ready.pop_front()?;
            if let Some(check) = self.checks.get(&id) {
                self.in_flight.insert(id);
                return Some(Action::Probe {
                    id,
                    key: check.key.clone(),
                    timing: check.timing,
                });
            }
        }
        None
    }

    /// The checks of a backend; `None` if there is no such one.
    pub fn checks_of(&self, key: &BackendKey) -> Option<Vec<(CheckKey, Timing)>> {
        let backend = self.backends.get(key)?;
        let checks = self.of(backend, |check| Some((check.key.clone(), check.timing)));
        Some(checks.collect())
    }

    fn of<'a, T>(
        &'a self,
        backend: &'a BackendEntry,
        what: impl Fn(&CheckEntry) -> Option<T> + 'a,
    ) -> impl Iterator<Item = T> + 'a {
        let checks = backend.checks.iter().filter_map(|id| self.checks.get(id));
        checks.filter_map(what)
    }

    /// The id of the check, made if need be.
    fn configure(&mut self, now: Instant, key: &CheckKey, timing: Timing) -> CheckId {
        if let Some(id) = self.ids.get(key).copied()
            && let Some(check) = self.checks.get_mut(&id)
        {
            let interval_changed = check.timing.interval != timing.interval;
            check.timing = timing;
            if interval_changed && let Some(due) = check.due {
                self.timers.remove(&(due, id));
                let due = turns::first(self.seed, &check.key, timing, now);
                check.due = Some(due);
                check.origin = turns::grid(self.seed, self.epoch, &check.key, timing);
                check.turn = turns::at(check.origin, timing.interval, due);
                self.timers.insert((due, id));
            }
            return id;
        }
        let id = CheckId(self.next_id);
        self.next_id += 1;
        let due = turns::first(self.seed, key, timing, now);
        let origin = turns::grid(self.seed, self.epoch, key, timing);
        self.ids.insert(key.clone(), id);
        self.checks.insert(
            id,
            CheckEntry {
                key: key.clone(),
                certificate_expiry: None,
                timing,
                standing: Standing::default(),
                origin,
                turn: turns::at(origin, timing.interval, due),
                due: Some(due),
                reason: "not checked yet".to_owned(),
                last_duration: None,
                results: Results::default(),
                durations: Durations::default(),
                response: Response::default(),
                free: None,
            },
        );
        self.timers.insert((due, id));
        id
    }

    fn forget(&mut self, id: CheckId) {
        if let Some(check) = self.checks.remove(&id) {
            self.ids.remove(&check.key);
            if let Some(due) = check.due {
                self.timers.remove(&(due, id));
            }
        }
    }

    /// Draws the conclusion from the checks of a backend.
    fn judge(&mut self, now: Instant, key: &BackendKey) {
        let Some(backend) = self.backends.get_mut(key) else {
            return;
        };
        let checks = || backend.checks.iter().filter_map(|id| self.checks.get(id));
        let is = |state| checks().find(move |check| check.standing.state == state);
        let worst = is(HealthState::Down).or_else(|| {
            let known = is(HealthState::Unknown).is_none();
            is(HealthState::Overloaded).filter(|_| known)
        });
        let verdict = worst.and_then(|check| check.standing.last);
        let (state, reason) = if let Some(check) = worst {
            (check.standing.state, check.reason.clone())
        } else if checks().all(|check| check.standing.state == HealthState::Up) {
            // What speaks against it already is worth more than what doesn't.
            let passed = |check: &&CheckEntry| check.standing.last == Some(Verdict::Pass);
            let shown = checks()
                .find(|check| !passed(check))
                .or(checks().next_back());
            let reason = shown.map(|check| check.reason.clone());
            (
                HealthState::Up,
                reason.unwrap_or_else(|| "not checked".to_owned()),
            )
        } else {
            // A check without a result: what was known stays true till then.
            return;
        };
        let changed = state != backend.state;
        if changed {
            self.changes.push_back(HealthChange {
                key: key.clone(),
                was: backend.state,
                state,
                reason: reason.clone(),
            });
            backend.state = state;
            backend.since = now;
        } else if verdict == Some(Verdict::Pass) {
            // It is still out for what was before that.
            return;
        }
        backend.reason = reason;
        // Who asked to be drained may be silent then: that takes nothing back.
        if changed || backend.verdict != Some(Verdict::Drain) {
            backend.verdict = verdict;
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
