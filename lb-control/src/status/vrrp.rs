//! Virtual routers.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// What a virtual router does, for people and for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpStatus {
    /// Number of the virtual router.
    pub vrid: u8,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The interface.
    pub interface: String,
    /// `initialize`, `backup`, `active` or `fault`.
    pub state: String,
    /// Why, in words.
    pub reason: String,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
    /// Priority that is advertised now.
    pub priority: u8,
    /// What it is the sum of, the configured one first.
    pub priority_parts: Vec<PriorityPart>,
    /// What it watches.
    pub trackers: Vec<TrackerStatus>,
    /// Milliseconds between two advertisements.
    pub interval_ms: u64,
    /// Version that is spoken.
    pub version: u8,
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// This node's address in it.
    pub source: Option<IpAddr>,
    /// The MAC address that the virtual addresses have while this node owns them.
    pub mac: Option<String>,
    /// Whoever was last heard to be active.
    pub active_peer: Option<IpAddr>,
    /// Its priority.
    pub active_priority: Option<u8>,
    /// Advertisements sent.
    pub sent: u64,
    /// Advertisements received and taken.
    pub received: u64,
    /// Messages thrown away, and oddities of others, by name.
    pub rejected: BTreeMap<String, u64>,
    /// Times that it became active.
    pub became_active: u64,
    /// It has handed over, and doesn't preempt for that.
    pub handed_over: bool,
    /// It has reference hosts, and none answers.
    pub isolated: bool,
    /// Reference hosts.
    pub reference_hosts: usize,
    /// Those that answer.
    pub reference_hosts_answering: usize,
    /// Peers that say by the peer link that they are active.
    pub peers_active: usize,
    /// Times that it was handed over to a peer.
    pub handed_over_total: u64,
    /// Times that a peer handed it over to this node.
    pub taken_over_total: u64,
    /// Advertisements that were sent an interval late or more.
    pub late: u64,
    /// Checksum that peers use over IPv4 in version 3, where another than the RFC's
    /// was seen.
    pub peer_checksum: Option<String>,
    /// Who is told of its state; absent: nobody.
    pub notify: Option<NotifyStatus>,
}

/// A part of a priority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriorityPart {
    /// `configured`, `limit`, or what is watched: `script check-uplink`.
    pub what: String,
    /// What it adds.
    pub change: i32,
}

/// Something that a virtual router watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// `interface`, `script` or `service`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Below 0: added to the priority while it fails. Above: added while it doesn't.
    /// Absent: the virtual router fails with it.
    pub weight: Option<i16>,
    /// The last result, in words.
    pub reason: String,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
}

/// What became of telling others of changes of state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyStatus {
    /// Runs of the command by result: `succeeded`, `failed`, `timeout`, `not_run`,
    /// `dropped` (too many were waiting).
    pub command: BTreeMap<String, u64>,
    /// Lines for the FIFO by result: `written`, `dropped` (nobody reads), `failed`.
    pub fifo: BTreeMap<String, u64>,
    /// Runs that wait for those before them.
    pub waiting: usize,
}
