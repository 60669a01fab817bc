//! The daemon's answers as text for people.

use std::{fmt::Write as _, net::IpAddr};

mod probe;
mod sync;
mod vrrp;

pub use probe::probe;
pub use sync::sync;
pub use vrrp::{failover, vrrp};

use super::table::{Align, Cell, Table, Tone, bits, paint, short, span};
use crate::status::{
    AdminState, BackendStatus, Concurrent, Condition, Health, PoolHealth, ServiceStatus, Status,
    request::{
        AdminAnswer, FlowsAnswer, ForgetAnswer, PersistenceAnswer, PlanAnswer, ReloadAnswer,
    },
};

/// `lbctl status`; `now` in seconds since the Unix epoch.
pub fn status(status: &Status, colour: bool, now: u64) -> String {
    let ago = |then: u64| format!("{} ago", span(now.saturating_sub(then)));
    let mut text = String::new();
    let state = if status.readiness.ready {
        paint("ready", Tone::Good, colour)
    } else {
        paint("not ready", Tone::Bad, colour)
    };
    let _ = writeln!(
        text,
        "{}: {state}, up {} (lbctl {}, pid {})",
        status.node,
        span(status.uptime_seconds),
        status.version,
        status.pid
    );
    for reason in &status.readiness.reasons {
        let _ = writeln!(text, "  {reason}");
    }
    let config = &status.config;
    let _ = writeln!(
        text,
        "Configuration: {} (hash {}), loaded {}; {}, {}, {}",
        config.file,
        config.hash,
        ago(config.loaded_at),
        count(config.services, "service"),
        count(config.pools, "pool"),
        count(config.backends, "backend")
    );
    let reloads = &status.reloads;
    let _ = write!(
        text,
        "Reloads: {} succeeded, {} failed",
        reloads.succeeded, reloads.failed
    );
    match &reloads.last {
        Some(last) if last.ok => {
            let _ = writeln!(text, "; the last succeeded {}", ago(last.at));
        }
        Some(last) => {
            let failed = paint("failed", Tone::Bad, colour);
            let _ = writeln!(text, "; the last {failed} {}:", ago(last.at));
            for error in &last.errors {
                let _ = writeln!(text, "  {error}");
            }
        }
        None => text.push('\n'),
    }
    let apply = &status.apply;
    let _ = writeln!(
        text,
        "Data path: {}, {} applied, {} failed",
        if status.adopted {
            "adopted from an earlier daemon"
        } else {
            "loaded by this daemon"
        },
        count(apply.succeeded, "change"),
        apply.failed
    );
    if let Some(error) = &apply.error {
        let _ = writeln!(text, "  {}", paint(error, Tone::Bad, colour));
    }
    let flows = &status.flow_table;
    let _ = writeln!(
        text,
        "Flow table: {} of {} entries, {} refused; {} of {} slots tracked",
        flows.entries, flows.capacity, flows.refused_total, flows.tracked_slots, flows.slots
    );
    let persistence = &status.persistence;
    if persistence.sources > 0 {
        let _ = writeln!(
            text,
            "Persistence: {} of {} sources, {} new flows led to their server",
            persistence.sources, persistence.capacity, persistence.led_total
        );
    }
    if flows.reply_entries > 0 {
        let _ = writeln!(
            text,
            "Reply table: {} of {} entries",
            flows.reply_entries, flows.reply_capacity
        );
    }
    for pool in &status.full_nat {
        let _ = write!(
            text,
            "Full NAT from {}: {} ports free, {} used, {} resting",
            pool.address, pool.free, pool.used, pool.resting
        );
        let _ = match pool.draining {
            true => writeln!(text, "; being removed"),
            false => writeln!(text),
        };
    }
    if let Some(verified) = status.verified_instructions {
        let _ = writeln!(text, "Program: {verified} instructions verified");
    }
    if let Some(drops) = listed(status.drops.iter()) {
        let _ = writeln!(text, "Dropped, of no service: {drops}");
    }
    for pool in &status.pools {
        for warning in warnings_of(pool) {
            let warning = paint(&warning, Tone::Bad, colour);
            let _ = writeln!(text, "Pool {}: {warning}", pool.pool);
        }
    }
    for duplicate in &status.duplicate_vips {
        let who = format!("{} has it too, by {}", duplicate.mac, duplicate.interface);
        let _ = writeln!(
            text,
            "Duplicate VIP {}: {}, last seen {}",
            duplicate.address,
            paint(&who, Tone::Bad, colour),
            ago(duplicate.last_seen)
        );
    }
    text.push('\n');
    let mut table = Table::new(&[
        ("INTERFACE", Align::Left),
        ("XDP", Align::Left),
        ("PROGRAM", Align::Right),
        ("WHY", Align::Left),
    ]);
    for interface in &status.interfaces {
        let tone = match interface.mode.as_str() {
            "native" => Tone::Good,
            "generic" => Tone::Warning,
            _ => Tone::Bad,
        };
        table.row(vec![
            interface.name.as_str().into(),
            Cell::toned(interface.mode.as_str(), tone),
            interface
                .program_id
                .map_or("-".into(), |id| id.to_string())
                .into(),
            interface.reason.clone().unwrap_or_default().into(),
        ]);
    }
    text + &table.render(colour)
}

