//! Backends whose kernel takes packets out of tunnels.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::ensure;
use lb_tests::{
    config::{Config, Service},
    machine::in_machine,
    servers::{self, Nginx},
    site::{RANGE, Site, WEB, any, curl, family},
    topology::{Kind, Options, Topology},
    tunnel::{self, GUE_PORT},
};

use crate::nothing_was_dropped;

/// The kernel's own tunnels lead to what the tests of the data path's rely on.
#[test]
fn backends_decapsulate_ipip_and_gue_of_all_families() {
    in_machine(|| {
        let options = Options {
            backends: 1,
            ..Options::default()
        };
        let t = Topology::new(Kind::Dsr, &options)?;
        let backend = &t.backends[0];
        tunnel::decapsulate(backend)?;
        let _web = Nginx::start(&backend.ns, &backend.name, &any([WEB]))?;
        let gue = format!("encap gue encap-sport auto encap-dport {GUE_PORT}");
        for outer in [t.balancer.v4().into(), t.balancer.v6().into()] {
            for vip in t.vips() {
                for encap in ["", &gue] {
                    let name = format!("{}-in-{}", family(vip), family(outer));
                    let kind = match (vip.is_ipv4(), outer.is_ipv4()) {
                        (true, true) => "ipip mode ipip",
                        (false, true) => "sit mode ip6ip",
                        (true, false) => "ip6tnl mode ipip6 encaplimit none",
                        (false, false) => "ip6tnl mode ip6ip6 encaplimit none",
                    };
                    let remote = backend.address(outer);
                    let kind = kind.replacen(' ', &format!(" local {outer} remote {remote} "), 1);
                    // Answers go from the backend to the balancer directly.
                    t.balancer.ns.feed(
                        &["ip", "-batch", "-"],
                        &format!(
                            "link add out type {kind} {encap}\nlink set out up\nroute add {vip} dev out\n"
                        ),
                    )?;
                    let target = SocketAddr::new(vip, WEB);
                    let pages = curl(&t.balancer.ns, target, &name, 2, false);
                    let pages = pages.map_err(|e| e.context(format!("{name} {encap}")))?;
                    let carried = t.balancer.ns.counters("out")?.tx_packets;
                    // SYN, acknowledgement, request and FIN each, at the least:
                    // the answer's acknowledgements may go with the FIN.
                    ensure!(
                        pages.len() == 2 && carried >= 8,
                        "{name} {encap}: {carried} packets in the tunnel"
                    );
                    t.balancer.ns.exec(&["ip", "link", "del", "out"])?;
                }
            }
        }
        Ok(())
    });
}

/// A service for each pair of families and each method, on ports of the echo
/// servers; that of WEB besides.
fn services(t: &Topology) -> Config {
    let mut config = Config::new("lb1");
    config.set_dataplane("max_flows", 100_000);
    config.interfaces = vec![(t.balancer.interface().name.clone(), "native".into())];
    for outer in t.vips() {
        let mut pool = t.pool(family(outer), outer, None);
        pool.extra = vec![format!(
            "health: [{{type: tcp, port: {}, interval: 3s, timeout: 3s, rise: 1, fall: 3}}]",
            RANGE.0
        )];
        config.pools.push(pool);
    }
    for vip in t.vips() {
        let mut port = RANGE.0;
        for outer in t.vips() {
            for method in ["ipip", "gue"] {
                config.services.push(Service {
                    name: format!("{method}-{}-in-{}", family(vip), family(outer)),
                    address: vip,
                    port: format!("[{port}]"),
                    protocol: "tcp".into(),
                    forwarding: method.into(),
                    pool: family(outer).into(),
                    extra: vec![],
                });
                port += 1;
            }
        }
    }
    // Real pages through one tunnel of each family.
    for (method, service) in [("ipip", 0), ("gue", 7)] {
        let service = &mut config.services[service];
        assert_eq!(service.forwarding, method);
        service.port = service.port.replace('[', &format!("[{WEB}, "));
    }
    config
}

#[test]
fn tunnelled_services_reach_backends_that_decapsulate() {
    in_machine(|| {
        let options = Options {
            backends: 2,
            ..Options::default()
        };
        let t = Topology::new(Kind::Dsr, &options)?;
        for backend in &t.backends {
            // It is among what the README says.
            let vip = format!("{}/32", t.vip4);
            backend.ns.exec(&["ip", "addr", "del", &vip, "dev", "lo"])?;
            tunnel::as_documented(backend, t.vip4)?;
        }
        let config = services(&t);
        let mut site = Site::full_in(t, |full| *full = config)?;
        let t = &site.topology;
        for service in &site.config.services {
            let ports: Vec<u16> = serde_json::from_str(&service.port)?;
            for port in ports {
                let target = SocketAddr::new(service.address, port);
                if port == WEB {
                    curl(&t.client.ns, target, &service.name, 8, false)?;
                    continue;
                }
                // An emulated processor makes few in a second.
                let mut reached = BTreeSet::new();
                let mut connections = 0;
                while reached.len() < t.backends.len() {
                    let pause = Duration::from_millis(500);
                    let report = servers::rate(&t.client.ns, target, 2, pause)?;
                    connections += report.requests;
                    reached.extend(report.per_server.into_keys());
                    ensure!(
                        report.failed == 0 && connections < 200,
                        "{}: of {connections} connections {} failed, {reached:?} served",
                        service.name,
                        report.failed
                    );
                }
                println!("{}: {connections} connections", service.name);
            }
        }
        for backend in &t.backends {
            for device in tunnel::DEVICES {
                let received = backend.ns.counters(device)?.rx_packets;
                ensure!(
                    received >= 20,
                    "{}: {received} packets came out of {device}",
                    backend.name
                );
            }
        }
        // The client, and the balancer's checks.
        let clients = [&t.client, &t.balancer].map(|h| [h.v4().to_string(), h.v6().to_string()]);
        for server in &mut site.echo {
            let peers = server.counts()?.peers;
            let seen: BTreeSet<_> = peers.into_keys().collect();
            ensure!(
                seen == clients.iter().flatten().cloned().collect(),
                "the servers saw {seen:?}"
            );
        }
        nothing_was_dropped(&site)
    });
}
