//! What concerns more than one value, and what follows from it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{
    balance, defence,
    document::Document,
    persistence, pool_policy, probe_path,
    reader::{Errors, Path, nearest},
    shared, topology, vrrp,
};
use crate::{
    model::{ForwardingMethod, Model, Pool, Ports, Protocol, Replies, Service, SourceBlock},
    scheduler,
};

/// Reports everything that doesn't fit together, fills in the default table
/// sizes and decides `replies` where it was left to us.
pub(super) fn all(document: &mut Document, errors: &Errors) {
    let Document {
        model,
        replies,
        tracking,
    } = document;
    let largest = |service: &Service| {
        let sizes = model.pools_of(service).map(|(_, pool)| pool.backends.len());
        sizes.max().unwrap_or(0)
    };
    let sizes: Vec<u32> = model
        .services
        .iter()
        .map(|service| scheduler::table_size(largest(service)))
        .collect();
    for (service, size) in model.services.iter_mut().zip(sizes) {
        if !service.table_size_is_explicit {
            service.table_size = size;
        }
    }
    names(model, errors);
    for (name, pool) in &model.pools {
        let path = Path::default().key("pools").key(name);
        backends(pool, &path, errors);
        pool_policy::check(model, name, pool, &path, errors);
    }
    for (index, service) in model.services.iter().enumerate() {
        let path = Path::default().key("services").index(index);
        match model.pools.get(&service.pool) {
            Some(pool) => {
                service_and_pool(service, (&service.pool, pool), &path, errors);
                if let Some(fallback) = model.fallback(service) {
                    service_and_pool(service, fallback, &path, errors);
                }
            }
            None => no_pool(model, service, &path, errors),
        }
        topology::check(service, &model.interfaces, &path.key("topology"), errors);
    }
    overlaps(model, errors);
    tunnel_sources(model, errors);
    balance::decide(model, tracking, errors);
    capacities(model, errors);
    defence::check(model, errors);
    persistence::check(model, errors);
    vrrp::check_all(model, errors);
    full_nat(model, errors);
    decide_replies(model, replies, errors);
}

fn duplicates<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut seen = HashSet::new();
    names
        .enumerate()
        .filter(|(_, name)| !seen.insert(*name))
        .collect()
}

fn names(model: &Model, errors: &Errors) {
    let root = Path::default();
    for (index, name) in duplicates(model.services.iter().map(|s| s.name.as_str())) {
        errors.add(
            root.key("services").index(index).key("name"),
            format!("the name {name:?} is taken by an earlier service; names must be unique"),
        );
    }
    for (index, name) in duplicates(model.interfaces.iter().map(|i| i.name.as_str())) {
        errors.add(
            root.key("interfaces").index(index).key("name"),
            format!("interface {name:?} is listed twice; remove one"),
        );
    }
}

fn backends(pool: &Pool, path: &Path, errors: &Errors) {
    let path = path.key("backends");
    for (index, name) in duplicates(pool.backends.iter().map(|b| b.name.as_str())) {
        errors.add(
            path.index(index).key("name"),
            format!("the name {name:?} is taken by an earlier backend of this pool"),
        );
    }
    let mut seen = HashMap::new();
    for (index, backend) in pool.backends.iter().enumerate() {
        if let Some(earlier) = seen.insert((backend.address, backend.port), &backend.name) {
            errors.add(
                path.index(index),
                format!(
                    "has the same address and port as {earlier:?}; for a larger share give one \
                     backend more weight"
                ),
            );
        }
    }
}

fn no_pool(model: &Model, service: &Service, path: &Path, errors: &Errors) {
    let known: Vec<&str> = model.pools.keys().map(String::as_str).collect();
    let hint = match nearest(&service.pool, &known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "define it under `pools`".into(),
    };
    errors.add(
        path.key("pool"),
        format!("there is no pool {:?}; {hint}", service.pool),
    );
}

