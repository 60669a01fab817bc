//! Full NAT with real clients and servers: servers whose routes don't lead
//! back through the balancer, clients in the servers' own subnet, and
//! connections that outlive reloads, crashes and the removal of an address.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    config::Config,
    held::Held,
    process::wait_ok,
    servers,
    site::{LIST, Site, WEB, curl, dig, family},
    topology::{Kind, Options},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// A sweep comes every ten seconds.
const TWO_SWEEPS: Duration = Duration::from_secs(25);

/// Connections of each family.
const CONNECTIONS: u32 = 1000;

const PORTS: u32 = 4096;

/// Addresses of the pool beside the servers.
fn pool(kind: Kind, numbers: &[u8]) -> Vec<IpAddr> {
    let net = match kind {
        Kind::NatTwoArmed | Kind::NatOneArmed => 3,
        Kind::Dsr | Kind::NatFlatOneArmed | Kind::NatBridged => 2,
    };
    numbers
        .iter()
        .flat_map(|n| {
            let v4 = IpAddr::from([10, net, 0, *n]);
            let v6 = format!("fd00:{net}::{n}").parse();
            [Ok(v4), v6]
        })
        .collect::<Result<_, _>>()
        .expect("addresses")
}

fn full_nat(addresses: &[IpAddr]) -> String {
    let list: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
    let last = 2000 + PORTS - 1;
    format!(
        "full_nat: {{addresses: [{}], ports: \"2000-{last}\"}}",
        list.join(", ")
    )
}

/// Every service under full NAT, from these addresses.
fn all_full_nat(config: &mut Config, addresses: &[IpAddr]) {
    for service in &mut config.services {
        service.forwarding = "full-nat".into();
    }
    config.extra = vec![full_nat(addresses)];
}

/// Takes the servers' way through the balancer away.
fn no_way_back(site: &Site, via: Option<(&str, &str)>) -> Result<()> {
    for backend in &site.topology.backends {
        backend.ns.exec(&["ip", "-4", "route", "del", "default"])?;
        backend.ns.exec(&["ip", "-6", "route", "del", "default"])?;
        if let Some((v4, v6)) = via {
            let batch = format!("route add default via {v4}\nroute add default via {v6}\n");
            backend.ns.feed(&["ip", "-batch", "-"], &batch)?;
        }
    }
    Ok(())
}

/// Web pages, connections and datagrams through every service, answered by
/// all servers, who see nobody but the pool.
fn everything_is_balanced(kind: Kind, via: Option<(&str, &str)>, xdp: &str) -> Result<()> {
    let addresses = pool(kind, &[200, 201]);
    let options = Options::default();
    let site = Site::full(kind, &options, |config| {
        config.set_xdp(xdp);
        all_full_nat(config, &addresses);
    })?;
    no_way_back(&site, via)?;
    let t = &site.topology;
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for vip in t.vips() {
        let target = SocketAddr::new(vip, WEB);
        for keep_alive in [false, true] {
            let name = format!("{keep_alive}-{}", family(vip));
            let pages = curl(&t.client.ns, target, &name, 30, keep_alive)?;
            seen.extend(pages.into_iter().map(|page| (page.id, page.server)));
        }
    }
    wait_ok("the servers' logs to agree", SOON, || {
        let mut logged: BTreeMap<String, String> = BTreeMap::new();
        for (backend, web) in t.backends.iter().zip(&site.web) {
            for line in web.access_log()? {
                let peer: IpAddr = line.peer.parse()?;
                ensure!(addresses.contains(&peer), "{} saw {peer}", backend.name);
                logged.insert(line.id.clone(), backend.name.clone());
            }
        }
        ensure!(logged == seen, "seen {seen:?}, logged {logged:?}");
        Ok(())
    })?;
    for vip in t.vips() {
        let target = SocketAddr::new(vip, LIST[0]);
        let report = servers::rate(&t.client.ns, target, 4, Duration::from_millis(300))?;
        ensure!(report.failed == 0 && report.requests > 50, "{report:?}");
        ensure!(report.per_server.len() == 3, "{report:?}");
        let answers: Vec<String> = (0..10)
            .map(|_| dig(&t.client.ns, vip))
            .collect::<Result<_>>()?;
        println!(
            "{vip}: {} connections, dig answered by {answers:?}",
            report.requests
        );
        let address = vip.to_string();
        t.client.ns.exec(&["ping", "-c1", "-W2", &address])?;
    }
    for address in &addresses {
        let address = address.to_string();
        t.router.ns.exec(&["ping", "-c1", "-W2", &address]).ok();
    }
    let drops = site.drops()?;
    ensure!(drops.is_empty(), "dropped: {drops:?}");
    site.reload()?;
    books_balance(&site, &addresses)
}

