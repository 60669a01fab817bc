//! Links to other balancers.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;

/// The links to peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerSync {
    /// What this node calls itself; `None`: the host's name.
    pub node: Option<String>,
    /// The file with the key that all nodes share.
    pub key_file: PathBuf,
    /// How long a node that came back waits to be in sync before it may preempt.
    pub wait: Duration,
    /// Between two keepalives.
    pub keepalive: Duration,
    /// The peers; their names are unique.
    pub peers: Vec<SyncPeer>,
}

/// Another balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SyncPeer {
    /// What it calls itself.
    pub name: String,
    /// The ways to it, the best first.
    pub paths: Vec<SyncPath>,
}

/// One way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SyncPath {
    /// This node's end.
    pub local: SocketAddr,
    /// The peer's end, of the same family.
    pub remote: SocketAddr,
}
