//! How a service spreads its flows: its keys, and what fits together.

use lb_common::load::SHARERS;

use super::{
    persistence,
    reader::{At, Errors, Fields, Path},
    value,
    yaml::Node,
};
use crate::model::{
    Balance, HashInput, Model, Pool, Prefix, Protocol, Scheduler, Service, Tracking, UdpMode,
    WhenAllDown,
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
    let Model {
        services, pools, ..
    } = model;
    for (index, (service, asked)) in services.iter_mut().zip(asked).enumerate() {
        let path = Path::default().key("services").index(index);
        let own = pools.get(&service.pool);
        let fallback = match own.map(|pool| &pool.policy.when_all_down) {
            Some(WhenAllDown::FallbackPool(name)) => pools.get(name),
            _ => None,
        };
        let used: Vec<&Pool> = own.into_iter().chain(fallback).collect();
        service.balance.tracking = tracking(service, &used, *asked);
        fits(service, &used, *asked, &path, errors);
    }
    let has_limits = |pool: &Pool| pool.backends.iter().any(|b| b.max_connections > 0);
    for (name, _) in pools.iter().filter(|(_, pool)| has_limits(pool)) {
        let falls_back = |own: &str| {
            let policy = pools.get(own).map(|pool| &pool.policy.when_all_down);
            matches!(policy, Some(WhenAllDown::FallbackPool(fallback)) if fallback == name)
        };
        let sharers = services
            .iter()
            .filter(|s| s.pool == *name || falls_back(&s.pool))
            .count();
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
fn needs_full(service: &Service, pools: &[&Pool]) -> Option<String> {
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
    pools
        .iter()
        .flat_map(|pool| &pool.backends)
        .find(|b| b.max_connections > 0)
        .map(|b| format!("max_connections of backend {:?} needs it", b.name))
}

fn tracking(service: &Service, pools: &[&Pool], asked: Asked) -> Tracking {
    match (asked.full, needs_full(service, pools)) {
        (None | Some(true), Some(reason)) => Tracking { full: true, reason },
        (None, None) => Tracking::default(),
        (Some(full), _) => Tracking {
            full,
            reason: "the configuration asks for it".into(),
        },
    }
}

fn fits(service: &Service, pools: &[&Pool], asked: Asked, path: &Path, errors: &Errors) {
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
        && let Some(why) = needs_full(service, pools)
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
