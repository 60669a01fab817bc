//! Checks that go the way of clients' packets.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    config::Config,
    decapsulator::Decapsulator,
    netns::Netns,
    process::wait_ok,
    site::{LIST, Site, WEB, curl},
    topology::{Kind, Options, Topology},
};

/// Has all pools checked like this.
fn check_by(config: &mut Config, keys: &str) {
    for pool in config
        .pools
        .iter_mut()
        .filter(|p| p.name.starts_with("web"))
    {
        pool.extra = vec![format!(
            "health: [{{{keys}, interval: 300ms, timeout: 250ms, rise: 1, fall: 2}}]"
        )];
    }
}

/// What the kernel has of ours on the balancer: rules, table and device.
fn left_behind(ns: &Netns) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for argv in [
        &["ip", "rule", "show", "table", "27746"][..],
        &["ip", "-6", "rule", "show", "table", "27746"],
        &["ip", "-o", "link", "show", "type", "veth"],
    ] {
        let text = ns.exec(argv)?;
        let ours = |line: &&str| line.contains("lookup 27746") || line.contains("lbprobe");
        left.extend(text.lines().filter(ours).map(str::to_owned));
    }
    Ok(left)
}

/// Strict on every arm, as many distributions have it.
fn be_strict(t: &Topology) -> Result<()> {
    let ns = &t.balancer.ns;
    ns.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    ns.sysctl("net/ipv4/conf/default/rp_filter", "1")?;
    for interface in &t.balancer.interfaces {
        ns.sysctl(&format!("net/ipv4/conf/{}/rp_filter", interface.name), "1")?;
    }
    Ok(())
}

