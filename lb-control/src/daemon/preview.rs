//! `lbctl plan`: what a configuration would change.

use std::{collections::BTreeMap, path::Path};

use super::{
    conditions::Now,
    controller::{self, Controller, Load},
    reload,
};
use crate::{
    dataplane::{
        plan::{MapOp, SlotChange},
        plane::Plane,
    },
    model::{FullNat, Model, Pool, Service},
    status::request::{PlanAnswer, Refusal, ServicePlan},
};

/// What putting `file` into force would change.
///
/// # Errors
/// The file is invalid; one line an error.
pub fn plan(
    controller: &mut Controller<Plane>,
    load: Load,
    file: &Path,
) -> Result<PlanAnswer, Refusal> {
    let new = controller::read(load, file)?.model;
    let mut refused = reload::obstacles(&controller.model, &new);
    let mut moved = BTreeMap::new();
    if refused.is_empty() {
        let runtime = controller.runtime_for(&new, Now::read());
        match controller.data_path.dry_run(&new, &runtime) {
            Ok(ops) => moved = slots_moved(&ops, &controller.data_path.slot_ranges()),
            Err(error) => refused.push(error.to_string()),
        }
    }
    let services = services(&controller.model, &new, &moved);
    let other = other(&controller.model, &new);
    Ok(PlanAnswer {
        unchanged: services.is_empty() && other.is_empty(),
        services,
        other,
        refused,
    })
}

/// Slots that would change hands, by service.
fn slots_moved(ops: &[MapOp], ranges: &BTreeMap<String, (u32, u32)>) -> BTreeMap<String, u64> {
    let mut by_offset: Vec<(u32, u32, &str)> = ranges
        .iter()
        .map(|(name, (offset, size))| (*offset, *size, name.as_str()))
        .collect();
    by_offset.sort_unstable();
    let mut moved = BTreeMap::new();
    for op in ops {
        let MapOp::Slot(slot) = op else { continue };
        if slot.is_first() || matches!(slot.change, SlotChange::Rebase) {
            continue;
        }
        let after = by_offset.partition_point(|(offset, _, _)| *offset <= slot.index);
        let Some((offset, size, name)) = after.checked_sub(1).and_then(|i| by_offset.get(i)) else {
            continue;
        };
        if slot.index < offset + size {
            *moved.entry((*name).to_owned()).or_default() += 1;
        }
    }
    moved
}

fn services(old: &Model, new: &Model, moved: &BTreeMap<String, u64>) -> Vec<ServicePlan> {
    let mut plans = Vec::new();
    for service in &new.services {
        let slots_moved = moved.get(&service.name).copied().unwrap_or_default();
        let mut plan = ServicePlan {
            service: service.name.clone(),
            change: "change".into(),
            details: Vec::new(),
            slots_moved,
            slots: u64::from(service.table_size),
        };
        match old.services.iter().find(|s| s.name == service.name) {
            None => {
                plan.change = "add".into();
                let pool = new.pools.get(&service.pool);
                plan.details.push(format!(
                    "{} {} on {}, {} backends of pool {}",
                    service.forwarding,
                    service.protocol,
                    service.address,
                    pool.map_or(0, |pool| pool.backends.len()),
                    service.pool
                ));
                plans.push(plan);
            }
            Some(before) => {
                plan.details = service_details(before, service);
                plan.details.extend(pool_details(
                    old.pools.get(&before.pool),
                    new.pools.get(&service.pool),
                ));
                if !plan.details.is_empty() || slots_moved > 0 {
                    plans.push(plan);
                }
            }
        }
    }
    let gone = old
        .services
        .iter()
        .filter(|before| !new.services.iter().any(|s| s.name == before.name));
    plans.extend(gone.map(|before| ServicePlan {
        service: before.name.clone(),
        change: "remove".into(),
        slots: u64::from(before.table_size),
        ..ServicePlan::default()
    }));
    plans
}

