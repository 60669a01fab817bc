//! A balancer is killed and its peer goes on with the same connections.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    config::Config,
    held::Held,
    pair::{Method, Pair},
    process::wait_ok,
    servers,
    site::{LIST, family},
};
use serde_json::Value;

/// What is waited for comes within this.
const SOON: Duration = Duration::from_secs(10);

/// For so long after a change a SYN still goes to the server of before, in case
/// it is one that was sent again.
const SYN_WINDOW: Duration = Duration::from_secs(4);

/// Of each family, where the number doesn't matter.
const SOME: u32 = 300;

/// Of each family, before and after a change of the pools.
const HALF: u32 = 1_250;

const BACKENDS: usize = 4;

const POOLS: [&str; 2] = ["many-v4", "many-v6"];

/// The configuration of both nodes gets the fourth backend, or loses it.
fn set_pools(pair: &mut Pair, with_fourth: bool) {
    let used = if with_fourth { BACKENDS } else { BACKENDS - 1 };
    for vip in pair.topology.vips() {
        let backends = pair.topology.pool("", vip, None).backends;
        for node in &mut pair.nodes {
            let pool = node.config.pool_mut(&format!("many-{}", family(vip)));
            pool.backends = backends.iter().take(used).cloned().collect();
            // As much as the others together, so that half of the slots move.
            if let Some(fourth) = pool.backends.get_mut(BACKENDS - 1) {
                fourth.weight *= 3;
            }
        }
    }
}

/// The fourth backend is there, but not in use; and tables that are looked at fast.
fn common(config: &mut Config) {
    for name in POOLS {
        config.pool_mut(name).backends.truncate(BACKENDS - 1);
    }
    config.set_dataplane("max_flows", 65_536);
}

/// The fourth backend comes into use on both, and new connections get it from here on.
fn add_fourth(pair: &mut Pair) -> Result<()> {
    set_pools(pair, true);
    for node in &pair.nodes {
        node.reload()?;
    }
    thread::sleep(SYN_WINDOW);
    Ok(())
}

fn start(method: Method, extra: &str) -> Result<Pair> {
    Pair::start(method, BACKENDS, |_, config| {
        common(config);
        if !extra.is_empty() {
            for service in &mut config.services {
                service.extra.push(extra.into());
            }
        }
    })
}

fn count(row: &Value, direction: &str, what: &str) -> u64 {
    row[direction][what].as_u64().unwrap_or_default()
}

/// What was replicated for these connections.
fn print_figures(pair: &Pair, from: usize, connections: u32) -> Result<()> {
    let (told, heard) = (pair.replication(from)?, pair.replication(1 - from)?);
    let flows = count(&told, "sent", "flows") + count(&told, "sent", "bindings");
    let bytes = count(&told, "sent", "bytes");
    let (tracked, slots) = pair.tracked(from)?;
    println!(
        "replicated: {flows} entries of {connections} connections, {} slots ({tracked} of {slots} tracked now), \
         {bytes} bytes ({:.1} an entry), lag {} ms; taken over: {} entries, refused: {}",
        count(&told, "sent", "slots"),
        bytes as f64 / flows.max(1) as f64,
        told["lag_ms"],
        count(&heard, "received", "flows") + count(&heard, "received", "bindings"),
        count(&heard, "received", "refused"),
    );
    ensure!(count(&heard, "received", "refused") == 0, "{heard}");
    Ok(())
}

/// The active node dies, and the other one has everything.
fn kill_active(pair: &mut Pair, active: usize, held: &mut [Held], after: &str) -> Result<()> {
    pair.wait_in_sync(1 - active)?;
    pair.nodes[active].daemon.kill9()?;
    pair.wait_state(1 - active, "active")?;
    for held in held {
        held.none_lost(&format!("{after}, then SIGKILL of lb{}", active + 1))?;
    }
    Ok(())
}

/// The active node has the pools of tomorrow, and dies before it could tell.
fn killed_amid_a_reload(pair: &mut Pair, held: &mut [Held]) -> Result<()> {
    pair.wait_state(1, "active")?;
    pair.nodes[0].daemon.launch()?;
    pair.wait_state(0, "active")?;
    pair.wait_in_sync(1)?;
    for held in held.iter_mut() {
        held.none_lost("the first node came back again")?;
    }
    set_pools(pair, true);
    pair.nodes[0].reload()?;
    pair.nodes[0].daemon.kill9()?;
    pair.wait_state(1, "active")?;
    for held in held {
        held.none_lost("SIGKILL amid a reload")?;
    }
    Ok(())
}

