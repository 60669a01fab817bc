//! What the daemon says of itself: plain snapshots, the same for the API, the
//! metrics and the command line.
//!
//! Depends on nothing else in this crate. The JSON names are stable and
//! documented in `docs/cli.md`. Times are seconds since the Unix epoch.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

mod pool;
mod probe;
mod replication;
pub mod request;
mod sync;
mod vrrp;

pub use pool::PoolHealth;
pub use probe::{Histogram, ProbeStatus};
pub use replication::{Exported, Imported, ReplicationStatus, Standing};
pub use sync::{LinkStatus, PathStatus, StreamStatus, UrgentStatus};
pub use vrrp::{NotifyStatus, PriorityPart, TrackerStatus, VrrpStatus};

/// Everything, as of one second's tick.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The daemon.
    pub status: Status,
    /// One row a service, in the configuration's order.
    pub services: Vec<ServiceStatus>,
    /// One row a (service, backend) pair.
    pub backends: Vec<BackendStatus>,
    /// Health checks' results.
    pub probes: Vec<ProbeStatus>,
    /// Virtual routers.
    #[serde(default)]
    pub vrrp: Vec<VrrpStatus>,
    /// Links to peers.
    #[serde(default)]
    pub sync: Vec<LinkStatus>,
}

/// The daemon and its data path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Version of `lbctl`.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When the daemon started.
    pub started_at: u64,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// Whether it is ready: see [`Readiness`].
    pub readiness: Readiness,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// Reloads.
    pub reloads: ReloadStatus,
    /// Changes of the data path.
    pub apply: ApplyStatus,
    /// The interfaces the data path is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// The flow table.
    pub flow_table: FlowTableStatus,
    /// Persistence by source.
    pub persistence: PersistenceStatus,
    /// Full NAT's addresses.
    #[serde(default)]
    pub full_nat: Vec<PoolStatus>,
    /// Backends of each pool, and which of its rules is in force.
    #[serde(default)]
    pub pools: Vec<PoolHealth>,
    /// VIPs of this node that somebody else on the segment claimed.
    #[serde(default)]
    pub duplicate_vips: Vec<DuplicateVip>,
    /// Instructions the verifier went through, where the kernel says.
    pub verified_instructions: Option<u32>,
    /// Whether the data path was adopted from an earlier daemon.
    pub adopted: bool,
    /// Drops of packets that belong to no service, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Events that belong to no service, by name.
    pub events: BTreeMap<String, u64>,
}

/// Whether clients can be sent here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Attached everywhere, applied once, and the first health results are in.
    pub ready: bool,
    /// What is missing, in words.
    pub reasons: Vec<String>,
}

/// The configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Path of the file.
    pub file: String,
    /// A hash of its bytes (SipHash-1-3, 64 bits, hexadecimal), to compare.
    pub hash: String,
    /// When it came into force.
    pub loaded_at: u64,
    /// Its services.
    pub services: usize,
    /// Its pools.
    pub pools: usize,
    /// Backends of all its pools.
    pub backends: usize,
}

/// Reloads since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Reloads that came into force.
    pub succeeded: u64,
    /// Reloads that were refused.
    pub failed: u64,
    /// The last one.
    pub last: Option<LastReload>,
}

/// How the last reload went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// When.
    pub at: u64,
    /// Whether it came into force.
    pub ok: bool,
    /// Why not, one line an error.
    pub errors: Vec<String>,
}

/// How changes of the data path went since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ApplyStatus {
    /// Changes applied.
    pub succeeded: u64,
    /// Attempts that failed; they are repeated until they succeed.
    pub failed: u64,
    /// The error, while the last attempt has failed.
    pub error: Option<String>,
    /// Slots of living services that went to another backend.
    #[serde(default)]
    pub slots_moved: u64,
    /// The part of all slots that the last change moved, from 0 to 1.
    #[serde(default)]
    pub last_moved_share: f64,
}

/// An interface the data path is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// The kernel's name of it.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// `native`, `generic` or `detached`.
    pub mode: String,
    /// Why not native, where `auto` fell back; why detached.
    pub reason: Option<String>,
    /// Id of the program, as `bpftool prog` shows it.
    pub program_id: Option<u32>,
}

/// An address of full NAT's pool and its ports, as of the last sweep. All
/// states together are always all ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The address.
    pub address: IpAddr,
    /// Ports ready for a flow.
    pub free: u32,
    /// Ports given to a flow.
    pub used: u32,
    /// Ports given to no flow for 60 s after one.
    pub resting: u32,
    /// Ports taken back.
    pub removed: u32,
    /// Whether it is being removed: it takes no new flows.
    pub draining: bool,
}

/// A VIP of this node that somebody else claimed, in ARP or neighbour discovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateVip {
    /// The VIP.
    pub address: IpAddr,
    /// MAC address of the last one that claimed it.
    pub mac: String,
    /// The interface that the claim came in by.
    pub interface: String,
    /// When, to the second.
    pub last_seen: u64,
}

/// Sources that have a server (persistence).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistenceStatus {
    /// Sources at the last sweep.
    pub sources: u64,
    /// Sources there is room for; the least recent ones are forgotten beyond that.
    pub capacity: u64,
    /// New flows that went to the server that their source had.
    pub led_total: u64,
}

/// Entries of the flow table. Only flows in tracked slots have one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTableStatus {
    /// Live entries.
    pub entries: u64,
    /// Entries it has room for.
    pub capacity: u64,
    /// Live entries of the flows whose replies NAT has to recognise.
    pub reply_entries: u64,
    /// Entries there is room for.
    pub reply_capacity: u64,
    /// Slots that are tracked now, of all services.
    pub tracked_slots: u64,
    /// Slots of all services.
    pub slots: u64,
    /// Entries made since the maps were made.
    pub inserted_total: u64,
    /// Entries there was no room for.
    pub refused_total: u64,
}

