//! The configuration as the rest of the program sees it: validated, with every
//! default filled in and nothing left to parse.
//!
//! Depends on nothing else in this crate. [`crate::config`] makes it from YAML.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Serialize;

mod balance;
mod check;
mod defence;
mod persistence;
mod pool;
mod probe;
mod sync;
mod track;
mod vrrp;

pub use balance::{Balance, GROUPS, HashInput, Scheduler, Tracking, UdpMode};
pub use check::{CheckKind, ClientCertificate, Expect, FULL_SIZE, Http, HttpMethod, Pattern, Tls};
pub use defence::{Defence, OnBackendDown, Prefix};
pub use persistence::Persistence;
pub use pool::{PoolPolicy, WhenAllDown};
pub use probe::{
    Agent, Dns, Exec, Ping, Secret, Smtp, Snmp, SnmpAccess, SnmpAuthentication, SnmpPrivacy, Udp,
};
pub use sync::{PeerSync, SyncPath, SyncPeer};
pub use track::{Effect, Notify, Script, Track, TrackedInterface, TrackedScript, TrackedService};
pub use vrrp::{Vrrp, owner_word};

/// Everything one node does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Name of this node, for people and for labels.
    pub node: String,
    /// Interfaces the data path is attached to, in the file's order.
    pub interfaces: Vec<Interface>,
    /// Sizes and times of the data path.
    pub dataplane: Dataplane,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; none when absent.
    pub metrics: Option<SocketAddr>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// Services in the file's order; names are unique.
    pub services: Vec<Service>,
    /// The addresses that full NAT gives to clients' packets as their source.
    pub full_nat: Option<FullNat>,
    /// Virtual routers that this node is one of.
    pub vrrp: Vec<Vrrp>,
    /// The links to other balancers.
    pub sync: Option<PeerSync>,
}

impl Model {
    /// The owner word of an address: that of its virtual router, or 0, which this
    /// node always owns.
    pub fn owner_word(&self, address: IpAddr) -> u16 {
        self.vrrp
            .iter()
            .find(|vrrp| vrrp.addresses.contains(&address))
            .map_or(0, |vrrp| owner_word(vrrp.vrid, address.is_ipv4()))
    }
}

/// Full NAT's pool of source addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FullNat {
    /// The addresses, of either family; unique.
    pub addresses: Vec<IpAddr>,
    /// First port of each address.
    pub first_port: u16,
    /// Last port of each address.
    pub last_port: u16,
}

impl FullNat {
    /// Ports of each address.
    pub const fn ports(&self) -> u32 {
        (self.last_port as u32 + 1).saturating_sub(self.first_port as u32)
    }
}

/// One network interface the data path is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// The kernel's name of it.
    pub name: String,
    /// How the program is attached.
    pub xdp: XdpMode,
}

/// How the program is attached to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, or generic where the driver can't.
    #[default]
    Auto,
    /// In the driver; an error where it can't.
    Native,
    /// In the network stack, slower, works everywhere.
    Generic,
}

