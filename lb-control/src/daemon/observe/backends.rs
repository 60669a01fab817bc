//! The status of each backend in each service.

use std::{collections::HashMap, net::IpAddr};

use super::{Observer, View, concurrent, key_of, pairs};
use crate::{
    daemon::{claims, conditions::Now, controller::Controller},
    dataplane::{self, desired::BackendKey, stats::MemberRow},
    health::HealthState,
    model::{Backend, Scheduler, Service},
    rates::CounterKey,
    scheduler::Factor,
    status::{BackendStatus, Condition, Health, NextHopStatus},
};

impl Observer {
    pub(super) fn backends<D>(
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
            .map(|(service, pool, backend)| {
                let key = key_of(service, pool, backend);
                let row = rows.get(&key).copied();
                let mut status = self.backend(view.controller, service, (pool, backend), row);
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
                            ..NextHopStatus::default()
                        },
                        totals,
                        rates,
                        concurrent: concurrent([row]),
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
        (pool, backend): (&str, &Backend),
        row: Option<&MemberRow>,
    ) -> BackendStatus {
        let key = BackendKey {
            pool: pool.to_owned(),
            backend: backend.name.clone(),
        };
        let decided = controller.admin.of(&key);
        let current = controller.conditions.backends.get(&key);
        let condition = match current.map(|c| c.condition.to_service(service.on_backend_down)) {
            Some(dataplane::desired::Condition::Up) => Condition::Up,
            Some(dataplane::desired::Condition::Overloaded) => Condition::Overloaded,
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
        let factors = current.map(|c| c.factors).unwrap_or_default();
        let factor = match service.balance.scheduler {
            Scheduler::ResponseTime => factors.response,
            _ => Factor::ONE,
        }
        .and(factors.slow_start)
        .and(factors.load);
        let (totals, rates) = self.ledger.backend(&key_of(service, pool, backend));
        let is_taking = condition == Condition::Up && weight > 0;
        let slots = row.map_or(0, |row| u64::from(row.slots));
        let concurrent = concurrent(row);
        let mut share_reasons = controller
            .conditions
            .why
            .get(&key)
            .cloned()
            .unwrap_or_default();
        if is_taking && slots == 0 {
            share_reasons.push(if pool == service.pool {
                format!("waits in priority group {}", backend.priority)
            } else {
                format!("stands by for pool {}", service.pool)
            });
        }
        let max = u64::from(backend.max_connections);
        if max > 0 && concurrent.connections >= max {
            share_reasons.push("full: as many connections as max_connections allows".into());
        }
        BackendStatus {
            pool: key.pool,
            backend: key.backend,
            service: service.name.clone(),
            share_factor: if is_taking { factor.fraction() } else { 0.0 },
            share_reasons,
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
            slots,
            next_hop: next_hop(controller, backend.address, row),
            totals,
            rates,
            concurrent,
            priority: backend.priority,
            max_connections: (backend.max_connections > 0).then_some(backend.max_connections),
            ..BackendStatus::default()
        }
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
                HealthState::Overloaded => Health::Overloaded,
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
        Some(Ok(hop)) => NextHopStatus {
            resolved: true,
            detail: format!("{} on {}", claims::mac(hop.mac), link(hop.ifindex)),
            mtu: Some(hop.mtu),
        },
        Some(Err(reason)) => NextHopStatus {
            resolved: row.is_some_and(|row| row.next_hop_resolved),
            detail: reason.to_string(),
            mtu: None,
        },
        None => NextHopStatus {
            resolved: row.is_some_and(|row| row.next_hop_resolved),
            detail: "not looked up yet".into(),
            mtu: None,
        },
    }
}
