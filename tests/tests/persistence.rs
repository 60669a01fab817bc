//! Persistence by source with real clients and servers: HTTP and HTTPS of one
//! shop, through changes of the pool, a crash and a drain.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    process::wait_ok,
    servers,
    site::{LIST, Site, family},
    topology::{Kind, Options},
};
use serde_json::Value;

/// Clients of each family, with an address each.
const CLIENTS: u8 = 12;

/// Server that each client has.
type Homes = BTreeMap<IpAddr, String>;

fn site(kind: Kind) -> Result<Site> {
    let options = Options {
        backends: 4,
        ..Options::default()
    };
    let site = Site::echo(kind, &options, |config| {
        for pool in &mut config.pools {
            pool.backends.truncate(3);
        }
        // Two services of each family, a port each.
        let mut services = vec![];
        for service in config.services.drain(..) {
            for (name, port) in [("http", LIST[0]), ("https", LIST[1])] {
                let mut service = service.clone();
                service.name = service.name.replace("list", name);
                service.port = port.to_string();
                service.extra = vec!["persistence: {by: source, group: shop}".into()];
                services.push(service);
            }
        }
        config.services = services;
    })?;
    let batch: String = clients()
        .iter()
        .map(|client| {
            let bits = if client.is_ipv4() { "24" } else { "64 nodad" };
            let (bits, rest) = bits.split_once(' ').unwrap_or((bits, ""));
            format!("addr add {client}/{bits} dev eth0 {rest}\n")
        })
        .collect();
    site.topology
        .client
        .ns
        .feed(&["ip", "-batch", "-"], &batch)?;
    Ok(site)
}

fn clients() -> Vec<IpAddr> {
    (0..CLIENTS)
        .flat_map(|n| {
            let v6 = format!("fd00:1::1:{n:x}").parse();
            [Some(IpAddr::from([10, 1, 0, 100 + n])), v6.ok()]
        })
        .flatten()
        .collect()
}

/// The server that answers a connection from this address.
fn ask(site: &Site, client: IpAddr, port: u16) -> Result<String> {
    let [v4, v6] = site.topology.vips();
    let vip = SocketAddr::new(if client.is_ipv4() { v4 } else { v6 }, port);
    servers::greeting(&site.topology.client.ns, client, vip)
}

/// Each client asks twice by each service: the server that it has.
fn homes(site: &Site) -> Result<Homes> {
    let mut homes = Homes::new();
    for client in clients() {
        let mut answers = vec![];
        for port in [LIST[0], LIST[1], LIST[1], LIST[0]] {
            answers.push(ask(site, client, port)?);
        }
        answers.dedup();
        ensure!(answers.len() == 1, "{client} was at {answers:?}");
        homes.insert(client, answers.swap_remove(0));
    }
    Ok(homes)
}

/// What `lbctl persistence` says.
fn listed(site: &Site, filter: &[&str]) -> Result<Homes> {
    let answer = site.daemon.ctl_json(&[&["persistence"], filter].concat())?;
    let rows = answer["sources"].as_array().context("no list")?;
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| {
            ensure!(row["group"] == "shop", "{row}");
            let source = text(&row["source"]);
            let (address, bits) = source.split_once('/').context("no prefix")?;
            let address: IpAddr = address.parse()?;
            ensure!(
                bits == if address.is_ipv4() { "32" } else { "128" },
                "{row}"
            );
            Ok((address, text(&row["backend"])))
        })
        .collect()
}

fn moved(before: &Homes, after: &Homes) -> usize {
    let moved = before
        .iter()
        .filter(|(client, home)| after.get(*client) != Some(*home));
    moved.count()
}

fn a_source_keeps_its_server(kind: Kind) -> Result<()> {
    let mut site = site(kind)?;
    let before = homes(&site)?;
    let used: BTreeMap<&String, usize> = before.values().fold(BTreeMap::new(), |mut used, home| {
        *used.entry(home).or_default() += 1;
        used
    });
    println!("{kind:?}: {used:?}");
    ensure!(used.len() == 3, "{used:?}");
    ensure!(
        listed(&site, &[])? == before,
        "lbctl persistence says otherwise"
    );

    // A table that would send many of them elsewhere.
    let vips = site.topology.vips();
    for vip in vips {
        let fourth = site.topology.pool("", vip, None).backends[3].clone();
        let pool = site.config.pool_mut(&format!("many-{}", family(vip)));
        pool.backends.push(fourth);
        pool.backends[0].weight = 1;
    }
    site.reload()?;
    for vip in vips {
        site.wait_condition(&format!("http-{}", family(vip)), "backend-4", "up")?;
    }
    let after = homes(&site)?;
    ensure!(
        after == before,
        "{} moved with the pool",
        moved(&before, &after)
    );

    site.daemon.restart()?;
    site.wait_ready()?;
    let after = homes(&site)?;
    ensure!(
        after == before,
        "{} moved by a crash",
        moved(&before, &after)
    );
    ensure!(
        listed(&site, &[])? == before,
        "a restarted daemon says otherwise"
    );

    for vip in vips {
        let backend = format!("many-{}/backend-2", family(vip));
        site.daemon.ctl(&["drain", &backend])?;
        site.wait_condition(&format!("https-{}", family(vip)), "backend-2", "draining")?;
    }
    let drained = homes(&site)?;
    for (client, home) in &before {
        let now = &drained[client];
        ensure!(
            (home == "backend-2") == (now != home),
            "{client} was at {home} and is at {now}"
        );
    }
    for vip in vips {
        let backend = format!("many-{}/backend-2", family(vip));
        site.daemon.ctl(&["clear", &backend])?;
        site.wait_condition(&format!("https-{}", family(vip)), "backend-2", "up")?;
    }
    let back = homes(&site)?;
    ensure!(back == drained, "{} moved back", moved(&drained, &back));

    let client = clients()[0].to_string();
    ensure!(listed(&site, &["--source", &client])?.len() == 1);
    let told = site.daemon.ctl(&["forget", &client, "--group", "shop"])?;
    ensure!(told.contains("its server is forgotten"), "{told}");
    ensure!(listed(&site, &["--source", &client])?.is_empty());
    ensure!(listed(&site, &["--group", "shop"])?.len() == before.len() - 1);
    let refused = site
        .daemon
        .ctl_output(&["persistence", "--group", "shpo"])?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && text.contains("shop"), "{text}");
    wait_ok("the sweep to count", Duration::from_secs(15), || {
        let status = site.daemon.ctl_json(&["status"])?["persistence"].clone();
        ensure!(
            status["sources"].as_u64() == Some(before.len() as u64 - 1)
                && status["led_total"].as_u64() > Some(100),
            "{status}"
        );
        Ok(())
    })
}

#[test]
fn a_source_keeps_its_server_under_dsr() {
    check(|| a_source_keeps_its_server(Kind::Dsr));
}

#[test]
fn a_source_keeps_its_server_under_nat() {
    check(|| a_source_keeps_its_server(Kind::NatTwoArmed));
}
