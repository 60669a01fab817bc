//! The status snapshot from what the parts tell.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Instant,
};

use lb_common::counter::{DropReason, Event};

use super::{
    claims,
    conditions::{Now, all_down_words},
    controller::Controller,
};
use crate::{
    dataplane::{
        links,
        stats::{MemberRow, PlaneStats},
    },
    health::BackendHealth,
    model::{Backend, ForwardingMethod, Model, Ports, Service},
    neighbours::Device,
    rates::{CounterKey, Counts, Ledger, RawCounters},
    status::{
        BackendStatus, Concurrent, Condition, ConfigStatus, DuplicateVip, FlowTableStatus,
        Histogram, InterfaceStatus, LinkStatus, PersistenceStatus, PoolHealth, PoolStatus,
        ProbeStatus, Readiness, ServiceStatus, Snapshot, Status, Totals, VrrpStatus,
    },
};

mod backends;

/// Half the width of a normal distribution's 95 % interval, in standard errors.
const CONFIDENCE: f64 = 1.96;

/// What has to be remembered from one snapshot to the next.
#[derive(Debug)]
pub struct Observer {
    started: Now,
    ledger: Ledger,
    drops: Counts,
    events: Counts,
    names: HashMap<u32, CounterKey>,
}

/// What a snapshot is made of.
#[derive(Debug)]
pub struct View<'a, D> {
    /// The controller.
    pub controller: &'a Controller<D>,
    /// The counters.
    pub stats: &'a PlaneStats,
    /// The checks.
    pub health: &'a BTreeMap<crate::health::BackendKey, BackendHealth>,
    /// Whether the data path was adopted.
    pub adopted: bool,
    /// Virtual routers.
    pub vrrp: Vec<VrrpStatus>,
    /// Links to peers.
    pub sync: Vec<LinkStatus>,
}

impl Observer {
    /// Nothing seen yet.
    pub fn new(started: Now) -> Self {
        Self {
            started,
            ledger: Ledger::default(),
            drops: Counts::default(),
            events: Counts::default(),
            names: HashMap::new(),
        }
    }

