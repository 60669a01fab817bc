//! How a service spreads its flows: its keys, and what fits together.

use lb_common::load::SHARERS;

use super::{
    persistence,
    reader::{At, Errors, Fields, Path},
    value,
    yaml::Node,
};
use crate::model::{
    Balance, HashInput, Model, Prefix, Protocol, Scheduler, Service, Tracking, UdpMode,
};

/// Keys of a service that are read here.
pub(super) const KEYS: [&str; 4] = ["scheduler", "hash", "tracking", "udp"];

/// What the file asks for, before it is known what that takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// `None` is `auto`.
    full: Option<bool>,
    udp: Option<UdpMode>,
}

/// Reads the keys; `tracking` isn't decided yet.
pub(super) fn read(fields: &Fields<'_>) -> (Balance, Asked) {
    let schedulers = [
        ("maglev", Scheduler::Maglev),
        ("round-robin", Scheduler::RoundRobin),
        ("least-connections", Scheduler::LeastConnections),
        ("response-time", Scheduler::ResponseTime),
    ];
    let modes = [
        ("stateless", UdpMode::Stateless),
        ("tracked", UdpMode::Tracked),
        ("quic", UdpMode::Quic),
    ];
    let trackings = [
        ("auto", None),
        ("minimal", Some(false)),
        ("full", Some(true)),
    ];
    let udp = fields.optional("udp", |node| value::choice(node, &modes, &[]));
    let (hash, except) = fields.get("hash").and_then(hash).unwrap_or_default();
    let balance = Balance {
        scheduler: fields.or("scheduler", Scheduler::Maglev, |node| {
            value::choice(node, &schedulers, &[])
        }),
        hash,
        except,
        tracking: Tracking::default(),
        udp: udp.unwrap_or_default(),
    };
    let full = fields.or("tracking", None, |node| {
        value::choice(node, &trackings, &[])
    });
    (balance, Asked { full, udp })
}

const WHOLE_SOURCE: HashInput = HashInput::Source {
    prefix_v4: 32,
    prefix_v6: 128,
};

fn hash(at: &At<'_>) -> Option<(HashInput, Vec<Prefix>)> {
    let inputs = [("flow", HashInput::Flow), ("source", WHOLE_SOURCE)];
    if !matches!(at.node, Node::Map(_)) {
        let input = at.read(|node| value::choice(node, &inputs, &[]))?;
        return Some((input, Vec::new()));
    }
    let fields = at.fields(&["by", "prefix_v4", "prefix_v6", "except"], &[])?;
    fields
        .required("by")?
        .read(|node| value::choice(node, &[("source", ())], &[]))?;
    let (prefix_v4, prefix_v6) = persistence::prefixes(&fields);
    let input = HashInput::Source {
        prefix_v4,
        prefix_v6,
    };
    Some((input, persistence::except(&fields)))
}

/// Decides on the tracking of each service, and reports what it can't have.
pub(super) fn decide(model: &mut Model, asked: &[Asked], errors: &Errors) {
    let services = model.services.iter().zip(asked);
    let decided: Vec<Tracking> = services
        .map(|(service, asked)| tracking(model, service, *asked))
        .collect();
    for (service, tracking) in model.services.iter_mut().zip(decided) {
        service.balance.tracking = tracking;
    }
    for (index, (service, asked)) in model.services.iter().zip(asked).enumerate() {
        let path = Path::default().key("services").index(index);
        fits(model, service, *asked, &path, errors);
    }
    sharers(model, errors);
}

/// So many services may keep the limits of one pool's backends together.
fn sharers(model: &Model, errors: &Errors) {
    for (name, _) in model.pools.iter().filter(|(_, pool)| pool.has_limits()) {
        let uses = |service: &&Service| model.pools_of(service).any(|(used, _)| used == name);
        let sharers = model.services.iter().filter(uses).count();
        if sharers > SHARERS as usize {
            errors.add(
                Path::default().key("pools").key(name),
                format!(
                    "has backends with max_connections, and {sharers} services; at most {SHARERS} can keep one limit \
                     together: give the others a pool of their own"
                ),
            );
        }
    }
}

/// Why a service can't do without full tracking.
fn needs_full(model: &Model, service: &Service) -> Option<String> {
    let scheduler = service.balance.scheduler;
    if !scheduler.is_by_hash() {
        return Some(format!("scheduler {scheduler} needs it"));
    }
    if service.persistence.is_some() {
        return Some("persistence by source needs it".into());
    }
    let defence = &service.defence;
    let is_limited = defence.new_flows_per_core.is_some() || defence.new_flows_per_source.is_some();
    if is_limited && service.protocol == Protocol::Udp && service.balance.udp != UdpMode::Stateless
    {
        return Some("limits of new flows need it, since it alone knows a new flow of UDP".into());
    }
    model
        .backends_of(service)
        .find(|(_, b)| b.max_connections > 0)
        .map(|(_, b)| format!("max_connections of backend {:?} needs it", b.name))
}

fn tracking(model: &Model, service: &Service, asked: Asked) -> Tracking {
    match (asked.full, needs_full(model, service)) {
        (None | Some(true), Some(reason)) => Tracking { full: true, reason },
        (None, None) => Tracking::default(),
        (Some(full), _) => Tracking {
            full,
            reason: "the configuration asks for it".into(),
        },
    }
}

fn fits(model: &Model, service: &Service, asked: Asked, path: &Path, errors: &Errors) {
    let Balance {
        scheduler, hash, ..
    } = service.balance;
    if hash != HashInput::Flow && !scheduler.is_by_hash() {
        errors.add(
            path.key("hash"),
            format!(
                "has no meaning for scheduler {scheduler}; use it with maglev or response-time"
            ),
        );
    }
    if asked.full == Some(false)
        && let Some(why) = needs_full(model, service)
    {
        errors.add(
            path.key("tracking"),
            format!("`minimal` is impossible here: {why}; use auto or full"),
        );
    }
    match service.protocol {
        Protocol::Tcp if asked.udp.is_some() => {
            errors.add(path.key("udp"), "is for protocol udp; remove it");
        }
        Protocol::Udp
            if service.balance.tracking.full && service.balance.udp == UdpMode::Stateless =>
        {
            errors.add(
                path.key("udp"),
                format!(
                    "`stateless` is impossible under full tracking ({}); use `udp: tracked`, or \
                     `udp: quic` where it is QUIC",
                    service.balance.tracking.reason
                ),
            );
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