/// `lbctl services`.
pub fn services(services: &[ServiceStatus], colour: bool) -> String {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("VIP", Align::Left),
        ("PORTS", Align::Left),
        ("METHOD", Align::Left),
        ("POOL", Align::Left),
        ("UP", Align::Right),
        ("CONN/S", Align::Right),
        ("ACTIVE", Align::Right),
        ("IN", Align::Right),
        ("PKT/S", Align::Right),
        ("REPLIES", Align::Right),
        ("DROPS", Align::Left),
    ]);
    for service in services {
        let tone = match service.backends_up {
            0 => Tone::Bad,
            up if up < service.backends_total => Tone::Warning,
            _ => Tone::Good,
        };
        table.row(vec![
            service.name.as_str().into(),
            service
                .address
                .map(|a| a.to_string())
                .unwrap_or_default()
                .into(),
            format!("{}/{}", service.ports, service.protocol).into(),
            service.forwarding.as_str().into(),
            service.pool.as_str().into(),
            Cell::toned(
                format!("{}/{}", service.backends_up, service.backends_total),
                tone,
            ),
            short(service.rates.connections_per_second).into(),
            active(&service.concurrent).into(),
            bits(service.rates.bytes_per_second).into(),
            short(service.rates.packets_per_second).into(),
            bits(service.rates.reply_bytes_per_second).into(),
            listed(service.drops.iter())
                .unwrap_or_else(|| "-".into())
                .into(),
        ]);
    }
    table.render(colour)
}

