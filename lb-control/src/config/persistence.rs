//! Persistence by source: its keys, and what fits together.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::persist;

use super::{
    reader::{At, Errors, Fields, Path},
    value,
};
use crate::model::{Model, Persistence, Prefix, Service};

/// The key of a service that is read here.
pub(super) const KEY: &str = "persistence";

/// Entries are refreshed every 8 to 16 seconds.
const SHORTEST: Duration = Duration::from_secs(30);

const LONGEST: Duration = Duration::from_secs(86_400);

const DEFAULT: Duration = Duration::from_secs(600);

/// Reads the key, and the sources that are excepted.
pub(super) fn read(fields: &Fields<'_>) -> (Option<Persistence>, Vec<Prefix>) {
    let known = ["by", "prefix_v4", "prefix_v6", "timeout", "group", "except"];
    let Some(fields) = fields
        .get(KEY)
        .and_then(|at| at.fields(&known, &["cookie", "name"]))
    else {
        return (None, Vec::new());
    };
    let by = |node: &_| value::choice(node, &[("source", ())], &[("cookie", "")]);
    let by = fields.required("by").and_then(|at| at.read(by));
    let (prefix_v4, prefix_v6) = prefixes(&fields);
    let persistence = Persistence {
        prefix_v4,
        prefix_v6,
        timeout: fields.or("timeout", DEFAULT, value::duration(SHORTEST..=LONGEST)),
        group: fields.optional("group", value::name),
    };
    (by.map(|()| persistence), except(&fields))
}

/// Lengths of a source's prefixes: the whole address unless the file says less.
pub(super) fn prefixes(fields: &Fields<'_>) -> (u8, u8) {
    let prefix = |key, bits| {
        let bits = fields.or(key, bits, value::number(1..=bits));
        u8::try_from(bits).unwrap_or(u8::MAX)
    };
    (prefix("prefix_v4", 32), prefix("prefix_v6", 128))
}

/// Reads `except`.
pub(super) fn except(fields: &Fields<'_>) -> Vec<Prefix> {
    let items = fields.get("except").map(At::items).unwrap_or_default();
    items
        .iter()
        .filter_map(|at| at.read(value::prefix))
        .collect()
}

/// What concerns more than one value.
pub(super) fn check(model: &Model, errors: &Errors) {
    let mut groups: BTreeMap<&str, Vec<(usize, &Service)>> = BTreeMap::new();
    for (index, service) in model.services.iter().enumerate() {
        let path = Path::default().key("services").index(index);
        excepted(service, &path, errors);
        if let Some(group) = service
            .persistence
            .as_ref()
            .and_then(|p| p.group.as_deref())
        {
            groups.entry(group).or_default().push((index, service));
        }
    }
    for (group, services) in &groups {
        alike(model, group, services, errors);
    }
    numbers(model, errors);
}

fn excepted(service: &Service, path: &Path, errors: &Errors) {
    let key = if service.persistence.is_some() {
        KEY
    } else {
        "hash"
    };
    let mut seen = HashSet::new();
    for prefix in &service.balance.except {
        let path = || path.key(key).key("except");
        if prefix.address.is_ipv4() != service.address.is_ipv4() {
            errors.add(
                path(),
                format!(
                    "{prefix} and the service's address {} are not of the same family, so no packet \
                     can match; remove it",
                    service.address
                ),
            );
        }
        if !seen.insert(prefix) {
            errors.add(path(), format!("{prefix} is listed twice; remove one"));
        }
    }
}

/// The services of a group have to know sources and servers in the same way.
fn alike(model: &Model, group: &str, services: &[(usize, &Service)], errors: &Errors) {
    let Some(((_, first), others)) = services.split_first() else {
        return;
    };
    let key = |service: &Service| {
        let persistence = service.persistence.as_ref();
        persistence.map(|p| (p.prefix_v4, p.prefix_v6, p.timeout))
    };
    let mut servers: HashMap<(&str, bool), (&str, IpAddr)> = HashMap::new();
    for (index, service) in services {
        let path = Path::default().key("services").index(*index).key(KEY);
        if key(service) != key(first) {
            errors.add(
                path.key("group"),
                format!(
                    "service {:?} of group {group} has another prefix_v4, prefix_v6 or timeout; make \
                     them the same, or take one out of the group",
                    first.name
                ),
            );
        }
        for (name, backend) in model.backends_of(service) {
            let of = (backend.name.as_str(), backend.address.is_ipv4());
            let (other, address) = *servers.entry(of).or_insert((name, backend.address));
            if address != backend.address {
                errors.add(
                    path.key("group"),
                    format!(
                        "backend {:?} is {} in pool {name} and {address} in pool {other}; within group \
                         {group} a name is one server: rename one",
                        backend.name, backend.address
                    ),
                );
            }
        }
    }
    let names = |service: &Service| -> HashSet<String> {
        let backends = model.backends_of(service);
        backends.map(|(_, backend)| backend.name.clone()).collect()
    };
    for (index, service) in others {
        if names(service).is_disjoint(&names(first)) && !names(service).is_empty() {
            errors.add(
                Path::default()
                    .key("services")
                    .index(*index)
                    .key(KEY)
                    .key("group"),
                format!(
                    "pools {} and {} have no name of a backend in common, so the services of group \
                     {group} share nothing; name each server the same in both",
                    first.pool, service.pool
                ),
            );
        }
    }
}

