use super::*;
use crate::config::parse;

const SERVICE: &str = "{name: shop, address: 203.0.113.10, port: 80, protocol: PROTOCOL, \
                       forwarding: METHOD, pool: web, REST}";

/// The service with these keys; its backends have these.
fn service_of(protocol: &str, method: &str, rest: &str, backend: &str) -> Result<Service, String> {
    let service = SERVICE
        .replace("PROTOCOL", protocol)
        .replace("METHOD", method)
        .replace("REST", rest);
    let text = format!(
        "interfaces: [{{name: eth0}}]\n\
         full_nat: {{addresses: [10.0.1.200]}}\n\
         pools: {{web: {{backends: [{{name: a, address: 10.0.1.11, {backend}}}]}}}}\n\
         services: [{service}]\n"
    );
    match parse(&text, "f.yaml") {
        Ok(model) => Ok(model.services[0].clone()),
        Err(errors) => Err(errors.to_string()),
    }
}

fn service(protocol: &str, rest: &str) -> Result<Service, String> {
    service_of(protocol, "nat", rest, "weight: 1")
}

#[test]
fn full_tracking_is_taken_where_something_needs_it_and_says_why() {
    let tracking = |protocol, method, rest, backend| {
        let service = service_of(protocol, method, rest, backend);
        let service = service.unwrap_or_else(|errors| panic!("{errors}"));
        let tracking = service.balance.tracking;
        (tracking.full, tracking.reason)
    };
    assert!(!tracking("tcp", "nat", "", "weight: 1").0);
    assert!(tracking("tcp", "nat", "tracking: full", "weight: 1").0);
    for method in ["nat", "l2-dsr", "ipip", "full-nat"] {
        let scheduler = "scheduler: least-connections";
        let (full, why) = tracking("tcp", method, scheduler, "weight: 1");
        assert!(full && why.contains("least-connections"), "{method}: {why}");
        let (full, why) = tracking("tcp", method, "", "max_connections: 9");
        assert!(full && why.contains("max_connections"), "{method}: {why}");
    }
    let limits = "udp: tracked, limits: {new_flows_per_core: 9}";
    let (full, why) = tracking("udp", "nat", limits, "weight: 1");
    assert!(full && why.contains("limits"), "{why}");
    // Every SYN can be told.
    let limits = "limits: {new_flows_per_core: 9}";
    assert!(!tracking("tcp", "nat", limits, "weight: 1").0);
}

#[test]
fn a_limit_is_kept_by_eight_services_together_and_not_by_nine() {
    let file = |services: u32, backend: &str| {
        let services: Vec<_> = (1..=services)
            .map(|n| {
                format!(
                    "{{name: s{n}, address: 203.0.113.{n}, port: 80, protocol: tcp, forwarding: l2-dsr, pool: web}}"
                )
            })
            .collect();
        format!(
            "interfaces: [{{name: eth0}}]\n\
             pools: {{web: {{backends: [{{name: a, address: 10.0.1.11, {backend}}}]}}}}\n\
             services: [{}]\n",
            services.join(", ")
        )
    };
    assert!(parse(&file(8, "max_connections: 5"), "f.yaml").is_ok());
    assert!(parse(&file(9, "weight: 5"), "f.yaml").is_ok());
    let errors = parse(&file(9, "max_connections: 5"), "f.yaml").unwrap_err();
    let text = errors.to_string();
    assert!(
        text.contains("pools.web: has backends with max_connections, and 9 services; at most 8"),
        "{text}"
    );
}

#[test]
fn what_does_not_fit_together_is_refused_with_the_reason() {
    for (protocol, rest, expected) in [
        ("tcp", "udp: tracked", "udp: is for protocol udp; remove it"),
        (
            "tcp",
            "hash: source, scheduler: round-robin",
            "hash: has no meaning for scheduler round-robin; use it with maglev",
        ),
        (
            "tcp",
            "tracking: minimal, scheduler: round-robin",
            "tracking: `minimal` is impossible here: scheduler round-robin needs it; use auto or full",
        ),
        (
            "udp",
            "scheduler: round-robin",
            "udp: `stateless` is impossible under full tracking (scheduler round-robin needs it)",
        ),
        (
            "udp",
            "limits: {new_flows_per_core: 9}",
            "limits: under `udp: stateless` flows are not tracked",
        ),
        (
            "udp",
            "udp: quic, tracking: minimal, limits: {new_flows_per_source: 9}",
            "tracking: `minimal` is impossible here: limits of new flows need it",
        ),
        (
            "tcp",
            "hash: {by: source, prefix_v4: 33}",
            "prefix_v4: found `33`; allowed: a number from 1 to 32",
        ),
    ] {
        let errors = service(protocol, rest).err().unwrap_or_default();
        assert!(
            errors.contains(&format!("services[0].{expected}"))
                || errors.contains(&format!("services[0].hash.{expected}")),
            "{rest}\n  found    {errors}\n  expected {expected}"
        );
    }
}
