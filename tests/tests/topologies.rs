//! Real clients, real servers, the real daemon: every topology and both
//! families, TCP and UDP, native and generic mode, offloads as they occur.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    packet::{Capture, View},
    process::wait_ok,
    servers::{self, EchoServer},
    site::{self, DNS, LIST, RANGE, Site, UDP, WEB, curl, dig, ensure_shares, family},
    topology::{Kind, Offloads, Options},
};

const SOON: Duration = Duration::from_secs(10);

/// Requests of each kind that are compared one by one with the servers' logs.
const REQUESTS: usize = 60;

/// A site of three backends, the last with half a share.
fn start(kind: Kind, offloads: Offloads, xdp: &str) -> Result<Site> {
    let options = Options {
        backends: 3,
        offloads,
    };
    Site::full(kind, &options, |config| {
        config.set_xdp(xdp);
        for pool in &mut config.pools {
            pool.backends[2].weight = 50;
        }
    })
}

/// All of it in one topology.
fn everything_is_balanced(kind: Kind, offloads: Offloads, xdp: &str) -> Result<()> {
    let mut site = start(kind, offloads, xdp)?;
    every_interface_is(&site, xdp)?;
    pages(&site, REQUESTS)?;
    connections(&mut site)?;
    list_and_range(&site)?;
    datagrams(&mut site)?;
    nothing_was_dropped(&site)
}

fn every_interface_is(site: &Site, mode: &str) -> Result<()> {
    let status = site.daemon.ctl_json(&["status"])?;
    let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
    ensure!(
        interfaces.len() == site.topology.balancer.interfaces.len(),
        "interfaces: {interfaces:?}"
    );
    for interface in interfaces {
        ensure!(interface["mode"] == mode, "not {mode}: {interface}");
    }
    Ok(())
}

/// nginx and curl: what the client saw is what the servers logged, page by
/// page.
fn pages(site: &Site, count: usize) -> Result<()> {
    let t = &site.topology;
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for vip in t.vips() {
        let target = SocketAddr::new(vip, WEB);
        for keep_alive in [false, true] {
            let kind = if keep_alive { "kept" } else { "one" };
            let name = format!("{kind}-{}", family(vip));
            let fetched = curl(&t.client.ns, target, &name, count, keep_alive)?;
            let connects: usize = fetched.iter().map(|f| f.connects as usize).sum();
            let expected = if keep_alive { 1 } else { count };
            ensure!(
                connects == expected,
                "{name}: {connects} connections for {count} pages, not {expected}"
            );
            if keep_alive {
                ensure!(
                    fetched.iter().all(|f| f.server == fetched[0].server),
                    "{name}: a connection changed its server: {fetched:?}"
                );
            }
            seen.extend(fetched.into_iter().map(|f| (f.id, f.server)));
        }
    }
    ensure!(
        seen.len() == 4 * count,
        "{} pages were answered",
        seen.len()
    );
    wait_ok("the servers' logs to agree", SOON, || {
        let mut logged: BTreeMap<String, String> = BTreeMap::new();
        for (backend, web) in t.backends.iter().zip(&site.web) {
            for line in web.access_log()? {
                // Health checks of a TCP port send no request.
                ensure!(line.status == 200, "{}: {line:?}", backend.name);
                // Neither method hides the client.
                let clients = [t.client.v4().to_string(), t.client.v6().to_string()];
                ensure!(
                    clients.contains(&line.peer),
                    "{} saw {} as the client, not one of {clients:?}",
                    backend.name,
                    line.peer
                );
                let other = logged.insert(line.id.clone(), backend.name.clone());
                ensure!(other.is_none(), "{} was served twice: {other:?}", line.id);
            }
        }
        ensure!(
            logged == seen,
            "the clients saw {} pages, the servers logged {}",
            seen.len(),
            logged.len()
        );
        Ok(())
    })
}

