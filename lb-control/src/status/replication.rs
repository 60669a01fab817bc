//! What is replicated with a peer.

use serde::{Deserialize, Serialize};

/// One peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    /// It was told all that this node has, and is told what changes.
    pub tells: bool,
    /// Services that this node tells of: those that it owns.
    pub services: usize,
    /// Milliseconds since a moment whose tables the peer has as a whole.
    pub lag_ms: Option<u64>,
    /// What it was told.
    pub sent: Exported,
    /// What is known of its flows.
    pub hears: Standing,
    /// What was taken over from it.
    pub received: Imported,
}

/// What was told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Entries of both tables, those that are no more included.
    pub flows: u64,
    /// Slots.
    pub slots: u64,
    /// Bindings of full NAT.
    pub bindings: u64,
    /// Sources and their servers.
    pub sources: u64,
    /// Bytes of messages.
    pub bytes: u64,
    /// Times that all was told from the beginning.
    pub bulks: u64,
}

/// What is known of a peer's flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It has told nothing yet.
    #[default]
    Waiting,
    /// It tells all that it has.
    Bulk,
    /// All that it has told is here.
    InSync,
    /// It has told all, but some of it names what this node doesn't have.
    Partial,
    /// Its flows can't be taken over, for this reason in words.
    Incompatible(String),
}

/// What was taken over so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Entries, those that are no more included.
    pub flows: u64,
    /// Slots.
    pub slots: u64,
    /// Bindings of full NAT.
    pub bindings: u64,
    /// Sources and their servers.
    pub sources: u64,
    /// Records of services that this node owns itself.
    pub own: u64,
    /// Records of services or members that this node doesn't have.
    pub unknown: u64,
    /// Records that there was no room for.
    pub refused: u64,
    /// Messages that could not be read.
    pub malformed: u64,
    /// Entries, slots and bindings that the peer had no more.
    pub stale: u64,
}
