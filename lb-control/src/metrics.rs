//! The snapshot as Prometheus text.
//!
//! Names have the prefix `lb_` and base units; labels are bounded by the
//! configuration (service, pool, backend, interface) or by the program (reason,
//! event, result, state, mode), and never name a client.

use prometheus::TextEncoder;

mod page;
mod pools;
mod probes;
mod sync;
mod vrrp;

use page::{Page, counter, gauge};

use crate::status::{BackendStatus, Condition, Health, ServiceStatus, Snapshot, Totals};

/// The content type of [`text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The snapshot in Prometheus' text format.
pub fn text(snapshot: &Snapshot) -> Result<String, prometheus::Error> {
    let mut page = Page::default();
    daemon(&mut page, snapshot);
    flow_table(&mut page, snapshot);
    services(&mut page, &snapshot.services);
    backends(&mut page, &snapshot.backends);
    pools::pools(&mut page, &snapshot.status.pools);
    drops_and_events(&mut page, snapshot);
    probes::probes(&mut page, snapshot);
    vrrp::vrrp(&mut page, &snapshot.vrrp);
    sync::sync(&mut page, &snapshot.sync);
    TextEncoder::new().encode_to_string(&page.families)
}

fn daemon(page: &mut Page, snapshot: &Snapshot) {
    let status = &snapshot.status;
    page.gauges(
        "lb_build_info",
        "Always 1; the version and the node's name are labels.",
        vec![gauge(
            &[("version", &status.version), ("node", &status.node)],
            1.0,
        )],
    );
    page.gauge(
        "lb_start_time_seconds",
        "When the daemon started, in seconds since the Unix epoch.",
        status.started_at as f64,
    );
    page.gauge(
        "lb_ready",
        "Whether the daemon is ready, as /readyz says.",
        flag(status.readiness.ready),
    );
    page.counters(
        "lb_reloads_total",
        "Reloads of the configuration by result.",
        vec![
            counter(&[("result", "success")], status.reloads.succeeded),
            counter(&[("result", "failure")], status.reloads.failed),
        ],
    );
    page.gauge(
        "lb_last_reload_success",
        "Whether the last reload came into force; 1 before the first.",
        flag(status.reloads.last.as_ref().is_none_or(|last| last.ok)),
    );
    page.gauge(
        "lb_config_loaded_time_seconds",
        "When the configuration came into force, in seconds since the Unix epoch.",
        status.config.loaded_at as f64,
    );
    page.counter(
        "lb_applies_total",
        "Changes of the data path that were applied.",
        status.apply.succeeded,
    );
    page.counter(
        "lb_slots_moved_total",
        "Slots of living services that went to another backend.",
        status.apply.slots_moved,
    );
    page.gauge(
        "lb_last_apply_moved_ratio",
        "The part of all slots that the last change of the data path moved, from 0 to 1.",
        status.apply.last_moved_share,
    );
    page.counter(
        "lb_map_write_errors_total",
        "Attempts to change the data path that failed and are repeated.",
        status.apply.failed,
    );
    page.gauges(
        "lb_xdp_mode",
        "1 for the mode the program is attached in: native, generic or detached.",
        status
            .interfaces
            .iter()
            .flat_map(|interface| {
                ["native", "generic", "detached"].map(|mode| {
                    gauge(
                        &[("interface", &interface.name), ("mode", mode)],
                        flag(interface.mode == mode),
                    )
                })
            })
            .collect(),
    );
    if let Some(verified) = status.verified_instructions {
        page.gauge(
            "lb_program_verified_instructions",
            "Instructions the kernel's verifier went through for the XDP program.",
            f64::from(verified),
        );
    }
}

