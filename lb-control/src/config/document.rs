//! The keys of the file: what is allowed where, and the defaults.

use std::{collections::BTreeMap, time::Duration};

use super::{
    balance, defence, persistence, pool_policy, probe, probe_path,
    reader::{At, Errors, Fields, Path},
    sync, topology, value, vrrp,
    yaml::Node,
};
use crate::model::{
    Backend, Check, Dataplane, ForwardingMethod, FullNat, GROUPS, Interface, Model, Pool, Ports,
    Protocol, Replies, Service, Tunnel, XdpMode,
};

/// What the file says, before the checks that concern several values.
pub(super) struct Document {
    /// `replies` and default table sizes of its services aren't right yet.
    pub(super) model: Model,
    /// For each service the `replies` asked for; `None` is `auto`.
    pub(super) replies: Vec<Option<Replies>>,
    /// For each service the tracking asked for.
    pub(super) tracking: Vec<balance::Asked>,
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The limit of the flow table's clock.
const LONGEST_IDLE: Duration = seconds(2 * 3600 + 15 * 60);
/// More than a flow table can hold.
const MOST_CONNECTIONS: u32 = 1 << 28;
/// Member ids have 20 bits, and 0 is nobody.
const MOST_MEMBERS: u32 = (1 << 20) - 1;
/// Their indices stand in the place of member ids.
const MOST_BINDINGS: u32 = MOST_MEMBERS;

/// Reads the whole document.
pub(super) fn read(root: &Node, errors: &Errors) -> Document {
    let at = At {
        node: root,
        path: Path::default(),
        errors,
    };
    let known = [
        "node",
        "interfaces",
        "dataplane",
        "metrics",
        "pools",
        "services",
        "full_nat",
        "vrrp",
        "sync",
    ];
    let fields = at.fields(&known, &["dns", "snmp"]);
    let mut document = Document {
        model: Model {
            node: "lb".into(),
            interfaces: Vec::new(),
            dataplane: dataplane(None),
            metrics: None,
            pools: BTreeMap::new(),
            services: Vec::new(),
            full_nat: None,
            vrrp: Vec::new(),
            sync: None,
        },
        replies: Vec::new(),
        tracking: Vec::new(),
    };
    let Some(fields) = fields else {
        return document;
    };
    let model = &mut document.model;
    let mut named = None;
    if let Some(node) = fields.get("node").and_then(|at| at.fields(&["name"], &[])) {
        named = node.optional("name", value::name);
    }
    if let Some(name) = &named {
        model.node.clone_from(name);
    }
    let sync = fields.get("sync");
    model.sync = sync.and_then(|at| sync::read(at, named.as_deref()));
    model.interfaces = fields
        .required("interfaces")
        .map(interfaces)
        .unwrap_or_default();
    model.dataplane = dataplane(fields.get("dataplane"));
    model.metrics = fields
        .get("metrics")
        .and_then(|at| at.fields(&["listen"], &[]))
        .and_then(|metrics| metrics.required("listen")?.read(value::socket_address));
    model.full_nat = fields.get("full_nat").and_then(full_nat);
    let routers = fields.get("vrrp").map(At::items).unwrap_or_default();
    model.vrrp = routers.iter().filter_map(vrrp::read).collect();
    for (name, at) in fields.get("pools").map(At::entries).unwrap_or_default() {
        if !value::is_name(name) {
            at.error(format!("found the name {name:?}; {}", value::NAME_ALLOWED));
        }
        model.pools.insert(name.into(), pool(&at));
    }
    for at in fields.get("services").map(At::items).unwrap_or_default() {
        if let Some((service, replies, tracking)) = service(&at) {
            model.services.push(service);
            document.replies.push(replies);
            document.tracking.push(tracking);
        }
    }
    document
}

fn full_nat(at: &At<'_>) -> Option<FullNat> {
    let fields = at.fields(&["addresses", "ports"], &[])?;
    let (first_port, last_port) = fields.or("ports", (1024, u16::MAX), value::port_range);
    let addresses = fields.required("addresses")?;
    if matches!(addresses.node, Node::List(items) if items.is_empty()) {
        addresses.error("found an empty list; allowed: at least one address");
    }
    Some(FullNat {
        addresses: addresses
            .items()
            .iter()
            .filter_map(|at| at.read(value::address))
            .collect(),
        first_port,
        last_port,
    })
}

fn interfaces(at: &At<'_>) -> Vec<Interface> {
    let items = at.items();
    if matches!(at.node, Node::List(items) if items.is_empty()) {
        at.error("found an empty list; allowed: at least one interface");
    }
    items
        .iter()
        .filter_map(|at| {
            let fields = at.fields(&["name", "xdp"], &[])?;
            let modes = [
                ("auto", XdpMode::Auto),
                ("native", XdpMode::Native),
                ("generic", XdpMode::Generic),
            ];
            let xdp = fields.or("xdp", XdpMode::Auto, |node| {
                value::choice(node, &modes, &[])
            });
            let name = fields.required("name")?.read(value::interface)?;
            Some(Interface { name, xdp })
        })
        .collect()
}

fn dataplane(at: Option<&At<'_>>) -> Dataplane {
    let known = [
        "max_flows",
        "max_services",
        "max_members",
        "max_slots",
        "max_source_prefixes",
        "max_limited_sources",
        "max_bindings",
        "max_fragments",
        "max_persistent_sources",
        "icmp_rate",
        "tcp_idle",
        "udp_idle",
        "dead_after",
        "drain_timeout",
        "hash_secret_file",
        "pin_dir",
        "debug_log",
        "manage_sysctls",
        "tunnel",
        "probes",
        "when_daemon_dead",
    ];
    let fields = at.and_then(|at| at.fields(&known, &[]));
    let fields = fields.as_ref();
    let number =
        |key, default, range| fields.map_or(default, |f| f.or(key, default, value::number(range)));
    let duration = |key, default, range| {
        fields.map_or(default, |f| f.or(key, default, value::duration(range)))
    };
    let boolean =
        |key, default| fields.map_or(default, |f: &Fields<'_>| f.or(key, default, value::boolean));
    let yields = fields.and_then(|f| {
        f.optional("when_daemon_dead", |node| {
            value::choice(node, &[("keep", false), ("yield", true)], &[])
        })
    });
    Dataplane {
        max_flows: number("max_flows", 1_000_000, 1024..=1 << 28),
        max_services: number("max_services", 1024, 1..=65_536),
        max_members: number("max_members", 65_536, 1..=MOST_MEMBERS),
        max_slots: number("max_slots", 4_194_304, 1024..=1 << 28),
        max_source_prefixes: number("max_source_prefixes", 65_536, 1024..=1 << 24),
        max_limited_sources: number("max_limited_sources", 65_536, 1024..=1 << 24),
        max_bindings: number("max_bindings", 131_072, 64..=MOST_BINDINGS),
        max_fragments: number("max_fragments", 16_384, 1024..=1 << 24),
        max_persistent_sources: number("max_persistent_sources", 65_536, 1024..=1 << 24),
        icmp_rate: number("icmp_rate", 1000, 0..=lb_common::limit::HIGHEST_RATE),
        tcp_idle: duration("tcp_idle", LONGEST_IDLE, seconds(10)..=LONGEST_IDLE),
        udp_idle: duration("udp_idle", seconds(60), seconds(10)..=LONGEST_IDLE),
        dead_after: duration("dead_after", seconds(30), seconds(0)..=seconds(86_400)),
        drain_timeout: duration("drain_timeout", seconds(300), seconds(0)..=seconds(86_400)),
        hash_secret_file: fields.and_then(|f| f.optional("hash_secret_file", value::absolute_path)),
        pin_dir: fields.map_or_else(
            || "/sys/fs/bpf/lbctl".into(),
            |f| f.or("pin_dir", "/sys/fs/bpf/lbctl".into(), value::pin_dir),
        ),
        debug_log: boolean("debug_log", false),
        manage_sysctls: boolean("manage_sysctls", true),
        // Two that own at once are worse than none.
        yields_when_daemon_dead: yields.unwrap_or(true),
        tunnel: tunnel(fields.and_then(|f| f.get("tunnel"))),
        probes: probe_path::read(fields.and_then(|f| f.get("probes"))),
    }
}

fn tunnel(at: Option<&At<'_>>) -> Tunnel {
    let default = Tunnel::default();
    let Some(fields) = at.and_then(|at| at.fields(&["source_v4", "source_v6", "gue_port"], &[]))
    else {
        return default;
    };
    Tunnel {
        source_v4: fields.or("source_v4", default.source_v4, value::prefix_v4(8..=32)),
        source_v6: fields.or("source_v6", default.source_v6, value::prefix_v6(64..=128)),
        gue_port: fields.or("gue_port", default.gue_port, value::port),
    }
}

fn pool(at: &At<'_>) -> Pool {
    let known = [&["backends", "health"][..], &pool_policy::KEYS[..]].concat();
    let Some(fields) = at.fields(&known, &[]) else {
        return Pool::default();
    };
    let backends = fields
        .required("backends")
        .map(At::items)
        .unwrap_or_default();
    let health = fields.get("health").map(At::items).unwrap_or_default();
    Pool {
        backends: backends.iter().filter_map(backend).collect(),
        health: health.iter().filter_map(check).collect(),
        policy: pool_policy::read(&fields),
    }
}

fn backend(at: &At<'_>) -> Option<Backend> {
    let known = [
        "name",
        "address",
        "port",
        "weight",
        "priority",
        "max_connections",
    ];
    let fields = at.fields(&known, &["backup"])?;
    let port = fields.optional("port", value::port);
    let weight = fields.or("weight", 1, value::weight);
    let priority = fields.or("priority", 1, value::number(1..=GROUPS));
    let max_connections = fields.optional("max_connections", value::number(1..=MOST_CONNECTIONS));
    let name = fields.required("name").and_then(|at| at.read(value::name));
    let address = fields
        .required("address")
        .and_then(|at| at.read(value::address));
    Some(Backend {
        name: name?,
        address: address?,
        port,
        weight,
        priority: u8::try_from(priority).unwrap_or(u8::MAX),
        max_connections: max_connections.unwrap_or(0),
    })
}

fn check(at: &At<'_>) -> Option<Check> {
    let known = [
        "type",
        "port",
        "via",
        "interval",
        "fast_interval",
        "timeout",
        "slow_after",
        "rise",
        "fall",
        "overloaded_limit",
        "hold_down_limit",
    ];
    let known: Vec<&str> = known.into_iter().chain(probe::keys()).collect();
    let fields = at.fields(&known, &[])?;
    let kind = probe::read(&fields);
    let interval_range = Duration::from_millis(100)..=seconds(3600);
    let timeout_range = Duration::from_millis(10)..=seconds(3600);
    let interval = fields.or(
        "interval",
        seconds(2),
        value::duration(interval_range.clone()),
    );
    let fast_interval = fields.optional("fast_interval", value::duration(interval_range));
    if let Some(fast) = fast_interval.filter(|fast| *fast > interval)
        && let Some(at) = fields.get("fast_interval")
    {
        at.error(format!(
            "{} is longer than interval {}; it is for checking more often while a state changes: \
             lower it, or leave it out",
            value::shown_duration(fast),
            value::shown_duration(interval)
        ));
    }
    let default_timeout = seconds(1).min(interval);
    let timeout = fields.or(
        "timeout",
        default_timeout,
        value::duration(timeout_range.clone()),
    );
    let slow_after = fields.optional("slow_after", value::duration(timeout_range));
    if let Some(slow) = slow_after.filter(|slow| *slow >= timeout)
        && let Some(at) = fields.get("slow_after")
    {
        at.error(format!(
            "{} is not shorter than timeout {}; nothing would ever be slow",
            value::shown_duration(slow),
            value::shown_duration(timeout)
        ));
    }
    if timeout > interval {
        at.error(format!(
            "timeout {} is longer than interval {}; a check has to end before the next begins: \
             raise the interval or lower the timeout",
            value::shown_duration(timeout),
            value::shown_duration(interval)
        ));
    }
    Some(Check {
        port: fields.optional("port", value::port),
        via: probe_path::via(&fields, kind.as_ref()),
        kind: kind?,
        interval,
        timeout,
        slow_after,
        fast_interval,
        rise: fields.or("rise", 2, value::number(1..=100)),
        fall: fields.or("fall", 3, value::number(1..=100)),
        overloaded_limit: fields.or(
            "overloaded_limit",
            seconds(60),
            value::duration(seconds(0)..=seconds(86_400)),
        ),
        hold_down_limit: fields.or(
            "hold_down_limit",
            seconds(300),
            value::duration(seconds(0)..=seconds(3600)),
        ),
    })
}

fn service(at: &At<'_>) -> Option<(Service, Option<Replies>, balance::Asked)> {
    let known = [
        "name",
        "address",
        "port",
        "protocol",
        "forwarding",
        "replies",
        "pool",
        "table_size",
        "topology",
    ];
    let known = [
        &known[..],
        &balance::KEYS[..],
        &defence::KEYS[..],
        &[persistence::KEY],
    ]
    .concat();
    let fields = at.fields(&known, &[])?;
    let methods = [
        ("l2-dsr", ForwardingMethod::L2Dsr),
        ("nat", ForwardingMethod::Nat),
        ("full-nat", ForwardingMethod::FullNat),
        ("ipip", ForwardingMethod::Ipip),
        ("gue", ForwardingMethod::Gue),
    ];
    let (mut balance, tracking) = balance::read(&fields);
    let (persistence, except) = persistence::read(&fields);
    balance.except.extend(except);
    let replies = fields.or("replies", None, |node| {
        let names = [
            ("auto", None),
            ("port", Some(Replies::Port)),
            ("flow", Some(Replies::Flow)),
        ];
        value::choice(node, &names, &[])
    });
    let table_size = fields.optional("table_size", value::table_size);
    let protocol =
        |node: &Node| value::choice(node, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)], &[]);
    let forwarding = |node: &Node| value::choice(node, &methods, &[]);
    let topology = fields
        .get("topology")
        .map(topology::read)
        .unwrap_or_default();
    // All are read before the first missing one ends it.
    let name = fields.required("name").and_then(|at| at.read(value::name));
    let address = fields
        .required("address")
        .and_then(|at| at.read(value::address));
    let ports: Option<Ports> = fields.required("port").and_then(|at| at.read(value::ports));
    let protocol = fields.required("protocol").and_then(|at| at.read(protocol));
    let forwarding = fields
        .required("forwarding")
        .and_then(|at| at.read(forwarding));
    let pool = fields.required("pool").and_then(|at| at.read(value::name));
    let service = Service {
        name: name?,
        address: address?,
        ports: ports?,
        protocol: protocol?,
        forwarding: forwarding?,
        replies: replies.unwrap_or(Replies::Port),
        defence: defence::defence(&fields),
        on_backend_down: defence::on_backend_down(&fields),
        balance,
        persistence,
        topology,
        pool: pool?,
        table_size: table_size.unwrap_or(0),
        table_size_is_explicit: table_size.is_some(),
    };
    Some((service, replies, tracking))
}
