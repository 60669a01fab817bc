//! Which checks a configuration asks for.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{BackendKey, CheckKey, CheckedBackend, ProbeKind, Through, Timing};
use crate::model::{Backend, Check, ForwardingMethod, Model, Pool, Ports, Protocol, Service, Via};

/// The checks of every backend in the model.
///
/// A check without a port takes the backend's; a backend without one is
/// checked at the first port of each service that uses the pool, since each of
/// them sends it clients. Where no service names a port either there is
/// nothing to connect to, and the check is left out. A check of the whole server
/// is made once.
///
/// Services that reach their backends without changing the packet are checked
/// through the VIP, unless the configuration says otherwise: each service, since
/// each may be broken by itself.
pub fn checked_backends(model: &Model) -> Vec<CheckedBackend> {
    let mut all = Vec::new();
    for (pool_name, pool) in &model.pools {
        let services: Vec<&Service> = model
            .services
            .iter()
            .filter(|service| model.pools_of(service).any(|(name, _)| name == pool_name))
            .collect();
        let kinds: Vec<ProbeKind> = kinds(pool);
        for backend in &pool.backends {
            let key = BackendKey {
                pool: pool_name.clone(),
                backend: backend.name.clone(),
            };
            let mut checks: Vec<(CheckKey, Timing)> = Vec::new();
            for (check, kind) in pool.health.iter().zip(&kinds) {
                for (target, through) in ways(check, backend, &services) {
                    let check_key = CheckKey {
                        backend: key.clone(),
                        kind: kind.clone(),
                        target,
                        through,
                    };
                    if !checks.iter().any(|(known, _)| *known == check_key) {
                        checks.push((check_key, timing(check)));
                    }
                }
            }
            all.push(CheckedBackend { key, checks });
        }
    }
    all
}

fn kinds(pool: &Pool) -> Vec<ProbeKind> {
    let kinds = pool.health.iter().map(|check| check.kind.clone().into());
    kinds.collect()
}

/// Where a check of a backend connects to, and the way there.
fn ways(
    check: &Check,
    backend: &Backend,
    services: &[&Service],
) -> Vec<(SocketAddr, Option<Through>)> {
    let (by_service, direct): (Vec<&Service>, Vec<&Service>) =
        services.iter().partition(|service| goes_by(check, service));
    let mut ways = Vec::new();
    // A service of the check's own protocol, where there is one.
    let is_alike =
        |service: &&&Service| (service.protocol == Protocol::Udp) == check.kind.is_of_datagrams();
    let alike: Vec<&Service> = by_service.iter().filter(is_alike).copied().collect();
    for service in if alike.is_empty() {
        &by_service
    } else {
        &alike
    } {
        let Some(port) = check.port.or(first_port(service)) else {
            continue;
        };
        let through = Through {
            service: service.name.clone(),
            address: backend.address,
            port: backend.port,
        };
        ways.push((SocketAddr::new(service.address, port), Some(through)));
    }
    if by_service.is_empty() || !direct.is_empty() {
        let ports = direct_ports(check, backend, &direct);
        let targets = ports.into_iter().map(|port| (backend.address, port).into());
        ways.extend(targets.map(|target| (target, None)));
    }
    ways
}

/// Whether probes for a service go by it.
fn goes_by(check: &Check, service: &Service) -> bool {
    let method = service.forwarding;
    check.kind.has_connection()
        && match check.via {
            Some(via) => via == Via::Service,
            None => method == ForwardingMethod::L2Dsr || method.is_tunnel(),
        }
}

fn direct_ports(check: &Check, backend: &Backend, services: &[&Service]) -> Vec<u16> {
    let of_services: BTreeSet<u16> = services.iter().filter_map(|s| first_port(s)).collect();
    match check.port.or(check.kind.own_port()).or(backend.port) {
        Some(port) => vec![port],
        None if check.kind.is_of_the_whole_server() => {
            vec![of_services.first().copied().unwrap_or_default()]
        }
        None => of_services.into_iter().collect(),
    }
}

fn first_port(service: &Service) -> Option<u16> {
    match &service.ports {
        Ports::Any => None,
        Ports::Ranges(ranges) => ranges.first().map(|(first, _)| *first),
    }
}