/// `lbctl backends`; `now` in seconds since the Unix epoch.
pub fn backends(backends: &[BackendStatus], colour: bool, now: u64) -> String {
    let mut table = Table::new(&[
        ("BACKEND", Align::Left),
        ("SERVICE", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("HEALTH", Align::Left),
        ("WEIGHT", Align::Right),
        ("SHARE", Align::Right),
        ("CONN/S", Align::Right),
        ("ACTIVE", Align::Right),
        ("IN", Align::Right),
        ("WHY", Align::Left),
    ]);
    for backend in backends {
        let address = match (backend.address, backend.port) {
            (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
            (Some(address), None) => address.to_string(),
            (None, _) => String::new(),
        };
        let state = match backend.condition {
            Condition::Up if backend.next_hop.resolved => Tone::Good,
            Condition::Dead => Tone::Bad,
            _ => Tone::Warning,
        };
        let health = match (backend.health, backend.health_since) {
            (Health::Unchecked, _) | (_, None) => backend.health.name().to_owned(),
            (health, Some(since)) => {
                format!("{} {}", health.name(), span(now.saturating_sub(since)))
            }
        };
        let weight = if backend.weight == backend.weight_effective {
            backend.weight.to_string()
        } else {
            format!("{} (of {})", backend.weight_effective, backend.weight)
        };
        table.row(vec![
            format!("{}/{}", backend.pool, backend.backend).into(),
            backend.service.as_str().into(),
            address.into(),
            Cell::toned(backend.condition.name(), state),
            health.into(),
            weight.into(),
            format!("{:.1} %", backend.slot_share * 100.0).into(),
            short(backend.rates.connections_per_second).into(),
            counted(backend).into(),
            bits(backend.rates.bytes_per_second).into(),
            why(backend).into(),
        ]);
    }
    table.render(colour)
}

/// Which of a pool's rules for bad times are in force.
fn warnings_of(pool: &PoolHealth) -> Vec<String> {
    let mut warnings = Vec::new();
    if !pool.kept_in.is_empty() {
        warnings.push(format!(
            "max_ejected is reached ({} overloaded and {} down of {}); in spite of their checks {} \
             still get flows",
            pool.overloaded,
            pool.down,
            pool.backends,
            pool.kept_in.join(", ")
        ));
    }
    if pool.overloaded_share {
        warnings.push(format!(
            "nobody of {} is up; the {} overloaded ones share the load",
            pool.backends, pool.overloaded
        ));
    }
    if let Some(all_down) = &pool.all_down {
        warnings.push(format!("all {} are down; {all_down}", pool.backends));
    }
    warnings
}

/// What an operator should know of a backend that isn't simply up.
fn why(backend: &BackendStatus) -> String {
    let mut reasons = Vec::new();
    if backend.admin != AdminState::Enabled {
        reasons.push(format!("{} by an operator", backend.admin.name()));
    }
    if matches!(backend.health, Health::Down | Health::Overloaded) {
        reasons.push(backend.last_result.clone());
    }
    if !backend.next_hop.resolved {
        reasons.push(backend.next_hop.detail.clone());
    }
    reasons.extend(backend.share_reasons.iter().cloned());
    reasons.join("; ")
}

/// `lbctl flows`.
pub fn flows(answer: &FlowsAnswer) -> String {
    let mut table = Table::new(&[
        ("CLIENT", Align::Left),
        ("VIP", Align::Left),
        ("PROTOCOL", Align::Left),
        ("SERVICE", Align::Left),
        ("BACKEND", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
    ]);
    for flow in &answer.flows {
        table.row(vec![
            flow.client.to_string().into(),
            flow.destination.to_string().into(),
            flow.protocol.as_str().into(),
            flow.service.as_str().into(),
            flow.backend.as_str().into(),
            flow.state.as_str().into(),
            span(flow.age_seconds).into(),
            span(flow.idle_seconds).into(),
        ]);
    }
    let mut text = table.render(false);
    if answer.sampled_one_in > 1 {
        let _ = writeln!(
            text,
            "\nA sample: one flow in {} is shown.",
            answer.sampled_one_in
        );
    }
    if answer.truncated {
        text.push_str("\nMore flows match; --limit N shows more.\n");
    }
    text
}

/// `lbctl persistence`.
pub fn persistence(answer: &PersistenceAnswer) -> String {
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("SOURCE", Align::Left),
        ("BACKEND", Align::Left),
        ("IDLE", Align::Right),
    ]);
    for row in &answer.sources {
        table.row(vec![
            row.group.as_str().into(),
            row.source.as_str().into(),
            row.backend.as_str().into(),
            span(row.idle_seconds).into(),
        ]);
    }
    let mut text = table.render(false);
    if answer.truncated {
        text.push_str("\nMore sources match; --limit N shows more.\n");
    }
    text
}

/// `lbctl forget`.
pub fn forgotten(answer: &ForgetAnswer, source: IpAddr) -> String {
    match answer.forgotten {
        0 => format!("{source} has no server that could be forgotten"),
        1 => format!("{source}: its server is forgotten; open connections stay where they are"),
        n => format!(
            "{source}: its servers in {n} groups are forgotten; open connections stay where they are"
        ),
    }
}

/// `lbctl reload`.
pub fn reload(answer: &ReloadAnswer) -> String {
    let mut text = format!(
        "{} is in force: {}, {} moved\n",
        answer.file,
        count(answer.services, "service"),
        count(answer.slots_moved, "slot")
    );
    for note in &answer.notes {
        let _ = writeln!(text, "  {note}");
    }
    text
}

/// `lbctl plan`.
pub fn plan(answer: &PlanAnswer, colour: bool) -> String {
    if answer.unchanged {
        return "Nothing would change.\n".into();
    }
    let mut text = String::new();
    for service in &answer.services {
        let (sign, tone) = match service.change.as_str() {
            "add" => ("+", Tone::Good),
            "remove" => ("-", Tone::Bad),
            _ => ("~", Tone::Warning),
        };
        let share = if service.slots == 0 {
            0.0
        } else {
            service.slots_moved as f64 / service.slots as f64 * 100.0
        };
        let head = format!("{sign} service {}", service.service);
        let _ = writeln!(
            text,
            "{}: {} of {} slots would move ({share:.1} %)",
            paint(&head, tone, colour),
            service.slots_moved,
            service.slots
        );
        for detail in &service.details {
            let _ = writeln!(text, "    {detail}");
        }
    }
    for other in &answer.other {
        let _ = writeln!(text, "{} {other}", paint("~", Tone::Warning, colour));
    }
    text
}

/// `lbctl drain` and the like.
pub fn admin(answer: &AdminAnswer) -> String {
    match answer.flows_left {
        Some(left) => format!(
            "{}: {}; {} left",
            answer.backend,
            answer.message,
            count(left, "open connection")
        ),
        None => format!("{}: {}", answer.backend, answer.message),
    }
}

/// Open connections, half-open ones and the limit, where they are counted.
fn counted(backend: &BackendStatus) -> String {
    let mut text = active(&backend.concurrent);
    if let Some(half) = backend.concurrent.half_open.filter(|half| *half > 0) {
        text.push_str(&format!(" + {half} half open"));
    }
    if let Some(max) = backend.max_connections {
        text.push_str(&format!(" of {max}"));
    }
    text
}

fn active(concurrent: &Concurrent) -> String {
    let number = short(concurrent.connections as f64);
    if concurrent.estimated && concurrent.error > 0 {
        format!("{number} ± {}", short(concurrent.error as f64))
    } else {
        number
    }
}

fn count<N: Into<CountOf>>(n: N, what: &str) -> String {
    let CountOf(n) = n.into();
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

struct CountOf(u64);

impl From<u64> for CountOf {
    fn from(n: u64) -> Self {
        Self(n)
    }
}

impl From<usize> for CountOf {
    fn from(n: usize) -> Self {
        Self(n as u64)
    }
}

/// `reason 5, other 1` of the counters that aren't zero.
fn listed<'a>(counters: impl Iterator<Item = (&'a String, &'a u64)>) -> Option<String> {
    let parts: Vec<String> = counters
        .filter(|(_, n)| **n > 0)
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
