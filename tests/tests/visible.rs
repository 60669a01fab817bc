//! What `lbctl` and Prometheus show agrees: with one another, with the clients
//! and with the servers.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    process::wait_ok,
    servers::Hold,
    site::{LIST, Site, WEB, curl, family},
    topology::{Kind, Options},
};
use serde_json::Value;

const METRICS: &str = "127.0.0.1:9464";

/// Longer than the time from one look at the counters to the next.
const SOON: Duration = Duration::from_secs(10);

fn site(kind: Kind) -> Result<Site> {
    let listen: SocketAddr = METRICS.parse()?;
    Site::full(kind, &Options::default(), |config| {
        config.metrics = Some(listen);
    })
}

/// Status and body of a page of the metrics listener.
fn page(site: &Site, path: &str) -> Result<(String, String)> {
    let url = format!("http://{METRICS}{path}");
    let argv = ["curl", "-sS", "-w", "\n%{http_code}", &url];
    let text = site.topology.balancer.ns.exec(&argv)?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.into(), body.into()))
}

/// Samples of the metrics page by name with labels, as written.
fn samples(site: &Site) -> Result<BTreeMap<String, f64>> {
    let (status, body) = page(site, "/metrics")?;
    ensure!(status == "200", "/metrics: {status}");
    body.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.into(), value.parse()?))
        })
        .collect()
}

fn total(row: &Value, what: &str) -> u64 {
    row["totals"][what].as_u64().unwrap_or_default()
}

#[test]
fn the_metrics_satisfy_promtool() {
    check(|| {
        let site = site(Kind::NatTwoArmed)?;
        curl(
            &site.topology.client.ns,
            (site.topology.vip4, WEB).into(),
            "page",
            5,
            false,
        )?;
        let (status, body) = page(&site, "/metrics")?;
        ensure!(status == "200", "/metrics: {status}");
        site.topology
            .balancer
            .ns
            .feed(&["promtool", "check", "metrics"], &body)?;
        // What the documents promise.
        for name in [
            "lb_service_packets_total",
            "lb_service_bytes_total",
            "lb_service_connections_opened_total",
            "lb_service_connections_active",
            "lb_backend_packets_total",
            "lb_backend_connections_opened_total",
            "lb_backend_up",
            "lb_backend_weight",
            "lb_backend_state",
            "lb_flow_table_entries",
            "lb_flow_table_capacity",
            "lb_drops_total",
            "lb_probe_results_total",
            "lb_probe_duration_seconds_bucket",
            "lb_reloads_total",
            "lb_last_reload_success",
            "lb_xdp_mode",
            "lb_build_info",
        ] {
            let given = |c: char| c == '{' || c == ' ';
            ensure!(
                body.lines().any(|l| l.split(given).next() == Some(name)),
                "no {name}"
            );
        }
        ensure!(!body.contains("10.1.0.2"), "a label names a client");
        Ok(())
    });
}