/// Thousands of connections in the shares of the weights.
fn connections(site: &mut Site) -> Result<()> {
    let before = accepted(&mut site.echo, &site.topology.client)?;
    let mut made = 0;
    for vip in site.topology.vips() {
        let target = SocketAddr::new(vip, LIST[0]);
        let report = servers::rate(&site.topology.client.ns, target, 8, Duration::from_secs(1))?;
        ensure!(
            report.failed == 0 && report.requests >= 100,
            "{target}: {report:?}"
        );
        made += report.requests;
        let shares = site.shares(&format!("list-{}", family(vip)))?;
        for (name, share) in [("backend-1", 0.4), ("backend-2", 0.4), ("backend-3", 0.2)] {
            let slots = shares.get(name).copied().unwrap_or_default();
            ensure!(
                (slots - share).abs() < 0.002,
                "{name} has {slots} of the slots"
            );
        }
        ensure_shares(&format!("TCP {target}"), &report.per_server, &shares)?;
    }
    let after = accepted(&mut site.echo, &site.topology.client)?;
    ensure!(
        after - before == made,
        "the client made {made} connections, the servers accepted {}",
        after - before
    );
    Ok(())
}

/// Connections that the echo servers accepted from the client: health checks
/// come from the balancer.
fn accepted(echo: &mut [EchoServer], client: &lb_tests::topology::Host) -> Result<u64> {
    let clients = [client.v4().to_string(), client.v6().to_string()];
    let mut all = 0;
    for server in echo {
        let peers = server.counts()?.peers;
        all += clients.iter().filter_map(|c| peers.get(c)).sum::<u64>();
    }
    Ok(all)
}

/// Every port of a list, the ends of a range, and none beside them.
fn list_and_range(site: &Site) -> Result<()> {
    let t = &site.topology;
    for vip in t.vips() {
        for port in [LIST[0], LIST[1], RANGE.0, (RANGE.0 + RANGE.1) / 2, RANGE.1] {
            let target = SocketAddr::new(vip, port);
            let report = servers::rate(&t.client.ns, target, 2, Duration::from_millis(100))?;
            ensure!(
                report.failed == 0 && report.requests > 0,
                "{target}: {report:?}"
            );
        }
    }
    Ok(())
}

fn datagrams(site: &mut Site) -> Result<()> {
    let before = answered(&mut site.echo)?;
    let mut answers = 0;
    for vip in site.topology.vips() {
        // Each query has a port of its own.
        let mut per_server = BTreeMap::new();
        for _ in 0..20 {
            *per_server
                .entry(dig(&site.topology.client.ns, vip)?)
                .or_default() += 1;
            answers += 1;
        }
        let shares = site.shares(&format!("dns-{}", family(vip)))?;
        ensure_shares(&format!("dig @{vip}"), &per_server, &shares)?;
        ensure!(
            per_server.len() > 1,
            "one server had all queries: {per_server:?}"
        );
    }
    let after = answered(&mut site.echo)?;
    ensure!(
        after - before == answers,
        "the client has {answers} answers, the servers gave {}",
        after - before
    );
    Ok(())
}

fn answered(echo: &mut [EchoServer]) -> Result<u64> {
    echo.iter_mut().map(|s| Ok(s.counts()?.datagrams)).sum()
}

fn nothing_was_dropped(site: &Site) -> Result<()> {
    let drops = site.drops()?;
    ensure!(drops.is_empty(), "dropped: {drops:?}");
    Ok(())
}

macro_rules! topology {
    ($name:ident: $kind:ident, $offloads:ident, $mode:literal) => {
        #[test]
        fn $name() {
            check(|| everything_is_balanced(Kind::$kind, Offloads::$offloads, $mode));
        }
    };
}

topology!(dsr_native: Dsr, Off, "native");
topology!(nat_two_armed_native: NatTwoArmed, Off, "native");
topology!(nat_one_armed_native: NatOneArmed, Off, "native");
topology!(nat_flat_one_armed_native: NatFlatOneArmed, Off, "native");
topology!(nat_bridged_native: NatBridged, Off, "native");
topology!(dsr_generic: Dsr, Off, "generic");
topology!(nat_two_armed_generic: NatTwoArmed, Off, "generic");
topology!(nat_one_armed_generic: NatOneArmed, Off, "generic");
topology!(nat_flat_one_armed_generic: NatFlatOneArmed, Off, "generic");
topology!(nat_bridged_generic: NatBridged, Off, "generic");
topology!(dsr_native_with_a_nics_offloads: Dsr, Wire, "native");
topology!(nat_two_armed_native_with_a_nics_offloads: NatTwoArmed, Wire, "native");
topology!(nat_one_armed_native_with_a_nics_offloads: NatOneArmed, Wire, "native");
topology!(dsr_generic_with_all_offloads: Dsr, On, "generic");

