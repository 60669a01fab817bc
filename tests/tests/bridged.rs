//! Balancers that are bridges, one and two in parallel; and direct server return
//! with the VIP in another subnet than the servers.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    daemon::Daemon,
    netns::Netns,
    process::wait_ok,
    servers::{self, EchoServer},
    site::{self, LIST, Site, UDP},
    topology::{Host, Kind, Options, Topology},
};

/// Spanning tree forgets a bridge after 6 s and then waits twice 2 s, with the
/// shortest times that Linux takes.
const CONVERGED_WITHIN: Duration = Duration::from_secs(40);

fn requests(from: &Netns, t: &Topology) -> Result<u64> {
    let mut answered = 0;
    for vip in t.vips() {
        let target = SocketAddr::new(vip, LIST[0]);
        let report = servers::rate(from, target, 2, Duration::from_millis(500))?;
        ensure!(
            report.failed == 0 && report.per_server.len() == t.backends.len(),
            "{target}: {report:?}"
        );
        answered += report.requests;
    }
    Ok(answered)
}

/// Requests that the servers answered; health checks make none.
fn served(echo: &mut [EchoServer]) -> Result<u64> {
    echo.iter_mut().map(|s| Ok(s.counts()?.lines)).sum()
}

/// Answers to it never reach the balancer by address: they pass by on the
/// bridge, and are translated there.
#[test]
fn a_client_in_the_servers_subnet_is_served_through_the_bridge() {
    check(|| {
        let mut site = Site::full(Kind::NatBridged, &Options::default(), |config| {
            for service in &mut config.services {
                if service.protocol == "udp" {
                    service.port = UDP.to_string();
                }
            }
        })?;
        let neighbour = site.topology.router.ns.clone();
        let before = served(&mut site.echo)?;
        let answered = requests(&neighbour, &site.topology)?;
        let served = served(&mut site.echo)? - before;
        ensure!(
            answered > 100 && served == answered,
            "{answered} answers, {served} requests served"
        );
        for vip in site.topology.vips() {
            let target = SocketAddr::new(vip, UDP);
            let interval = Duration::from_millis(20);
            let report = servers::udp(&neighbour, target, 5, interval, Duration::from_millis(300))?;
            ensure!(
                report.sent > 10 && report.answered == report.sent && report.wrong_answer == 0,
                "{target}: {report:?}"
            );
        }
        let drops = site.drops()?;
        ensure!(drops.is_empty(), "dropped: {drops:?}");
        Ok(())
    });
}

/// Puts a second balancer beside the first: the router's side becomes a bridge
/// without spanning tree, as the servers' switch is one.
fn in_parallel(t: &Topology) -> Result<Netns> {
    let outside = &t.router.interfaces[1];
    let mut batch = format!(
        "link add br1 address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set br1 up\naddr flush dev eth1\nlink set eth1 master br1\n",
        outside.mac
    );
    batch.push_str(&format!("addr add {}/24 dev br1\n", outside.v4[0]));
    batch.push_str(&format!("addr add {}/64 dev br1 nodad\n", outside.v6[0]));
    t.router.ns.feed(&["ip", "-batch", "-"], &batch)?;

    // Where they are found changes with the tree.
    for mac in [outside.mac, t.balancer.interface().mac] {
        let mac = mac.to_string();
        t.switch
            .exec(&["bridge", "fdb", "del", &mac, "dev", "balancer", "master"])?;
    }
    // Spanning tree runs before there is a loop.
    let tree = |ns: &Netns, priority: &str| {
        ns.exec(&[
            "ip",
            "link",
            "set",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "1",
            "priority",
            priority,
            "forward_delay",
            "200",
            "hello_time",
            "100",
            "max_age",
            "600",
        ])
    };
    tree(&t.balancer.ns, "100")?;
    let second = Netns::new("balancer-2")?;
    second.feed(
        &["ip", "-batch", "-"],
        "link add br0 type bridge mcast_snooping 0\nlink set br0 up\n\
         addr add 10.2.0.20/24 dev br0\naddr add fd00:2::20/64 dev br0 nodad\n",
    )?;
    tree(&second, "200")?;
    for (name, ns, far) in [
        ("eth0", &t.router.ns, "eth2"),
        ("eth1", &t.switch, "balancer-2"),
    ] {
        let (near_master, far_master) = ("br0", if name == "eth0" { "br1" } else { "br0" });
        second.exec(&[
            "ip",
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            far,
            "netns",
            ns.name(),
        ])?;
        second.exec(&["ip", "link", "set", name, "master", near_master, "up"])?;
        ns.exec(&["ip", "link", "set", far, "master", far_master, "up"])?;
    }
    Ok(second)
}

