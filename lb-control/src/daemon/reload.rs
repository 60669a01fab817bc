//! What a running data path can take over from another configuration.

use crate::model::{HashInput, Model};

/// Why `new` can't replace `old` without a restart; empty when it can.
pub fn obstacles(old: &Model, new: &Model) -> Vec<String> {
    let mut found = Vec::new();
    let (was, is) = (&old.dataplane, &new.dataplane);
    let sizes = [
        ("max_flows", was.max_flows, is.max_flows),
        ("max_services", was.max_services, is.max_services),
        ("max_members", was.max_members, is.max_members),
        ("max_slots", was.max_slots, is.max_slots),
        (
            "max_source_prefixes",
            was.max_source_prefixes,
            is.max_source_prefixes,
        ),
        (
            "max_limited_sources",
            was.max_limited_sources,
            is.max_limited_sources,
        ),
        ("max_bindings", was.max_bindings, is.max_bindings),
        ("max_fragments", was.max_fragments, is.max_fragments),
        (
            "max_persistent_sources",
            was.max_persistent_sources,
            is.max_persistent_sources,
        ),
    ];
    for (name, was, is) in sizes {
        if was != is {
            found.push(format!(
                "dataplane.{name}: {is} instead of {was}: the size of a map cannot change while it is in \
                 use; keep {was}, or stop the daemon, run `lbctl detach` and start it again"
            ));
        }
    }
    if was.pin_dir != is.pin_dir {
        found.push(format!(
            "dataplane.pin_dir: {} instead of {}: the running maps are pinned there; run `lbctl detach` \
             and start the daemon again to move them",
            is.pin_dir.display(),
            was.pin_dir.display()
        ));
    }
    if was.hash_secret_file != is.hash_secret_file {
        found.push(
            "dataplane.hash_secret_file: another key would move nearly every flow to another backend; \
             stop the daemon, run `lbctl detach` and start it again"
                .into(),
        );
    }
    if was.probes != is.probes {
        found.push(
            "dataplane.probes: rules and ports are set up when the daemon starts; restart the daemon to \
             change them"
                .into(),
        );
    }
    if was.debug_log != is.debug_log {
        found.push(
            "dataplane.debug_log: it is part of the loaded program; restart the daemon to change it"
                .into(),
        );
    }
    if old.interfaces != new.interfaces {
        found.push(
            "interfaces: the program is attached when the daemon starts; restart the daemon, which takes \
             over the running data path without losing a flow"
                .into(),
        );
    }
    for service in &new.services {
        let Some(before) = old.services.iter().find(|s| s.name == service.name) else {
            continue;
        };
        if before.balance.hash != service.balance.hash {
            found.push(format!(
                "service {}: hash by {} instead of by {}: nearly every flow would move to another \
                 backend; give the service another name, or remove it first",
                service.name, service.balance.hash, before.balance.hash
            ));
        }
        let by_source = before.balance.hash != HashInput::Flow;
        if by_source && before.balance.except != service.balance.except {
            found.push(format!(
                "service {}: other prefixes in `except`: with `hash: source` their flows would move to \
                 another backend; give the service another name, or remove it first",
                service.name
            ));
        }
        if service.table_size_is_explicit && before.table_size != service.table_size {
            found.push(format!(
                "service {}: table_size {} instead of {}: the table of a living service keeps its size; \
                 set table_size: {} for it, or give it another name",
                service.name, service.table_size, before.table_size, before.table_size
            ));
        }
    }
    found
}
