//! What the maps should hold, from the configuration and what is known of the
//! backends. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::{
    abi::{
        Config, LINK_PROBES, LINKS, LinkEntry, MemberEntry, RANGE_KEY_FIXED_BITS, RangeKey,
        ReplyEntry, ReplyKey, ServiceEntry, ServiceKey, VipEntry, VipKey, feature, method, owner,
        service_flag,
    },
    clock,
    member::MemberState,
    net::{Addr, Be16, Mac, NextHop},
};

use super::{
    allocate::{Ids, SlotRanges},
    ports,
    state::{Capacity, MapSnapshot, MemberKey, PortBlock},
};
use crate::{
    model::{Backend, ForwardingMethod, Model, Pool, Protocol, Replies, Service},
    scheduler,
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
    /// Effective weight; zero gets no new flows.
    pub weight: u16,
}

/// Whether a backend serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Serves and takes new flows.
    Up,
    /// Serves its flows only. Past its time-out it has to be [`Self::Disabled`].
    Draining,
    /// Fails its checks for less than `dead_after`: serves its flows only.
    Failing,
    /// Fails its checks: serves nobody, unless no backend of the pool is up.
    Dead,
    /// Taken out by the operator: serves nobody, whatever becomes of the rest.
    Disabled,
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its MAC address.
    pub mac: Mac,
    /// Interface it is reached by.
    pub ifindex: u32,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's name of it.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
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
    /// `REPLIES`.
    pub replies: BTreeMap<ReplyKey, ReplyEntry>,
    /// Entries of `LINKS` in use, by index.
    pub links: BTreeMap<u16, LinkEntry>,
    /// Ids of members that left the configuration, whether they still serve or
    /// only wait for a sweep to give their ids back.
    pub departed: BTreeSet<u32>,
}

/// The slots of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// First slot.
    pub offset: u32,
    /// Flows needn't stay where they are: slots change at once (UDP).
    pub stateless: bool,
    /// Whether slots whose member serves keep it, since no backend is up.
    pub keep: bool,
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
    #[error("no place for interface `{link}` in the table of interfaces, which holds {limit}")]
    TooManyLinks { link: String, limit: u32 },
}

/// Where lookup tables come from: a cache, since they change rarely.
pub trait Tables {
    /// The table of `service` with these members and `size` slots.
    fn table(&mut self, service: &str, members: &[scheduler::Member], size: u32) -> Arc<[u32]>;
}

/// Remembers each service's last table.
#[derive(Debug, Default)]
pub struct TableCache(HashMap<String, (Vec<scheduler::Member>, Arc<[u32]>)>);

impl Tables for TableCache {
    fn table(&mut self, service: &str, members: &[scheduler::Member], size: u32) -> Arc<[u32]> {
        if let Some((of, table)) = self.0.get(service)
            && of == members
            && table.len() == size as usize
        {
            return Arc::clone(table);
        }
        let table: Arc<[u32]> = scheduler::maglev(members, size).into();
        self.0
            .insert(service.to_owned(), (members.to_vec(), Arc::clone(&table)));
        table
    }
}

/// What [`desired`] depends on besides configuration and run-time knowledge.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What the maps hold: ids, slot ranges and last known next hops.
    pub snapshot: &'a MapSnapshot,
    /// Room in the maps.
    pub capacity: Capacity,
    /// Jiffies per second.
    pub hz: u32,
    /// Members that left the configuration longer than the drain time-out ago.
    pub expired: &'a BTreeSet<u32>,
}

/// What the maps should hold. Ids of services and members that the snapshot
/// knows stay what they are.
///
/// # Errors
/// The maps have no room, or the configuration contradicts what lives in them.
pub fn desired(
    model: &Model,
    runtime: &Runtime,
    given: Given<'_>,
    tables: &mut impl Tables,
) -> Result<DesiredState, DesiredError> {
    let links = links(runtime, given.snapshot)?;
    let mut builder = Builder::new(model, runtime, given, links);
    for service in &model.services {
        builder.service(service, tables)?;
    }
    builder.departed();
    Ok(builder.finish())
}