fn service_details(old: &Service, new: &Service) -> Vec<String> {
    let mut details = Vec::new();
    let mut differs = |what: &str, old: String, new: String| {
        if old != new {
            details.push(format!("{what}: {old} -> {new}"));
        }
    };
    differs("address", old.address.to_string(), new.address.to_string());
    differs("ports", ports(old), ports(new));
    differs(
        "protocol",
        old.protocol.to_string(),
        new.protocol.to_string(),
    );
    differs(
        "forwarding",
        old.forwarding.to_string(),
        new.forwarding.to_string(),
    );
    differs(
        "replies",
        format!("{:?}", old.replies),
        format!("{:?}", new.replies),
    );
    differs("pool", old.pool.clone(), new.pool.clone());
    details
}

fn ports(service: &Service) -> String {
    super::observe::ports(&service.ports)
}

fn pool_details(old: Option<&Pool>, new: Option<&Pool>) -> Vec<String> {
    let empty = Pool::default();
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let mut details = Vec::new();
    for backend in &new.backends {
        match old.backends.iter().find(|b| b.name == backend.name) {
            None => details.push(format!(
                "+ backend {} {} weight {}",
                backend.name, backend.address, backend.weight
            )),
            Some(before) if before != backend => {
                let mut changes = Vec::new();
                if before.address != backend.address {
                    changes.push(format!("address {} -> {}", before.address, backend.address));
                }
                if before.port != backend.port {
                    let port = |p: Option<u16>| p.map_or("kept".into(), |p| p.to_string());
                    changes.push(format!(
                        "port {} -> {}",
                        port(before.port),
                        port(backend.port)
                    ));
                }
                if before.weight != backend.weight {
                    changes.push(format!("weight {} -> {}", before.weight, backend.weight));
                }
                details.push(format!(
                    "~ backend {}: {}",
                    backend.name,
                    changes.join(", ")
                ));
            }
            Some(_) => {}
        }
    }
    details.extend(
        old.backends
            .iter()
            .filter(|before| !new.backends.iter().any(|b| b.name == before.name))
            .map(|before| format!("- backend {} {}", before.name, before.address)),
    );
    if old.health != new.health {
        details.push("health checks change".into());
    }
    if old.policy != new.policy {
        details.push("slow start, limits or what happens when all are down change".into());
    }
    details
}

fn full_nat(pool: Option<&FullNat>) -> String {
    let Some(pool) = pool else {
        return "none".into();
    };
    let addresses: Vec<String> = pool.addresses.iter().map(ToString::to_string).collect();
    format!(
        "{} ports {}-{}",
        addresses.join(", "),
        pool.first_port,
        pool.last_port
    )
}

fn other(old: &Model, new: &Model) -> Vec<String> {
    let mut other = Vec::new();
    if old.node != new.node {
        other.push(format!("node: {} -> {}", old.node, new.node));
    }
    if old.metrics != new.metrics {
        let shown = |a: Option<std::net::SocketAddr>| a.map_or("none".into(), |a| a.to_string());
        other.push(format!(
            "metrics: {} -> {}",
            shown(old.metrics),
            shown(new.metrics)
        ));
    }
    if old.full_nat != new.full_nat {
        other.push(format!(
            "full_nat: {} -> {}",
            full_nat(old.full_nat.as_ref()),
            full_nat(new.full_nat.as_ref())
        ));
    }
    let (was, is) = (&old.dataplane, &new.dataplane);
    let times = [
        ("tcp_idle", was.tcp_idle, is.tcp_idle),
        ("udp_idle", was.udp_idle, is.udp_idle),
        ("dead_after", was.dead_after, is.dead_after),
        ("drain_timeout", was.drain_timeout, is.drain_timeout),
    ];
    for (name, was, is) in times {
        if was != is {
            other.push(format!(
                "dataplane.{name}: {} s -> {} s",
                was.as_secs_f64(),
                is.as_secs_f64()
            ));
        }
    }
    if was.manage_sysctls != is.manage_sysctls {
        other.push(format!(
            "dataplane.manage_sysctls: {} -> {}",
            was.manage_sysctls, is.manage_sysctls
        ));
    }
    if old.sync != new.sync {
        let peers = |model: &Model| model.sync.as_ref().map_or(0, |sync| sync.peers.len());
        other.push(format!(
            "sync: links to {} peers -> {}",
            peers(old),
            peers(new)
        ));
    }
    other
}
