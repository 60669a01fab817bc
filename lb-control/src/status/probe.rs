//! What the health checks have found so far.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Results of one backend's health checks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// The pool.
    pub pool: String,
    /// The backend.
    pub backend: String,
    /// Probes by result.
    pub results: BTreeMap<String, u64>,
    /// How long they took.
    pub durations: Histogram,
    /// When the first of the certificates shown to them ends, in seconds since
    /// the Unix epoch.
    #[serde(default)]
    pub certificate_expiry: Option<i64>,
}

/// A histogram, in the shape of Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bound in seconds and how many took at most that long; ascending.
    pub buckets: Vec<(f64, u64)>,
    /// All of them.
    pub count: u64,
    /// Their sum in seconds.
    pub sum_seconds: f64,
}
