//! Runs the checks: one task that drives [`Machine`] with the clock, probes
//! and a channel.

#![allow(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinSet},
    time::{self, Instant},
};

use super::{
    BackendHealth, BackendKey, CheckKey, Found, HealthState, Remembered, Timing, Verdict,
    checked_backends,
    machine::{Action, CheckId, Machine},
    probe::{self, Tools},
    trace::{Step, Trace},
    way::{Members, Passage},
};
use crate::model::Model;

/// Probes in flight at most, where the limit of file descriptors allows it.
const MAX_IN_FLIGHT: usize = 16_384;

/// A backend's state changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// Which backend.
    pub key: BackendKey,
    /// The state it left.
    pub was: HealthState,
    /// The state it has now.
    pub state: HealthState,
    /// The result that decided, in words.
    pub reason: String,
}

/// A probe that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The check.
    pub key: CheckKey,
    /// What was found.
    pub found: Found,
    /// How long it took.
    pub took: Duration,
    /// What it did, and how long each step took.
    pub steps: Vec<(Step, Duration)>,
}

/// The running checks. Dropping it ends them.
#[derive(Debug)]
pub struct Health {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    machine: Mutex<Machine>,
    updated: Notify,
    tools: Arc<Tools>,
}

impl Health {
    /// Starts the checks of the model on the current tokio runtime. The seed
    /// spreads the checks of different nodes; any number will do.
    ///
    /// Every change of a backend's state is sent once, in order. A backend
    /// without checks is up from the start, one that is `known` what it was.
    pub fn start(
        model: &Model,
        seed: u64,
        known: BTreeMap<BackendKey, Remembered>,
    ) -> (Self, mpsc::UnboundedReceiver<HealthChange>) {
        let now = Instant::now().into_std();
        let mut machine = Machine::new(now, seed, max_in_flight());
        machine.remember(now, known);
        let shared = Arc::new(Shared {
            machine: Mutex::new(machine),
            updated: Notify::new(),
            tools: Arc::default(),
        });
        let (sender, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(Arc::clone(&shared), sender)).abort_handle();
        let health = Self { shared, task };
        health.update(model);
        (health, receiver)
    }

    /// Takes over another model. Verdicts of checks that stay the same are
    /// kept, new ones start, gone ones end (without a change being sent).
    pub fn update(&self, model: &Model) {
        let backends = checked_backends(model);
        self.shared.tools.forget();
        self.shared
            .machine()
            .update(Instant::now().into_std(), &backends);
        self.shared.updated.notify_one();
    }

    /// Lets probes into the data path from now on; once.
    pub fn set_passage(&self, passage: Arc<dyn Passage>) {
        // A second one would have the same ports.
        let _ = self.shared.tools.passage.set(passage);
    }

    /// The data path has these members.
    pub fn set_members(&self, members: Members) {
        self.shared.tools.members.send_replace(members);
    }

    /// What a later daemon should know.
    pub fn to_remember(&self) -> BTreeMap<BackendKey, Remembered> {
        self.shared.machine().to_remember(Instant::now().into_std())
    }

    /// Makes a probe of every check of a backend, beside their turns and without
    /// any consequence. `None` if there is no such backend.
    pub fn probe_now(
        &self,
        key: &BackendKey,
    ) -> Option<impl Future<Output = Vec<Probed>> + Send + use<>> {
        let checks = self.shared.machine().checks_of(key)?;
        let tools = Arc::clone(&self.shared.tools);
        Some(async move {
            let started: Vec<_> = checks
                .into_iter()
                .map(|(key, timing)| {
                    let tools = Arc::clone(&tools);
                    tokio::spawn(async move {
                        let (found, took, steps) = probe_once(&key, &timing, &tools).await;
                        Probed {
                            key,
                            found,
                            took,
                            steps,
                        }
                    })
                })
                .collect();
            let mut probed = Vec::new();
            for task in started {
                probed.extend(task.await);
            }
            probed
        })
    }

    /// Every backend's state as of now.
    pub fn snapshot(&self) -> BTreeMap<BackendKey, BackendHealth> {
        self.shared.machine().snapshot(Instant::now().into_std())
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// The machine is consistent between any two of its calls, so a panic of
    /// another holder doesn't spoil it.
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Done {
    id: CheckId,
    found: Found,
    took: Duration,
}

async fn run(shared: Arc<Shared>, changes: mpsc::UnboundedSender<HealthChange>) {
    let mut probes: JoinSet<Done> = JoinSet::new();
    loop {
        let wake_at = {
            let mut machine = shared.machine();
            machine.handle_timeout(Instant::now().into_std());
            while let Some(action) = machine.next_action() {
                match action {
                    Action::Probe { id, key, timing } => {
                        let tools = Arc::clone(&shared.tools);
                        probes.spawn(async move {
                            let (found, took, _) = probe_once(&key, &timing, &tools).await;
                            Done { id, found, took }
                        });
                    }
                    Action::Changed(change) => {
                        log(&change);
                        // Nobody listens any more: the daemon is about to end.
                        drop(changes.send(change));
                    }
                }
            }
            machine.poll_timeout()
        };
        let sleep = async {
            match wake_at {
                Some(at) => time::sleep_until(Instant::from_std(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = shared.updated.notified() => {}
            Some(result) = probes.join_next() => {
                let mut machine = shared.machine();
                let now = Instant::now().into_std();
                let mut next = Some(result);
                while let Some(result) = next {
                    if let Ok(done) = result {
                        let found = &done.found;
                        if let Some(expiry) = found.certificate_expiry {
                            machine.handle_certificate(done.id, expiry);
                        }
                        if let Some(load) = found.load {
                            machine.handle_load(done.id, load);
                        }
                        machine.handle_result(
                            now, done.id, found.verdict, &found.words, done.took,
                        );
                    }
                    next = probes.try_join_next();
                }
            }
        }
    }
}

/// At the moment of the verdict; what follows from it may take its time.
fn log(change: &HealthChange) {
    tracing::info!(
        backend = format!("{}/{}", change.key.pool, change.key.backend),
        was = %change.was,
        now = %change.state,
        reason = change.reason,
        "health changed"
    );
}

/// One probe, how long it took, and its steps.
async fn probe_once(
    key: &CheckKey,
    timing: &Timing,
    tools: &Arc<Tools>,
) -> (Found, Duration, Vec<(Step, Duration)>) {
    let trace = Trace::start();
    let mut found = probe::run(key, timing.timeout, tools, &trace).await;
    let took = trace.elapsed();
    if let Some(limit) = timing.slow_after
        && found.verdict == Verdict::Pass
        && took > limit
    {
        found.verdict = Verdict::Slow;
        found.words = format!("{}, but only after {took:?}", found.words);
    }
    (found, took, trace.finish())
}

/// Half of the file descriptors this process may have: the rest is for maps,
/// sockets and clients of the API.
fn max_in_flight() -> usize {
    fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|limits| soft_limit_of_files(&limits))
        .map_or(MAX_IN_FLIGHT, |files| (files / 2).min(MAX_IN_FLIGHT))
}

/// `None` where it is unlimited or not to be read.
fn soft_limit_of_files(limits: &str) -> Option<usize> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}