/// Every service of every backend is up by its checks, which are no traffic, and
/// a dead server is seen.
fn probes_go_the_clients_way(mut site: Site) -> Result<()> {
    for service in ["web-v4", "web-v6"] {
        for backend in ["backend-1", "backend-2", "backend-3"] {
            site.wait_health(service, backend, "up", "status 200")?;
        }
    }
    for service in ["dns-v4", "dns-v6"] {
        site.wait_health(service, "backend-1", "up", "1 records")?;
    }
    // A few rounds more.
    std::thread::sleep(Duration::from_secs(2));
    let vips: Vec<String> = site.topology.vips().map(|vip| vip.to_string()).into();
    for web in &site.web {
        let mut asked = 0;
        for line in web.access_log()? {
            ensure!(
                line.uri == "/healthz" && !vips.contains(&line.peer),
                "{line:?}"
            );
            asked += 1;
        }
        ensure!(
            asked > 10,
            "{} was asked {asked} times",
            web.process.label()
        );
    }
    for row in site
        .daemon
        .ctl_json(&["backends"])?
        .as_array()
        .into_iter()
        .flatten()
    {
        ensure!(
            row["totals"]["packets"] == 0 && row["totals"]["reply_packets"] == 0,
            "counted as traffic: {row}"
        );
    }
    let status = site.daemon.ctl_json(&["status"])?;
    let table = &status["flow_table"];
    ensure!(
        table["entries"] == 0 && table["reply_entries"] == 0 && table["inserted_total"] == 0,
        "flows: {table}"
    );
    let drops = site.drops()?;
    ensure!(drops.is_empty(), "dropped: {drops:?}");

    // And clients are served as ever.
    for vip in site.topology.vips() {
        let target = SocketAddr::new(vip, WEB);
        let pages = curl(&site.topology.client.ns, target, "client", 20, false)?;
        ensure!(pages.len() == 20, "{pages:?}");
    }
    site.web[2].kill9()?;
    for service in ["web-v4", "web-v6"] {
        site.wait_health(service, "backend-3", "down", "connection refused")?;
    }
    let output = site.daemon.ctl_output(&["probe", "web-v4/backend-1"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success()
            && vips.iter().any(|vip| text.contains(vip))
            && text.contains("finding the way through the data path"),
        "{text}"
    );

    let balancer = site.topology.balancer.ns.clone();
    ensure!(
        left_behind(&balancer)?.len() >= 3,
        "{:?}",
        left_behind(&balancer)?
    );
    site.daemon.kill9()?;
    site.daemon.launch()?;
    site.wait_ready()?;
    site.wait_health("web-v4", "backend-1", "up", "status 200")?;
    site.daemon.stop()?;
    site.daemon.detach()?;
    let left = left_behind(&balancer)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// A site of this kind whose checks go by the services, and its forwarding method
/// is that, where it is given.
fn config_by_service(config: &mut Config, method: Option<&str>) {
    check_by(config, "type: http, via: service, path: /healthz");
    for pool in config
        .pools
        .iter_mut()
        .filter(|p| p.name.starts_with("many"))
    {
        pool.extra = vec![
            "health: [{type: dns, via: service, query: example.org, record: TXT, interval: 300ms, \
             timeout: 250ms, rise: 1, fall: 2}]"
                .into(),
        ];
    }
    // One port each for these checks.
    config
        .services
        .retain(|s| !s.name.starts_with("list") && !s.name.starts_with("range"));
    for service in &mut config.services {
        if let Some(method) = method {
            service.forwarding = method.into();
        }
    }
}

fn of_kind(kind: Kind, method: Option<&str>, change: impl FnOnce(&mut Config)) -> Result<()> {
    let topology = Topology::new(kind, &Options::default())?;
    be_strict(&topology)?;
    let mut ends = Vec::new();
    if matches!(method, Some("ipip" | "gue")) {
        let vips = topology.vips();
        for host in &topology.backends {
            ends.push(Decapsulator::start(host, &vips)?);
        }
    }
    let site = Site::full_in(topology, |config| {
        config_by_service(config, method);
        change(config);
    })?;
    probes_go_the_clients_way(site)
}

#[test]
fn by_direct_server_return() {
    check(|| of_kind(Kind::Dsr, None, |_| {}));
}

#[test]
fn by_direct_server_return_in_generic_mode() {
    check(|| of_kind(Kind::Dsr, None, |config| config.set_xdp("generic")));
}

#[test]
fn by_ipip_between_families() {
    check(|| {
        of_kind(Kind::Dsr, Some("ipip"), |config| {
            for service in &mut config.services {
                let (from, to) = if service.address.is_ipv4() {
                    ("-v4", "-v6")
                } else {
                    ("-v6", "-v4")
                };
                service.pool = service.pool.replace(from, to);
            }
        })
    });
}

#[test]
fn by_gue() {
    check(|| of_kind(Kind::Dsr, Some("gue"), |_| {}));
}

#[test]
fn by_nat_with_two_arms() {
    check(|| of_kind(Kind::NatTwoArmed, None, |_| {}));
}

#[test]
fn by_nat_with_one_arm() {
    check(|| of_kind(Kind::NatOneArmed, None, |_| {}));
}

#[test]
fn by_nat_in_the_servers_subnet() {
    check(|| of_kind(Kind::NatFlatOneArmed, None, |_| {}));
}

#[test]
fn by_nat_over_a_bridge() {
    check(|| of_kind(Kind::NatBridged, None, |_| {}));
}

#[test]
fn by_full_nat() {
    check(|| {
        of_kind(Kind::NatTwoArmed, Some("full-nat"), |config| {
            config.extra.push(
                "full_nat: {addresses: [10.3.0.200, \"fd00:3::200\"], ports: \"2000-4000\"}".into(),
            );
        })
    });
}

#[test]
fn a_server_without_the_vip_on_its_loopback_is_found_out() {
    check(|| {
        let mut site = Site::full(Kind::Dsr, &Options::default(), |config| {
            check_by(config, "type: tcp, via: service");
        })?;
        let services = ["web-v4", "web-v6"];
        for service in services {
            site.wait_health(service, "backend-1", "up", "connected")?;
        }
        let lo = |verb: &str| -> Result<()> {
            let mut batch = String::new();
            for vip in site.topology.vips() {
                let bits = if vip.is_ipv4() { 32 } else { 128 };
                batch += &format!("addr {verb} {vip}/{bits} dev lo\n");
            }
            site.topology.backends[0]
                .ns
                .feed(&["ip", "-batch", "-"], &batch)
        };
        lo("del")?;
        for service in services {
            // It was answering: silence is overload first. It gets no new flows.
            site.wait_health(service, "backend-1", "overloaded", "no answer within")?;
            let row = site.backend(service, "backend-1")?;
            ensure!(row["slot_share"] == 0.0, "{row}");
            site.wait_health(service, "backend-2", "up", "connected")?;
        }
        lo("add")?;
        for service in services {
            site.wait_health(service, "backend-1", "up", "connected")?;
        }
        lo("del")?;
        check_by(&mut site.config, "type: tcp, via: address");
        site.reload()?;
        // To itself it is as well as ever.
        for service in services {
            site.wait_health(service, "backend-1", "up", "connected")?;
        }
        Ok(())
    });
}

/// The switch has a smaller MTU towards one server than anybody knows.
#[test]
fn a_tunnel_that_loses_full_packets_is_found_out() {
    check(|| {
        let topology = Topology::new(Kind::Dsr, &Options::default())?;
        let vips = topology.vips();
        let ends = topology.backends.iter();
        let _ends: Vec<_> = ends
            .map(|host| Decapsulator::start(host, &vips))
            .collect::<Result<_>>()?;
        let mut site = Site::full_in(topology, |config| config_by_service(config, Some("gue")))?;
        let port = site.topology.backends[0].name.clone();
        site.topology
            .switch
            .exec(&["ip", "link", "set", &port, "mtu", "1400"])?;
        let services = ["web-v4", "web-v6"];
        for service in services {
            site.wait_health(service, "backend-1", "up", "status 200")?;
        }
        check_by(&mut site.config, "type: http, full_size: true");
        site.reload()?;
        for service in services {
            let words = "connected, waiting for the response";
            site.wait_health(service, "backend-1", "down", words)?;
            site.wait_health(service, "backend-2", "up", "status 200")?;
        }
        Ok(())
    });
}

const PROBES: u64 = 10_000;

/// Probes so far that ended like this.
fn results(site: &Site, listen: SocketAddr, result: &str) -> Result<u64> {
    let url = format!("http://{listen}/metrics");
    let page = site.topology.balancer.ns.exec(&["curl", "-sS", &url])?;
    let label = format!("result=\"{result}\"");
    page.lines()
        .filter(|line| line.starts_with("lb_probe_results_total{") && line.contains(&label))
        .map(|line| {
            Ok(line
                .rsplit(' ')
                .next()
                .context("no number")?
                .parse::<u64>()?)
        })
        .sum()
}

/// More than there are ports, to each of two VIPs.
#[test]
fn ten_thousand_probes_a_minute_have_ports_enough() {
    check(|| {
        let options = Options {
            backends: 20,
            ..Options::default()
        };
        let listen: SocketAddr = "127.0.0.1:9464".parse()?;
        let site = Site::echo(Kind::Dsr, &options, |config| {
            config.metrics = Some(listen);
            for pool in &mut config.pools {
                pool.extra = vec![
                    "health: [{type: tcp, via: service, interval: 100ms, timeout: 90ms}]".into(),
                ];
            }
            config
                .services
                .iter_mut()
                .for_each(|s| s.port = LIST[0].to_string());
        })?;
        let before = results(&site, listen, "pass")?;
        let unmade = results(&site, listen, "not_made")?;
        let begun = Instant::now();
        wait_ok("enough probes", Duration::from_secs(60), || {
            let passed = results(&site, listen, "pass")? - before;
            ensure!(passed >= PROBES, "{passed} passed");
            Ok(())
        })?;
        println!("{PROBES} probes in {:?}", begun.elapsed());
        // But for those that came before the data path had its backends.
        let now = results(&site, listen, "not_made")?;
        ensure!(now == unmade, "{} could not be made", now - unmade);
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "that were too few"
        );
        Ok(())
    });
}