fn service_and_pool(
    service: &Service,
    (pool_name, pool): (&str, &Pool),
    path: &Path,
    errors: &Errors,
) {
    let single_port = match service.ports.ranges() {
        [(first, last)] if first == last => Some(*first),
        _ => None,
    };
    let some_port_open = pool.backends.iter().any(|backend| backend.port.is_none());
    if single_port.is_none()
        && some_port_open
        && pool.health.iter().any(|c| {
            c.port.is_none() && c.kind.own_port().is_none() && !c.kind.is_of_the_whole_server()
        })
    {
        errors.add(
            path.key("pool"),
            format!(
                "the service has several ports, and a health check of pool {pool_name:?} doesn't \
                 say which to check; give the check a `port`"
            ),
        );
    }
    probe_path::check(service, pool, path, errors);
    for backend in &pool.backends {
        let (name, address) = (&backend.name, backend.address);
        let at_pool = || path.key("pool");
        let is_tunnel = service.forwarding.is_tunnel();
        if address.is_ipv4() != service.address.is_ipv4() && !is_tunnel {
            errors.add(
                at_pool(),
                format!(
                    "backend {name:?} ({address}) and the service's address {} are not of the \
                     same family, and {} doesn't translate between them; use a pool of the \
                     service's family, or ipip or gue",
                    service.address, service.forwarding
                ),
            );
        }
        if address == service.address {
            errors.add(
                at_pool(),
                format!(
                    "backend {name:?} has the service's own address {address}; give the \
                     server's own address, not the VIP"
                ),
            );
        }
        match (service.forwarding, backend.port) {
            (
                method @ (ForwardingMethod::L2Dsr | ForwardingMethod::Ipip | ForwardingMethod::Gue),
                Some(port),
            ) if single_port != Some(port) => errors.add(
                at_pool(),
                format!(
                    "backend {name:?} has port {port}, but {method} doesn't rewrite ports; leave \
                     the backend's port out, or use nat"
                ),
            ),
            // Under full NAT a reply's destination tells which port it was.
            (ForwardingMethod::Nat, Some(port)) if single_port.is_none() => errors.add(
                at_pool(),
                format!(
                    "backend {name:?} has the fixed port {port}, but the service has several: \
                     which one a reply belongs to would be ambiguous; leave the backend's port \
                     out, make a service for each port, or use full-nat"
                ),
            ),
            _ => {}
        }
    }
}

fn overlaps(model: &Model, errors: &Errors) {
    let mut earlier: HashMap<(IpAddr, Protocol), Vec<&Service>> = HashMap::new();
    for (index, service) in model.services.iter().enumerate() {
        let same = earlier
            .entry((service.address, service.protocol))
            .or_default();
        for other in same.iter() {
            if let Some(port) = common_port(service.ports.ranges(), other.ports.ranges()) {
                errors.add(
                    Path::default().key("services").index(index).key("port"),
                    format!(
                        "{} {} port {port} belongs to both {:?} and {:?}; a packet can have one \
                         service only",
                        service.address, service.protocol, other.name, service.name
                    ),
                );
            }
        }
        same.push(service);
    }
}

/// A backend takes no packet that seems to come from itself, and a VIP's
/// packets come from clients alone.
fn tunnel_sources(model: &Model, errors: &Errors) {
    let tunnel = &model.dataplane.tunnel;
    let path = Path::default().key("dataplane").key("tunnel");
    let is_source = |address: IpAddr| match address {
        IpAddr::V4(v4) => {
            let SourceBlock { address, length } = tunnel.source_v4;
            (v4.to_bits() ^ address.to_bits())
                .checked_shr(32 - u32::from(length))
                .is_none_or(|differs| differs == 0)
        }
        IpAddr::V6(v6) => {
            let SourceBlock { address, length } = tunnel.source_v6;
            (v6.to_bits() ^ address.to_bits())
                .checked_shr(128 - u32::from(length))
                .is_none_or(|differs| differs == 0)
        }
    };
    let add = |address: IpAddr, whose: String| {
        if is_source(address) {
            let (key, prefix) = match address {
                IpAddr::V4(_) => ("source_v4", tunnel.source_v4.to_string()),
                IpAddr::V6(_) => ("source_v6", tunnel.source_v6.to_string()),
            };
            errors.add(
                path.key(key),
                format!(
                    "{prefix} holds {address}, {whose}; tunnels need source addresses that \
                     neither a backend nor a VIP has"
                ),
            );
        }
    };
    for service in model.services.iter().filter(|s| s.forwarding.is_tunnel()) {
        add(
            service.address,
            format!("the address of service {:?}", service.name),
        );
        for (_, backend) in model.backends_of(service) {
            add(
                backend.address,
                format!("the address of backend {:?}", backend.name),
            );
        }
    }
}

/// The first port that is in both; both ascend.
pub(super) fn common_port(a: &[(u16, u16)], b: &[(u16, u16)]) -> Option<u16> {
    let (mut a_rest, mut b_rest) = (a, b);
    while let (Some(((a_first, a_last), a_tail)), Some(((b_first, b_last), b_tail))) =
        (a_rest.split_first(), b_rest.split_first())
    {
        if a_last < b_first {
            a_rest = a_tail;
        } else if b_last < a_first {
            b_rest = b_tail;
        } else {
            return Some(*a_first.max(b_first));
        }
    }
    None
}

fn capacities(model: &Model, errors: &Errors) {
    let size = &model.dataplane;
    let members: u64 = model
        .services
        .iter()
        .map(|service| model.backends_of(service).count() as u64)
        .sum();
    let listed = |s: &Service| scheduler::list_slots(model.listed(s));
    let slots: u64 = model
        .services
        .iter()
        .map(|s| u64::from(s.table_size) + u64::from(listed(s)))
        .sum();
    for (key, limit, needed, what) in [
        (
            "max_services",
            size.max_services,
            model.services.len() as u64,
            "services",
        ),
        (
            "max_members",
            size.max_members,
            members,
            "pairs of service and backend",
        ),
        (
            "max_slots",
            size.max_slots,
            slots,
            "table slots (`table_size` of all services)",
        ),
    ] {
        if needed > u64::from(limit) {
            errors.add(
                Path::default().key("dataplane").key(key),
                format!("the file has {needed} {what}, {key} is {limit}; raise {key}"),
            );
        }
    }
}