fn links(
    runtime: &Runtime,
    snapshot: &MapSnapshot,
) -> Result<BTreeMap<u16, LinkEntry>, DesiredError> {
    let mut links = BTreeMap::new();
    for link in &runtime.links {
        let places = (0..LINK_PROBES).map(|n| (link.ifindex.wrapping_add(n) % LINKS) as u16);
        let present = |i: &u16| snapshot.links.get(i).map(|l| l.ifindex);
        let index = places
            .clone()
            .find(|i| present(i) == Some(link.ifindex))
            .or_else(|| {
                places
                    .clone()
                    .find(|i| present(i).is_none() && !links.contains_key(i))
            })
            .ok_or_else(|| DesiredError::TooManyLinks {
                link: link.name.clone(),
                limit: LINKS,
            })?;
        links.insert(
            index,
            LinkEntry {
                ifindex: link.ifindex,
                mac: link.mac,
                reserved: 0,
                mtu: link.mtu,
            },
        );
    }
    Ok(links)
}

struct Builder<'a> {
    model: &'a Model,
    runtime: &'a Runtime,
    given: Given<'a>,
    known_services: HashMap<&'a str, u32>,
    known_members: HashMap<MemberKey, u32>,
    live_ranges: BTreeMap<u32, (u32, u32)>,
    service_ids: Ids,
    member_ids: Ids,
    slot_ranges: SlotRanges,
    state: DesiredState,
}

impl<'a> Builder<'a> {
    fn new(
        model: &'a Model,
        runtime: &'a Runtime,
        given: Given<'a>,
        links: BTreeMap<u16, LinkEntry>,
    ) -> Self {
        let snapshot = given.snapshot;
        let live_ranges = snapshot.slot_ranges();
        Self {
            model,
            runtime,
            given,
            known_services: snapshot
                .service_names
                .iter()
                .map(|(id, name)| (name.as_str(), *id))
                .collect(),
            known_members: snapshot
                .members
                .iter()
                .map(|(id, entry)| (MemberKey::of(entry), *id))
                .collect(),
            service_ids: Ids::new(
                snapshot.service_names.keys().copied(),
                given.capacity.services,
            ),
            member_ids: Ids::new(snapshot.members.keys().copied(), given.capacity.members),
            slot_ranges: SlotRanges::new(live_ranges.values().copied(), given.capacity.slots),
            live_ranges,
            state: DesiredState {
                config: Config {
                    clock_shift: clock::shift_for_hz(given.hz),
                    syn_window_ticks: clock::ticks(clock::SYN_WINDOW_MS, given.hz) as u32,
                    half_units: clock::units(clock::UNCONFIRMED_MS, given.hz) as u32,
                    longest_idle_units: 0,
                    features: 0,
                    flow_buckets: given.capacity.flow_buckets,
                    reply_buckets: given.capacity.flow_buckets,
                    ..snapshot.config
                },
                links,
                ..DesiredState::default()
            },
        }
    }