    /// The snapshot as of `now`.
    pub fn snapshot<D>(&mut self, view: &View<'_, D>, now: Now) -> Snapshot
    where
        D: super::controller::DataPath,
    {
        let model = &view.controller.model;
        let rows = self.count(model, view.stats, now.instant);
        let backends = self.backends(view, &rows, now);
        let services = model
            .services
            .iter()
            .map(|service| self.service(service, view.stats, &backends))
            .collect();
        Snapshot {
            status: self.status(view, now),
            services,
            probes: probes(view.health),
            backends,
            vrrp: view.vrrp.clone(),
            sync: view.sync.clone(),
        }
    }

    /// Adds up the counters; gives the row of every configured (service, backend).
    fn count<'s>(
        &mut self,
        model: &Model,
        stats: &'s PlaneStats,
        now: Instant,
    ) -> HashMap<CounterKey, &'s MemberRow> {
        let by_member: HashMap<(&str, IpAddr, Option<u16>), &MemberRow> = stats
            .members
            .iter()
            .filter(|row| !row.departed)
            .map(|row| ((row.service.as_str(), row.address, row.port), row))
            .collect();
        let mut rows = HashMap::new();
        let mut names = HashMap::new();
        for (service, pool, backend) in pairs(model) {
            let port = match service.forwarding {
                ForwardingMethod::L2Dsr | ForwardingMethod::Ipip | ForwardingMethod::Gue => None,
                ForwardingMethod::Nat | ForwardingMethod::FullNat => backend.port,
            };
            if let Some(row) = by_member.get(&(service.name.as_str(), backend.address, port)) {
                let key = key_of(service, pool, backend);
                names.insert(row.id, key.clone());
                rows.insert(key, *row);
            }
        }
        for row in &stats.members {
            if let Some(known) = self.names.get(&row.id).filter(|k| k.service == row.service) {
                names.entry(row.id).or_insert_with(|| known.clone());
            }
        }
        self.names = names;
        let raw: Vec<RawCounters> = stats
            .members
            .iter()
            .map(|row| RawCounters {
                member: row.id,
                key: self.name_of(row),
                counters: Totals {
                    connections: row.connections,
                    packets: row.packets,
                    bytes: row.bytes,
                    reply_packets: row.reply_packets,
                    reply_bytes: row.reply_bytes,
                },
            })
            .collect();
        self.ledger.observe(&raw, now);
        let owner = |service: &Option<String>| service.clone().unwrap_or_default();
        self.drops.observe(
            stats
                .drops
                .iter()
                .map(|row| (owner(&row.service), row.reason, row.packets)),
        );
        self.events.observe(
            stats
                .events
                .iter()
                .map(|row| (owner(&row.service), row.event, row.count)),
        );
        rows
    }

    /// Whose row it is, or was when it was configured.
    fn name_of(&self, row: &MemberRow) -> CounterKey {
        self.names
            .get(&row.id)
            .cloned()
            .unwrap_or_else(|| CounterKey {
                service: row.service.clone(),
                pool: String::new(),
                backend: row.address.to_string(),
            })
    }

    fn service(
        &self,
        service: &Service,
        stats: &PlaneStats,
        backends: &[BackendStatus],
    ) -> ServiceStatus {
        let row = stats
            .services
            .iter()
            .find(|row| row.service == service.name);
        let own = || {
            backends
                .iter()
                .filter(|b| b.service == service.name && !b.departed)
        };
        let (totals, rates) = self.ledger.service(&service.name);
        ServiceStatus {
            name: service.name.clone(),
            address: Some(service.address),
            ports: ports(&service.ports),
            protocol: service.protocol.to_string(),
            forwarding: service.forwarding.to_string(),
            scheduler: service.balance.scheduler.to_string(),
            tracking: if service.balance.tracking.full {
                "full".into()
            } else {
                "minimal".into()
            },
            tracking_reason: service.balance.tracking.reason.clone(),
            pool: service.pool.clone(),
            backends_up: own()
                .filter(|b| b.condition == Condition::Up && b.weight_effective > 0)
                .count(),
            backends_total: own().count(),
            slots: row.map_or(0, |row| u64::from(row.slots)),
            tracked_slots: row.map_or(0, |row| u64::from(row.tracked_slots)),
            rates,
            totals,
            concurrent: concurrent(
                stats
                    .members
                    .iter()
                    .filter(|row| row.service == service.name),
            ),
            drops: self.drops_of(&service.name),
            events: self.events_of(&service.name),
        }
    }

    /// With the zeros: a counter that appears late hides its first increase.
    fn drops_of(&self, service: &str) -> BTreeMap<String, u64> {
        DropReason::ALL
            .iter()
            .map(|reason| {
                (
                    reason.name().into(),
                    self.drops.total(service, reason.name()),
                )
            })
            .collect()
    }

    fn events_of(&self, service: &str) -> BTreeMap<String, u64> {
        Event::ALL
            .iter()
            .map(|event| {
                (
                    event.name().into(),
                    self.events.total(service, event.name()),
                )
            })
            .collect()
    }

    fn status<D>(&self, view: &View<'_, D>, now: Now) -> Status
    where
        D: super::controller::DataPath,
    {
        let controller = view.controller;
        let (model, stats) = (&controller.model, view.stats);
        let interfaces = interfaces(model, stats, &controller.neighbours.devices);
        Status {
            node: model.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_at: self.started.unix,
            uptime_seconds: now
                .instant
                .saturating_duration_since(self.started.instant)
                .as_secs(),
            readiness: readiness(controller, &interfaces),
            config: ConfigStatus {
                file: controller.in_force.file.display().to_string(),
                hash: controller.in_force.hash.clone(),
                loaded_at: controller.in_force.since,
                services: model.services.len(),
                pools: model.pools.len(),
                backends: model.pools.values().map(|pool| pool.backends.len()).sum(),
            },
            reloads: controller.reloads.clone(),
            apply: controller.applies.clone(),
            interfaces,
            full_nat: stats
                .pools
                .iter()
                .map(|row| PoolStatus {
                    address: row.address,
                    free: row.ports.free,
                    used: row.ports.used,
                    resting: row.ports.resting,
                    removed: row.ports.removed,
                    draining: row.draining,
                })
                .collect(),
            flow_table: FlowTableStatus {
                entries: stats.flow_table.entries,
                capacity: stats.flow_table.max_flows,
                reply_entries: stats.flow_table.reply_entries,
                reply_capacity: stats.flow_table.max_flows,
                tracked_slots: stats
                    .services
                    .iter()
                    .map(|s| u64::from(s.tracked_slots))
                    .sum(),
                slots: stats.services.iter().map(|s| u64::from(s.slots)).sum(),
                inserted_total: self.events.sum(Event::FlowInserted.name()),
                refused_total: self.events.sum(Event::Untracked.name()),
            },
            persistence: PersistenceStatus {
                sources: stats.persistence.0,
                capacity: stats.persistence.1,
                led_total: self.events.sum(Event::Persistent.name()),
            },
            pools: pools(controller),
            duplicate_vips: stats
                .claims
                .iter()
                .map(|row| DuplicateVip {
                    address: row.address,
                    mac: claims::mac(row.mac),
                    interface: row.interface.clone(),
                    last_seen: now.unix.saturating_sub(row.seconds_ago.into()),
                })
                .collect(),
            verified_instructions: stats.verified_instructions,
            adopted: view.adopted,
            drops: self.drops_of(""),
            events: self.events_of(""),
        }
    }
}

/// Every service with the backends of its pool and of that pool's fallback.
fn pairs(model: &Model) -> impl Iterator<Item = (&Service, &str, &Backend)> {
    model.services.iter().flat_map(|service| {
        model
            .backends_of(service)
            .map(move |(pool, backend)| (service, pool, backend))
    })
}

