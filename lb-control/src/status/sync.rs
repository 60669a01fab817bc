//! Links to peers.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::ReplicationStatus;

/// What the link to a peer does, for people and for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The peer's name.
    pub peer: String,
    /// It is up: the peer has proved that it has the key, and a path is alive.
    pub up: bool,
    /// Since when it is up or down, in seconds since the Unix epoch.
    pub since: u64,
    /// Of the start of the peer's daemon, in hexadecimal; while the link is up.
    pub epoch: Option<String>,
    /// Times that it came up.
    pub became_up: u64,
    /// Sessions that came into force; each has fresh keys.
    pub sessions: u64,
    /// The ways to the peer, in the configuration's order.
    pub paths: Vec<PathStatus>,
    /// What must arrive, in order.
    pub stream: StreamStatus,
    /// Urgent messages.
    pub urgent: UrgentStatus,
    /// Datagrams that were thrown away, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// What is replicated by it.
    #[serde(default)]
    pub replication: ReplicationStatus,
}

/// One way to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// This node's end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// The peer was heard by it within the time-out.
    pub alive: bool,
    /// And says that it hears this node by it.
    pub heard_by_peer: bool,
    /// Milliseconds since the peer was last heard by it.
    pub heard_ago_ms: Option<u64>,
    /// Round trip in microseconds, smoothed.
    pub round_trip_us: Option<u64>,
    /// Datagrams that were sent.
    pub sent: u64,
    /// Datagrams that came and were authentic.
    pub received: u64,
    /// What the kernel says against it, in words.
    pub error: Option<String>,
}

/// The stream to a peer and that from it, since the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that the peer has taken.
    pub acknowledged: u64,
    /// Datagrams that were sent again.
    pub resent: u64,
    /// Messages that wait to be sent or to be acknowledged.
    pub waiting: u64,
    /// Milliseconds that the oldest of them waits.
    pub lag_ms: u64,
    /// Messages that came and were taken.
    pub received: u64,
}

/// Urgent messages, since the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrgentStatus {
    /// Sent.
    pub sent: u64,
    /// Not sent: the link was down.
    pub dropped: u64,
    /// Received.
    pub received: u64,
}
