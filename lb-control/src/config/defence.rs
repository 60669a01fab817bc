//! The keys by which a service is defended.

use std::collections::HashMap;

use lb_common::limit::HIGHEST_RATE;

use super::{
    reader::{At, Errors, Fields, Path},
    value,
    yaml::Node,
};
use crate::model::{Defence, Model, OnBackendDown, Prefix, Protocol, Service, UdpMode};

/// The keys of a service that are read here.
pub(super) const KEYS: [&str; 4] = ["allow", "deny", "limits", "on_backend_down"];

/// Reads `allow`, `deny` and `limits`.
pub(super) fn defence(fields: &Fields<'_>) -> Defence {
    let limits = fields
        .get("limits")
        .and_then(|at| at.fields(&["new_flows_per_core", "new_flows_per_source"], &[]));
    let limit = |key| {
        let limits = limits.as_ref()?;
        limits.optional(key, value::number(1..=HIGHEST_RATE))
    };
    Defence {
        allow: prefixes(fields.get("allow"), "everybody"),
        deny: prefixes(fields.get("deny"), "nobody"),
        new_flows_per_core: limit("new_flows_per_core"),
        new_flows_per_source: limit("new_flows_per_source"),
    }
}

fn prefixes(at: Option<&At<'_>>, whom: &str) -> Vec<Prefix> {
    let Some(at) = at else {
        return Vec::new();
    };
    if matches!(at.node, Node::List(items) if items.is_empty()) {
        at.error(format!(
            "found an empty list; allowed: at least one prefix; for {whom} leave it out"
        ));
    }
    let items = at.items();
    items
        .iter()
        .filter_map(|at| at.read(value::prefix))
        .collect()
}

/// Reads `on_backend_down`.
pub(super) fn on_backend_down(fields: &Fields<'_>) -> OnBackendDown {
    let names = [
        ("keep", OnBackendDown::Keep),
        ("rehash", OnBackendDown::Rehash),
        ("reset", OnBackendDown::Reset),
    ];
    fields.or("on_backend_down", OnBackendDown::Keep, |node| {
        value::choice(node, &names, &[])
    })
}

/// What concerns more than one value.
pub(super) fn check(model: &Model, errors: &Errors) {
    for (index, service) in model.services.iter().enumerate() {
        let path = Path::default().key("services").index(index);
        sources(service, &path, errors);
        for_udp(service, &path, errors);
    }
    let needed: usize = model.services.iter().map(rules).sum();
    let limit = model.dataplane.max_source_prefixes;
    if needed > limit as usize {
        errors.add(
            Path::default().key("dataplane").key("max_source_prefixes"),
            format!(
                "the file has {needed} prefixes in `allow`, `deny` and `except` (one more for each `allow`), \
                 max_source_prefixes is {limit}; raise max_source_prefixes"
            ),
        );
    }
}

/// Entries that the lists take in the map.
fn rules(service: &Service) -> usize {
    let defence = &service.defence;
    let except = service.balance.except.len();
    except + defence.allow.len() + defence.deny.len() + usize::from(!defence.allow.is_empty())
}

fn sources(service: &Service, path: &Path, errors: &Errors) {
    let defence = &service.defence;
    let mut seen: HashMap<Prefix, &str> = HashMap::new();
    for (key, list) in [("allow", &defence.allow), ("deny", &defence.deny)] {
        for (index, prefix) in list.iter().enumerate() {
            let path = || path.key(key).index(index);
            if prefix.address.is_ipv4() != service.address.is_ipv4() {
                errors.add(
                    path(),
                    format!(
                        "{prefix} and the service's address {} are not of the same family, so no \
                         packet can match; remove it",
                        service.address
                    ),
                );
            }
            match seen.insert(*prefix, key) {
                Some(before) if before == key => {
                    errors.add(path(), format!("{prefix} is listed twice; remove one"));
                }
                Some(before) => errors.add(
                    path(),
                    format!("{prefix} is in `{before}`, too; a prefix can be in one list only"),
                ),
                None => {}
            }
        }
    }
}

fn for_udp(service: &Service, path: &Path, errors: &Errors) {
    if service.protocol != Protocol::Udp {
        return;
    }
    let defence = &service.defence;
    let is_limited = defence.new_flows_per_core.is_some() || defence.new_flows_per_source.is_some();
    if is_limited && service.balance.udp == UdpMode::Stateless {
        errors.add(
            path.key("limits"),
            "under `udp: stateless` flows are not tracked, so a new one can't be told from others; \
             use `udp: tracked`, or `udp: quic` where it is QUIC, or remove it",
        );
    }
    if service.on_backend_down == OnBackendDown::Reset {
        errors.add(
            path.key("on_backend_down"),
            "UDP has no reset; its flows move at once: remove it",
        );
    }
}