    fn service(&mut self, service: &Service, tables: &mut impl Tables) -> Result<(), DesiredError> {
        let no_id = || DesiredError::TooManyServices {
            service: service.name.clone(),
            limit: self.given.capacity.services,
        };
        let id = match self.known_services.get(service.name.as_str()) {
            Some(id) => *id,
            None => self.service_ids.take().ok_or_else(no_id)?,
        };
        let empty = Pool {
            backends: Vec::new(),
            health: Vec::new(),
        };
        let pool = self.model.pools.get(&service.pool).unwrap_or(&empty);
        let (offset, size) = self.slot_range(id, service, pool)?;
        let entry = ServiceEntry {
            id,
            slot_offset: offset,
            slot_size: size,
            owner: owner::ALWAYS_INDEX,
            flags: if is_reply_flow(service) {
                service_flag::REPLY_FLOWS
            } else {
                0
            },
            idle_units: self.idle_units(service)?,
            reserved: 0,
        };
        self.state.config.longest_idle_units =
            self.state.config.longest_idle_units.max(entry.idle_units);
        self.state.service_names.insert(id, service.name.clone());
        self.keys(service, entry);
        let (shares, keep) = self.members(service, pool, id)?;
        self.state.tables.insert(
            id,
            Table {
                offset,
                stateless: service.protocol == Protocol::Udp,
                keep,
                members: tables.table(&service.name, &shares, size),
            },
        );
        Ok(())
    }

    fn slot_range(
        &mut self,
        id: u32,
        service: &Service,
        pool: &Pool,
    ) -> Result<(u32, u32), DesiredError> {
        if let Some(&(offset, size)) = self.live_ranges.get(&id) {
            if (size as usize) < pool.backends.len() {
                return Err(DesiredError::TableTooSmall {
                    service: service.name.clone(),
                    size,
                    backends: pool.backends.len(),
                });
            }
            return Ok((offset, size));
        }
        let size = service.table_size;
        match self.slot_ranges.take(size) {
            Some(offset) => Ok((offset, size)),
            None => Err(DesiredError::TooManySlots {
                service: service.name.clone(),
                size,
                free: self.slot_ranges.free(),
            }),
        }
    }

