//! What the file says of the network around a service, and what can't work in
//! it. A balancer can't see from its own configuration where its servers'
//! default route points; an operator who writes it down is told before the
//! packets are lost.

use super::{
    reader::{At, Errors, Path},
    value,
};
use crate::model::{
    Arms, ForwardingMethod, Gateway, Interface, NetworkPath, Service, Subnets, Topology,
};

/// Reads the key `topology` of a service.
pub(super) fn read(at: &At<'_>) -> Topology {
    let Some(fields) = at.fields(&["arms", "path", "subnets", "gateway"], &[]) else {
        return Topology::default();
    };
    Topology {
        arms: fields.optional("arms", |node| {
            value::choice(node, &[("one", Arms::One), ("two", Arms::Two)], &[])
        }),
        path: fields.optional("path", |node| {
            let paths = [
                ("routed", NetworkPath::Routed),
                ("bridged", NetworkPath::Bridged),
            ];
            value::choice(node, &paths, &[])
        }),
        subnets: fields.optional("subnets", |node| {
            let subnets = [("same", Subnets::Same), ("different", Subnets::Different)];
            value::choice(node, &subnets, &[])
        }),
        gateway: fields.optional("gateway", |node| {
            let gateways = [("balancer", Gateway::Balancer), ("router", Gateway::Router)];
            value::choice(node, &gateways, &[])
        }),
    }
}

/// Reports what can't work.
pub(super) fn check(service: &Service, interfaces: &[Interface], path: &Path, errors: &Errors) {
    for reason in impossible(service, interfaces.len()) {
        errors.add(path.clone(), reason);
    }
}

fn impossible(service: &Service, interfaces: usize) -> Vec<&'static str> {
    let Topology {
        arms,
        path,
        subnets,
        gateway,
    } = service.topology;
    let bridged = path == Some(NetworkPath::Bridged);
    let routed = path == Some(NetworkPath::Routed);
    let is_dsr = service.forwarding == ForwardingMethod::L2Dsr;
    let rules = [
        (
            bridged && subnets == Some(Subnets::Different),
            "impossible: a bridge joins two segments of one subnet, so servers in another subnet \
             than the VIP are not behind it; use `path: routed`, or put the servers into the \
             VIP's subnet",
        ),
        (
            routed && subnets == Some(Subnets::Same) && arms == Some(Arms::Two),
            "impossible: routing between two interfaces needs a subnet on each, and here both \
             would be in the same one; use `path: bridged`, or one arm",
        ),
        (
            is_dsr && gateway == Some(Gateway::Balancer),
            "impossible: under direct server return the answers go to the clients past the \
             balancer, which holds the VIP and would drop what comes from it; the servers' default \
             route has to be the router, or use nat",
        ),
        (
            bridged && arms == Some(Arms::One) && interfaces < 2,
            "impossible: a bridge with one arm on one VLAN has nothing to bridge, and the servers' \
             answers would reach the clients past it; give it two VLANs of the interface \
             (`interfaces: [{name: eth0.10}, {name: eth0.20}]`)",
        ),
        (
            arms == Some(Arms::Two) && interfaces < 2,
            "two arms need two interfaces (or two VLANs of one), and `interfaces` lists one",
        ),
    ];
    rules
        .into_iter()
        .filter_map(|(applies, reason)| applies.then_some(reason))
        .collect()
}

/// What works, but not everywhere.
pub(super) fn warnings(service: &Service) -> Option<String> {
    let is_dsr = service.forwarding == ForwardingMethod::L2Dsr;
    (is_dsr && service.topology.subnets == Some(Subnets::Different)).then(|| {
        format!(
            "service {:?}: direct server return with the VIP in another subnet than the servers \
             works where the router has a route for the VIP to the balancer, and lets through \
             answers from an address that isn't of the servers' subnet (no strict rp_filter or \
             ingress filter there)",
            service.name
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{parse, warnings};

    fn file(forwarding: &str, interfaces: &str, topology: &str) -> String {
        format!(
            "interfaces: [{interfaces}]\n\
             pools: {{web: {{backends: [{{name: a, address: 203.0.113.11}}]}}}}\n\
             services:\n  - {{name: shop, address: 203.0.113.10, port: 80, protocol: tcp, \
             forwarding: {forwarding}, pool: web, topology: {{{topology}}}}}\n"
        )
    }

    const ONE: &str = "{name: eth0}";
    const TWO: &str = "{name: eth0}, {name: eth1}";

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (forwarding, interfaces, topology, reason) in [
            (
                "nat",
                TWO,
                "path: bridged, subnets: different",
                "a bridge joins two segments",
            ),
            (
                "nat",
                TWO,
                "path: routed, subnets: same, arms: two",
                "a subnet on each",
            ),
            ("l2-dsr", ONE, "gateway: balancer", "past the balancer"),
            ("nat", ONE, "path: bridged, arms: one", "nothing to bridge"),
            ("nat", ONE, "arms: two", "`interfaces` lists one"),
        ] {
            let errors = parse(&file(forwarding, interfaces, topology), "f.yaml")
                .map(|_| topology)
                .unwrap_err()
                .to_string();
            assert!(
                errors.starts_with("f.yaml:4:") && errors.contains("services[0].topology:"),
                "{errors}"
            );
            assert!(errors.contains(reason), "{errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
    }

    #[test]
    fn every_set_up_that_works_is_accepted() {
        for (forwarding, interfaces, topology) in [
            (
                "nat",
                TWO,
                "subnets: different, path: routed, arms: two, gateway: balancer",
            ),
            (
                "nat",
                ONE,
                "subnets: different, path: routed, arms: one, gateway: balancer",
            ),
            (
                "nat",
                ONE,
                "subnets: same, path: routed, arms: one, gateway: balancer",
            ),
            (
                "nat",
                TWO,
                "subnets: same, path: bridged, arms: two, gateway: router",
            ),
            (
                "nat",
                "{name: eth0.10}, {name: eth0.20}",
                "subnets: same, path: bridged, arms: one, gateway: router",
            ),
            (
                "l2-dsr",
                ONE,
                "subnets: same, path: routed, arms: one, gateway: router",
            ),
            ("l2-dsr", TWO, "subnets: same, arms: two, gateway: router"),
            ("nat", TWO, ""),
        ] {
            let model = parse(&file(forwarding, interfaces, topology), "f.yaml")
                .unwrap_or_else(|errors| panic!("{topology}: {errors}"));
            assert_eq!(warnings(&model), Vec::<String>::new(), "{topology}");
        }
    }

    #[test]
    fn direct_return_into_another_subnet_is_accepted_with_a_warning() {
        let model = parse(&file("l2-dsr", ONE, "subnets: different"), "f.yaml").unwrap();
        let warnings = warnings(&model);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("a route for the VIP"), "{warnings:?}");
    }

    #[test]
    fn an_unknown_word_is_reported_with_those_allowed() {
        let errors = parse(&file("nat", ONE, "path: bridge"), "f.yaml").unwrap_err();
        let text = errors.to_string();
        assert!(
            text.contains("services[0].topology.path: found \"bridge\"")
                && text.contains("routed, bridged"),
            "{text}"
        );
    }
}
