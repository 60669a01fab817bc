//! Floods at the machine's limit: what is open stays open, and nothing grows
//! or is evicted.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    packet::{Flood, FloodKind, FloodOptions},
    process::wait_ok,
    site::{LIST, Site, family},
    topology::Kind,
};

use super::{Held, POOLS, start};

/// Of each family: 1,000 in all.
const CONNECTIONS: u32 = 500;

/// How long each flood lasts.
const LONG: Duration = Duration::from_secs(5);

/// The sweep that counts the entries runs every ten seconds.
const SWEEP: Duration = Duration::from_secs(12);

/// As many frames as the sender can make, to these VIPs: sent, and how often
/// the queue was full.
fn flood(site: &Site, kind: FloodKind, of: &[&str]) -> Result<u64> {
    let t = &site.topology;
    let client = t.client.interface();
    let floods: Vec<Flood> = t
        .vips()
        .into_iter()
        .filter(|vip| of.contains(&family(*vip)))
        .map(|vip| {
            let options = FloodOptions {
                kind,
                source_mac: client.mac,
                destination_mac: t.router.interface().mac,
                target: SocketAddr::new(vip, LIST[0]),
                rate: None,
                duration: Some(LONG),
                seed: 3,
            };
            Flood::start(&t.client.ns, &client.name, &options)
        })
        .collect::<Result<_>>()?;
    floods.into_iter().map(Flood::wait).sum()
}

/// Entries of the flow table, insertions and refusals so far.
fn table(site: &Site) -> Result<(u64, u64, u64)> {
    let table = &site.daemon.ctl_json(&["status"])?["flow_table"];
    let of = |key: &str| table[key].as_u64().unwrap_or_default();
    Ok((of("entries"), of("inserted_total"), of("refused_total")))
}

/// Packets of the service that reached a backend.
fn packets(site: &Site, service: &str) -> Result<u64> {
    Ok(site.service(service)?["totals"]["packets"]
        .as_u64()
        .unwrap_or_default())
}

fn tracked(site: &Site, service: &str) -> Result<(u64, u64)> {
    let row = site.service(service)?;
    let of = |key: &str| row[key].as_u64().unwrap_or_default();
    Ok((of("tracked_slots"), of("slots")))
}

fn a_thousand_connections_lose_nothing_under_floods(kind: Kind) -> Result<()> {
    let mut site = start(kind, |config| {
        // Little room, so that the floods fill it.
        config.set_dataplane("max_flows", 2048);
        // Floods at the machine's limit drown checks, too, and this is not
        // about what false alarms do.
        for line in config.pools.iter_mut().flat_map(|pool| &mut pool.extra) {
            assert!(line.contains("fall: 3"), "{line}");
            *line = line.replace("fall: 3", "fall: 100");
        }
    })?;
    let mut held = Held::open(&site.topology, LIST[0], CONNECTIONS)?;
    // Every slot of the IPv6 service gets another backend.
    let vip = site.topology.vips()[1];
    let fourth = site.topology.pool("", vip, None).backends[3].clone();
    site.config.pool_mut(POOLS[1]).backends.push(fourth);
    site.reload()?;
    site.wait_condition("list-v6", "backend-4", "up")?;
    for n in 1..=3 {
        site.daemon
            .ctl(&["drain", &format!("{}/backend-{n}", POOLS[1])])?;
    }
    wait_ok("all slots of one service to be tracked", SWEEP, || {
        let (all, none) = (tracked(&site, "list-v6")?, tracked(&site, "list-v4")?);
        ensure!(
            all.0 == all.1 && all.1 > 0 && none.0 == 0,
            "{all:?}, {none:?}"
        );
        Ok(())
    })?;
    held.none_lost("a change of every slot of one service")?;

    thread::sleep(SWEEP);
    let before = table(&site)?;
    let reached = packets(&site, "list-v4")?;
    let sent = flood(&site, FloodKind::Syn, &["v4"])?;
    held.none_lost("a flood of SYNs in stable slots")?;
    thread::sleep(SWEEP);
    let after = table(&site)?;
    let reached = packets(&site, "list-v4")? - reached;
    println!(
        "stable slots: {sent} SYNs sent, {reached} packets forwarded; table {before:?}, then {after:?}"
    );
    ensure!(
        sent > 5_000 && reached > sent / 10,
        "only {reached} of {sent} SYNs arrived"
    );
    ensure!(after == before, "the table changed");
    ensure!(
        before.0 >= u64::from(CONNECTIONS),
        "half of the connections have entries"
    );

    for kind in [FloodKind::Syn, FloodKind::StrayAck] {
        let before = table(&site)?;
        let sent = flood(&site, kind, &["v4", "v6"])?;
        held.none_lost(&format!("a flood of {sent} {kind:?} in all slots"))?;
        let after = table(&site)?;
        println!("all slots: {sent} {kind:?} sent; table {before:?}, then {after:?}");
        ensure!(sent > 5_000, "only {sent} were sent");
        ensure!(after.2 > before.2, "the table was never full");
    }
    // Nobody was evicted: entries expire, and a flow without one would have
    // gone to the new backend, which doesn't know it.
    thread::sleep(SWEEP);
    held.none_lost("all floods")?;
    let stable = tracked(&site, "list-v4")?;
    ensure!(stable.0 == 0, "{stable:?}");
    Ok(())
}

#[test]
fn a_thousand_connections_lose_nothing_under_floods_with_dsr() {
    check(|| a_thousand_connections_lose_nothing_under_floods(Kind::Dsr));
}

#[test]
fn a_thousand_connections_lose_nothing_under_floods_with_nat() {
    check(|| a_thousand_connections_lose_nothing_under_floods(Kind::NatTwoArmed));
}