fn flow_table(page: &mut Page, snapshot: &Snapshot) {
    let table = &snapshot.status.flow_table;
    let by_table = |flows: u64, replies: u64| {
        vec![
            gauge(&[("table", "flows")], flows as f64),
            gauge(&[("table", "replies")], replies as f64),
        ]
    };
    page.gauges(
        "lb_flow_table_entries",
        "Live entries of the flow table, and of the one that recognises replies.",
        by_table(table.entries, table.reply_entries),
    );
    page.gauges(
        "lb_flow_table_capacity",
        "Entries the flow table has room for.",
        by_table(table.capacity, table.reply_capacity),
    );
    page.gauges(
        "lb_full_nat_ports",
        "Ports of full NAT's addresses by state: free, used, resting, removed; together all of them.",
        snapshot
            .status
            .full_nat
            .iter()
            .flat_map(|pool| {
                let address = pool.address.to_string();
                [
                    ("free", pool.free),
                    ("used", pool.used),
                    ("resting", pool.resting),
                    ("removed", pool.removed),
                ]
                .map(|(state, ports)| {
                    gauge(&[("address", &address), ("state", state)], ports.into())
                })
            })
            .collect(),
    );
    let persistence = &snapshot.status.persistence;
    page.gauge(
        "lb_persistence_sources",
        "Sources that have a server, at the last sweep.",
        persistence.sources as f64,
    );
    page.gauge(
        "lb_persistence_capacity",
        "Sources that may have one at a time; the least recent are forgotten beyond that.",
        persistence.capacity as f64,
    );
    page.counter(
        "lb_persistence_flows_total",
        "New flows that went to the server that their source had.",
        persistence.led_total,
    );
    page.counter(
        "lb_flow_table_inserted_total",
        "Entries made in the flow table.",
        table.inserted_total,
    );
    page.counter(
        "lb_flow_table_refused_total",
        "Entries the flow table had no room for.",
        table.refused_total,
    );
    page.gauges(
        "lb_tracked_slots",
        "Slots whose flows are tracked now.",
        snapshot
            .services
            .iter()
            .map(|service| gauge(&[("service", &service.name)], service.tracked_slots as f64))
            .collect(),
    );
    page.gauges(
        "lb_slots",
        "Slots of the service's table.",
        snapshot
            .services
            .iter()
            .map(|service| gauge(&[("service", &service.name)], service.slots as f64))
            .collect(),
    );
}

/// A gauge of each row: name, help, value.
type GaugeColumn<T> = (&'static str, &'static str, fn(&T) -> f64);

/// A column of [`Totals`]: the end of the metric's name, its help, its value.
type TotalsColumn = (&'static str, &'static str, fn(&Totals) -> u64);

const TOTALS: [TotalsColumn; 5] = [
    ("packets_total", "Packets from clients forwarded.", |t| {
        t.packets
    }),
    (
        "bytes_total",
        "Bytes from clients forwarded, Ethernet headers included.",
        |t| t.bytes,
    ),
    (
        "connections_opened_total",
        "Connections opened: SYNs of TCP, flows of UDP estimated from a sample.",
        |t| t.connections,
    ),
    (
        "reply_packets_total",
        "Replies translated back (NAT; under DSR they do not pass here).",
        |t| t.reply_packets,
    ),
    (
        "reply_bytes_total",
        "Bytes of the replies, Ethernet headers included.",
        |t| t.reply_bytes,
    ),
];

fn services(page: &mut Page, services: &[ServiceStatus]) {
    for (name, help, value) in TOTALS {
        page.counters(
            &format!("lb_service_{name}"),
            help,
            services
                .iter()
                .map(|service| counter(&[("service", &service.name)], value(&service.totals)))
                .collect(),
        );
    }
    let gauges: [GaugeColumn<ServiceStatus>; 4] = [
        (
            "lb_service_connections_active",
            "Connections open now; an estimate where flows are sampled.",
            |s| s.concurrent.connections as f64,
        ),
        (
            "lb_service_connections_active_error",
            "Half the width of the estimate's 95 % confidence interval; 0 when counted.",
            |s| s.concurrent.error as f64,
        ),
        (
            "lb_service_backends_up",
            "Backends that take new flows.",
            |s| s.backends_up as f64,
        ),
        (
            "lb_service_backends",
            "Backends of the service's pool.",
            |s| s.backends_total as f64,
        ),
    ];
    for (name, help, value) in gauges {
        page.gauges(
            name,
            help,
            services
                .iter()
                .map(|service| gauge(&[("service", &service.name)], value(service)))
                .collect(),
        );
    }
}