/// Requests with a connection each: what the client asked, the servers logged,
/// the data path counted and Prometheus shows is one number.
fn connections_are_counted(kind: Kind) -> Result<()> {
    let site = site(kind)?;
    let client = &site.topology.client.ns;
    let requests = 120_u64;
    for vip in site.topology.vips() {
        let fetched = curl(client, SocketAddr::new(vip, WEB), "page", 120, false)?;
        let mut per_server: BTreeMap<String, u64> = BTreeMap::new();
        for f in fetched {
            *per_server.entry(f.server).or_default() += 1;
        }
        let service = format!("web-{}", family(vip));
        let row = wait_ok("the connections to be counted", SOON, || {
            let row = site.service(&service)?;
            ensure!(total(&row, "connections") >= requests, "{row}");
            Ok(row)
        })?;
        ensure!(total(&row, "connections") == requests, "{row}");
        for (name, logged) in &per_server {
            let row = site.backend(&service, name)?;
            ensure!(
                total(&row, "connections") == *logged,
                "{name} answered {logged}: {row}"
            );
        }

        // SYN, ACK, request, FIN at least; a request is some 120 bytes.
        let (packets, bytes) = (total(&row, "packets"), total(&row, "bytes"));
        println!("{service}: {requests} connections, {packets} packets, {bytes} bytes");
        ensure!((requests * 4..requests * 10).contains(&packets), "{row}");
        ensure!(
            (requests * (4 * 54 + 80)..requests * (10 * 86 + 300)).contains(&bytes),
            "{row}"
        );
        let replies = total(&row, "reply_packets");
        match kind {
            Kind::Dsr => ensure!(replies == 0, "replies under DSR: {row}"),
            _ => ensure!((requests * 3..requests * 10).contains(&replies), "{row}"),
        }
    }

    // Nothing moves any more: the page and the rows are of the same counters.
    let samples = samples(&site)?;
    for row in site
        .daemon
        .ctl_json(&["services"])?
        .as_array()
        .into_iter()
        .flatten()
    {
        let name = row["name"].as_str().unwrap_or_default();
        for (metric, key) in [
            ("connections_opened_total", "connections"),
            ("packets_total", "packets"),
            ("bytes_total", "bytes"),
            ("reply_packets_total", "reply_packets"),
            ("reply_bytes_total", "reply_bytes"),
        ] {
            let sample = format!("lb_service_{metric}{{service=\"{name}\"}}");
            let shown = samples
                .get(&sample)
                .with_context(|| format!("no {sample}"))?;
            #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
            let counted = total(row, key) as f64;
            ensure!(
                (shown - counted).abs() < 0.5,
                "{sample} {shown}, lbctl {counted}"
            );
        }
    }
    for row in site
        .daemon
        .ctl_json(&["backends"])?
        .as_array()
        .into_iter()
        .flatten()
    {
        let of = |key: &str| row[key].as_str().unwrap_or_default();
        let labels = [
            ("service", of("service")),
            ("pool", of("pool")),
            ("backend", of("backend")),
        ];
        // In whatever order the page has them.
        let (name, shown) = samples
            .iter()
            .find(|(name, _)| {
                name.starts_with("lb_backend_connections_opened_total{")
                    && labels
                        .iter()
                        .all(|(k, v)| name.contains(&format!("{k}=\"{v}\"")))
            })
            .with_context(|| format!("no sample of {labels:?}"))?;
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let counted = total(row, "connections") as f64;
        ensure!(
            (shown - counted).abs() < 0.5,
            "{name} {shown}, lbctl {counted}"
        );
    }
    Ok(())
}

#[test]
fn connections_are_counted_under_dsr() {
    check(|| connections_are_counted(Kind::Dsr));
}

#[test]
fn connections_are_counted_under_nat() {
    check(|| connections_are_counted(Kind::NatTwoArmed));
}

#[test]
fn open_connections_are_shown() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = Site::echo(kind, &Options::default(), |_| {})?;
            let target = SocketAddr::new(site.topology.vip4.into(), LIST[0]);
            let mut hold = Hold::start(&site.topology.client.ns, target, 300, 300)?;
            let report = hold.wait_open(Duration::from_secs(30))?;
            ensure!(report.opened == 300, "{report:?}");
            let concurrent = wait_ok("the open connections to be shown", SOON, || {
                let row = site.service("list-v4")?;
                let concurrent = row["concurrent"].clone();
                let shown = concurrent["connections"].as_i64().unwrap_or_default();
                let error = concurrent["error"].as_i64().unwrap_or_default();
                // Five per cent where they are counted; an estimate has to
                // know how far off it may be.
                let within = if concurrent["estimated"] == true {
                    error.max(15)
                } else {
                    15
                };
                ensure!(
                    (shown - 300).abs() <= within,
                    "300 are open, shown: {concurrent}"
                );
                Ok(concurrent)
            })?;
            println!("{kind:?}: 300 open, shown: {concurrent}");
            let report = hold.stop()?;
            ensure!(report.lost.total() == 0, "{report:?}");
            wait_ok("their end to be seen", Duration::from_secs(20), || {
                let shown = site.service("list-v4")?["concurrent"]["connections"].clone();
                ensure!(shown == 0, "{shown} are still shown");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn healthz_and_readyz_tell_the_state() {
    check(|| {
        let mut site = site(Kind::Dsr)?;
        ensure!(page(&site, "/healthz")?.0 == "200", "/healthz");
        ensure!(page(&site, "/readyz")?.0 == "200", "/readyz");
        ensure!(page(&site, "/nonsense")?.0 == "404", "/nonsense");

        // Checks that have no result yet: connections to a host that is gone.
        let listen: SocketAddr = METRICS.parse()?;
        site.config.metrics = Some(listen);
        for pool in &mut site.config.pools {
            pool.extra = vec![format!(
                "health: [{{type: tcp, port: {}, interval: 4s, timeout: 4s, rise: 1, fall: 1}}]",
                LIST[0]
            )];
        }
        site.daemon.stop()?;
        // As after a long time: the next daemon would know them from this one.
        std::fs::remove_file(site.daemon.state_dir().join("health.json"))?;
        for backend in &site.topology.backends {
            backend.ns.exec(&["ip", "link", "set", "eth0", "down"])?;
        }
        site.daemon.write_config(&site.config)?;
        site.daemon.launch()?;
        let (status, body) = page(&site, "/readyz")?;
        ensure!(status == "503", "ready at once: {body}");
        ensure!(
            body.contains("pool many-v4: no result yet"),
            "not the reason: {body}"
        );
        ensure!(
            page(&site, "/healthz")?.0 == "200",
            "not alive while not ready"
        );
        let text = site.daemon.ctl(&["status"])?;
        ensure!(text.contains("not ready"), "{text}");
        for backend in &site.topology.backends {
            backend.ns.exec(&["ip", "link", "set", "eth0", "up"])?;
        }
        wait_ok("readiness", Duration::from_secs(30), || {
            let (status, body) = page(&site, "/readyz")?;
            ensure!(status == "200", "{status}: {body}");
            Ok(())
        })
    });
}

/// Every path of a value's objects and arrays: its shape without its values.
fn shape(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                shape(value, &format!("{at}.{key}"), into);
            }
        }
        Value::Array(items) => {
            for item in items.iter().take(1) {
                shape(item, &format!("{at}[]"), into);
            }
        }
        _ => into.push(at.into()),
    }
}