/// Full NAT's addresses: nobody else's, and enough of them.
fn full_nat(model: &Model, errors: &Errors) {
    let root = Path::default().key("full_nat");
    let addresses = model.full_nat.iter().flat_map(|pool| &pool.addresses);
    let mut seen = HashSet::new();
    for (index, address) in addresses.enumerate() {
        let path = root.key("addresses").index(index);
        if !seen.insert(address) {
            errors.add(path, format!("{address} is listed twice; remove one"));
            continue;
        }
        if let Some(service) = model.services.iter().find(|s| s.address == *address) {
            errors.add(
                path.clone(),
                format!(
                    "{address} is the address of service {:?}; full NAT needs addresses of its own",
                    service.name
                ),
            );
        }
        for (name, pool) in &model.pools {
            if let Some(backend) = pool.backends.iter().find(|b| b.address == *address) {
                errors.add(
                    path.clone(),
                    format!(
                        "{address} is backend {:?} of pool {name:?}; full NAT needs addresses that \
                         nobody else has",
                        backend.name
                    ),
                );
            }
        }
    }
    if let Some(pool) = &model.full_nat {
        let needed = pool.addresses.len() as u64 * u64::from(pool.ports());
        let limit = model.dataplane.max_bindings;
        if needed > u64::from(limit) {
            errors.add(
                root.key("addresses"),
                format!(
                    "{} addresses with {} ports each are {needed}, dataplane.max_bindings is {limit}; \
                     raise max_bindings (at most 1048575), or give fewer addresses or ports",
                    pool.addresses.len(),
                    pool.ports()
                ),
            );
        }
    }
    for (index, service) in model.services.iter().enumerate() {
        let is_served = model.full_nat.iter().any(|pool| {
            pool.addresses
                .iter()
                .any(|a| a.is_ipv4() == service.address.is_ipv4())
        });
        if service.forwarding == ForwardingMethod::FullNat && !is_served {
            errors.add(
                Path::default()
                    .key("services")
                    .index(index)
                    .key("forwarding"),
                format!(
                    "full-nat needs an address to send from: give one of {} under \
                     `full_nat: {{addresses: [...]}}`",
                    if service.address.is_ipv4() {
                        "IPv4"
                    } else {
                        "IPv6"
                    }
                ),
            );
        }
    }
}

/// `port` needs that a backend's address, port and protocol belong to one
/// service, and to the one whose port they are.
fn decide_replies(model: &mut Model, asked: &[Option<Replies>], errors: &Errors) {
    // For each service with a shared backend, the name of one that shares it.
    let mut shared: HashMap<usize, String> = HashMap::new();
    for (a, b) in shared::pairs(model) {
        if let (Some(one), Some(other)) = (model.services.get(a), model.services.get(b)) {
            shared.entry(a).or_insert_with(|| other.name.clone());
            shared.entry(b).or_insert_with(|| one.name.clone());
        }
    }
    for (index, (service, asked)) in model.services.iter_mut().zip(asked).enumerate() {
        let path = Path::default().key("services").index(index).key("replies");
        if service.forwarding != ForwardingMethod::Nat {
            if asked.is_some() {
                let why = match service.forwarding {
                    ForwardingMethod::FullNat => "a reply's destination tells its flow",
                    _ => "replies don't pass here",
                };
                errors.add(
                    path,
                    format!("is for nat; with {} {why}: remove it", service.forwarding),
                );
            }
            continue;
        }
        let has_range = service
            .ports
            .ranges()
            .iter()
            .any(|(first, last)| first != last);
        let why_flow = match shared.get(&index) {
            _ if has_range => Some("the service has a range of ports".to_owned()),
            Some(other) => Some(format!("service {other:?} uses the same backend and port")),
            None => None,
        };
        service.replies = match (asked, why_flow) {
            (Some(Replies::Port), Some(why)) => {
                errors.add(
                    path,
                    format!("`port` is impossible here: {why}; use auto or flow"),
                );
                Replies::Flow
            }
            (Some(asked), _) => *asked,
            (None, Some(_)) => Replies::Flow,
            (None, None) => Replies::Port,
        };
    }
}

impl Ports {
    /// The ports as ranges; `any` is one of them all.
    pub(super) fn ranges(&self) -> &[(u16, u16)] {
        match self {
            Self::Any => &[(0, u16::MAX)],
            Self::Ranges(ranges) => ranges,
        }
    }
}