fn backends(page: &mut Page, all: &[BackendStatus]) {
    // Another backend may have the name of one that has left.
    let backends: Vec<&BackendStatus> = all.iter().filter(|b| !b.departed).collect();
    let where_known = |value: fn(&BackendStatus) -> Option<f64>| {
        backends
            .iter()
            .filter_map(|b| Some(gauge(&labels_of(b), value(b)?)))
            .collect::<Vec<_>>()
    };
    page.gauges(
        "lb_backend_connections_half_open",
        "Connections of which only a SYN was seen, under full tracking.",
        where_known(|b| b.concurrent.half_open.map(|n| n as f64)),
    );
    page.gauges(
        "lb_backend_connections_limit",
        "Connections the backend may have in the service, where it has a limit.",
        where_known(|b| b.max_connections.map(f64::from)),
    );
    for (name, help, value) in TOTALS {
        page.counters(
            &format!("lb_backend_{name}"),
            help,
            backends
                .iter()
                .map(|backend| counter(&labels_of(backend), value(&backend.totals)))
                .collect(),
        );
    }
    let gauges: [GaugeColumn<BackendStatus>; 8] = [
        (
            "lb_backend_share_factor",
            "The part of its weight that the backend gets: slow start, its own reports, response time.",
            |b| b.share_factor,
        ),
        (
            "lb_backend_connections_active",
            "Connections open now; an estimate where flows are sampled.",
            |b| b.concurrent.connections as f64,
        ),
        (
            "lb_backend_up",
            "Whether the backend takes new flows.",
            |b| flag(b.condition == Condition::Up),
        ),
        (
            "lb_backend_weight",
            "The backend's weight in force; 0 while it takes no new flows.",
            |b| f64::from(b.weight_effective),
        ),
        (
            "lb_backend_slots",
            "The backend's slots of the service's table.",
            |b| b.slots as f64,
        ),
        (
            "lb_backend_next_hop_resolved",
            "Whether the MAC address of the backend's next hop is known.",
            |b| flag(b.next_hop.resolved),
        ),
        (
            "lb_backend_mtu_bytes",
            "Longest IP packet that reaches the backend, a tunnel's outer headers included; 0 while not known.",
            |b| f64::from(b.next_hop.mtu.unwrap_or(0)),
        ),
        (
            "lb_backend_connections_active_error",
            "Half the width of the estimate's 95 % confidence interval; 0 when counted.",
            |b| b.concurrent.error as f64,
        ),
    ];
    for (name, help, value) in gauges {
        page.gauges(
            name,
            help,
            backends
                .iter()
                .map(|backend| gauge(&labels_of(backend), value(backend)))
                .collect(),
        );
    }
    page.gauges(
        "lb_backend_state",
        "1 for what the data path does with the backend: up, overloaded, draining, failing or dead.",
        backends
            .iter()
            .flat_map(|backend| {
                Condition::ALL.map(|condition| {
                    let [service, pool, name] = labels_of(backend);
                    gauge(
                        &[service, pool, name, ("state", condition.name())],
                        flag(backend.condition == condition),
                    )
                })
            })
            .collect(),
    );
    page.gauges(
        "lb_backend_health",
        "1 for what the checks say of the backend: unchecked, unknown, up, overloaded or down.",
        backends
            .iter()
            .flat_map(|backend| {
                Health::ALL.map(|health| {
                    let [service, pool, name] = labels_of(backend);
                    gauge(
                        &[service, pool, name, ("state", health.name())],
                        flag(backend.health == health),
                    )
                })
            })
            .collect(),
    );
}

fn labels_of(backend: &BackendStatus) -> [(&str, &str); 3] {
    [
        ("service", &backend.service),
        ("pool", &backend.pool),
        ("backend", &backend.backend),
    ]
}

fn drops_and_events(page: &mut Page, snapshot: &Snapshot) {
    // The empty service stands for packets that belong to none.
    let rows = |label: &'static str,
                none: &std::collections::BTreeMap<String, u64>,
                of: fn(&ServiceStatus) -> &std::collections::BTreeMap<String, u64>| {
        let unowned = none
            .iter()
            .map(|(name, n)| counter(&[("service", ""), (label, name)], *n));
        let owned = snapshot.services.iter().flat_map(|service| {
            of(service)
                .iter()
                .map(|(name, n)| counter(&[("service", &service.name), (label, name)], *n))
        });
        unowned.chain(owned).collect::<Vec<_>>()
    };
    let drops = rows("reason", &snapshot.status.drops, |s| &s.drops);
    let events = rows("event", &snapshot.status.events, |s| &s.events);
    page.counters(
        "lb_drops_total",
        "Packets dropped, by reason; without a service, those that belong to none.",
        drops,
    );
    page.counters(
        "lb_events_total",
        "What the data path did besides forwarding and dropping, by event.",
        events,
    );
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
