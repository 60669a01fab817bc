//! What was seen, for programs.

use std::collections::BTreeMap;

use serde::Serialize;

/// Both scenes.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Direct server return.
    pub dsr: SceneReport,
    /// NAT.
    pub nat: SceneReport,
    /// Whether everything that should hold did.
    pub ok: bool,
    /// How long it took.
    pub seconds: f64,
}

/// One scene.
#[derive(Debug, Default, Serialize)]
pub struct SceneReport {
    /// HTTP requests sent, those over held connections included.
    pub requests: u64,
    /// Requests that failed and should not have.
    pub failed: u64,
    /// New requests that failed between the kill and the check's noticing.
    pub failed_until_noticed: u64,
    /// Time from the kill until the checks had taken the backend out.
    pub seconds_until_out: f64,
    /// Answered requests by backend.
    pub per_backend: BTreeMap<String, u64>,
    /// Shares of the connections opened for one request, by backend.
    pub shares: BTreeMap<String, Share>,
    /// Connections held open.
    pub held: u64,
    /// Held connections lost before anything was changed.
    pub lost_at_rest: u64,
    /// Held connections lost when a backend was drained and enabled again.
    pub lost_on_drain: u64,
    /// Held connections lost of the backend that was killed.
    pub lost_on_kill_of_own: u64,
    /// Held connections lost of the others.
    pub lost_on_kill_of_others: u64,
    /// Held connections lost when the killed backend came back.
    pub lost_on_recovery: u64,
    /// New requests that reached the drained backend.
    pub new_on_drained: u64,
    /// New requests that reached the killed backend after it came back.
    pub new_on_recovered: u64,
    /// Packets from the VIPs at the balancer's links.
    pub replies_at_balancer: u64,
    /// Packets to the VIPs there.
    pub requests_at_balancer: u64,
    /// Requests of which client and servers tell different stories.
    pub log_differences: u64,
    /// Everything that should hold and didn't, in words.
    pub problems: Vec<String>,
}

/// A backend's part of the traffic, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Share {
    /// Its weight of all weights.
    pub configured: f64,
    /// Its connections of all connections.
    pub measured: f64,
}

impl SceneReport {
    /// Notes something that should hold and doesn't.
    pub fn problem(&mut self, what: String) {
        super::view::problem(&what);
        self.problems.push(what);
    }

    /// Notes `what` as a problem unless `holds`.
    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.problem(what());
        }
    }
}

impl Report {
    /// One line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|error| format!("{{\"ok\":false,\"error\":\"{error}\"}}"))
    }
}
