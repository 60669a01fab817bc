//! Health checks: which backends answer.
//!
//! [`standing`] says what each [`Verdict`] makes of a check's state;
//! [`machine`] decides and schedules without a clock, a socket or a task;
//! [`probe`] and the modules that it names are the probes; [`shell`] drives
//! them; [`memory`] keeps states over a restart. May import [`crate::model`]
//! only.

pub mod agent;
mod checks;
pub mod dns;
mod durations;
pub mod exec;
pub mod http;
pub mod load;
pub mod machine;
pub mod memory;
pub mod ping;
pub mod probe;
pub mod program;
pub mod response;
mod results;
pub mod shell;
pub mod smtp;
pub mod snmp;
pub mod standing;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trace;
mod turns;
pub mod udp;
pub mod verdict;
pub mod way;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize, Serializer};

pub use checks::checked_backends;
pub use durations::Durations;
pub use results::Results;
pub use shell::{Health, HealthChange, Probed};
pub use verdict::{Found, Verdict};
pub use way::Through;

use crate::model::CheckKind;

/// What names a backend: names are unique within their pool only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct BackendKey {
    /// Name of the pool.
    pub pool: String,
    /// Name of the backend within it.
    pub backend: String,
}

/// What is known of a backend, or of one check of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Not every check has a result yet. Such a backend gets traffic only
    /// while its whole pool is unknown, as after a start.
    #[default]
    Unknown,
    /// All checks are up.
    Up,
    /// No check is down, and at least one is overloaded: the backend lives and
    /// serves its flows, and gets no new ones.
    Overloaded,
    /// At least one check is down.
    Down,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Overloaded => "overloaded",
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
    /// Where it connects to: an address of the backend's, or a VIP.
    pub target: SocketAddr,
    /// With a VIP, the backend that it goes to.
    pub through: Option<Through>,
}

impl CheckKey {
    /// The address of the backend.
    pub fn server(&self) -> IpAddr {
        match &self.through {
            Some(through) => through.address,
            None => self.target.ip(),
        }
    }
}

/// What a check does; the parameters that are part of its identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeKind(Arc<CheckKind>);

impl From<CheckKind> for ProbeKind {
    fn from(kind: CheckKind) -> Self {
        Self(Arc::new(kind))
    }
}

impl Deref for ProbeKind {
    type Target = CheckKind;

    fn deref(&self) -> &CheckKind {
        &self.0
    }
}

impl Serialize for ProbeKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// When a check runs and what its results mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time from one check to the next.
    pub interval: Duration,
    /// A check without a result by then has failed.
    pub timeout: Duration,
    /// A right answer that takes longer is of a busy server.
    pub slow_after: Option<Duration>,
    /// The same as the interval while the results speak for another state; none: no other.
    pub fast_interval: Option<Duration>,
    /// Consecutive passes that take a down check up; at least 1.
    pub rise: u32,
    /// Consecutive failures that take an up check down; at least 1.
    pub fall: u32,
    /// An overloaded check without any answer for so long is down.
    pub overloaded_limit: Duration,
    /// A flapping check is held down for so long at most; zero: not at all.
    pub hold_down_limit: Duration,
}

impl Timing {
    /// What the check's results mean.
    pub fn rules(&self) -> standing::Rules {
        standing::Rules {
            rise: self.rise,
            fall: self.fall,
            overloaded_limit: self.overloaded_limit,
            hold_down: self.interval.saturating_mul(self.rise),
            hold_down_limit: self.hold_down_limit,
        }
    }
}

/// What one daemon leaves to the next about a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its state; never unknown.
    pub state: HealthState,
    /// How long it has had it.
    pub for_time: Duration,
    /// Where it was checked: at another address it is another server.
    pub address: IpAddr,
    /// The result that decided, in words.
    pub reason: String,
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendHealth {
    /// Its state.
    pub state: HealthState,
    /// How long it has had that state.
    pub in_state_for: Duration,
    /// The last result that speaks for its state, in words: "connection refused".
    pub reason: String,
    /// Its verdict, where it speaks against the backend.
    pub verdict: Option<Verdict>,
    /// How long it is kept out yet, even if it passes, since it was flapping.
    pub held_for: Duration,
    /// Smoothed time of its slowest check, once there were enough probes.
    pub response: Option<Duration>,
    /// What is left of its weight by its own reports, at most 1.
    pub free: Option<f64>,
    /// How long the last probe took.
    pub last_duration: Option<Duration>,
    /// What the probes found since the check was first configured.
    pub results: Results,
    /// How long its probes took.
    pub durations: Durations,
    /// When the first of the certificates that its servers showed ends, in seconds
    /// since the Unix epoch.
    pub certificate_expiry: Option<i64>,
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
    /// With a VIP, the service by which it goes.
    pub service: Option<String>,
    /// Its state.
    pub state: HealthState,
    /// The last result in words.
    pub reason: String,
    /// How long the last probe took.
    pub last_duration: Option<Duration>,
    /// What the probes found since the check was first configured.
    pub results: Results,
    /// How long the probes took.
    pub durations: Durations,
    /// When the certificate that the server showed last ends, in seconds since
    /// the Unix epoch.
    pub certificate_expiry: Option<i64>,
}
