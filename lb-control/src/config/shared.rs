//! Backends that more than one service uses at the same address and port.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use super::check::common_port;
use crate::model::{Backend, ForwardingMethod, Model, Protocol, Service};

/// A service, its index, and a backend of its pool.
type User<'a> = (usize, &'a Service, &'a Backend);

/// Services by their indices, the earlier one first, that have a backend's
/// address, protocol and a port of it in common.
pub(super) fn pairs(model: &Model) -> BTreeSet<(usize, usize)> {
    let mut users: HashMap<(IpAddr, Protocol), Vec<User<'_>>> = HashMap::new();
    for (index, service) in model.services.iter().enumerate() {
        for (_, backend) in model.backends_of(service) {
            users
                .entry((backend.address, service.protocol))
                .or_default()
                .push((index, service, backend));
        }
    }
    let mut pairs = BTreeSet::new();
    for users in users.values() {
        for (position, (a, one, one_backend)) in users.iter().enumerate() {
            for (b, other, other_backend) in users.iter().skip(position + 1) {
                let own = (own_port(one_backend), own_port(other_backend));
                let ports = (ports(one, &own.0), ports(other, &own.1));
                if a != b && common_port(ports.0, ports.1).is_some() {
                    pairs.insert((*a.min(b), *a.max(b)));
                }
            }
        }
    }
    pairs
}

fn own_port(backend: &Backend) -> Vec<(u16, u16)> {
    backend.port.map(|port| (port, port)).into_iter().collect()
}

/// The ports a backend is reached at.
fn ports<'a>(service: &'a Service, own: &'a [(u16, u16)]) -> &'a [(u16, u16)] {
    if own.is_empty() {
        service.ports.ranges()
    } else {
        own
    }
}

/// Services under NAT whose clients can be in one another's way, one sentence
/// for each service that shares with an earlier one.
pub(super) fn warnings(model: &Model) -> Vec<String> {
    let has_pool = |like: IpAddr| {
        let addresses = model.full_nat.iter().flat_map(|pool| &pool.addresses);
        addresses.into_iter().any(|a| a.is_ipv4() == like.is_ipv4())
    };
    let mut told = BTreeSet::new();
    let mut all = Vec::new();
    for (a, b) in pairs(model) {
        let (Some(one), Some(other)) = (model.services.get(a), model.services.get(b)) else {
            continue;
        };
        let both_nat = [one, other]
            .iter()
            .all(|service| service.forwarding == ForwardingMethod::Nat);
        if both_nat && !has_pool(other.address) && told.insert(b) {
            let family = if other.address.is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            };
            all.push(format!(
                "services {:?} and {:?} use the same backend and port, so one client port can't be \
                 used towards both at a time (dropped as `reply_conflict`); give `full_nat` an \
                 {family} address, or the services different backend ports",
                one.name, other.name
            ));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use crate::config::{parse, warnings};

    /// Two services with the ports of their backends, and more of the file.
    fn file(methods: [&str; 2], ports: [&str; 2], more: &str) -> String {
        let [one, other] = methods;
        let [a, b] = ports;
        format!(
            "interfaces: [{{name: eth0}}]\n{more}\
             pools:\n  a: {{backends: [{{name: x, address: 10.0.1.11{a}}}]}}\n  \
             b: {{backends: [{{name: x, address: 10.0.1.11{b}}}]}}\n\
             services:\n  - {{name: one, address: 203.0.113.10, port: 80, protocol: tcp, \
             forwarding: {one}, pool: a}}\n  - {{name: two, address: 203.0.113.11, port: 80, \
             protocol: tcp, forwarding: {other}, pool: b}}\n"
        )
    }

    #[test]
    fn services_under_nat_that_share_a_backends_port_are_warned_of() {
        let full_nat = "full_nat: {addresses: [10.0.1.200]}\n";
        let of_another_family = "full_nat: {addresses: [\"fd00::1\"]}\n";
        for (methods, ports, more, is_warned) in [
            (["nat", "nat"], ["", ""], "", true),
            (["nat", "nat"], [", port: 8080", ", port: 8080"], "", true),
            (["nat", "nat"], ["", ", port: 80"], "", true),
            (["nat", "nat"], ["", ""], of_another_family, true),
            (["nat", "nat"], ["", ""], full_nat, false),
            (["nat", "nat"], ["", ", port: 8080"], "", false),
            (["nat", "full-nat"], ["", ""], full_nat, false),
            (["nat", "l2-dsr"], ["", ""], "", false),
        ] {
            let text = file(methods, ports, more);
            let model = parse(&text, "f.yaml").unwrap_or_else(|errors| panic!("{text}\n{errors}"));
            let found = warnings(&model);
            assert_eq!(found.len(), usize::from(is_warned), "{text}\n{found:?}");
            if let [warning] = &found[..] {
                assert!(
                    warning.starts_with("services \"one\" and \"two\"")
                        && warning.contains("give `full_nat` an IPv4 address"),
                    "{warning}"
                );
            }
        }
    }
}