fn five_thousand_connections_survive(method: Method) -> Result<()> {
    let mut pair = start(method, "")?;
    let since = Instant::now();
    let mut held = vec![Held::open(&pair.topology, LIST[0], HALF)?];
    // From here on new connections to slots that moved are the new backend's.
    add_fourth(&mut pair)?;
    held.push(Held::open(&pair.topology, LIST[0], HALF)?);
    for held in &mut held {
        held.none_lost("a backend was added")?;
    }
    pair.wait_in_sync(1)?;
    print_figures(&pair, 0, 4 * HALF)?;
    if method != Method::FullNat {
        let sent = count(&pair.replication(0)?, "sent", "flows");
        ensure!(sent > 0, "no entry was needed");
    }

    kill_active(&mut pair, 0, &mut held, "a change of the pools")?;
    // It comes back as a standby, is told everything, and has the higher priority.
    pair.nodes[0].daemon.launch()?;
    pair.wait_state(0, "active")?;
    pair.wait_state(1, "backup")?;
    for held in &mut held {
        held.none_lost("the first node came back")?;
    }
    // The same with the pools changed while the standby was away.
    pair.nodes[1].daemon.kill9()?;
    set_pools(&mut pair, false);
    pair.nodes[0].reload()?;
    for held in &mut held {
        held.none_lost("a backend was taken out while the standby was away")?;
    }
    let standby = &mut pair.nodes[1];
    standby.daemon.write_config(&standby.config)?;
    standby.daemon.launch()?;
    kill_active(&mut pair, 0, &mut held, "the standby's return")?;
    killed_amid_a_reload(&mut pair, &mut held)?;
    for held in held {
        held.end(since)?;
    }
    Ok(())
}

#[test]
fn five_thousand_connections_survive_under_direct_server_return() {
    check(|| five_thousand_connections_survive(Method::Dsr));
}

#[test]
fn five_thousand_connections_survive_under_nat() {
    check(|| five_thousand_connections_survive(Method::Nat));
}

#[test]
fn five_thousand_connections_survive_under_full_nat() {
    check(|| five_thousand_connections_survive(Method::FullNat));
}

/// Every flow has an entry that counts at its server, on both nodes.
#[test]
fn least_connections_go_on_with_the_same_connections_and_counts() {
    check(|| {
        let mut pair = start(Method::Dsr, "scheduler: least-connections")?;
        let mut held = vec![Held::open(&pair.topology, LIST[0], HALF)?];
        let counts = |pair: &Pair, node: usize| -> Result<Vec<u64>> {
            let rows = pair.nodes[node].daemon.ctl_json(&["backends"])?;
            let rows = rows.as_array().context("no rows")?.iter();
            let count = |row: &Value| row["concurrent"]["connections"].as_u64();
            Ok(rows.filter_map(count).collect())
        };
        let all = |node: usize| {
            wait_ok(format!("lb{} to count all", node + 1), SOON, || {
                let counts = counts(&pair, node)?;
                let sum: u64 = counts.iter().sum();
                ensure!(sum == u64::from(2 * HALF), "{sum}: {counts:?}");
                Ok(counts)
            })
        };
        let before = all(0)?;
        pair.wait_in_sync(1)?;
        print_figures(&pair, 0, 2 * HALF)?;
        let after = all(1)?;
        println!("connections by server: {before:?}, on the standby {after:?}");
        ensure!(before == after, "they differ");
        kill_active(&mut pair, 0, &mut held, "least connections")?;
        // Whoever comes now gets the server with the fewest.
        held.push(Held::open(&pair.topology, LIST[0], 90)?);
        let after = counts(&pair, 1)?;
        let (least, most) = (after.iter().min(), after.iter().max());
        ensure!(most <= least.map(|least| least + 2).as_ref(), "{after:?}");
        Ok(())
    });
}