fn key_of(service: &Service, pool: &str, backend: &Backend) -> CounterKey {
    CounterKey {
        service: service.name.clone(),
        pool: pool.to_owned(),
        backend: backend.name.clone(),
    }
}

fn concurrent<'a>(rows: impl IntoIterator<Item = &'a MemberRow>) -> Concurrent {
    let (mut value, mut variance) = (0.0, 0.0);
    let mut half_open = None;
    for row in rows {
        let estimate = row.concurrent;
        value += estimate.value;
        variance += estimate.standard_error * estimate.standard_error;
        if let Some(counted) = row.counted {
            half_open = Some(half_open.unwrap_or(0) + u64::from(counted.half_open));
        }
    }
    let error = (CONFIDENCE * variance.sqrt()).round() as u64;
    Concurrent {
        connections: value.round() as u64,
        error,
        estimated: error > 0,
        half_open,
    }
}

/// Ports as people write them: `80,443`, `8000-8099`, `any`.
pub(super) fn ports(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any".into(),
        Ports::Ranges(ranges) => ranges
            .iter()
            .map(|(first, last)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            })
            .collect::<Vec<_>>()
            .join(","),
    }
}

fn interfaces(model: &Model, stats: &PlaneStats, devices: &[Device]) -> Vec<InterfaceStatus> {
    model
        .interfaces
        .iter()
        .map(|interface| {
            let named = |name: &str| stats.interfaces.iter().find(|row| row.name == name);
            // The program of a VLAN device is on the interface underneath.
            let row = named(&interface.name).or_else(|| {
                let (port, _) = links::port_of(&interface.name).ok()?;
                named(&port)
            });
            let mode = row.and_then(|row| row.mode);
            let is_blocked = row.is_some_and(|row| {
                devices.iter().any(|device| {
                    device.is_blocked && device.ways.iter().any(|way| way.ifindex == row.ifindex)
                })
            });
            InterfaceStatus {
                name: interface.name.clone(),
                ifindex: row.map_or(0, |row| row.ifindex),
                mode: mode.map_or("detached".into(), |mode| mode.to_string()),
                reason: match (row, mode) {
                    (Some(_), Some(_)) if is_blocked => Some(
                        "spanning tree blocks a port of the bridge: this balancer stands aside"
                            .into(),
                    ),
                    (Some(row), Some(_)) => row.fallback_reason.clone(),
                    (Some(_), None) => Some(
                        "the program is not on the interface any more; restart the daemon to attach it"
                            .into(),
                    ),
                    (None, _) => Some("the interface was not there at the start".into()),
                },
                program_id: row
                    .and_then(|row| links::xdp_on(row.ifindex).ok().flatten())
                    .map(|xdp| xdp.program),
            }
        })
        .collect()
}

fn readiness<D>(controller: &Controller<D>, interfaces: &[InterfaceStatus]) -> Readiness
where
    D: super::controller::DataPath,
{
    let mut reasons: Vec<String> = interfaces
        .iter()
        .filter(|interface| interface.mode == "detached")
        .map(|interface| format!("interface {}: the program is not attached", interface.name))
        .collect();
    if let Some(error) = &controller.applies.error {
        reasons.push(format!("the data path could not be changed: {error}"));
    } else if !controller.is_applied() {
        reasons.push("the configuration is not in the data path yet".into());
    }
    for pool in controller.pools_without_results() {
        reasons.push(format!("pool {pool}: no result yet of some health checks"));
    }
    Readiness {
        ready: reasons.is_empty(),
        reasons,
    }
}

/// The pools that are checked.
fn pools<D>(controller: &Controller<D>) -> Vec<PoolHealth> {
    let checked = |name: &String| {
        let pool = controller.model.pools.get(name)?;
        (!pool.health.is_empty()).then_some(pool)
    };
    controller
        .conditions
        .pools
        .iter()
        .filter_map(|(name, found)| {
            let pool = checked(name)?;
            Some(PoolHealth {
                pool: name.clone(),
                backends: found.backends,
                up: found.up,
                overloaded: found.overloaded,
                down: found.down,
                kept_in: found.kept_in.clone(),
                overloaded_share: found.overloaded_share,
                all_down: found.all_down.then(|| all_down_words(&pool.policy)),
            })
        })
        .collect()
}

fn probes(health: &BTreeMap<crate::health::BackendKey, BackendHealth>) -> Vec<ProbeStatus> {
    health
        .iter()
        .filter(|(_, health)| !health.checks.is_empty())
        .map(|(key, health)| ProbeStatus {
            pool: key.pool.clone(),
            backend: key.backend.clone(),
            results: health
                .results
                .iter()
                .map(|(verdict, count)| (verdict.name().to_owned(), count))
                .collect(),
            durations: Histogram {
                buckets: health.durations.cumulative(),
                count: health.durations.count,
                sum_seconds: health.durations.sum.as_secs_f64(),
            },
            certificate_expiry: health.certificate_expiry,
        })
        .collect()
}