    fn idle_units(&self, service: &Service) -> Result<u32, DesiredError> {
        let idle = match service.protocol {
            Protocol::Tcp => self.model.dataplane.tcp_idle,
            Protocol::Udp => self.model.dataplane.udp_idle,
        };
        let milliseconds = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX >> 1);
        let units = clock::units(milliseconds, self.given.hz);
        if units > clock::MAX_IDLE_UNITS {
            return Err(DesiredError::IdleTooLong {
                service: service.name.clone(),
                seconds: idle.as_secs(),
                hz: self.given.hz,
            });
        }
        Ok(units as u32)
    }

    fn keys(&mut self, service: &Service, entry: ServiceEntry) {
        let (address, family) = Addr::from_ip(service.address);
        let protocol = service.protocol.number();
        self.state.vips.insert(
            VipKey {
                address,
                family,
                reserved: [0; 3],
            },
            VipEntry {
                owner: entry.owner,
                reserved: 0,
            },
        );
        let keys = ports::keys(&service.ports);
        for port in keys.single {
            let port = Be16::new(port);
            self.state.services.insert(
                ServiceKey {
                    address,
                    port,
                    protocol,
                    family,
                },
                entry,
            );
        }
        for block in keys.blocks {
            self.state.config.features |= feature::RANGES;
            self.state.ranges.insert(
                PortBlock {
                    prefix_bits: RANGE_KEY_FIXED_BITS + block.prefix_bits,
                    key: RangeKey {
                        address,
                        family,
                        protocol,
                        port: Be16::new(block.first),
                    },
                },
                entry,
            );
        }
    }

    /// The members of a service. Returns who shares its slots, and whether
    /// slots stay as they are because no backend is up.
    fn members(
        &mut self,
        service: &Service,
        pool: &Pool,
        id: u32,
    ) -> Result<(Vec<scheduler::Member>, bool), DesiredError> {
        let conditions: Vec<_> = pool
            .backends
            .iter()
            .map(|backend| (backend, self.condition(service, backend)))
            .collect();
        let nobody_up = !conditions
            .iter()
            .any(|(_, c)| c.condition == Condition::Up && c.weight > 0);
        let mut shares = Vec::new();
        for (backend, condition) in conditions {
            let key = member_key(service, backend, id);
            let member = match self.known_members.get(&key) {
                Some(member) => *member,
                None => self.new_member(service, backend, key)?,
            };
            let state = member_state(condition, nobody_up);
            let share = match condition.condition {
                Condition::Up => u32::from(condition.weight),
                Condition::Failing | Condition::Dead if nobody_up => u32::from(backend.weight),
                _ => 0,
            };
            if share > 0 {
                shares.push(scheduler::Member {
                    identity: scheduler::identity(backend.address, backend.port),
                    share,
                    id: member,
                });
            }
            let next_hop = self.next_hop(backend.address, member);
            self.state
                .members
                .insert(member, key.entry(state, next_hop.0));
            self.replies(service, backend, member)?;
        }
        Ok((shares, nobody_up))
    }

    fn new_member(
        &mut self,
        service: &Service,
        backend: &Backend,
        key: MemberKey,
    ) -> Result<u32, DesiredError> {
        let member = self
            .member_ids
            .take()
            .ok_or_else(|| DesiredError::TooManyMembers {
                service: service.name.clone(),
                backend: backend.address,
                limit: self.given.capacity.members,
                departed: self
                    .given
                    .snapshot
                    .members
                    .keys()
                    .filter(|id| !self.state.members.contains_key(id))
                    .count(),
            })?;
        // Two backends of one pool with one address and port are one member.
        self.known_members.insert(key, member);
        Ok(member)
    }

    fn condition(&self, service: &Service, backend: &Backend) -> BackendCondition {
        let key = BackendKey {
            pool: service.pool.clone(),
            backend: backend.name.clone(),
        };
        self.runtime
            .backends
            .get(&key)
            .copied()
            .unwrap_or(BackendCondition {
                condition: Condition::Up,
                weight: backend.weight,
            })
    }

    fn next_hop(&self, address: IpAddr, member: u32) -> NextHop {
        if self.runtime.unreachable.contains(&address) {
            return NextHop::UNRESOLVED;
        }
        match self.runtime.next_hops.get(&address) {
            Some(hop) => self
                .state
                .links
                .iter()
                .find(|(_, link)| link.ifindex == hop.ifindex)
                .map_or(NextHop::UNRESOLVED, |(index, _)| {
                    NextHop::new(hop.mac, *index)
                }),
            None => self.last_known_next_hop(address, member),
        }
    }

    fn last_known_next_hop(&self, address: IpAddr, member: u32) -> NextHop {
        let snapshot = self.given.snapshot;
        let (address, family) = Addr::from_ip(address);
        // A new member of a known backend starts with what others know of it.
        let hop = snapshot
            .members
            .get(&member)
            .or_else(|| {
                snapshot
                    .members
                    .values()
                    .find(|m| (m.address, m.family) == (address, family))
            })
            .map_or(NextHop::UNRESOLVED, MemberEntry::next_hop);
        let same_link =
            |links: &BTreeMap<u16, LinkEntry>| links.get(&hop.link()).map(|l| l.ifindex);
        if hop.is_resolved() && same_link(&self.state.links) == same_link(&snapshot.links) {
            hop
        } else {
            NextHop::UNRESOLVED
        }
    }

    fn replies(
        &mut self,
        service: &Service,
        backend: &Backend,
        member: u32,
    ) -> Result<(), DesiredError> {
        for (key, entry) in reply_keys(service, backend.address, backend.port, member) {
            let before = self.state.replies.insert(key, entry);
            if before.is_some_and(|before| before != entry) {
                return Err(DesiredError::ReplyConflict {
                    service: service.name.clone(),
                    backend: backend.address,
                    port: key.port.get(),
                });
            }
        }
        Ok(())
    }

    /// Members that the maps hold and the configuration doesn't: drained
    /// while their service lives and the time-out hasn't passed.
    fn departed(&mut self) {
        let snapshot = self.given.snapshot;
        for (&id, entry) in &snapshot.members {
            if self.state.members.contains_key(&id) {
                continue;
            }
            let service = self
                .state
                .service_names
                .get(&entry.service)
                .and_then(|name| self.model.services.iter().find(|s| s.name == *name));
            let before = MemberState(entry.state);
            let state = match service {
                Some(_) if before.serves() && !self.given.expired.contains(&id) => {
                    if before.is_down() {
                        MemberState::FAILING
                    } else {
                        MemberState::DRAINING
                    }
                }
                _ => MemberState::DEAD,
            };
            let address = entry.address.to_ip(entry.family);
            let next_hop = self.next_hop(address, id);
            self.state.members.insert(
                id,
                MemberEntry {
                    state: state.0,
                    next_hop: next_hop.0,
                    ..*entry
                },
            );
            self.state.departed.insert(id);
            if state.serves() && entry.method == method::NAT {
                let theirs = snapshot.replies.iter().filter(|(key, reply)| {
                    (key.address, key.family, key.protocol)
                        == (entry.address, entry.family, entry.protocol)
                        && (reply.member == id || reply.member == 0)
                });
                for (key, reply) in theirs {
                    // Whoever is configured has precedence.
                    self.state.replies.entry(*key).or_insert(*reply);
                }
            }
        }
        // A name stays until nothing refers to its id.
        for entry in self.state.members.values() {
            if let Some(name) = snapshot.service_names.get(&entry.service) {
                self.state
                    .service_names
                    .entry(entry.service)
                    .or_insert_with(|| name.clone());
            }
        }
    }

    fn finish(mut self) -> DesiredState {
        if !self.state.replies.is_empty() {
            self.state.config.features |= feature::REPLIES;
        }
        self.state
    }
}

