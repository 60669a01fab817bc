//! What can be asked of the daemon besides its snapshots, and the answers.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// An operator's decision about one backend, kept over reload and restart
/// until it is cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminRequest {
    /// The pool's name.
    pub pool: String,
    /// The backend's name in it.
    pub backend: String,
    /// What to do with it.
    #[serde(flatten)]
    pub action: AdminAction,
}

/// What to do with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum AdminAction {
    /// Serve its flows, give it no new ones.
    Drain,
    /// Take part again, whatever the configuration will say.
    Enable,
    /// Serve nobody, at once.
    Disable,
    /// Another weight than the configuration's.
    Weight {
        /// At most 65,535; 0 gets no new flows.
        weight: u16,
    },
    /// Forget every decision about it.
    Clear,
}

/// An accepted [`AdminRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAnswer {
    /// The backend, as `POOL/BACKEND`.
    pub backend: String,
    /// What holds now, in words.
    pub message: String,
    /// Connections it still has, where known; an estimate.
    pub flows_left: Option<u64>,
}

/// A reload that came into force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// The file.
    pub file: String,
    /// Services in force.
    pub services: usize,
    /// Slots that changed their backend.
    pub slots_moved: u64,
    /// What is worth knowing, such as decisions about backends that are gone.
    pub notes: Vec<String>,
}

/// Asks what a file would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// Absolute path of the file.
    pub path: String,
}

/// What a file would change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanAnswer {
    /// Nothing would change.
    pub unchanged: bool,
    /// The services that would change.
    pub services: Vec<ServicePlan>,
    /// Anything else that would change, a line each.
    pub other: Vec<String>,
    /// Why a reload would refuse the file; empty when it would not.
    pub refused: Vec<String>,
}

/// What would change of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// The service.
    pub service: String,
    /// `add`, `remove` or `change`.
    pub change: String,
    /// What differs, a line each.
    pub details: Vec<String>,
    /// Slots that would change their backend.
    pub slots_moved: u64,
    /// Slots of the table.
    pub slots: u64,
}

/// Which flows to list. Everything given has to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFilter {
    /// Name of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name of the backend, or `POOL/BACKEND`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// At most so many; 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A flow of the sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// The VIP and its port.
    pub destination: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The service.
    pub service: String,
    /// The backend, as `POOL/BACKEND`.
    pub backend: String,
    /// `open`, or `closing` after a FIN or RST.
    pub state: String,
    /// Seconds since its first packet.
    pub age_seconds: u64,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
}

/// Flows that match a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsAnswer {
    /// One flow of so many is in the sample; 1 when all are.
    pub sampled_one_in: u64,
    /// More matched than were asked for.
    pub truncated: bool,
    /// The flows.
    pub flows: Vec<Flow>,
}

/// Which sources to list or to forget. Everything given has to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersistenceFilter {
    /// Name of the group, or of a service that is in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// An address of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// At most so many; 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A source and the server that its new flows go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentRow {
    /// The group, or the service where it is in none.
    pub group: String,
    /// The source's prefix.
    pub source: String,
    /// The backend's name.
    pub backend: String,
    /// Seconds since a packet of the source was noted, to about 16.
    pub idle_seconds: u64,
}

/// Sources that match a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistenceAnswer {
    /// More matched than were asked for.
    pub truncated: bool,
    /// The sources.
    pub sources: Vec<PersistentRow>,
}

/// What was forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetAnswer {
    /// Sources that have no server any more.
    pub forgotten: u64,
}

/// Asks for virtual routers to be handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverRequest {
    /// Those of these VRIDs; without any, all that are active here.
    #[serde(default)]
    pub vrids: Vec<u8>,
    /// To this peer; absent: to the best one.
    #[serde(default)]
    pub to: Option<String>,
}

/// What was handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverAnswer {
    /// What has moved.
    pub moved: Vec<MovedRouter>,
    /// Why something has not.
    pub errors: Vec<String>,
}

/// A virtual router that another node has now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedRouter {
    /// Number of the virtual router.
    pub vrid: u8,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The peer that has it.
    pub peer: String,
}

/// Asks for a probe of every check of a backend, now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// The pool's name.
    pub pool: String,
    /// The backend's name in it.
    pub backend: String,
}

/// What probes of a backend found. They change nothing of its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// The backend, as `POOL/BACKEND`.
    pub backend: String,
    /// Its checks.
    pub checks: Vec<ProbedCheck>,
}

/// One probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbedCheck {
    /// The check's type.
    pub kind: String,
    /// What is probed.
    pub target: String,
    /// The verdict.
    pub verdict: String,
    /// The same in words.
    pub reason: String,
    /// How long it took.
    pub took_seconds: f64,
    /// What it did, in order.
    pub steps: Vec<ProbeStep>,
}

/// Something that a probe did or waited for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeStep {
    /// What, in words.
    pub what: String,
    /// When it began, since the probe did.
    pub at_seconds: f64,
    /// How long it took.
    pub took_seconds: f64,
}

/// A request that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, one line an error.
    pub errors: Vec<String>,
}

impl Refusal {
    /// A refusal for one reason.
    pub fn because(reason: impl Into<String>) -> Self {
        Self {
            errors: vec![reason.into()],
        }
    }
}