/// The rows of `lbctl status`, whose states are all ports of the address.
fn books(site: &Site) -> Result<BTreeMap<IpAddr, Value>> {
    let status = site.daemon.ctl_json(&["status"])?;
    let rows = status["full_nat"].as_array().cloned().unwrap_or_default();
    let mut books = BTreeMap::new();
    for row in rows {
        let address: IpAddr = row["address"].as_str().unwrap_or_default().parse()?;
        let sum: u64 = ["free", "used", "resting", "removed"]
            .iter()
            .filter_map(|state| row[state].as_u64())
            .sum();
        ensure!(sum == u64::from(PORTS), "{sum} ports: {row}");
        books.insert(address, row);
    }
    Ok(books)
}

fn books_balance(site: &Site, addresses: &[IpAddr]) -> Result<()> {
    let books = books(site)?;
    let mut wanted = addresses.to_vec();
    wanted.sort();
    let known: Vec<IpAddr> = books.keys().copied().collect();
    ensure!(known == wanted, "{known:?} are in the status");
    Ok(())
}

#[test]
fn servers_without_any_route_to_the_clients_serve_them() {
    check(|| everything_is_balanced(Kind::NatTwoArmed, None, "native"));
}

#[test]
fn servers_whose_gateway_is_the_router_answer_through_the_balancer() {
    let router = Some(("10.2.0.1", "fd00:2::1"));
    check(|| everything_is_balanced(Kind::NatFlatOneArmed, router, "native"));
}

#[test]
fn full_nat_in_generic_mode() {
    check(|| everything_is_balanced(Kind::NatTwoArmed, None, "generic"));
}

#[test]
fn a_client_in_the_servers_own_subnet_works_under_nat_where_there_is_a_pool() {
    check(|| {
        let options = Options::default();
        let mut site = Site::full(Kind::NatTwoArmed, &options, |_| {})?;
        let neighbour = site.topology.backends[2].ns.clone();
        let events = |site: &Site, name: &str| -> Result<u64> {
            let services = site.daemon.ctl_json(&["services"])?;
            let rows = services.as_array().cloned().unwrap_or_default();
            let of = |row: &Value| row["events"][name].as_u64().unwrap_or_default();
            Ok(rows.iter().map(of).sum())
        };
        let [v4, v6] = site.topology.vips();
        for vip in [v4, v6] {
            let target = SocketAddr::new(vip, LIST[0]);
            let report = servers::rate(&neighbour, target, 2, Duration::from_millis(300))?;
            println!("without a pool: {report:?}");
        }
        wait_ok("local clients to be counted", SOON, || {
            let counted = events(&site, "local_client")?;
            ensure!(counted > 0, "none was counted");
            Ok(())
        })?;

        let addresses = pool(Kind::NatTwoArmed, &[200]);
        site.config.extra = vec![full_nat(&addresses)];
        site.reload()?;
        for vip in [v4, v6] {
            let target = SocketAddr::new(vip, WEB);
            let name = format!("near-{}", family(vip));
            curl(&neighbour, target, &name, 30, false)?;
            let target = SocketAddr::new(vip, LIST[0]);
            let report = servers::rate(&neighbour, target, 2, Duration::from_millis(300))?;
            ensure!(report.failed == 0 && report.requests > 20, "{report:?}");
            dig(&neighbour, vip)?;
            // Others are seen as they are.
            curl(
                &site.topology.client.ns,
                SocketAddr::new(vip, WEB),
                "far",
                5,
                false,
            )?;
        }
        wait_ok("the servers' logs to tell who was who", SOON, || {
            for web in &site.web {
                for line in web.access_log()? {
                    let peer: IpAddr = line.peer.parse()?;
                    let is_near = line.id.starts_with("near");
                    ensure!(addresses.contains(&peer) == is_near, "{line:?}");
                }
            }
            Ok(())
        })?;
        wait_ok("bindings to be counted", SOON, || {
            let counted = events(&site, "binding_opened")?;
            ensure!(counted > 0, "no binding was opened");
            Ok(())
        })
    });
}

