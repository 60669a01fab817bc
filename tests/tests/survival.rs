//! Open connections outlive whatever an operator, a crash or a flood does to
//! the balancer; a dead server costs its own connections and no others.
//!
//! Lost means: reset, timed out, answered by another server, or no answer for
//! more than ten seconds.

#[path = "survival/floods.rs"]
mod floods;
#[path = "survival/start.rs"]
mod start;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    conns::UdpReport,
    held::Held,
    packet::{Flood, FloodKind, FloodOptions},
    process::wait_ok,
    servers,
    site::{self, LIST, Site, UDP, family},
    topology::Kind,
};

use start::{POOLS, start};

/// Of each family.
const CONNECTIONS: u32 = 1000;

/// SYNs a second, as many as leave two cores time for the connections.
const FLOOD_RATE: u32 = 8000;

/// Datagrams every ten milliseconds from each of forty sockets while `f` runs.
fn counting_packets(
    site: &mut Site,
    f: impl FnOnce(&mut Site) -> Result<()>,
) -> Result<Vec<UdpReport>> {
    let client = site.topology.client.ns.clone();
    let vips = site.topology.vips();
    thread::scope(|scope| {
        let probes = vips.map(|vip| {
            let client = &client;
            scope.spawn(move || {
                let target = SocketAddr::new(vip, UDP);
                let (each, all) = (Duration::from_millis(10), Duration::from_secs(4));
                servers::udp(client, target, 20, each, all)
            })
        });
        thread::sleep(Duration::from_millis(500));
        let result = f(site);
        let reports = probes
            .into_iter()
            .map(|probe| probe.join().ok().context("the probe panicked")?)
            .collect::<Result<_>>();
        result.and(reports)
    })
}

/// SIGKILL and start: the new daemon adopts what runs.
fn killed_and_restarted(site: &mut Site) -> Result<()> {
    site.daemon.kill9()?;
    // For a moment nobody is in charge.
    thread::sleep(Duration::from_millis(500));
    site.daemon.launch()?;
    let status = site.daemon.ctl_json(&["status"])?;
    ensure!(status["adopted"] == true, "nothing was adopted: {status}");
    Ok(())
}

/// Every change that must cost nothing, each followed by a look at the
/// connections.
fn changes(site: &mut Site, held: &mut Held, circumstances: &str) -> Result<()> {
    let now = |what: &str| format!("{what}{circumstances}");
    for number in 1..=5 {
        site.reload()?;
        held.none_lost(&now(&format!("reload {number}")))?;
    }

    let [v4, v6] = site.topology.vips();
    let fourth = [v4, v6].map(|vip| site.topology.pool("", vip, None).backends[3].clone());
    for (pool, backend) in POOLS.iter().zip(fourth) {
        site.config.pool_mut(pool).backends.push(backend);
    }
    site.reload()?;
    for service in ["list-v4", "list-v6"] {
        let row = site.wait_condition(service, "backend-4", "up")?;
        ensure!(row["slots"].as_u64() > Some(0), "no slots: {row}");
    }
    held.none_lost(&now("adding a backend"))?;

    for pool in POOLS {
        site.daemon.ctl(&["drain", &format!("{pool}/backend-1")])?;
    }
    site.wait_condition("list-v4", "backend-1", "draining")?;
    held.none_lost(&now("draining one"))?;

    for pool in POOLS {
        site.daemon
            .ctl(&["weight", &format!("{pool}/backend-2"), "20"])?;
    }
    held.none_lost(&now("changing a weight by command"))?;

    for pool in POOLS {
        site.config.pool_mut(pool).backends[2].weight = 10;
    }
    site.reload()?;
    held.none_lost(&now("changing a weight by reload"))?;

    killed_and_restarted(site)?;
    held.none_lost(&now("a restart amid the changes"))?;

    for pool in POOLS {
        site.daemon.ctl(&["clear", &format!("{pool}/backend-1")])?;
        site.daemon.ctl(&["clear", &format!("{pool}/backend-2")])?;
        let pool = site.config.pool_mut(pool);
        pool.backends[2].weight = 100;
        pool.backends.truncate(3);
    }
    site.reload()?;
    held.none_lost(&now("taking a backend and all decisions back"))
}