/// Between containers a sender leaves the checksum to a NIC that isn't there,
/// and the kernel forgets that when it makes an XDP frame of the packet: it
/// arrives with half a checksum, and the server drops it. The daemon says so
/// at its start.
#[test]
fn native_mode_with_an_unfinished_checksum_fails_as_documented() {
    check(|| {
        let site = start(Kind::Dsr, Offloads::On, "native")?;
        let t = &site.topology;
        let log = site.daemon.log();
        ensure!(
            log.contains("veth in native mode") && log.contains("tx-checksumming off"),
            "the daemon did not warn of the veth:\n{log}"
        );
        for vip in t.vips() {
            let target = SocketAddr::new(vip, LIST[0]);
            let report = servers::rate(&t.client.ns, target, 2, Duration::from_millis(200))?;
            ensure!(report.requests == 0, "{target}: {report:?}");
        }
        let mut errors = 0;
        for backend in &t.backends {
            let text = backend.ns.exec(&["nstat", "-asz", "TcpInCsumErrors"])?;
            errors += text
                .lines()
                .filter_map(|l| l.strip_prefix("TcpInCsumErrors")?.split_whitespace().next())
                .filter_map(|n| n.parse::<u64>().ok())
                .sum::<u64>();
        }
        ensure!(errors > 0, "no server saw a wrong checksum");
        // The remedy that the warning names.
        for port in &t.balancer_ports {
            port.ns
                .exec(&["ethtool", "-K", &port.interface, "tx-checksumming", "off"])?;
        }
        for vip in t.vips() {
            let target = SocketAddr::new(vip, LIST[0]);
            let report = servers::rate(&t.client.ns, target, 2, Duration::from_millis(200))?;
            ensure!(
                report.requests > 0 && report.failed == 0,
                "{target}: {report:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn under_dsr_replies_do_not_cross_the_balancer() {
    check(|| {
        let site = start(Kind::Dsr, Offloads::Off, "native")?;
        let t = &site.topology;
        let port = &t.balancer_ports[0];
        let vips = t.vips();
        // Health checks and their answers are the balancer's own.
        let own = vips.map(|vip| t.balancer.address(vip));
        // One filter both ways, so that silence proves something.
        let capture = |of: fn((IpAddr, IpAddr)) -> (IpAddr, IpAddr)| {
            Capture::start(&port.ns, &port.interface, move |frame| {
                View::parse(&frame.bytes).is_ok_and(|view| {
                    view.protocol == lb_tests::packet::protocol::TCP
                        && view
                            .addresses()
                            .map(of)
                            .is_some_and(|(vip, peer)| vips.contains(&vip) && !own.contains(&peer))
                })
            })
        };
        let from_vip = capture(|(source, to)| (source, to))?;
        let to_vip = capture(|(source, to)| (to, source))?;
        pages(&site, 20)?;
        let (replies, requests) = (from_vip.stop()?, to_vip.stop()?);
        println!("{requests} packets to the VIPs at the balancer, {replies} from them");
        ensure!(requests > 80 * 4, "only {requests} packets to the VIPs");
        ensure!(replies == 0, "{replies} replies crossed the balancer");
        Ok(())
    });
}

#[test]
fn vips_live_in_the_data_path_alone() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = start(kind, Offloads::Off, "native")?;
            let t = &site.topology;
            let addresses = t.balancer.ns.exec(&["ip", "-o", "addr"])?;
            let router = &t.router.ns;
            router.exec(&["ip", "neigh", "flush", "dev", "eth1"])?;
            for vip in t.vips() {
                ensure!(
                    !addresses.contains(&format!(" {vip}/")),
                    "the kernel has the VIP:\n{addresses}"
                );
                let vip = vip.to_string();
                for from in [&t.client.ns, router] {
                    from.exec(&["ping", "-c3", "-i0.1", "-W2", &vip])?;
                }
                let neighbour = router.exec(&["ip", "neigh", "show", &vip, "dev", "eth1"])?;
                let mac = t.balancer.interface().mac.to_string();
                ensure!(
                    neighbour.contains(&mac),
                    "{kind:?}: the router has {neighbour:?} for {vip}, not {mac}"
                );
            }
            wait_ok("the answers to be counted", SOON, || {
                let events = site.daemon.ctl_json(&["status"])?["events"].clone();
                let services = site.daemon.ctl_json(&["services"])?;
                let count = |name: &str| -> u64 {
                    let rows = services.as_array().into_iter().flatten();
                    rows.map(|s| &s["events"])
                        .chain([&events])
                        .filter_map(|e| e[name].as_u64())
                        .sum()
                };
                for (name, least) in [
                    ("arp_reply", 1),
                    ("neighbour_advertisement", 1),
                    ("echo_reply", 12),
                ] {
                    ensure!(count(name) >= least, "{name}: {} of {least}", count(name));
                }
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn any_port_of_udp_is_balanced_and_replies_are_told_apart_by_flow() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let options = Options::default();
            let mut site = Site::full(kind, &options, |config| {
                for service in &mut config.services {
                    if service.protocol == "udp" {
                        service.port = "any".into();
                    }
                }
            })?;
            let before = answered(&mut site.echo)?;
            let mut answers = 0;
            for vip in site.topology.vips() {
                for port in [UDP, DNS] {
                    let target = SocketAddr::new(vip, port);
                    if port == DNS {
                        dig(&site.topology.client.ns, vip)?;
                        answers += 1;
                        continue;
                    }
                    let report = servers::udp(
                        &site.topology.client.ns,
                        target,
                        60,
                        Duration::from_millis(100),
                        Duration::from_millis(500),
                    )?;
                    ensure!(
                        report.sent > 100
                            && report.answered == report.sent
                            && report.wrong_answer == 0
                            && report.moved == 0,
                        "{kind:?} {target}: {report:?}"
                    );
                    ensure!(report.per_server.len() == 3, "{report:?}");
                    answers += report.answered;
                }
            }
            let after = answered(&mut site.echo)?;
            ensure!(
                after - before == answers,
                "{answers} answers, {} given",
                after - before
            );
            nothing_was_dropped(&site)?;
        }
        Ok(())
    });
}

/// Traffic of the balancer itself, of backends to the outside, and of clients
/// to backends by their own addresses.
#[test]
fn what_is_no_services_traffic_passes_untouched() {
    check(|| {
        for kind in Kind::ALL {
            let site = start(kind, Offloads::Off, "native")?;
            let t = &site.topology;
            let _outside = EchoServer::start(
                &t.client.ns,
                "outside",
                &site::any([9000]),
                &site::any([9000]),
                &[],
            )?;
            let like = t.vips();
            for address in like {
                let outside = SocketAddr::new(t.client.address(address), 9000);
                let mut senders = vec![&t.balancer];
                senders.extend(&t.backends);
                for host in senders {
                    let report = servers::rate(&host.ns, outside, 1, Duration::from_millis(100))?;
                    ensure!(
                        report.failed == 0 && report.requests > 0,
                        "{kind:?}: {} to {outside}: {report:?}",
                        host.name
                    );
                    let report = servers::udp(
                        &host.ns,
                        outside,
                        1,
                        Duration::from_millis(20),
                        Duration::from_millis(100),
                    )?;
                    ensure!(
                        report.answered == report.sent && report.sent > 0,
                        "{kind:?}: {} to {outside}: {report:?}",
                        host.name
                    );
                }
                let direct = SocketAddr::new(t.backends[0].address(address), RANGE.0);
                let report = servers::rate(&t.client.ns, direct, 1, Duration::from_millis(100))?;
                ensure!(
                    report.failed == 0 && report.per_server.contains_key("backend-1"),
                    "{kind:?}: {direct}: {report:?}"
                );
            }
            nothing_was_dropped(&site)?;
        }
        Ok(())
    });
}