fn timing(check: &Check) -> Timing {
    Timing {
        interval: check.interval,
        timeout: check.timeout,
        slow_after: check.slow_after,
        fast_interval: check.fast_interval,
        rise: check.rise.max(1),
        fall: check.fall.max(1),
        overloaded_limit: check.overloaded_limit,
        hold_down_limit: check.hold_down_limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::parse,
        model::{CheckKind, Ping},
    };

    /// Target, service, for the first backend of the pool `web`.
    fn ways_of(check: &str, services: &str) -> Vec<String> {
        let text = format!(
            "interfaces: [{{name: eth0}}]\n\
             pools: {{web: {{backends: [{{name: a, address: 10.0.1.11}}], health: [{{{check}}}]}}}}\n\
             services: [{services}]\n"
        );
        let model = parse(&text, "f.yaml").unwrap_or_else(|e| panic!("{e}"));
        let backends = checked_backends(&model);
        assert_eq!(backends.len(), 1);
        let shown = backends[0].checks.iter().map(|(key, _)| {
            let way = key
                .through
                .as_ref()
                .map(|t| (t.service.as_str(), t.address));
            match way {
                Some((service, backend)) => format!("{} by {service} to {backend}", key.target),
                None => key.target.to_string(),
            }
        });
        shown.collect()
    }

    const DSR: &str =
        "{name: dsr, address: 10.0.0.1, port: 80, protocol: tcp, forwarding: l2-dsr, pool: web}";
    const NAT: &str =
        "{name: nat, address: 10.0.0.2, port: 81, protocol: tcp, forwarding: nat, pool: web}";
    const QUIC: &str =
        "{name: quic, address: 10.0.0.1, port: 443, protocol: udp, forwarding: l2-dsr, pool: web}";

    #[test]
    fn what_is_not_translated_is_checked_through_the_vip() {
        assert_eq!(
            ways_of("type: tcp", DSR),
            ["10.0.0.1:80 by dsr to 10.0.1.11"]
        );
        assert_eq!(ways_of("type: tcp", NAT), ["10.0.1.11:81"]);
        let both = format!("{DSR}, {NAT}");
        assert_eq!(
            ways_of("type: tcp", &both),
            ["10.0.0.1:80 by dsr to 10.0.1.11", "10.0.1.11:81"]
        );
        assert_eq!(
            ways_of("type: tcp, via: service", &both),
            [
                "10.0.0.1:80 by dsr to 10.0.1.11",
                "10.0.0.2:81 by nat to 10.0.1.11"
            ]
        );
        assert_eq!(
            ways_of("type: tcp, via: address", &both),
            ["10.0.1.11:80", "10.0.1.11:81"]
        );
        assert_eq!(
            ways_of("type: tcp, port: 8080", DSR),
            ["10.0.0.1:8080 by dsr to 10.0.1.11"]
        );
    }

    #[test]
    fn a_check_goes_by_the_services_of_its_own_protocol() {
        let both = format!("{DSR}, {QUIC}");
        assert_eq!(
            ways_of("type: tcp", &both),
            ["10.0.0.1:80 by dsr to 10.0.1.11"]
        );
        assert_eq!(
            ways_of("type: udp, send: x", &both),
            ["10.0.0.1:443 by quic to 10.0.1.11"]
        );
        // There is none of its protocol.
        assert_eq!(
            ways_of("type: tcp, port: 80", QUIC),
            ["10.0.0.1:80 by quic to 10.0.1.11"]
        );
    }

    #[test]
    fn what_concerns_the_whole_server_is_asked_of_it_once() {
        let both = format!("{DSR}, {NAT}");
        assert_eq!(ways_of("type: ping", &both), ["10.0.1.11:0"]);
        assert_eq!(
            ways_of("type: exec, command: [/bin/true]", &both),
            ["10.0.1.11:80"]
        );
        assert_eq!(
            ways_of("type: snmp, oid: 1.3.6.1", &both),
            ["10.0.1.11:161"]
        );
        assert_eq!(ways_of("type: agent, port: 9", &both), ["10.0.1.11:9"]);
        assert!(!CheckKind::Ping(Ping::default()).has_connection());
    }
}