fn two_thousand_connections_survive(kind: Kind) -> Result<()> {
    let mut site = start(kind, |_| ())?;
    let mut held = Held::open(&site.topology, LIST[0], CONNECTIONS)?;
    let since = Instant::now();
    held.none_lost("opening")?;

    let probes = counting_packets(&mut site, killed_and_restarted)?;
    for probe in probes {
        println!(
            "datagrams while the daemon was killed and restarted: {} sent, {} answered, {} by another server",
            probe.sent, probe.answered, probe.moved
        );
        ensure!(
            probe.sent > 1000 && probe.answered == probe.sent && probe.moved == 0,
            "{probe:?}"
        );
    }
    let drops = site.drops()?;
    ensure!(drops.is_empty(), "dropped: {drops:?}");
    held.none_lost("a killed and restarted daemon")?;

    changes(&mut site, &mut held, "")?;

    let floods = flood(&site)?;
    changes(&mut site, &mut held, " under a SYN flood")?;
    let sent: u64 = floods.into_iter().map(Flood::stop).sum::<Result<u64>>()?;
    let opened: u64 = ["list-v4", "list-v6"]
        .iter()
        .map(|s| {
            Ok(site.service(s)?["totals"]["connections"]
                .as_u64()
                .unwrap_or_default())
        })
        .sum::<Result<u64>>()?;
    println!("the flood: {sent} SYNs sent, {opened} connections counted in all");
    ensure!(sent > 50_000, "only {sent} SYNs were sent");
    held.end(since)
}

/// A flood of SYNs to each of the services that the connections use.
fn flood(site: &Site) -> Result<Vec<Flood>> {
    let t = &site.topology;
    let client = t.client.interface();
    t.vips()
        .into_iter()
        .map(|vip| {
            let options = FloodOptions {
                kind: FloodKind::Syn,
                source_mac: client.mac,
                destination_mac: t.router.interface().mac,
                target: SocketAddr::new(vip, LIST[0]),
                rate: Some(FLOOD_RATE / 2),
                duration: None,
                seed: 1,
            };
            Flood::start(&t.client.ns, &client.name, &options)
        })
        .collect()
}

#[test]
fn two_thousand_connections_survive_under_dsr() {
    check(|| two_thousand_connections_survive(Kind::Dsr));
}

#[test]
fn two_thousand_connections_survive_under_nat() {
    check(|| two_thousand_connections_survive(Kind::NatTwoArmed));
}

/// The host goes: its link first, so that nobody tells the clients.
fn a_dead_backend_costs_its_own_connections_alone(kind: Kind) -> Result<()> {
    let mut site = start(kind, |_| ())?;
    let mut held = Held::open(&site.topology, LIST[0], 300)?;
    held.none_lost("opening")?;
    let victim = 1;
    let name = site.topology.backends[victim].name.clone();
    let ns = site.topology.backends[victim].ns.clone();
    ns.exec(&["ip", "link", "set", "eth0", "down"])?;
    site.echo[victim].kill9()?;
    for service in ["list-v4", "list-v6"] {
        site.wait_condition(service, &name, "dead")?;
    }
    let reports = wait_ok(
        "the victim's connections to end",
        Duration::from_secs(30),
        || {
            let reports = held.reports()?;
            for r in &reports {
                let own = r.per_server.get(&name).copied().unwrap_or_default();
                let gone = r.lost_per_server.get(&name).copied().unwrap_or_default();
                ensure!(gone == own, "{gone} of {own}");
            }
            Ok(reports)
        },
    )?;
    for report in reports {
        println!(
            "{name} died: {:?}, by server {:?}",
            report.lost, report.lost_per_server
        );
        ensure!(report.per_server.len() == 3, "{report:?}");
        let others = report
            .lost_per_server
            .keys()
            .filter(|s| **s != name)
            .count();
        ensure!(others == 0, "others lost connections, too: {report:?}");
    }
    for vip in site.topology.vips() {
        let target = SocketAddr::new(vip, LIST[0]);
        let report = servers::rate(
            &site.topology.client.ns,
            target,
            4,
            Duration::from_millis(500),
        )?;
        ensure!(
            report.failed == 0 && report.requests > 0,
            "{target}: {report:?}"
        );
        let shares = site.shares(&format!("list-{}", family(vip)))?;
        site::ensure_shares("after the death", &report.per_server, &shares)?;
        ensure!(!report.per_server.contains_key(&name), "{report:?}");
    }
    Ok(())
}

#[test]
fn a_dead_backend_costs_its_own_connections_alone_under_dsr() {
    check(|| a_dead_backend_costs_its_own_connections_alone(Kind::Dsr));
}

#[test]
fn a_dead_backend_costs_its_own_connections_alone_under_nat() {
    check(|| a_dead_backend_costs_its_own_connections_alone(Kind::NatTwoArmed));
}
