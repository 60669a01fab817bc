//! What the maps should hold, from the configuration and what is known of the
//! backends. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{
    abi::{Config, LinkEntry, ServiceEntry, Tunnel, feature, service_flag},
    binding::{self, Ring},
    clock, limit,
    net::{Addr, Be16},
};

use super::{
    allocate::{Ids, SlotRanges},
    state::{Capacity, MapSnapshot, MemberKey},
};
use crate::model::{Model, OnBackendDown, Protocol, Service};

mod keys;
mod links;
mod members;
mod persistence;
mod pools;
mod sources;
mod spread;
mod types;

pub use spread::{TableCache, Tables};
pub use types::{
    AdoptedShares, BackendCondition, BackendKey, Condition, DesiredError, DesiredState, Hop, Link,
    MemberLimits, OwnAddress, Runtime, Table,
};

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
    let links = links::links(&runtime.links, given.snapshot)?;
    let mut builder = Builder::new(model, runtime, given, links);
    for service in &model.services {
        builder.service(service, tables)?;
    }
    builder.pools()?;
    builder.virtual_addresses();
    builder.local();
    builder.departed();
    Ok(builder.finish())
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
    /// Members of each backend with a limit.
    sharers: BTreeMap<BackendKey, Vec<u32>>,
    /// Number of the server that each member is on, where sources have one.
    servers: HashMap<u32, u64>,
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
            slot_ranges: SlotRanges::new(
                live_ranges
                    .values()
                    .copied()
                    .chain(spread::list_ranges(snapshot).into_values()),
                given.capacity.slots,
            ),
            live_ranges,
            sharers: BTreeMap::new(),
            servers: HashMap::new(),
            state: DesiredState {
                config: Config {
                    clock_shift: clock::shift_for_hz(given.hz),
                    syn_window_ticks: clock::ticks(clock::SYN_WINDOW_MS, given.hz) as u32,
                    half_units: clock::units(clock::UNCONFIRMED_MS, given.hz) as u32,
                    longest_idle_units: 0,
                    features: 0,
                    flow_buckets: given.capacity.flow_buckets,
                    icmp_cost: limit::cost(model.dataplane.icmp_rate, given.hz),
                    reply_buckets: given.capacity.flow_buckets,
                    second_steps: limit::second(given.hz),
                    tunnel: tunnel(&model.dataplane.tunnel),
                    nat_buckets: binding::buckets_for(given.capacity.bindings),
                    free_ports: Ring::capacity_for(given.capacity.bindings),
                    probe_port: runtime.probes.map_or(0, |(port, _)| port.into()),
                    probe_ifindex: runtime.probes.map_or(0, |(_, ifindex)| ifindex),
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
        let (offset, size) = self.slot_range(id, service)?;
        let (sources, proxies) = self.source_sets(service, id);
        let core_cost = self.cost(service.defence.new_flows_per_core);
        let source_cost = self.cost(service.defence.new_flows_per_source);
        let resets = service.on_backend_down == OnBackendDown::Reset;
        let is_guarded = sources | core_cost | source_cost != 0;
        let guarded = if is_guarded { service_flag::GUARDED } else { 0 };
        let flags = guarded | if resets { service_flag::RESET } else { 0 };
        let entry = ServiceEntry {
            id,
            slot_offset: offset,
            slot_size: size,
            owner: self.model.owner_word(service.address),
            flags: flags | self.service_flags(service),
            idle_units: self.idle_units(service)?,
            core_cost,
            source_cost,
            sources,
            proxies,
            ..ServiceEntry::default()
        };
        let entry = self.persistence(service, entry);
        self.state.config.longest_idle_units =
            self.state.config.longest_idle_units.max(entry.idle_units);
        self.state.service_names.insert(id, service.name.clone());
        let members = self.members(service, id)?;
        let entry = self.spread(service, entry, &members, tables)?;
        self.keys(service, entry);
        Ok(())
    }

    fn slot_range(&mut self, id: u32, service: &Service) -> Result<(u32, u32), DesiredError> {
        if let Some(&(offset, size)) = self.live_ranges.get(&id) {
            let pools = self.model.pools_of(service);
            let backends = pools
                .map(|(_, pool)| pool.backends.len())
                .max()
                .unwrap_or(0);
            if (size as usize) < backends {
                return Err(DesiredError::TableTooSmall {
                    service: service.name.clone(),
                    size,
                    backends,
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

    fn finish(mut self) -> DesiredState {
        spread::join(&mut self.state.limits, self.sharers.values());
        if !self.state.replies.is_empty() {
            self.state.config.features |= feature::REPLIES;
        }
        self.state
    }
}

/// Prefixes as masks.
fn tunnel(wanted: &crate::model::Tunnel) -> Tunnel {
    let (v4, v6) = (wanted.source_v4, wanted.source_v6);
    let host_v4 = u32::MAX.checked_shr(v4.length.into()).unwrap_or(0);
    // The first 64 bits are of the prefix.
    let host_v6 = u64::MAX
        .checked_shr(u32::from(v6.length.saturating_sub(64)))
        .unwrap_or(0);
    Tunnel {
        source_v4: v4.address.to_bits().to_be(),
        host_v4: host_v4.to_be(),
        source_v6: Addr::from_bytes(v6.address.octets()),
        host_v6: [((host_v6 >> 32) as u32).to_be(), (host_v6 as u32).to_be()],
        gue_port: Be16::new(wanted.gue_port),
        reserved: [0; 3],
    }
}