fn shape_of(value: &Value) -> Vec<String> {
    let mut all = vec![];
    shape(value, "", &mut all);
    all
}

#[test]
fn tables_and_json_are_for_people_and_programs() {
    check(|| {
        let mut site = site(Kind::NatOneArmed)?;
        let commands = ["status", "services", "backends"];
        let before: Vec<_> = commands
            .iter()
            .map(|c| Ok(shape_of(&site.daemon.ctl_json(&[c])?)))
            .collect::<Result<_>>()?;
        for (command, parts) in [
            (
                "status",
                vec!["lb1: ready", "INTERFACE", "native", "Flow table:"],
            ),
            (
                "services",
                vec![
                    "SERVICE",
                    "10.2.0.100",
                    "7000,7010/tcp",
                    "7100-7110/tcp",
                    "53/udp",
                    "nat",
                ],
            ),
            (
                "backends",
                vec![
                    "BACKEND",
                    "web-v4/backend-1",
                    "10.3.0.11:8080",
                    "33.3 %",
                    "up",
                ],
            ),
        ] {
            let table = site.daemon.ctl(&[command])?;
            for part in parts {
                ensure!(table.contains(part), "no {part:?} in\n{table}");
            }
            // Not for a terminal, so without colour; and no ragged ends.
            ensure!(!table.contains('\u{1b}'), "colour in a pipe:\n{table}");
            ensure!(
                table.lines().all(|l| l == l.trim_end()),
                "blanks at ends:\n{table}"
            );
        }
        let rows = site.daemon.ctl_json(&["backends", "--service", "web-v4"])?;
        ensure!(rows.as_array().map(Vec::len) == Some(3), "{rows}");
        let rows = site.daemon.ctl_json(&["backends", "--pool", "many-v6"])?;
        ensure!(rows.as_array().map(Vec::len) == Some(9), "{rows}");

        // The same shape after a restart, and the services in the file's order.
        site.daemon.restart()?;
        site.wait_ready()?;
        for (command, before) in commands.iter().zip(before) {
            let after = shape_of(&site.daemon.ctl_json(&[command])?);
            ensure!(after == before, "{command}: {before:?}\n{after:?}");
        }
        let services = site.daemon.ctl_json(&["services"])?;
        let names: Vec<_> = services
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| s["name"].as_str())
            .collect();
        let wanted: Vec<_> = site
            .config
            .services
            .iter()
            .map(|s| s.name.as_str())
            .collect();
        ensure!(names == wanted, "{names:?}, not {wanted:?}");

        let code = |args: &[&str]| Ok(site.daemon.ctl_output(args)?.status.code());
        let codes: Vec<(&[&str], i32)> = vec![
            (&["status"], 0),
            (&["drain", "web-v4/nobody"], 1),
            (&["reload", "--nonsense"], 2),
            (&["drain", "nobody"], 2),
        ];
        for (args, expected) in codes {
            let got: Result<Option<i32>> = code(args);
            let got = got?;
            ensure!(got == Some(expected), "{args:?}: {got:?}, not {expected}");
        }
        site.daemon.stop()?;
        let output = site.daemon.ctl_output(&["status"])?;
        ensure!(output.status.code() == Some(3), "{output:?}");
        Ok(())
    });
}