/// Ports of `br0` by state.
fn ports(ns: &Netns, state: &str) -> Result<usize> {
    let links = ns.exec(&["bridge", "link"])?;
    let state = format!(" state {state} ");
    Ok(links.lines().filter(|l| l.contains(&state)).count())
}

fn stands_aside(daemon: &Daemon) -> Result<bool> {
    let status = daemon.ctl_json(&["status"])?;
    Ok(status["interfaces"].as_array().is_some_and(|all| {
        all.iter()
            .all(|i| i["reason"].to_string().contains("stands aside"))
    }))
}

#[test]
fn of_two_bridges_in_parallel_spanning_tree_lets_one_balance() {
    check(|| {
        let t = Topology::new(Kind::NatBridged, &Options::default())?;
        let second_ns = in_parallel(&t)?;
        let mut config = site::list_config(&t);
        config.set_xdp("generic");
        let mut echo = vec![];
        for Host { name, ns, .. } in &t.backends {
            echo.push(EchoServer::start(ns, name, &site::any(LIST), &[], &[])?);
        }
        let first = Daemon::start(&t.balancer.ns, &config)?;
        let second = Daemon::start(&second_ns, &config)?;
        wait_ok("one port to be blocked", CONVERGED_WITHIN, || {
            let blocked = (
                ports(&t.balancer.ns, "blocking")?,
                ports(&second_ns, "blocking")?,
            );
            ensure!(blocked == (0, 1), "blocked: {blocked:?}");
            let forwarding = ports(&t.balancer.ns, "forwarding")?;
            ensure!(forwarding == 2, "{forwarding} ports of the first forward");
            Ok(())
        })?;
        wait_ok("the second to stand aside", CONVERGED_WITHIN, || {
            ensure!(stands_aside(&second)?, "it doesn't");
            ensure!(!stands_aside(&first)?, "the first does");
            Ok(())
        })?;
        let before = served(&mut echo)?;
        let answered = requests(&t.client.ns, &t)?;
        let served = served(&mut echo)? - before;
        ensure!(
            served == answered,
            "{answered} answers, {served} requests served"
        );
        let by_second = second.ctl_json(&["services"])?;
        ensure!(
            by_second
                .as_array()
                .is_some_and(|all| all.iter().all(|s| s["totals"]["packets"] == 0)),
            "the second has balanced: {by_second}"
        );

        for port in ["eth0", "eth1"] {
            t.balancer.ns.exec(&["ip", "link", "set", port, "down"])?;
        }
        wait_ok("the second to take over", CONVERGED_WITHIN, || {
            ensure!(!stands_aside(&second)?, "it stands aside");
            // A VRRP instance would announce the VIP.
            t.router.ns.exec(&["ip", "neigh", "flush", "dev", "br1"])?;
            requests(&t.client.ns, &t)
        })?;
        Ok(())
    });
}

/// The router has a route for the VIP, and lets the answers through.
#[test]
fn direct_return_works_with_the_vip_in_another_subnet() {
    check(|| {
        let mut t = Topology::new(Kind::Dsr, &Options::default())?;
        t.vip4 = Ipv4Addr::new(10, 9, 0, 100);
        t.vip6 = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x100);
        let (v4, v6) = (t.vip4, t.vip6);
        let (via4, via6) = (t.balancer.v4(), t.balancer.v6());
        t.router.ns.feed(
            &["ip", "-batch", "-"],
            &format!("route add {v4}/32 via {via4}\nroute add {v6}/128 via {via6}\n"),
        )?;
        for backend in &t.backends {
            backend.ns.feed(
                &["ip", "-batch", "-"],
                &format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"),
            )?;
        }
        let config = site::list_config(&t);
        let site = Site::start(t, config, false)?;
        let answered = requests(&site.topology.client.ns, &site.topology)?;
        ensure!(answered > 100, "{answered} requests");
        let drops = site.drops()?;
        ensure!(drops.is_empty(), "dropped: {drops:?}");
        Ok(())
    });
}
