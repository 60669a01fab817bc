//! The status snapshot from what the parts tell.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Instant,
};

use lb_common::counter::{DropReason, Event};

use super::{conditions::Now, controller::Controller};
use crate::{
    dataplane::{
        self,
        desired::BackendKey,
        links,
        stats::{Estimate, MemberRow, PlaneStats},
    },
    health::{BackendHealth, HealthState},
    model::{Backend, ForwardingMethod, Model, Ports, Service},
    rates::{CounterKey, Counts, Ledger, RawCounters},
    status::{
        BackendStatus, Concurrent, Condition, ConfigStatus, FlowTableStatus, Health, Histogram,
        InterfaceStatus, NextHopStatus, ProbeStatus, Readiness, ServiceStatus, Snapshot, Status,
        Totals,
    },
};

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
        for (service, backend) in pairs(model) {
            let port = match service.forwarding {
                ForwardingMethod::L2Dsr => None,
                ForwardingMethod::Nat => backend.port,
            };
            if let Some(row) = by_member.get(&(service.name.as_str(), backend.address, port)) {
                let key = key_of(service, backend);
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

    fn backends<D>(
        &self,
        view: &View<'_, D>,
        rows: &HashMap<CounterKey, &MemberRow>,
        now: Now,
    ) -> Vec<BackendStatus> {
        let slots: HashMap<&str, u64> = view
            .stats
            .services
            .iter()
            .map(|row| (row.service.as_str(), u64::from(row.slots)))
            .collect();
        let mut all: Vec<BackendStatus> = pairs(&view.controller.model)
            .map(|(service, backend)| {
                let key = key_of(service, backend);
                let row = rows.get(&key).copied();
                let mut status = self.backend(view.controller, service, backend, row);
                health_of(&mut status, view, &key, now);
                status
            })
            .collect();
        // Those that have left and still serve.
        all.extend(
            view.stats
                .members
                .iter()
                .filter(|row| row.departed && row.state != "dead")
                .map(|row| {
                    let key = self.name_of(row);
                    let (totals, rates) = self.ledger.backend(&key);
                    BackendStatus {
                        pool: key.pool,
                        backend: key.backend,
                        service: row.service.clone(),
                        address: Some(row.address),
                        port: row.port,
                        departed: true,
                        health: Health::Unchecked,
                        last_result: "not in the configuration any more".into(),
                        condition: Condition::Draining,
                        slots: u64::from(row.slots),
                        next_hop: NextHopStatus {
                            resolved: row.next_hop_resolved,
                            detail: String::new(),
                        },
                        totals,
                        rates,
                        concurrent: concurrent([row.concurrent]),
                        ..BackendStatus::default()
                    }
                }),
        );
        for backend in &mut all {
            let of = slots
                .get(backend.service.as_str())
                .copied()
                .unwrap_or_default();
            if of > 0 {
                backend.slot_share = backend.slots as f64 / of as f64;
            }
        }
        all
    }

    fn backend<D>(
        &self,
        controller: &Controller<D>,
        service: &Service,
        backend: &Backend,
        row: Option<&MemberRow>,
    ) -> BackendStatus {
        let key = BackendKey {
            pool: service.pool.clone(),
            backend: backend.name.clone(),
        };
        let decided = controller.admin.of(&key);
        let current = controller.conditions.backends.get(&key);
        let condition = match current.map(|c| c.condition) {
            Some(dataplane::desired::Condition::Up) => Condition::Up,
            Some(dataplane::desired::Condition::Draining) => Condition::Draining,
            Some(dataplane::desired::Condition::Failing) => Condition::Failing,
            Some(dataplane::desired::Condition::Dead | dataplane::desired::Condition::Disabled) => {
                Condition::Dead
            }
            // An adopted data path, before anything is known: what it says.
            None => row.map_or(Condition::Dead, |row| match row.state {
                "up" => Condition::Up,
                "draining" => Condition::Draining,
                "failing" => Condition::Failing,
                _ => Condition::Dead,
            }),
        };
        let weight = current.map_or(backend.weight, |c| c.weight);
        let (totals, rates) = self.ledger.backend(&key_of(service, backend));
        BackendStatus {
            pool: key.pool,
            backend: key.backend,
            service: service.name.clone(),
            address: Some(backend.address),
            port: backend.port,
            admin: decided.admin_state(),
            condition,
            weight: backend.weight,
            weight_effective: if condition == Condition::Up {
                weight
            } else {
                0
            },
            slots: row.map_or(0, |row| u64::from(row.slots)),
            next_hop: next_hop(controller, backend.address, row),
            totals,
            rates,
            concurrent: concurrent(row.map(|row| row.concurrent)),
            ..BackendStatus::default()
        }
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
                    .filter(|row| row.service == service.name)
                    .map(|row| row.concurrent),
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
        let interfaces = interfaces(model, stats);
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
            verified_instructions: stats.verified_instructions,
            adopted: view.adopted,
            drops: self.drops_of(""),
            events: self.events_of(""),
        }
    }
}