#[test]
fn two_thousand_connections_survive_reload_crash_and_the_removal_of_an_address() {
    check(|| {
        let kind = Kind::NatTwoArmed;
        let both = pool(kind, &[200, 201]);
        let mut site = Site::echo(kind, &Options::default(), |config| {
            all_full_nat(config, &both);
            for pool in &mut config.pools {
                pool.backends.truncate(2);
            }
        })?;
        no_way_back(&site, None)?;
        let mut held = Held::open(&site.topology, LIST[0], CONNECTIONS)?;
        held.none_lost("opening")?;
        site.reload()?;
        held.none_lost("a reload")?;
        for round in 1..=3 {
            site.daemon.kill9()?;
            held.none_lost("a crash")?;
            site.daemon.launch()?;
            let status = site.daemon.ctl_json(&["status"])?;
            ensure!(status["adopted"] == true, "nothing was adopted: {status}");
            held.none_lost(&format!("restart {round}"))?;
        }
        let [v4, v6] = site.topology.vips();
        for vip in [v4, v6] {
            let third = site.topology.pool("", vip, None).backends[2].clone();
            let name = format!("many-{}", family(vip));
            site.config.pool_mut(&name).backends.push(third);
        }
        site.reload()?;
        held.none_lost("adding a backend")?;
        wait_ok("the books to show the connections", TWO_SWEEPS, || {
            let used: u64 = books(&site)?
                .values()
                .filter_map(|row| row["used"].as_u64())
                .sum();
            ensure!(used >= u64::from(2 * CONNECTIONS), "{used} are used");
            Ok(())
        })?;

        // The first addresses leave with connections on them, and stay for those.
        let second = &both[2..];
        site.config.extra = vec![full_nat(second)];
        site.reload()?;
        held.none_lost("removing an address")?;
        books_balance(&site, &both)?;
        for vip in [v4, v6] {
            let target = SocketAddr::new(vip, LIST[1]);
            let report = servers::rate(
                &site.topology.client.ns,
                target,
                2,
                Duration::from_millis(300),
            )?;
            ensure!(report.failed == 0 && report.requests > 20, "{report:?}");
        }
        site.daemon.kill9()?;
        site.daemon.launch()?;
        held.none_lost("a crash while an address drains")?;
        wait_ok("the books to show what drains", TWO_SWEEPS, || {
            for (address, row) in books(&site)? {
                let drains = !second.contains(&address);
                ensure!(row["draining"] == drains, "{row}");
                ensure!(
                    row["removed"].as_u64().unwrap_or_default() > 0 || !drains,
                    "{row}"
                );
            }
            Ok(())
        })?;
        let drops = site.drops()?;
        ensure!(drops.is_empty(), "dropped: {drops:?}");
        Ok(())
    });
}

#[test]
fn an_address_of_the_balancer_or_a_service_is_refused() {
    check(|| {
        let mut site = Site::echo(Kind::NatTwoArmed, &Options::default(), |_| {})?;
        let refused = |site: &Site, why: &str| -> Result<()> {
            site.daemon.write_config(&site.config)?;
            let output = site.daemon.ctl_output(&["reload"])?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && text.contains(why), "{text}");
            Ok(())
        };
        site.config.extra = vec![full_nat(&["10.3.0.1".parse()?])];
        refused(&site, "10.3.0.1 is this node's own")?;
        site.config.extra = vec![full_nat(&[site.topology.vips()[0]])];
        refused(&site, "is the address of service")?;
        site.config.extra = vec![full_nat(&pool(Kind::NatTwoArmed, &[200]))];
        site.reload()?;
        books_balance(&site, &pool(Kind::NatTwoArmed, &[200]))
    });
}
