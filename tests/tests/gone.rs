//! What becomes of the connections of a backend that is gone.

#[path = "survival/start.rs"]
mod start;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    held::Held,
    process::wait_ok,
    site::{LIST, Site},
    topology::Kind,
};

use start::{POOLS, start};

/// Of each family.
const CONNECTIONS: u32 = 200;

const SERVICES: [&str; 2] = ["list-v4", "list-v6"];

const VICTIM: &str = "backend-2";

/// A site whose TCP services do this with a backend that is down.
fn site(kind: Kind, on_backend_down: &str, dataplane: (&str, &str)) -> Result<Site> {
    start(kind, |config| {
        config.set_dataplane(dataplane.0, dataplane.1);
        for service in config.services.iter_mut().filter(|s| s.protocol == "tcp") {
            service
                .extra
                .push(format!("on_backend_down: {on_backend_down}"));
        }
    })
}

/// Clients told by the balancer so far.
fn told(site: &Site) -> Result<u64> {
    SERVICES
        .iter()
        .map(|service| {
            Ok(site.service(service)?["events"]["reset"]
                .as_u64()
                .unwrap_or_default())
        })
        .sum()
}

/// Waits until the counters, which are read every second, say so.
fn told_at_least(site: &Site, least: u64) -> Result<u64> {
    wait_ok("the resets to be counted", Duration::from_secs(9), || {
        let told = told(site)?;
        ensure!(told >= least, "{told} of {least}");
        Ok(told)
    })
}

/// Waits until all connections of the victim are reset; none of the others is.
/// How many there were.
fn victims_are_reset(held: &mut Held) -> Result<u64> {
    let victims = wait_ok(
        "the victim's clients to be told",
        Duration::from_secs(9),
        || {
            let mut victims = 0;
            for report in held.reports()? {
                let own = report.per_server.get(VICTIM).copied().unwrap_or_default();
                let gone = report
                    .lost_per_server
                    .get(VICTIM)
                    .copied()
                    .unwrap_or_default();
                ensure!(gone == own, "{gone} of {own}: {report:?}");
                // Told, and not left to find out.
                ensure!(report.lost.reset == own, "{report:?}");
                ensure!(
                    report.lost.total() == own,
                    "others lost some, too: {report:?}"
                );
                victims += u64::from(own);
            }
            Ok(victims)
        },
    )?;
    ensure!(
        victims > u64::from(CONNECTIONS) / 4,
        "only {victims} were the victim's"
    );
    Ok(victims)
}

/// Long before `dead_after`, which is an hour.
fn clients_of_a_dead_backend_are_told_at_once(kind: Kind) -> Result<()> {
    they_are_told(site(kind, "reset", ("dead_after", "1h"))?)
}

fn they_are_told(mut site: Site) -> Result<()> {
    let mut held = Held::open(&site.topology, LIST[0], CONNECTIONS)?;
    held.none_lost("opening")?;
    ensure!(told(&site)? == 0);
    let ns = site.topology.backends[1].ns.clone();
    ns.exec(&["ip", "link", "set", "eth0", "down"])?;
    site.echo[1].kill9()?;
    for service in SERVICES {
        site.wait_condition(service, VICTIM, "dead")?;
    }
    let victims = victims_are_reset(&mut held)?;
    let told = told_at_least(&site, victims)?;
    println!("{victims} connections of a dead backend, {told} resets sent");
    let drops = site.drops()?;
    ensure!(
        drops.keys().all(|(_, reason)| reason != "backend_gone"),
        "{drops:?}"
    );
    held.reports()?;
    Ok(())
}

#[test]
fn clients_of_a_dead_backend_are_told_at_once_with_dsr() {
    check(|| clients_of_a_dead_backend_are_told_at_once(Kind::Dsr));
}

#[test]
fn clients_of_a_dead_backend_are_told_at_once_with_nat() {
    check(|| clients_of_a_dead_backend_are_told_at_once(Kind::NatTwoArmed));
}

#[test]
fn clients_of_a_dead_backend_are_told_at_once_with_full_nat() {
    check(|| {
        they_are_told(start(Kind::NatTwoArmed, |config| {
            config.set_dataplane("dead_after", "1h");
            let addresses = "addresses: [10.3.0.200, \"fd00:3::200\"]";
            config.extra = vec![format!("full_nat: {{{addresses}}}")];
            for service in config.services.iter_mut().filter(|s| s.protocol == "tcp") {
                service.forwarding = "full-nat".into();
                service.extra.push("on_backend_down: reset".into());
            }
        })?)
    });
}

/// What is still open when the drain is over goes to another server, which
/// knows nothing of it, or its client is told.
fn a_drain_ends_at_its_time_out(on_backend_down: &str) -> Result<()> {
    let mut site = site(Kind::Dsr, on_backend_down, ("drain_timeout", "6s"))?;
    let mut held = Held::open(&site.topology, LIST[0], CONNECTIONS)?;
    held.none_lost("opening")?;
    let began = Instant::now();
    for pool in POOLS {
        site.daemon.ctl(&["drain", &format!("{pool}/{VICTIM}")])?;
    }
    for service in SERVICES {
        site.wait_condition(service, VICTIM, "draining")?;
    }
    held.none_lost("the drain began")?;
    for service in SERVICES {
        site.wait_condition(service, VICTIM, "dead")?;
    }
    // The kernel's timers are never early; the daemon counts whole seconds.
    ensure!(
        began.elapsed() >= Duration::from_secs(5),
        "the drain ended too early"
    );
    let victims = victims_are_reset(&mut held)?;
    let is_told = on_backend_down == "reset";
    let told = told_at_least(&site, if is_told { victims } else { 0 })?;
    println!("{on_backend_down}: {victims} still open when the drain ended, {told} resets sent");
    ensure!(is_told || told == 0);
    // The same for one that left the configuration.
    site.config.pool_mut(POOLS[0]).backends.remove(2);
    site.config.pool_mut(POOLS[1]).backends.remove(2);
    site.reload()?;
    let began = Instant::now();
    wait_ok(
        "the removed backend's connections to end",
        Duration::from_secs(30),
        || {
            for report in held.reports()? {
                let of = |counts: &std::collections::BTreeMap<String, u32>| {
                    counts.get("backend-3").copied().unwrap_or_default()
                };
                let (own, gone) = (of(&report.per_server), of(&report.lost_per_server));
                ensure!(own > 0 && gone == own, "{gone} of {own}: {report:?}");
                ensure!(
                    !report.lost_per_server.contains_key("backend-1"),
                    "{report:?}"
                );
            }
            Ok(())
        },
    )?;
    ensure!(
        began.elapsed() >= Duration::from_secs(5),
        "the drain ended too early"
    );
    Ok(())
}

#[test]
fn what_is_open_when_a_drain_ends_moves() {
    check(|| a_drain_ends_at_its_time_out("keep"));
}

#[test]
fn clients_are_told_when_a_drain_ends() {
    check(|| a_drain_ends_at_its_time_out("reset"));
}