/// What isn't acknowledged is sent again.
#[test]
fn a_peer_link_that_loses_a_twentieth_loses_no_connection() {
    check(|| {
        let mut pair = start(Method::Dsr, "")?;
        for node in &pair.nodes {
            node.host.ns.feed(
                &["nft", "-f", "-"],
                "table inet lossy {\n chain input {\n  type filter hook input priority 0;\n  \
                 udp dport 9465 numgen random mod 100 < 5 counter drop\n }\n}\n",
            )?;
        }
        let mut held = vec![Held::open(&pair.topology, LIST[0], HALF)?];
        add_fourth(&mut pair)?;
        held.push(Held::open(&pair.topology, LIST[0], HALF)?);
        pair.wait_in_sync(1)?;
        print_figures(&pair, 0, 4 * HALF)?;
        let dropped = pair.nodes[1].host.ns.exec(&["nft", "list", "ruleset"])?;
        ensure!(
            !dropped.contains("packets 0 bytes"),
            "nothing was lost: {dropped}"
        );
        kill_active(&mut pair, 0, &mut held, "a lossy peer link")
    });
}

/// Sources that came before the failover.
const SOURCES: u8 = 12;

#[test]
fn a_source_keeps_its_server_on_the_other_node() {
    check(|| {
        let mut pair = start(Method::Dsr, "persistence: {by: source, timeout: 10m}")?;
        let client = &pair.topology.client.ns.clone();
        let sources: Vec<IpAddr> = (100..100 + SOURCES).map(|n| [10, 1, 0, n].into()).collect();
        let batch: Vec<String> = sources
            .iter()
            .map(|source| format!("addr add {source}/24 dev eth0\n"))
            .collect();
        client.feed(&["ip", "-batch", "-"], &batch.concat())?;
        let target = SocketAddr::new(pair.topology.vip4.into(), LIST[0]);
        // Only a client that speaks is noted.
        let ask = || -> Result<Vec<String>> {
            let one = |source: &IpAddr| servers::greeting(client, *source, target);
            sources.iter().map(one).collect()
        };
        let before = ask()?;
        pair.wait_in_sync(1)?;
        wait_ok("the sources to be there", SOON, || {
            let taken = count(&pair.replication(1)?, "received", "sources");
            ensure!(taken >= u64::from(SOURCES), "{taken} of {SOURCES}");
            Ok(())
        })?;
        pair.nodes[0].daemon.kill9()?;
        pair.wait_state(1, "active")?;
        let after = ask()?;
        println!("before: {before:?}\nafter:  {after:?}");
        ensure!(before == after, "a source lost its server");
        Ok(())
    });
}

/// One node is active for IPv4 and the other one for IPv6, and each stands by for
/// the other.
#[test]
fn two_active_nodes_stand_by_for_each_other() {
    check(|| {
        let mut pair = Pair::launch(Method::Dsr, BACKENDS, |number, config| {
            common(config);
            config.extra.retain(|line| !line.starts_with("vrrp:"));
            let priorities = [[150, 100], [100, 150]][number];
            let vip = |is_v4: bool| {
                let mut vips = config.services.iter().map(|service| service.address);
                vips.find(|vip| vip.is_ipv4() == is_v4)
                    .expect("a service of each family")
            };
            let router = |vrid: u8, priority: u8, address: IpAddr| {
                format!(
                    "\n  - {{vrid: {vrid}, interface: eth0, priority: {priority}, \
                     advertisement_interval: 100ms, addresses: [\"{address}\"]}}"
                )
            };
            let [v4, v6] = priorities;
            let routers = router(51, v4, vip(true)) + &router(52, v6, vip(false));
            config.extra.push(format!("vrrp:{routers}"));
        })?;
        let states = [["active", "backup"], ["backup", "active"]];
        let both_active = |pair: &Pair| {
            for (node, states) in states.into_iter().enumerate() {
                pair.wait_states(node, states)?;
                pair.wait_in_sync(node)?;
            }
            anyhow::Ok(())
        };
        both_active(&pair)?;
        let mut held = vec![Held::open(&pair.topology, LIST[0], SOME)?];
        add_fourth(&mut pair)?;
        held.push(Held::open(&pair.topology, LIST[0], SOME)?);
        for (victim, heir) in [(1, 0), (0, 1)] {
            both_active(&pair)?;
            pair.nodes[victim].daemon.kill9()?;
            pair.wait_state(heir, "active")?;
            for held in &mut held {
                held.none_lost(&format!("SIGKILL of lb{}", victim + 1))?;
            }
            pair.nodes[victim].daemon.launch()?;
        }
        both_active(&pair)?;
        for held in &mut held {
            held.none_lost("both are active again")?;
        }
        Ok(())
    });
}