/// Totals since the daemon started; what an adopted data path had counted by
/// then is included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// TCP: SYNs. UDP: flows, estimated from a sample.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Replies (NAT; under DSR they do not pass the balancer).
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// [`Totals`] per second, over the last tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Connections opened per second.
    pub connections_per_second: f64,
    /// Packets from clients per second.
    pub packets_per_second: f64,
    /// Their bytes per second.
    pub bytes_per_second: f64,
    /// Replies per second.
    pub reply_packets_per_second: f64,
    /// Their bytes per second.
    pub reply_bytes_per_second: f64,
}

/// Connections open at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Concurrent {
    /// How many.
    pub connections: u64,
    /// Half the width of the 95 % confidence interval; zero when counted.
    pub error: u64,
    /// Estimated from a sample of the flows, and not counted one by one.
    pub estimated: bool,
    /// Connections of which only a SYN was seen; where they are counted.
    #[serde(default)]
    pub half_open: Option<u64>,
}

/// A virtual service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// The VIP.
    pub address: Option<IpAddr>,
    /// Its ports: `80`, `80,443`, `8000-8099` or `any`.
    pub ports: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `l2-dsr` or `nat`.
    pub forwarding: String,
    /// `maglev`, `round-robin`, `least-connections` or `response-time`.
    #[serde(default)]
    pub scheduler: String,
    /// `full` or `minimal`.
    #[serde(default)]
    pub tracking: String,
    /// What decided on the tracking.
    #[serde(default)]
    pub tracking_reason: String,
    /// Its pool.
    pub pool: String,
    /// Backends that take new flows.
    pub backends_up: usize,
    /// Backends of the pool.
    pub backends_total: usize,
    /// Slots of its table.
    pub slots: u64,
    /// Those that are tracked.
    pub tracked_slots: u64,
    /// The last second.
    pub rates: Rates,
    /// Connections open now.
    pub concurrent: Concurrent,
    /// Since the daemon started.
    pub totals: Totals,
    /// Dropped packets by reason.
    pub drops: BTreeMap<String, u64>,
    /// Events by name.
    pub events: BTreeMap<String, u64>,
}

/// What an operator has decided about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    /// Takes part.
    #[default]
    Enabled,
    /// Serves its flows, gets no new ones; disabled after `drain_timeout`.
    Draining,
    /// Serves nobody.
    Disabled,
}

impl AdminState {
    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        }
    }
}

/// What the health checks say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Its pool has no checks.
    Unchecked,
    /// No result yet.
    #[default]
    Unknown,
    /// Passes.
    Up,
    /// Lives, but is too slow or says that it can take no more.
    Overloaded,
    /// Fails.
    Down,
}

impl Health {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Unchecked,
        Self::Unknown,
        Self::Up,
        Self::Overloaded,
        Self::Down,
    ];

    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Overloaded => "overloaded",
            Self::Down => "down",
        }
    }
}

/// What the data path does with a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Serves and takes new flows.
    Up,
    /// Lives, but can take no more: serves its flows.
    Overloaded,
    /// Serves its flows and takes no new ones.
    Draining,
    /// Fails its checks, for less than `dead_after`: serves its flows.
    Failing,
    /// Serves nobody.
    #[default]
    Dead,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Up,
        Self::Overloaded,
        Self::Draining,
        Self::Failing,
        Self::Dead,
    ];

    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Failing => "failing",
            Self::Dead => "dead",
        }
    }
}

/// One (service, backend) pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its pool.
    pub pool: String,
    /// Its name in the pool.
    pub backend: String,
    /// The service.
    pub service: String,
    /// The server's address.
    pub address: Option<IpAddr>,
    /// Its port; none keeps the packet's.
    pub port: Option<u16>,
    /// It has left the configuration and still serves its flows.
    #[serde(default)]
    pub departed: bool,
    /// What an operator decided.
    pub admin: AdminState,
    /// What the checks say.
    pub health: Health,
    /// Since when they say so.
    pub health_since: Option<u64>,
    /// The last check's result in words.
    pub last_result: String,
    /// What the data path does with it.
    pub condition: Condition,
    /// Weight of the configuration.
    pub weight: u16,
    /// Weight in force; zero while it takes no new flows.
    pub weight_effective: u16,
    /// The part of that weight that it gets, from 0 to 1 or a bit more: slow
    /// start, its own reports, response time.
    #[serde(default)]
    pub share_factor: f64,
    /// Why its share is what it is, where there is something to say.
    #[serde(default)]
    pub share_reasons: Vec<String>,
    /// Its priority group; 1 is the highest.
    #[serde(default)]
    pub priority: u8,
    /// Connections it may have in the service; none: any number.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Its slots of the service's table.
    pub slots: u64,
    /// The same as a share, from 0 to 1.
    pub slot_share: f64,
    /// Where its packets are sent.
    pub next_hop: NextHopStatus,
    /// The last second.
    pub rates: Rates,
    /// Connections open now.
    pub concurrent: Concurrent,
    /// Since the daemon started.
    pub totals: Totals,
}

/// The neighbour that packets to a backend are sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopStatus {
    /// Whether its MAC address is known.
    pub resolved: bool,
    /// MAC address and interface, or why there is none.
    pub detail: String,
    /// Longest IP packet that reaches the backend, in bytes; a tunnel's outer
    /// headers are part of it. Absent while that is not known.
    pub mtu: Option<u32>,
}
