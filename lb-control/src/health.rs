//! Health checks: which backends answer.
//!
//! [`machine`] decides and schedules without a clock, a socket or a task;
//! [`tcp`] is the one probe there is so far; [`shell`] drives both. May import
//! [`crate::model`] only.

mod durations;
pub mod machine;
pub mod shell;
pub mod tcp;

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use serde::Serialize;

pub use durations::Durations;
pub use shell::{Health, HealthChange};

use crate::model::{Check, CheckKind, Model, Ports};

/// What names a backend: names are unique within their pool only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct BackendKey {
    /// Name of the pool.
    pub pool: String,
    /// Name of the backend within it.
    pub backend: String,
}

/// What is known of a backend, or of one check of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Not every check has a result yet. Such a backend gets traffic only
    /// while its whole pool is unknown, as after a start.
    #[default]
    Unknown,
    /// All checks are up.
    Up,
    /// At least one check is down.
    Down,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// What names a check over a reload: while all of this stays the same, so do
/// its verdict and its counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct CheckKey {
    /// Whose check it is.
    pub backend: BackendKey,
    /// What it does.
    pub kind: ProbeKind,
    /// Where it connects to.
    pub target: SocketAddr,
}

/// What a check does; the parameters that are part of its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// Passes when the TCP handshake completes.
    Tcp,
}

/// When a check runs and what its results mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time from one check to the next.
    pub interval: Duration,
    /// A check without a result by then has failed.
    pub timeout: Duration,
    /// Consecutive passes that take a down check up; at least 1.
    pub rise: u32,
    /// Consecutive failures that take an up check down; at least 1.
    pub fall: u32,
}

/// One backend with its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBackend {
    /// Its name.
    pub key: BackendKey,
    /// Its checks. None: the backend is up.
    pub checks: Vec<(CheckKey, Timing)>,
}

/// The state of one backend, for people and for metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendHealth {
    /// Its state.
    pub state: HealthState,
    /// How long it has had that state.
    pub in_state_for: Duration,
    /// The result that decided, in words: "connection refused".
    pub reason: String,
    /// How long the last probe took.
    pub last_duration: Option<Duration>,
    /// Probes that passed since the check was first configured.
    pub passes: u64,
    /// Probes that failed.
    pub failures: u64,
    /// Probes that could not be made for reasons of our own.
    pub not_made: u64,
    /// How long its probes took.
    pub durations: Durations,
    /// Its checks one by one.
    pub checks: Vec<CheckHealth>,
}

/// The state of one check, for people and for metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckHealth {
    /// What it does.
    pub kind: ProbeKind,
    /// Where it connects to.
    pub target: SocketAddr,
    /// Its state.
    pub state: HealthState,
    /// The last result in words.
    pub reason: String,
    /// How long the last probe took.
    pub last_duration: Option<Duration>,
    /// Probes that passed since the check was first configured.
    pub passes: u64,
    /// Probes that failed.
    pub failures: u64,
    /// Probes that could not be made for reasons of our own.
    pub not_made: u64,
    /// How long the probes took.
    pub durations: Durations,
}

/// The checks of every backend in the model.
///
/// A check without a port takes the backend's; a backend without one is
/// checked at the first port of each service that uses the pool, since each of
/// them sends it clients. Where no service names a port either there is
/// nothing to connect to, and the check is left out.
pub fn checked_backends(model: &Model) -> Vec<CheckedBackend> {
    let mut all = Vec::new();
    for (pool_name, pool) in &model.pools {
        let service_ports: BTreeSet<u16> = model
            .services
            .iter()
            .filter(|service| service.pool == *pool_name)
            .filter_map(|service| match &service.ports {
                Ports::Any => None,
                Ports::Ranges(ranges) => ranges.first().map(|(first, _)| *first),
            })
            .collect();
        for backend in &pool.backends {
            let key = BackendKey {
                pool: pool_name.clone(),
                backend: backend.name.clone(),
            };
            let mut checks: Vec<(CheckKey, Timing)> = Vec::new();
            for check in &pool.health {
                let ports: Vec<u16> = match check.port.or(backend.port) {
                    Some(port) => vec![port],
                    None => service_ports.iter().copied().collect(),
                };
                for port in ports {
                    let check_key = CheckKey {
                        backend: key.clone(),
                        kind: probe_kind(check),
                        target: SocketAddr::new(backend.address, port),
                    };
                    if !checks.iter().any(|(known, _)| *known == check_key) {
                        checks.push((check_key, timing(check)));
                    }
                }
            }
            all.push(CheckedBackend { key, checks });
        }
    }
    all
}

fn probe_kind(check: &Check) -> ProbeKind {
    match check.kind {
        CheckKind::Tcp => ProbeKind::Tcp,
    }
}

fn timing(check: &Check) -> Timing {
    Timing {
        interval: check.interval,
        timeout: check.timeout,
        rise: check.rise.max(1),
        fall: check.fall.max(1),
    }
}
