//! Real clients and servers through tunnels: every pair of families, IPIP and
//! GUE, both modes of XDP. The servers' ends of the tunnels are the harness's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    config::Config,
    decapsulator::{Decapsulator, Found},
    packet::{Packet, tcp_flags},
    process::wait_ok,
    servers,
    site::{LIST, Site, WEB, curl, dig, ensure_shares, family},
    topology::{Kind, Options, Topology},
};

const REQUESTS: usize = 30;
const SOON: Duration = Duration::from_secs(10);

/// A site whose services go through tunnels to backends of their own family,
/// or of the other one (`crossed`), and the ends of the tunnels.
fn start(method: &str, xdp: &str, crossed: bool) -> Result<(Site, Vec<Decapsulator>)> {
    start_with(method, xdp, crossed, |_| {})
}

fn start_with(
    method: &str,
    xdp: &str,
    crossed: bool,
    adapt: impl FnOnce(&mut Config),
) -> Result<(Site, Vec<Decapsulator>)> {
    let topology = Topology::new(Kind::Dsr, &Options::default())?;
    let vips = topology.vips();
    let ends = topology
        .backends
        .iter()
        .map(|host| Decapsulator::start(host, &vips))
        .collect::<Result<_>>()?;
    let site = Site::full_in(topology, |config| {
        config.set_xdp(xdp);
        for service in &mut config.services {
            service.forwarding = method.into();
            if crossed {
                let (from, to) = if service.address.is_ipv4() {
                    ("-v4", "-v6")
                } else {
                    ("-v6", "-v4")
                };
                service.pool = service.pool.replace(from, to);
            }
        }
        adapt(config);
    })?;
    Ok((site, ends))
}

fn everything_is_carried(method: &str, xdp: &str, crossed: bool) -> Result<()> {
    let (site, ends) = start(method, xdp, crossed)?;
    let t = &site.topology;
    let backends: BTreeSet<String> = t.backends.iter().map(|b| b.name.clone()).collect();
    for vip in t.vips() {
        let name = format!("page-{}", family(vip));
        let target = SocketAddr::new(vip, WEB);
        let fetched = curl(&t.client.ns, target, &name, REQUESTS, false)?;
        let servers: BTreeSet<String> = fetched.into_iter().map(|f| f.server).collect();
        ensure!(servers == backends, "{target}: answered by {servers:?}");
        let kept = curl(&t.client.ns, target, &format!("kept-{name}"), 5, true)?;
        ensure!(
            kept.iter().map(|f| f.connects).sum::<u32>() == 1,
            "{kept:?}"
        );

        let target = SocketAddr::new(vip, LIST[1]);
        let report = servers::rate(&t.client.ns, target, 4, Duration::from_millis(500))?;
        ensure!(
            report.failed == 0 && report.requests > 50,
            "{target}: {report:?}"
        );
        let shares = site.shares(&format!("list-{}", family(vip)))?;
        ensure_shares(&format!("TCP {target}"), &report.per_server, &shares)?;

        let mut answers = BTreeMap::<String, u64>::new();
        for _ in 0..20 {
            *answers.entry(dig(&t.client.ns, vip)?).or_default() += 1;
        }
        ensure!(answers.len() > 1, "dig @{vip}: {answers:?}");
    }
    let drops = site.drops()?;
    ensure!(drops.is_empty(), "dropped: {drops:?}");
    for (host, end) in t.backends.iter().zip(&ends) {
        let Found {
            packets,
            sources,
            direct,
            wrong,
        } = end.found();
        ensure!(wrong.is_empty(), "{}: {wrong:#?}", host.name);
        ensure!(direct == 0, "{}: {direct} came without a tunnel", host.name);
        ensure!(packets > 100, "{}: only {packets} packets", host.name);
        let of = |v4: bool| sources.iter().filter(|s| s.is_ipv4() == v4).count();
        ensure!(
            of(true) > 20 && of(false) > 20,
            "{}: outer sources {sources:?}",
            host.name
        );
    }
    Ok(())
}

/// What a client sends that doesn't fit is dropped by name and counted; what
/// just fits gets through.
#[test]
fn the_mtu_of_the_way_to_the_backend_is_kept() {
    check(|| {
        // Nothing but the test's own packets goes through the tunnels.
        let (site, ends) = start_with("ipip", "generic", false, |config| {
            for line in config.pools.iter_mut().flat_map(|pool| &mut pool.extra) {
                *line = line.replace("type: tcp", "type: tcp, via: address");
            }
        })?;
        let t = &site.topology;
        let vip: IpAddr = t.vip4.into();
        let row = site.backend("web-v4", "backend-1")?;
        ensure!(row["next_hop"]["mtu"] == 1500, "{row}");
        for (payload, fits) in [(1440, true), (1441, false)] {
            let packet = Packet::tcp(
                SocketAddr::new(t.client.v4().into(), 40_000),
                SocketAddr::new(vip, WEB),
            )
            .flags(tcp_flags::ACK)
            .macs(t.client.interface().mac, t.router.interfaces[0].mac)
            .payload(vec![7; payload]);
            let before: u64 = ends.iter().map(|e| e.found().packets).sum();
            lb_tests::packet::send_raw(&t.client.ns, "eth0", &[packet.build()])?;
            wait_ok("the packet's fate", SOON, || {
                let now: u64 = ends.iter().map(|e| e.found().packets).sum();
                let key = ("web-v4".to_owned(), "too_big".to_owned());
                let dropped = site.drops()?.get(&key).copied().unwrap_or(0);
                ensure!(
                    (now - before, dropped) == if fits { (1, 0) } else { (0, 1) },
                    "{payload} bytes: {} arrived, {dropped} dropped",
                    now - before
                );
                Ok(())
            })?;
        }
        // A smaller MTU of a route counts at once.
        let backend = t.backends[0].v4().to_string();
        t.balancer.ns.exec(&[
            "ip",
            "route",
            "add",
            &format!("{backend}/32"),
            "dev",
            "eth0",
            "mtu",
            "1400",
        ])?;
        wait_ok("the route's MTU", SOON, || {
            let row = site.backend("web-v4", "backend-1")?;
            ensure!(row["next_hop"]["mtu"] == 1400, "{row}");
            Ok(())
        })
    });
}

#[test]
fn ipip_to_backends_of_the_same_family() {
    check(|| everything_is_carried("ipip", "generic", false));
}

#[test]
fn ipip_to_backends_of_the_other_family() {
    check(|| everything_is_carried("ipip", "native", true));
}

#[test]
fn gue_to_backends_of_the_same_family() {
    check(|| everything_is_carried("gue", "native", false));
}

#[test]
fn gue_to_backends_of_the_other_family() {
    check(|| everything_is_carried("gue", "generic", true));
}