fn is_reply_flow(service: &Service) -> bool {
    service.forwarding == ForwardingMethod::Nat && service.replies == Replies::Flow
}

fn member_key(service: &Service, backend: &Backend, id: u32) -> MemberKey {
    let (address, family) = Addr::from_ip(backend.address);
    let (vip, _) = Addr::from_ip(service.address);
    let (method, port) = match service.forwarding {
        ForwardingMethod::L2Dsr => (method::L2_DSR, None),
        ForwardingMethod::Nat => (method::NAT, backend.port),
    };
    let vip_port = port.and(ports::single_port(&service.ports));
    MemberKey {
        service: id,
        address,
        port: Be16::new(port.unwrap_or(0)),
        vip,
        vip_port: Be16::new(vip_port.unwrap_or(0)),
        method,
        family,
        protocol: service.protocol.number(),
    }
}

fn member_state(condition: BackendCondition, nobody_up: bool) -> MemberState {
    match condition.condition {
        Condition::Up if condition.weight > 0 => MemberState::UP,
        Condition::Up | Condition::Draining => MemberState::DRAINING,
        Condition::Failing => MemberState::FAILING,
        Condition::Dead if nobody_up => MemberState::FAILING,
        Condition::Dead | Condition::Disabled => MemberState::DEAD,
    }
}

/// Where replies of a member come from, under NAT.
fn reply_keys(
    service: &Service,
    address: IpAddr,
    port: Option<u16>,
    member: u32,
) -> Vec<(ReplyKey, ReplyEntry)> {
    if service.forwarding != ForwardingMethod::Nat {
        return Vec::new();
    }
    let (address, family) = Addr::from_ip(address);
    let key = |port| ReplyKey {
        address,
        port: Be16::new(port),
        protocol: service.protocol.number(),
        family,
    };
    match service.replies {
        Replies::Flow => {
            let port = port.or_else(|| ports::single_port(&service.ports));
            vec![(key(port.unwrap_or(0)), ReplyEntry { member: 0 })]
        }
        Replies::Port => match port {
            Some(port) => vec![(key(port), ReplyEntry { member })],
            None => ports::keys(&service.ports)
                .single
                .into_iter()
                .map(|port| (key(port), ReplyEntry { member }))
                .collect(),
        },
    }
}