fn pairs(model: &Model) -> impl Iterator<Item = (&Service, &Backend)> {
    model.services.iter().flat_map(|service| {
        model
            .pools
            .get(&service.pool)
            .into_iter()
            .flat_map(move |pool| pool.backends.iter().map(move |backend| (service, backend)))
    })
}

fn key_of(service: &Service, backend: &Backend) -> CounterKey {
    CounterKey {
        service: service.name.clone(),
        pool: service.pool.clone(),
        backend: backend.name.clone(),
    }
}

fn health_of<D>(status: &mut BackendStatus, view: &View<'_, D>, key: &CounterKey, now: Now) {
    let checked = view
        .controller
        .model
        .pools
        .get(&key.pool)
        .is_some_and(|pool| !pool.health.is_empty());
    let health = view.health.get(&crate::health::BackendKey {
        pool: key.pool.clone(),
        backend: key.backend.clone(),
    });
    match health.filter(|_| checked) {
        None => status.health = Health::Unchecked,
        Some(health) => {
            status.health = match health.state {
                HealthState::Unknown => Health::Unknown,
                HealthState::Up => Health::Up,
                HealthState::Down => Health::Down,
            };
            status.health_since = Some(now.unix.saturating_sub(health.in_state_for.as_secs()));
            status.last_result = health.reason.clone();
        }
    }
}

fn next_hop<D>(
    controller: &Controller<D>,
    address: IpAddr,
    row: Option<&MemberRow>,
) -> NextHopStatus {
    let link = |ifindex: u32| {
        controller
            .neighbours
            .links
            .iter()
            .find(|link| link.ifindex == ifindex)
            .map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
    };
    match controller.neighbours.hops.get(&address) {
        Some(Ok(hop)) => {
            let mac: Vec<String> = hop.mac.iter().map(|byte| format!("{byte:02x}")).collect();
            NextHopStatus {
                resolved: true,
                detail: format!("{} on {}", mac.join(":"), link(hop.ifindex)),
            }
        }
        Some(Err(reason)) => NextHopStatus {
            resolved: row.is_some_and(|row| row.next_hop_resolved),
            detail: reason.to_string(),
        },
        None => NextHopStatus {
            resolved: row.is_some_and(|row| row.next_hop_resolved),
            detail: "not looked up yet".into(),
        },
    }
}

fn concurrent(estimates: impl IntoIterator<Item = Estimate>) -> Concurrent {
    let (mut value, mut variance) = (0.0, 0.0);
    for estimate in estimates {
        value += estimate.value;
        variance += estimate.standard_error * estimate.standard_error;
    }
    let error = (CONFIDENCE * variance.sqrt()).round() as u64;
    Concurrent {
        connections: value.round() as u64,
        error,
        estimated: error > 0,
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

fn interfaces(model: &Model, stats: &PlaneStats) -> Vec<InterfaceStatus> {
    model
        .interfaces
        .iter()
        .map(|interface| {
            let row = stats.interfaces.iter().find(|row| row.name == interface.name);
            let mode = row.and_then(|row| row.mode);
            InterfaceStatus {
                name: interface.name.clone(),
                ifindex: row.map_or(0, |row| row.ifindex),
                mode: mode.map_or("detached".into(), |mode| mode.to_string()),
                reason: match (row, mode) {
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

fn probes(health: &BTreeMap<crate::health::BackendKey, BackendHealth>) -> Vec<ProbeStatus> {
    health
        .iter()
        .filter(|(_, health)| !health.checks.is_empty())
        .map(|(key, health)| ProbeStatus {
            pool: key.pool.clone(),
            backend: key.backend.clone(),
            results: BTreeMap::from([
                ("pass".into(), health.passes),
                ("fail".into(), health.failures),
                ("not_made".into(), health.not_made),
            ]),
            durations: Histogram {
                buckets: health.durations.cumulative(),
                count: health.durations.count,
                sum_seconds: health.durations.sum.as_secs_f64(),
            },
        })
        .collect()
}