/// Names go into the maps as numbers, of which no two may be the same.
fn numbers(model: &Model, errors: &Errors) {
    let mut groups: HashMap<u32, String> = HashMap::new();
    let mut backends: HashMap<u64, &str> = HashMap::new();
    for (index, service) in model.services.iter().enumerate() {
        let Some(persistence) = &service.persistence else {
            continue;
        };
        let path = Path::default().key("services").index(index).key(KEY);
        let name = persistence.group_name(&service.name);
        let other = groups.entry(persist::group(&name)).or_insert(name.clone());
        if *other != name {
            errors.add(
                path.clone(),
                format!("{name} and {other} can't be told apart in the maps; rename one"),
            );
        }
        for (_, backend) in model.backends_of(service) {
            let number = persist::backend(&backend.name);
            let other = backends.entry(number).or_insert(&backend.name);
            if *other != backend.name {
                errors.add(
                    path.clone(),
                    format!(
                        "backends {:?} and {other:?} can't be told apart in the maps; rename one",
                        backend.name
                    ),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    /// Two services of one pool each, with these keys and backends.
    fn file(first: &str, second: &str, backends: [&str; 2]) -> String {
        let [a, b] = backends;
        format!(
            "interfaces: [{{name: eth0}}]\n\
             pools: {{web: {{backends: [{a}]}}, tls: {{backends: [{b}]}}}}\n\
             services:\n\
             - {{name: http, address: 203.0.113.10, port: 80, protocol: tcp, forwarding: nat, pool: web, {first}}}\n\
             - {{name: https, address: 203.0.113.10, port: 443, protocol: tcp, forwarding: nat, pool: tls, {second}}}\n"
        )
    }

    const SAME: [&str; 2] = [
        "{name: a, address: 10.0.1.11, port: 80}",
        "{name: a, address: 10.0.1.11, port: 443}",
    ];

    #[test]
    fn defaults_are_the_whole_address_ten_minutes_and_no_group() {
        let text = file("persistence: {by: source}", "weight: 1", SAME).replace(", weight: 1", "");
        let model = parse(&text, "f.yaml").unwrap_or_else(|errors| panic!("{errors}"));
        let service = &model.services[0];
        let persistence = service.persistence.as_ref().unwrap();
        assert_eq!(persistence.to_string(), "source /32 /128, 600s");
        assert_eq!(persistence.group_name("http"), "service/http");
        assert!(service.balance.tracking.full);
        assert!(service.balance.tracking.reason.contains("persistence"));
        assert!(model.services[1].persistence.is_none());
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_the_reason() {
        let group = "persistence: {by: source, group: shop}";
        for (first, second, backends, expected) in [
            (
                "persistence: {}",
                group,
                SAME,
                "services[0].persistence: `by` is missing",
            ),
            (
                "persistence: {by: cookie}",
                group,
                SAME,
                "services[0].persistence.by: found \"cookie\"; not supported by this version yet",
            ),
            (
                "persistence: {by: source, timeout: 29s}",
                group,
                SAME,
                "services[0].persistence.timeout: found \"29s\"",
            ),
            (
                "persistence: {by: source, prefix_v4: 33}",
                group,
                SAME,
                "services[0].persistence.prefix_v4: found `33`; allowed: a number from 1 to 32",
            ),
            (
                "persistence: {by: source, group: shop, timeout: 1h}",
                group,
                SAME,
                "services[1].persistence.group: service \"http\" of group shop has another prefix_v4",
            ),
            (
                group,
                group,
                [SAME[0], "{name: b, address: 10.0.1.11}"],
                "services[1].persistence.group: pools web and tls have no name of a backend in common",
            ),
            (
                group,
                group,
                [SAME[0], "{name: a, address: 10.0.1.12}"],
                "services[1].persistence.group: backend \"a\" is 10.0.1.12 in pool tls and 10.0.1.11 in pool web",
            ),
            (
                "persistence: {by: source, except: [\"2001:db8::/32\"]}",
                group,
                SAME,
                "services[0].persistence.except: 2001:db8::/32 and the service's address 203.0.113.10 are not of the same family",
            ),
            (
                "hash: {by: source, except: [10.0.0.0/8, 10.0.0.0/8]}",
                group,
                SAME,
                "services[0].hash.except: 10.0.0.0/8 is listed twice",
            ),
            (
                "persistence: {by: source}, tracking: minimal",
                group,
                SAME,
                "services[0].tracking: `minimal` is impossible here: persistence by source needs it",
            ),
        ] {
            let errors = parse(&file(first, second, backends), "f.yaml")
                .unwrap_err()
                .to_string();
            assert!(
                errors.contains(expected),
                "{first}\n  found    {errors}\n  expected {expected}"
            );
        }
        let good = file(group, group, SAME);
        assert!(
            parse(&good, "f.yaml").is_ok(),
            "{:?}",
            parse(&good, "f.yaml")
        );
    }
}
