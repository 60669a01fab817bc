//! What is replicated with a peer.

use serde::{Deserialize, Serialize};

use crate::replication::{
    export::Exported,
    import::{Imported, Standing},
};

/// One peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    /// It was told all that this node has, and is told what changes.
    pub tells: bool,
    /// Services that this node tells of: those that it owns.
    pub services: u64,
    /// Messages that the peer hasn't acknowledged.
    pub waiting: u64,
    /// Milliseconds since a moment whose tables the peer has as a whole.
    pub lag_ms: Option<u64>,
    /// What it was told.
    pub sent: Exported,
    /// What is known of its flows.
    pub hears: Standing,
    /// What was taken over from it.
    pub received: Imported,
}