/// Sizes and times of the data path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dataplane {
    /// Flows in tracked slots that the flow table is sized for (16 bytes each).
    pub max_flows: u32,
    /// Services the maps have room for.
    pub max_services: u32,
    /// (service, backend) pairs the maps have room for; at most 2^20 - 1.
    pub max_members: u32,
    /// Slots of all services together (8 bytes each).
    pub max_slots: u32,
    /// Prefixes of sources that the maps have room for, those of all services.
    pub max_source_prefixes: u32,
    /// Sources whose new flows are counted at a time.
    pub max_limited_sources: u32,
    /// Ports of full NAT's addresses the maps have room for (96 bytes each); at
    /// most 2^20 - 1.
    pub max_bindings: u32,
    /// Packets whose fragments are under way at once (about 100 bytes each).
    pub max_fragments: u32,
    /// Sources whose server is known at a time, the latest.
    pub max_persistent_sources: u32,
    /// ICMP errors that each core may send in a second; zero: none.
    pub icmp_rate: u32,
    /// A TCP flow idle for less than this never changes its backend.
    pub tcp_idle: Duration,
    /// A UDP flow's idle time, where UDP is tracked or its replies are.
    pub udp_idle: Duration,
    /// A backend that fails its checks serves its old flows for this long.
    pub dead_after: Duration,
    /// A backend taken out of the configuration, or drained, serves its old
    /// flows for this long.
    pub drain_timeout: Duration,
    /// File with the 16-byte key of the flow hash, as 32 hexadecimal digits.
    /// Without one a random key is made and kept with the pinned maps.
    pub hash_secret_file: Option<PathBuf>,
    /// Directory in a BPF file system where maps and links are pinned.
    pub pin_dir: PathBuf,
    /// The data path's debug log, read through aya-log. Off costs nothing.
    pub debug_log: bool,
    /// Set `forwarding` and `send_redirects` on the interfaces where NAT needs
    /// it. When false, `lbctl run` refuses to start where they are wrong.
    pub manage_sysctls: bool,
    /// Without a daemon the data path lets go of the addresses of virtual routers.
    pub yields_when_daemon_dead: bool,
    /// Outer headers of tunnels.
    pub tunnel: Tunnel,
    /// How probes leave that go the clients' way.
    pub probes: ProbePath,
}

/// How probes leave that go the clients' way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProbePath {
    /// Mark of their packets.
    pub mark: u32,
    /// Bits of marks that are looked at.
    pub mask: u32,
    /// Number of the routing table.
    pub table: u32,
    /// First of their source ports.
    pub first_port: u16,
}

impl Default for ProbePath {
    /// Ports above those that Linux gives to connections.
    fn default() -> Self {
        Self {
            mark: 0x6c62_0000,
            mask: 0xffff_0000,
            table: 0x6c62,
            first_port: 61_000,
        }
    }
}

/// Outer headers of tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// Where outer IPv4 packets come from.
    pub source_v4: SourceBlock<Ipv4Addr>,
    /// Where outer IPv6 packets come from; 64 bits of prefix at least.
    pub source_v6: SourceBlock<Ipv6Addr>,
    /// UDP port that backends take GUE at.
    pub gue_port: u16,
}

impl Default for Tunnel {
    /// Addresses that are no host's: of the range for benchmarks (RFC 2544
    /// appendix C.2.2) and the discard-only prefix (RFC 6666).
    fn default() -> Self {
        Self {
            source_v4: SourceBlock {
                address: Ipv4Addr::new(198, 18, 0, 0),
                length: 16,
            },
            source_v6: SourceBlock {
                address: Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0),
                length: 64,
            },
            gue_port: 6080,
        }
    }
}

/// A prefix of addresses; the bits behind `length` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SourceBlock<A> {
    /// The first address.
    pub address: A,
    /// Bits that all have in common.
    pub length: u8,
}

impl<A: fmt::Display> fmt::Display for SourceBlock<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A set of backends with their checks, used by any number of services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Backends in the file's order; names are unique within the pool.
    pub backends: Vec<Backend>,
    /// Health checks; all have to pass. None: every backend counts as up.
    pub health: Vec<Check>,
    /// What follows from the backends' states.
    #[serde(flatten)]
    pub policy: PoolPolicy,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Unique within its pool.
    pub name: String,
    /// Address of the server itself (not the VIP).
    pub address: IpAddr,
    /// Port the server listens on. `None` keeps the port of the packet. Must
    /// be `None` or the service's port where the port isn't rewritten (all but NAT).
    pub port: Option<u16>,
    /// Share of the traffic relative to the pool's other weights; 0 gets no
    /// new flows. At most 65,535.
    pub weight: u16,
    /// Its priority group, 1 to 4. New flows go to the lowest number that has
    /// a backend for them.
    pub priority: u8,
    /// Connections it may have, over all services of the pool; 0: any number.
    pub max_connections: u32,
}

