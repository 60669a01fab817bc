//! What goes into [`super::desired`] and what comes out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::{
    abi::{
        Config, LinkEntry, MemberEntry, PoolEntry, ReplyEntry, ReplyKey, ServerKey, ServiceEntry,
        ServiceKey, Tags, VipEntry, VipKey,
    },
    net::Mac,
};

use crate::{
    dataplane::state::{LocalPrefix, PortBlock, SourcePrefix},
    model::OnBackendDown,
    scheduler::Factors,
};

/// What is known at run time, besides the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Condition of each backend; one that is absent counts as up with its
    /// configured weight.
    pub backends: BTreeMap<BackendKey, BackendCondition>,
    /// Next hops by backend address. For an absent one the maps keep what they
    /// have: at a restart nothing is known yet and traffic has to go on.
    pub next_hops: HashMap<IpAddr, Hop>,
    /// Addresses known to have no next hop: their packets are dropped as
    /// `no_neighbour`.
    pub unreachable: HashSet<IpAddr>,
    /// The interfaces the data path is attached to.
    pub links: Vec<Link>,
    /// The node's own addresses.
    pub addresses: Vec<OwnAddress>,
    /// Shares that another node decides on, by service: those of its virtual
    /// addresses.
    pub adopted: BTreeMap<String, AdoptedShares>,
    /// First source port of probes, and the device among the links that they
    /// come in by; none: there are none.
    pub probes: Option<(u16, u32)>,
}

/// What another node makes a service's table of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdoptedShares {
    /// Identities of members ([`crate::scheduler::identity`]) and their shares.
    pub shares: Vec<(u64, u32)>,
    /// Nobody is up there: slots stay as they are.
    pub keep: bool,
}

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that are the same for all on its link.
    pub prefix_bits: u8,
    /// The interface that has it.
    pub ifindex: u32,
}

impl OwnAddress {
    /// Whether a host with this address is on the same link.
    pub fn is_on_link(&self, other: IpAddr) -> bool {
        let same = |a: u128, b: u128, bits: u32| {
            let shift = bits.saturating_sub(u32::from(self.prefix_bits));
            (a ^ b).checked_shr(shift).unwrap_or(0) == 0
        };
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Names a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// Its pool.
    pub pool: String,
    /// Its name in the pool.
    pub backend: String,
}

/// Condition of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendCondition {
    /// Whether it serves.
    pub condition: Condition,
    /// Its weight, by the configuration or an operator; zero gets no new flows.
    pub weight: u16,
    /// What is made of that.
    pub factors: Factors,
}

impl BackendCondition {
    /// Up, with this weight.
    pub fn up(weight: u16) -> Self {
        Self {
            condition: Condition::Up,
            weight,
            factors: Factors::default(),
        }
    }
}

/// Whether a backend serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Serves and takes new flows.
    Up,
    /// Lives, but can take no more: serves its flows only.
    Overloaded,
    /// Serves its flows only. Past its time-out it has to be [`Self::Disabled`].
    Draining,
    /// Fails its checks for less than `dead_after`: serves its flows only.
    Failing,
    /// Fails its checks: serves nobody, unless no backend of the pool is up.
    Dead,
    /// Taken out by the operator: serves nobody, whatever becomes of the rest.
    Disabled,
}

impl Condition {
    /// The condition to a service that does this with a backend that is down.
    #[must_use]
    pub const fn to_service(self, on_backend_down: OnBackendDown) -> Self {
        match (self, on_backend_down) {
            (Self::Failing, OnBackendDown::Rehash | OnBackendDown::Reset) => Self::Dead,
            _ => self,
        }
    }
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its MAC address.
    pub mac: Mac,
    /// Device it is reached by.
    pub ifindex: u32,
    /// Longest packet that reaches the backend, in bytes.
    pub mtu: u32,
}

