//! What operators and faults do to a running daemon, and what it says when it
//! can't run.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi;
use lb_tests::{
    check,
    config::Config,
    conns::RateReport,
    daemon::Daemon,
    process::{wait_for, wait_ok},
    servers::{self, EchoServer},
    site::{self, LIST, Site},
    topology::{Kind, Options, Topology},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
/// The kernel takes a neighbour for reachable for up to 45 s (`reachable_time`
/// is 15 to 45 s at random), then waits 5 s and asks three times, a second
/// apart (RFC 4861 §7.3.3, §10).
const LATER: Duration = Duration::from_secs(90);

/// What a loaded machine may add to a bound.
const SLACK: Duration = Duration::from_millis(1500);

fn site(kind: Kind) -> Result<Site> {
    Site::echo(kind, &Options::default(), |_| {})
}

/// Makes connections to the IPv4 service for a while, and fails unless all
/// succeed.
fn all_succeed(site: &Site, when: &str) -> Result<RateReport> {
    let target = SocketAddr::new(site.topology.vip4.into(), LIST[0]);
    let client = &site.topology.client.ns;
    let report = servers::rate(client, target, 4, Duration::from_millis(300))?;
    ensure!(
        report.failed == 0 && report.requests > 0,
        "{when}: {report:?}"
    );
    Ok(report)
}

fn row_is(site: &Site, backend: &str, expected: &[(&str, Value)]) -> Result<()> {
    wait_ok(format!("{backend} to be {expected:?}"), SOON, || {
        let row = site.backend("list-v4", backend)?;
        for (key, value) in expected {
            ensure!(row[key] == *value, "{key} of {row}");
        }
        Ok(())
    })
}

#[test]
fn a_dead_server_is_taken_out_in_time_and_brought_back() {
    check(|| {
        let (interval, timeout) = (Duration::from_millis(400), Duration::from_millis(300));
        let (rise, fall) = (2, 3);
        let mut site = Site::echo(Kind::Dsr, &Options::default(), |config| {
            config.set_dataplane("dead_after", "1s");
            for pool in &mut config.pools {
                pool.extra = vec![format!(
                    "health: [{{type: tcp, port: {}, interval: 400ms, timeout: 300ms, rise: {rise}, fall: {fall}}}]",
                    LIST[0]
                )];
            }
        })?;
        all_succeed(&site, "with every server")?;

        site.echo[0].kill9()?;
        let died = Instant::now();
        let down = "backend=\"many-v4/backend-1\" was=up now=down";
        wait_for("the verdict", LATER, || site.daemon.log().contains(down))?;
        let (took, bound) = (died.elapsed(), interval * fall + timeout);
        println!("taken out after {took:?}; fall × interval + timeout is {bound:?}");
        ensure!(
            took <= bound + SLACK,
            "taken out after {took:?}, not {bound:?}"
        );
        // Not at the first failure.
        ensure!(
            took >= interval * (fall - 2),
            "taken out after {took:?} already"
        );
        // The verdict is logged before the slots are moved, milliseconds later.
        wait_for("the slots to be moved", SOON, || {
            let log = site.daemon.log();
            let since = log.split_once(down);
            since.is_some_and(|(_, rest)| rest.contains("data path changed"))
        })?;
        let without = all_succeed(&site, "without backend-1")?;
        ensure!(!without.per_server.contains_key("backend-1"), "{without:?}");
        row_is(
            &site,
            "backend-1",
            &[("health", "down".into()), ("weight_effective", 0.into())],
        )?;
        site.wait_condition("list-v4", "backend-1", "dead")?;

        let t = &site.topology;
        let back = Instant::now();
        let (ns, name) = (&t.backends[0].ns, &t.backends[0].name);
        site.echo[0] = EchoServer::start(ns, name, &site::any(LIST), &[], &[])?;
        let up = "backend=\"many-v4/backend-1\" was=down now=up";
        wait_for("the verdict", LATER, || site.daemon.log().contains(up))?;
        let (took, bound) = (back.elapsed(), interval * rise + timeout);
        println!("brought back after {took:?}; rise × interval + timeout is {bound:?}");
        ensure!(
            took <= bound + SLACK,
            "brought back after {took:?}, not {bound:?}"
        );
        site.wait_condition("list-v4", "backend-1", "up")?;
        // For three seconds first SYNs still go where they may have gone before.
        wait_ok("connections to backend-1", SOON, || {
            let with = all_succeed(&site, "with backend-1 again")?;
            ensure!(with.per_server.contains_key("backend-1"), "{with:?}");
            Ok(())
        })
    });
}

#[test]
fn an_operators_decisions_are_kept_over_reload_and_restart() {
    check(|| {
        let mut site = site(Kind::Dsr)?;
        let ctl = |site: &Site, args: &[&str]| site.daemon.ctl(args).map(drop);
        ctl(&site, &["drain", "many-v4/backend-1"])?;
        ctl(&site, &["weight", "many-v4/backend-2", "7"])?;
        ctl(&site, &["disable", "many-v4/backend-3"])?;
        let decided = |site: &Site| {
            row_is(
                site,
                "backend-1",
                &[
                    ("admin", "draining".into()),
                    ("condition", "draining".into()),
                    ("slots", 0.into()),
                ],
            )?;
            row_is(
                site,
                "backend-2",
                &[
                    ("weight", 100.into()),
                    ("weight_effective", 7.into()),
                    ("condition", "up".into()),
                ],
            )?;
            row_is(
                site,
                "backend-3",
                &[("admin", "disabled".into()), ("condition", "dead".into())],
            )?;
            let report = all_succeed(site, "with one backend left")?;
            ensure!(
                report.per_server.keys().eq(["backend-2"]),
                "not backend-2 alone: {report:?}"
            );
            Ok(())
        };
        // For three seconds first SYNs still go where they may have gone before.
        wait_ok("the decisions to show", SOON, || decided(&site))?;
        site.reload()?;
        decided(&site).context("after a reload")?;
        site.daemon.restart()?;
        decided(&site).context("after a crash")?;
        site.daemon.stop()?;
        site.daemon.launch()?;
        decided(&site).context("after a stop")?;

        ctl(&site, &["enable", "many-v4/backend-3"])?;
        row_is(&site, "backend-3", &[("condition", "up".into())])?;
        for backend in [
            "many-v4/backend-1",
            "many-v4/backend-2",
            "many-v4/backend-3",
        ] {
            ctl(&site, &["clear", backend])?;
        }
        for backend in ["backend-1", "backend-2", "backend-3"] {
            row_is(
                &site,
                backend,
                &[
                    ("admin", "enabled".into()),
                    ("condition", "up".into()),
                    ("weight_effective", 100.into()),
                ],
            )?;
        }

        let output = site.daemon.ctl_output(&["drain", "many-v4/bakend-1"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "exit {}", output.status);
        ensure!(said.contains("did you mean \"backend-1\""), "{said}");
        Ok(())
    });
}

#[test]
fn a_broken_file_changes_nothing_and_says_where_it_is_broken() {
    check(|| {
        let metrics: SocketAddr = ([127, 0, 0, 1], 9464).into();
        let site = Site::echo(Kind::Dsr, &Options::default(), |config| {
            config.metrics = Some(metrics);
        })?;
        let before = site.daemon.ctl_json(&["status"])?["config"]["hash"].clone();
        let slots = |site: &Site| site.shares("list-v4");
        let shares = slots(&site)?;
        let good = std::fs::read_to_string(site.daemon.config_path())?;
        // A good change beside the bad one must not come into force either.
        let worse = good
            .replace("weight: 100", "weight: 77777")
            .replace("name: lb1", "name: other");
        let line = 1 + worse
            .lines()
            .position(|l| l.contains("77777"))
            .context("no weight")?;
        site.daemon.write_yaml(&worse)?;
        let output = site.daemon.ctl_output(&["reload"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        ensure!(output.status.code() == Some(1), "exit {}", output.status);
        for part in [
            &format!("lb.yaml:{line}:"),
            "backends[0].weight",
            "77777",
            "65535",
        ] {
            ensure!(said.contains(part), "no {part:?} in: {said}");
        }
        let status = site.daemon.ctl_json(&["status"])?;
        ensure!(status["config"]["hash"] == before, "{status}");
        ensure!(
            status["node"] == "lb1",
            "half of it came into force: {status}"
        );
        ensure!(status["reloads"]["failed"] == 1, "{status}");
        let last = &status["reloads"]["last"];
        ensure!(
            last["ok"] == false && last["errors"].to_string().contains("backends[0].weight"),
            "{last}"
        );
        let table = site.daemon.ctl(&["status"])?;
        ensure!(table.contains("backends[0].weight"), "{table}");
        let metric = |value: &str| -> Result<()> {
            let page = site.topology.balancer.ns.exec(&[
                "curl",
                "-sS",
                &format!("http://{metrics}/metrics"),
            ])?;
            let line = format!("lb_last_reload_success {value}");
            ensure!(page.lines().any(|l| l == line), "no {line:?} in\n{page}");
            Ok(())
        };
        metric("0")?;
        ensure!(slots(&site)? == shares, "the table changed");
        all_succeed(&site, "after a refused reload")?;

        site.daemon.write_yaml("services: [")?;
        let output = site.daemon.ctl_output(&["reload"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.contains("lb.yaml:2:1: not valid YAML"),
            "{said}"
        );
        all_succeed(&site, "after an unreadable file")?;

        site.daemon.write_yaml(&good)?;
        site.daemon.reload()?;
        let status = site.daemon.ctl_json(&["status"])?;
        ensure!(status["reloads"]["last"]["ok"] == true, "{status}");
        metric("1")
    });
}

#[test]
fn sighup_reads_the_file_again() {
    check(|| {
        let mut site = site(Kind::Dsr)?;
        site.config.pool_mut("many-v4").backends[0].weight = 50;
        site.daemon.write_config(&site.config)?;
        site.daemon.sighup()?;
        row_is(&site, "backend-1", &[("weight_effective", 50.into())])?;
        let share = site.shares("list-v4")?["backend-1"];
        ensure!((share - 0.2).abs() < 0.002, "share {share}");
        // A bad file doesn't end the daemon.
        site.daemon.write_yaml("nonsense: 1\n")?;
        site.daemon.sighup()?;
        wait_ok("the refusal", SOON, || {
            let status = site.daemon.ctl_json(&["status"])?;
            ensure!(status["reloads"]["failed"] == 1, "{status}");
            Ok(())
        })?;
        all_succeed(&site, "after a refused SIGHUP").map(drop)
    });
}

#[test]
fn a_backends_new_mac_address_is_followed() {
    check(|| {
        let site = site(Kind::Dsr)?;
        let backend = &site.topology.backends[0];
        let mac = "02:1b:00:00:02:ee";
        backend
            .ns
            .exec(&["ip", "link", "set", "eth0", "address", mac])?;
        // As a host does that has come up with another card.
        backend.ns.exec(&["ip", "neigh", "flush", "dev", "eth0"])?;
        for to in site
            .topology
            .vips()
            .map(|like| site.topology.balancer.address(like))
        {
            let _ = backend
                .ns
                .output(&["ping", "-c1", "-W2", &to.to_string()])?;
        }
        for service in ["list-v4", "list-v6"] {
            wait_ok(format!("the new address in {service}"), LATER, || {
                let row = site.backend(service, "backend-1")?;
                let detail = row["next_hop"]["detail"].as_str().unwrap_or_default();
                ensure!(detail.contains(mac) && row["condition"] == "up", "{row}");
                Ok(())
            })?;
        }
        let report = all_succeed(&site, "with the new address")?;
        ensure!(report.per_server.contains_key("backend-1"), "{report:?}");
        Ok(())
    });
}

#[test]
fn a_backend_without_a_neighbour_is_no_neighbour_until_it_is_back() {
    check(|| {
        let site = Site::echo(
            Kind::Dsr,
            &Options {
                backends: 1,
                ..Options::default()
            },
            |config| {
                // Without checks, so that nothing but the next hop speaks against it.
                config.pools.iter_mut().for_each(|p| p.extra.clear());
            },
        )?;
        all_succeed(&site, "before")?;
        let backend = &site.topology.backends[0].ns;
        backend.exec(&["ip", "link", "set", "eth0", "down"])?;
        wait_ok("the loss to be noticed", LATER, || {
            let row = site.backend("list-v4", "backend-1")?;
            ensure!(row["next_hop"]["resolved"] == false, "{row}");
            Ok(())
        })?;
        let target = SocketAddr::new(site.topology.vip4.into(), LIST[0]);
        let _ = site.topology.client.ns.output(&[
            "curl",
            "-s",
            "--max-time",
            "2",
            &format!("http://{target}/"),
        ])?;
        wait_ok("the drop to be counted", SOON, || {
            let drops = site.drops()?;
            let key = ("list-v4".to_owned(), "no_neighbour".to_owned());
            ensure!(drops.contains_key(&key), "{drops:?}");
            Ok(())
        })?;
        backend.exec(&["ip", "link", "set", "eth0", "up"])?;
        backend.exec(&["ip", "route", "replace", "default", "via", "10.2.0.1"])?;
        wait_ok("the next hop to be back", LATER, || {
            let row = site.backend("list-v4", "backend-1")?;
            ensure!(row["next_hop"]["resolved"] == true, "{row}");
            Ok(())
        })?;
        all_succeed(&site, "after").map(drop)
    });
}

#[test]
fn a_clean_stop_leaves_the_data_path_and_detach_removes_everything() {
    check(|| {
        let mut site = site(Kind::NatOneArmed)?;
        let balancer = site.topology.balancer.ns.clone();
        let redirects = "net/ipv4/conf/eth0/send_redirects";
        ensure!(balancer.read_sysctl(redirects)? == "0", "redirects are on");
        let (code, said) = site.daemon.refused_start()?;
        ensure!(
            code == 4 && said.contains("in use by another daemon"),
            "{code}: {said}"
        );
        let running = site
            .daemon
            .detach()
            .err()
            .context("detached under a running daemon")?;
        ensure!(
            format!("{running:#}").contains("in use by another daemon"),
            "{running:#}"
        );

        let status = site.daemon.stop()?;
        ensure!(status.success(), "the stop: {status}");
        all_succeed(&site, "without a daemon")?;
        let output = site.daemon.ctl_output(&["status"])?;
        ensure!(output.status.code() == Some(3), "exit {}", output.status);

        site.daemon.detach()?;
        // The kernel lets go of an unpinned link by a worker of its own.
        wait_ok("the program to be gone", SOON, || {
            let links = balancer.exec(&["ip", "-d", "link", "show", "eth0"])?;
            ensure!(!links.contains("prog/xdp"), "{links}");
            Ok(())
        })?;
        let left: Vec<_> = match std::fs::read_dir(site.daemon.pin_dir()) {
            Ok(entries) => entries.filter_map(|e| Some(e.ok()?.path())).collect(),
            Err(_) => vec![],
        };
        ensure!(left.is_empty(), "still pinned: {left:?}");
        ensure!(
            balancer.read_sysctl(redirects)? == "1",
            "redirects stay off"
        );
        // Twice is no error, and it can start again.
        site.daemon.detach()?;
        site.daemon.launch()?;
        site.wait_ready()?;
        all_succeed(&site, "after a fresh start").map(drop)
    });
}

/// Starts that have to fail: with status 4, the reason and a remedy.
fn refused(daemon: &Daemon, parts: &[&str]) -> Result<()> {
    let (code, said) = daemon.refused_start()?;
    println!("{said}");
    ensure!(code == 4, "exit {code}: {said}");
    for part in parts {
        ensure!(said.contains(part), "no {part:?} in: {said}");
    }
    Ok(())
}

fn topology_and_config() -> Result<(Topology, Config)> {
    let t = Topology::new(
        Kind::Dsr,
        &Options {
            backends: 1,
            ..Options::default()
        },
    )?;
    let config = site::list_config(&t);
    Ok((t, config))
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    check(|| {
        let (t, mut config) = topology_and_config()?;
        config.interfaces.push(("eth7".into(), "auto".into()));
        let daemon = Daemon::prepare(&t.balancer.ns, &config)?;
        refused(
            &daemon,
            &["no interface `eth7`", "`ip link` lists what there is"],
        )?;
        // Nothing of the first interface's attachment is left.
        let links = t.balancer.ns.exec(&["ip", "-d", "link", "show", "eth0"])?;
        ensure!(!links.contains("prog/xdp"), "{links}");
        Ok(())
    });
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    check(|| {
        let (t, config) = topology_and_config()?;
        let first = Daemon::start(&t.balancer.ns, &config)?;
        let program = |daemon: &Daemon| -> Result<Value> {
            Ok(daemon.ctl_json(&["status"])?["interfaces"][0]["program_id"].clone())
        };
        let id = program(&first)?;
        // With pins of its own, the second sees a stranger's program.
        let second = Daemon::prepare(&t.balancer.ns, &config)?;
        refused(
            &second,
            &[
                "`eth0` has an XDP program already",
                &format!("id {id}"),
                "ip link set eth0 xdp off",
            ],
        )?;
        ensure!(program(&first)? == id, "the program was replaced");
        Ok(())
    });
}

#[test]
fn a_directory_outside_a_bpf_file_system_is_refused() {
    check(|| {
        let (t, mut config) = topology_and_config()?;
        config.set_dataplane("pin_dir", "/proc/lbctl");
        let daemon = Daemon::prepare(&t.balancer.ns, &config)?;
        refused(&daemon, &["/proc/lbctl", "is not in a BPF file system"])
    });
}

#[test]
fn auto_falls_back_to_generic_and_says_why() {
    check(|| {
        let (t, mut config) = topology_and_config()?;
        // A driver without XDP.
        t.balancer
            .ns
            .exec(&["ip", "link", "add", "br7", "type", "bridge"])?;
        t.balancer.ns.exec(&["ip", "link", "set", "br7", "up"])?;
        config.interfaces.push(("br7".into(), "auto".into()));
        let mut daemon = Daemon::start(&t.balancer.ns, &config)?;
        let status = daemon.ctl_json(&["status"])?;
        let bridge = &status["interfaces"][1];
        ensure!(
            bridge["name"] == "br7"
                && bridge["mode"] == "generic"
                && bridge["reason"]
                    .to_string()
                    .contains("its driver has no XDP"),
            "{status}"
        );
        ensure!(status["interfaces"][0]["mode"] == "native", "{status}");
        let table = daemon.ctl(&["status"])?;
        ensure!(table.contains("its driver has no XDP"), "{table}");
        daemon.stop()?;
        daemon.detach()?;
        config.interfaces[1].1 = "native".into();
        daemon.write_config(&config)?;
        refused(
            &daemon,
            &["`br7` (native)", "`xdp: auto` or `xdp: generic`"],
        )
    });
}

#[test]
fn the_debug_log_names_each_drop_and_is_off_by_default() {
    check(|| {
        for on in [false, true] {
            let site = Site::echo(Kind::Dsr, &Options::default(), |config| {
                if on {
                    config.set_dataplane("debug_log", true);
                }
            })?;
            let nobody = SocketAddr::new(site.topology.vip4.into(), 9);
            let client = &site.topology.client.ns;
            let reason = (String::new(), "no_service".to_owned());
            wait_ok("a packet to be dropped", SOON, || {
                let short = Duration::from_millis(100);
                servers::udp(client, nobody, 1, short, short)?;
                ensure!(site.drops()?.contains_key(&reason), "none yet");
                Ok(())
            })?;
            let is_logged = || site.daemon.log().contains("reason=\"no_service\"");
            if on {
                wait_for("the drop to be logged", SOON, is_logged)?;
            } else {
                ensure!(!is_logged(), "{}", site.daemon.log());
            }
        }
        Ok(())
    });
}

#[test]
fn maps_of_another_layout_or_size_are_refused_with_the_remedy() {
    check(|| {
        let (t, mut config) = topology_and_config()?;
        let mut daemon = Daemon::start(&t.balancer.ns, &config)?;

        config.set_dataplane("max_flows", 200_000);
        daemon.write_config(&config)?;
        let output = daemon.ctl_output(&["reload"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        ensure!(
            output.status.code() == Some(1) && said.contains("max_flows"),
            "{said}"
        );
        daemon.kill9()?;
        refused(&daemon, &["pinned in", "run `lbctl detach` first"])?;

        config.set_dataplane("max_flows", 100_000);
        daemon.write_config(&config)?;
        daemon.launch()?;
        ensure!(
            daemon.ctl_json(&["status"])?["adopted"] == true,
            "not adopted"
        );
        daemon.kill9()?;
        set_abi_version(&daemon.pin_dir().join(abi::map::ABI), 99)?;
        refused(&daemon, &["layout version 99", "run `lbctl detach` first"])?;
        daemon.detach()?;
        daemon.launch()?;
        ensure!(daemon.ctl_json(&["status"])?["adopted"] == false, "adopted");
        Ok(())
    });
}

fn set_abi_version(pin: &Path, version: u8) -> Result<()> {
    let version = version.to_string();
    let output = std::process::Command::new("bpftool")
        .args(["map", "update", "pinned"])
        .arg(pin)
        .args(["key", "0", "0", "0", "0", "value", &version, "0", "0", "0"])
        .output()?;
    ensure!(
        output.status.success(),
        "bpftool: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn both_families_survive_a_reload_that_removes_one() {
    check(|| {
        let mut site = site(Kind::NatTwoArmed)?;
        let all = site.config.clone();
        site.config.services.retain(|s| s.address.is_ipv4());
        site.config.pools.retain(|p| p.name.ends_with("v4"));
        site.reload()?;
        all_succeed(&site, "with one family")?;
        let v6 = SocketAddr::new(IpAddr::V6(site.topology.vip6), LIST[0]);
        let output = site.topology.client.ns.output(&[
            "curl",
            "-s",
            "--max-time",
            "2",
            &format!("http://{v6}/"),
        ])?;
        ensure!(!output.status.success(), "{v6} still answers");
        site.config = all;
        site.reload()?;
        site.wait_condition("list-v6", "backend-1", "up")?;
        // The router may still be waiting for an answer that nobody gave it.
        wait_ok("the router to find the VIP again", SOON, || {
            let vip = v6.ip().to_string();
            site.topology.client.ns.exec(&["ping", "-c1", "-W1", &vip])
        })?;
        let report = servers::rate(&site.topology.client.ns, v6, 2, Duration::from_millis(300))?;
        ensure!(report.failed == 0 && report.requests > 0, "{report:?}");
        Ok(())
    });
}