/// One health check of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is checked.
    pub kind: CheckKind,
    /// Port to check; the backend's, or else the service's, when absent.
    pub port: Option<u16>,
    /// The way of its probes; by the service's forwarding method when absent.
    pub via: Option<Via>,
    /// Time from one check to the next.
    pub interval: Duration,
    /// A check without a result by then has failed.
    pub timeout: Duration,
    /// A right answer after more than this is of a busy server; none: never.
    pub slow_after: Option<Duration>,
    /// The interval while results speak for another state than the backend
    /// has; none: no other.
    pub fast_interval: Option<Duration>,
    /// Consecutive passes that take a down backend up.
    pub rise: u32,
    /// Consecutive failures that take an up backend down.
    pub fall: u32,
    /// An overloaded backend without any answer for so long is down.
    pub overloaded_limit: Duration,
    /// A flapping backend is held down for so long at most; zero: not at all.
    pub hold_down_limit: Duration,
}

/// The way of a check's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// To the backend's own address, as any packet of this host.
    Address,
    /// To the VIP, and by the service's forwarding method to this backend.
    Service,
}

/// A virtual service: an address, ports and a protocol that are balanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Unique; the service's identity over reloads and restarts. At most 63 bytes.
    pub name: String,
    /// The VIP.
    pub address: IpAddr,
    /// The ports.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// How packets reach the backend.
    pub forwarding: ForwardingMethod,
    /// How replies are recognised under NAT, after `auto` was resolved.
    pub replies: Replies,
    /// Who may use it, and how much.
    pub defence: Defence,
    /// What becomes of connections whose backend is down.
    pub on_backend_down: OnBackendDown,
    /// How its flows are spread.
    pub balance: Balance,
    /// Whether a source's flows go to the server that it has.
    pub persistence: Option<Persistence>,
    /// What the operator says of the network around it; checked for sense.
    pub topology: Topology,
    /// Name of its pool (checked to exist).
    pub pool: String,
    /// Slots of its table: a prime. A live service keeps the size it has.
    pub table_size: u32,
    /// Whether the file asks for that size. Otherwise it is the default for
    /// the pool as it is now, and no reason to refuse a reload.
    pub table_size_is_explicit: bool,
}

/// Ports of a service, as disjoint inclusive ranges in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Ports {
    /// Every port.
    Any,
    /// Ranges; a single port is a range of one.
    Ranges(Vec<(u16, u16)>),
}

/// Layer-4 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// How packets reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardingMethod {
    /// Direct server return: only the MAC addresses change.
    L2Dsr,
    /// The destination is rewritten, and the source of the replies.
    Nat,
    /// The source is rewritten, too, to one of [`FullNat`]'s.
    FullNat,
    /// Direct server return through a tunnel: IP in IP.
    Ipip,
    /// Direct server return through a tunnel: Generic UDP Encapsulation.
    Gue,
}

impl ForwardingMethod {
    /// Whether packets get outer headers.
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// Whether packets are routed to the backend's address and port, and
    /// replies to the client.
    pub const fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L2Dsr => "l2-dsr",
            Self::Nat => "nat",
            Self::FullNat => "full-nat",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        })
    }
}

/// Where balancer, servers and VIP are in the network, as far as the file says.
/// It changes nothing; what can't work with it is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Clients and servers on the same interface, or on two.
    pub arms: Option<Arms>,
    /// How packets get from one side to the other.
    pub path: Option<NetworkPath>,
    /// Whether the VIP is in the servers' subnet.
    pub subnets: Option<Subnets>,
    /// The servers' default route.
    pub gateway: Option<Gateway>,
}

/// Interfaces towards clients and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arms {
    /// One for both.
    One,
    /// One for each.
    Two,
}

/// How packets get from clients to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPath {
    /// The balancer is a hop.
    Routed,
    /// The balancer is a Linux bridge.
    Bridged,
}

/// Subnets of VIP and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subnets {
    /// One ("flat").
    Same,
    /// Two ("NAT based").
    Different,
}

/// The servers' default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gateway {
    /// The balancer.
    Balancer,
    /// Another router.
    Router,
}

/// How a reply is recognised under NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Replies {
    /// Whatever comes from the backend's address, port and protocol is a reply.
    Port,
    /// Only what belongs to a flow in the flow table is a reply.
    Flow,
}