/// A device that packets come in by and go out by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's name of it.
    pub name: String,
    /// Its index, as routes name it.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It is a Linux bridge: what is sent is left to it.
    pub is_bridge: bool,
    /// Spanning tree keeps one of its ports from forwarding.
    pub is_blocked: bool,
    /// Interface that its frames are sent by.
    pub egress: u32,
    /// Tags that its frames have.
    pub tags: Tags,
    /// How its frames come in: interface, tags, and the interface by which an
    /// answer goes back.
    pub ways: Vec<(u32, Tags, u32)>,
}

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// The one entry of `CONFIG`.
    pub config: Config,
    /// Names by service id.
    pub service_names: BTreeMap<u32, String>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    /// `RANGES`.
    pub ranges: BTreeMap<PortBlock, ServiceEntry>,
    /// `VIPS`.
    pub vips: BTreeMap<VipKey, VipEntry>,
    /// Members by id, those that left the configuration included.
    pub members: BTreeMap<u32, MemberEntry>,
    /// Slots by service id.
    pub tables: BTreeMap<u32, Table>,
    /// `SOURCES`.
    pub sources: BTreeMap<SourcePrefix, u32>,
    /// First word and ids of the lists in `SLOTS`, by service id.
    pub lists: BTreeMap<u32, (u32, Vec<u32>)>,
    /// Limits of the configured members, by id.
    pub limits: BTreeMap<u32, MemberLimits>,
    /// `SERVERS`: members by server, of services with persistence.
    pub servers: BTreeMap<ServerKey, u32>,
    /// `REPLIES`.
    pub replies: BTreeMap<ReplyKey, ReplyEntry>,
    /// Entries of `LINKS` in use, by index.
    pub links: BTreeMap<u16, LinkEntry>,
    /// `NAT_POOL`: full NAT's addresses, those that are being removed included.
    pub pools: BTreeMap<VipKey, PoolEntry>,
    /// `LOCAL`.
    pub local: BTreeMap<LocalPrefix, u32>,
    /// Ids of members that left the configuration, whether they still serve or
    /// only wait for a sweep to give their ids back.
    pub departed: BTreeSet<u32>,
}

/// What a member's connections are held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberLimits {
    /// Connections its backend may have; zero: any number.
    pub max: u32,
    /// Its weight among the service's members.
    pub weight: u32,
    /// The next member of the same backend, which has a limit; zero: there is none.
    pub next: u32,
    /// The server it is on, where sources keep theirs; zero elsewhere.
    pub backend: u64,
}

/// The slots of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// First slot.
    pub offset: u32,
    /// Flows needn't stay where they are: slots change at once (UDP).
    pub stateless: bool,
    /// Whether slots whose member serves keep it, since nobody gets flows.
    pub keep: bool,
    /// Whether flows of members that serve no more are reset.
    pub resets: bool,
    /// Every flow has an entry.
    pub full: bool,
    /// Another node decides on it and tells which flows are whose.
    pub follows: bool,
    /// Identities and shares that it is made of.
    pub made_of: Arc<[(u64, u32)]>,
    /// Member for each slot; zero where there is none.
    pub members: Arc<[u32]>,
}

/// Why a configuration has no place in the maps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DesiredError {
    #[error(
        "service `{service}`: more than {limit} services; raise dataplane.max_services (needs `lbctl detach` first)"
    )]
    TooManyServices { service: String, limit: u32 },
    #[error(
        "service `{service}`: no member id left for backend {backend}: dataplane.max_members is {limit}, \
         and {departed} are held by backends that left and whose flows may still live"
    )]
    TooManyMembers {
        service: String,
        backend: IpAddr,
        limit: u32,
        departed: usize,
    },
    #[error(
        "service `{service}` needs {size} slots in a row, of {free} that are free: raise dataplane.max_slots (needs `lbctl detach` first)"
    )]
    TooManySlots {
        service: String,
        size: u32,
        free: u32,
    },
    #[error(
        "service `{service}`: its table was made with {size} slots, too few for {backends} backends, and can't change \
         while the service lives: add a second service, or remove it and add it again"
    )]
    TableTooSmall {
        service: String,
        size: u32,
        backends: usize,
    },
    #[error(
        "service `{service}`: an idle time of {seconds} s is longer than flow entries can count on this kernel (HZ {hz})"
    )]
    IdleTooLong {
        service: String,
        seconds: u64,
        hz: u32,
    },
    #[error(
        "services `{service}` and another both want the replies from {backend} port {port}: set `replies: flow` on both"
    )]
    ReplyConflict {
        service: String,
        backend: IpAddr,
        port: u16,
    },
    #[error(
        "full_nat: address {address} is this node's own, on interface index {ifindex}: full NAT needs addresses that \
         exist nowhere else; remove it there or here"
    )]
    OwnPoolAddress { address: IpAddr, ifindex: u32 },
    #[error(
        "full_nat: address {address} has the ports {from}-{to} as long as flows use them: keep these, or take the \
         address out and add it again when `lbctl status` doesn't show it any more"
    )]
    PoolPortsChanged { address: IpAddr, from: u16, to: u32 },
    #[error(
        "full_nat: address {address} needs {needed} ports in a row, of {free} that are free: raise \
         dataplane.max_bindings (needs `lbctl detach` first), or wait until removed addresses are gone"
    )]
    TooManyBindings {
        address: IpAddr,
        needed: u32,
        free: u32,
    },
    #[error("no place for interface `{link}` in the table of interfaces, which holds {limit}")]
    TooManyLinks { link: String, limit: u32 },
}
