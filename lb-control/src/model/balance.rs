//! How a service spreads its flows.

use std::fmt;

use serde::Serialize;

use super::Prefix;

/// Priority groups of backends: 1 to this, 1 comes first.
pub const GROUPS: u32 = 4;

/// How a service spreads its flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Who chooses.
    pub scheduler: Scheduler,
    /// What places a flow in the service's table.
    pub hash: HashInput,
    /// Which flows have an entry in the flow table.
    pub tracking: Tracking,
    /// What is known of a UDP service's flows.
    pub udp: UdpMode,
    /// Sources that are many clients' and not kept together, by hash or by
    /// persistence.
    pub except: Vec<Prefix>,
}

/// Who chooses the backend of a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// The flow's hash, by a table that changes little.
    #[default]
    Maglev,
    /// One after another, in proportion to their weights.
    RoundRobin,
    /// Who has the fewest connections for its weight.
    LeastConnections,
    /// As [`Self::Maglev`], with shares that follow how fast the backends
    /// answer their checks.
    ResponseTime,
}

impl Scheduler {
    /// Whether the flow's hash chooses, so that no flow needs an entry.
    pub const fn is_by_hash(self) -> bool {
        matches!(self, Self::Maglev | Self::ResponseTime)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Maglev => "maglev",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
            Self::ResponseTime => "response-time",
        })
    }
}

/// What places a flow in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HashInput {
    /// Addresses, ports and protocol.
    #[default]
    Flow,
    /// The client's address alone: so many of its leading bits.
    Source {
        /// Of an IPv4 address, 1 to 32.
        prefix_v4: u8,
        /// Of an IPv6 address, 1 to 128.
        prefix_v6: u8,
    },
}

impl fmt::Display for HashInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow => f.write_str("flow"),
            Self::Source {
                prefix_v4,
                prefix_v6,
            } => write!(f, "source /{prefix_v4} /{prefix_v6}"),
        }
    }
}

/// Which flows have an entry in the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tracking {
    /// All of them; otherwise only where backends changed.
    pub full: bool,
    /// What decided that, in words.
    pub reason: String,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            full: false,
            reason: "nothing needs more".into(),
        }
    }
}

/// What is known of a UDP service's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UdpMode {
    /// Nothing: a datagram goes where the table says now.
    #[default]
    Stateless,
    /// They keep their backend, as those of TCP do.
    Tracked,
    /// As above, and QUIC's Initial packets tell new ones.
    Quic,
}
