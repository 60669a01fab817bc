//! What happens in a scene, act by act.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    http::{self, Held, Loss, Stream},
    ledger::{Exchange, Way},
    logs,
    report::{SceneReport, Share},
    scene::Scene,
    view,
};
use crate::{
    packet::{Capture, View},
    process::{wait_for, wait_ok},
    topology::Kind,
};

/// Connections for one request each.
const CONNECTIONS: usize = 3_000;

/// Kept-alive connections, and requests over each.
const KEPT_ALIVE: (usize, u32) = (200, 10);

/// Connections of which every packet is looked at.
const WATCHED: usize = 200;

/// Connections held open.
const HELD: usize = 500;

/// Time between the new connections of the stream in the background.
const STREAM_EVERY: Duration = Duration::from_millis(5);

/// After a change, SYNs still go the old way for 3 to 5 s: they may be
/// retransmissions.
const SYN_WINDOW: Duration = Duration::from_secs(5);

/// The checks need at most 1.5 s to notice; beyond this they are too late.
const NOTICED_WITHIN: Duration = Duration::from_secs(4);

const DRAINED: &str = "backend-1";
const KILLED: &str = "backend-2";

/// Plays one scene.
pub fn play(kind: Kind, report: &mut SceneReport) -> Result<()> {
    let mut scene = Scene::build(kind)?;
    shares(&scene, report)?;
    way_of_replies(&scene, report)?;
    changes(&mut scene, report)?;
    view::headline("the logs: does every server tell the client's story?");
    let differences = logs::differences(&scene, KILLED)?;
    count(&scene.ledger.since(0), report);
    report.log_differences = differences.len() as u64;
    for difference in differences.iter().take(3) {
        view::fact(difference);
    }
    verdict(
        report,
        differences.is_empty(),
        format!(
            "{} requests of the client, {} that its logs and the servers' tell differently",
            report.requests,
            differences.len()
        ),
    );
    verdict(
        report,
        report.failed == 0,
        format!("{} requests failed that should not have", report.failed),
    );
    let examples = scene.ledger.since(0);
    for exchange in examples.iter().filter(|e| e.answer.is_err()).take(3) {
        if let (true, Err(why)) = (report.failed > 0, &exchange.answer) {
            view::fact(&format!("{} ({:?}): {why}", exchange.id, exchange.way));
        }
    }
    Ok(())
}

/// Shows a fact; a problem when it isn't as it should be.
fn verdict(report: &mut SceneReport, holds: bool, text: String) {
    view::checked(holds, &text);
    if !holds {
        report.problems.push(text);
    }
}

fn answered_by(exchanges: &[Exchange], way: Way) -> BTreeMap<String, u64> {
    let mut per_server = BTreeMap::new();
    for exchange in exchanges.iter().filter(|e| e.way == way) {
        if let Ok(server) = &exchange.answer {
            *per_server.entry(server.clone()).or_default() += 1;
        }
    }
    per_server
}

fn count(exchanges: &[Exchange], report: &mut SceneReport) {
    report.requests = exchanges.len() as u64;
    for exchange in exchanges {
        if let Ok(server) = &exchange.answer {
            *report.per_backend.entry(server.clone()).or_default() += 1;
        }
    }
    // Held connections that broke are counted as lost, one each.
    let failed = exchanges
        .iter()
        .filter(|e| e.way != Way::Held && e.answer.is_err());
    report.failed = (failed.count() as u64).saturating_sub(report.failed_until_noticed);
}

fn shares(scene: &Scene, report: &mut SceneReport) -> Result<()> {
    let (connections, requests) = KEPT_ALIVE;
    view::headline(&format!(
        "HTTP over IPv4 and IPv6: {CONNECTIONS} connections with one request each, {connections} kept alive with {requests}"
    ));
    let (client, targets) = (&scene.topology.client.ns, scene.targets());
    let (before, start) = (scene.ledger.len(), Instant::now());
    http::burst(client, &scene.ledger, &targets, CONNECTIONS, 1)?;
    http::burst(client, &scene.ledger, &targets, connections, requests)?;
    let took = start.elapsed();
    let exchanges = scene.ledger.since(before);
    let new = answered_by(&exchanges, Way::New);
    let all: u64 = new.values().sum();
    for (name, configured) in scene.configured_shares() {
        let mine = new.get(&name).copied().unwrap_or_default();
        let measured = mine as f64 / all.max(1) as f64;
        let share = Share {
            configured,
            measured,
        };
        view::share(&name, mine, share);
        // Five standard deviations: once in a million.
        let allowed = 5.0 * (configured * (1.0 - configured) / all.max(1) as f64).sqrt();
        report.expect((measured - configured).abs() <= allowed, || {
            format!(
                "{name} has {measured:.3} of the connections where {configured:.3} are configured"
            )
        });
        report.shares.insert(name, share);
    }
    let failed = exchanges.iter().filter(|e| e.answer.is_err()).count();
    let wanted = CONNECTIONS + connections * requests as usize;
    verdict(
        report,
        failed == 0 && exchanges.len() == wanted,
        format!(
            "{} of {wanted} requests sent in {:.1} s, {failed} failed",
            exchanges.len(),
            took.as_secs_f64()
        ),
    );
    Ok(())
}

fn way_of_replies(scene: &Scene, report: &mut SceneReport) -> Result<()> {
    view::headline("which way do the replies go? a capture on the balancer's links");
    let t = &scene.topology;
    let vips = t.vips();
    // The balancer's own probes of the service go the same ways.
    let own = vips.map(|vip| t.balancer.address(vip));
    let capture = |of: fn((IpAddr, IpAddr)) -> IpAddr| -> Result<Vec<Capture>> {
        let ports = t.balancer_ports.iter();
        ports
            .map(|port| {
                Capture::start(&port.ns, &port.interface, move |frame| {
                    View::parse(&frame.bytes).is_ok_and(|view| {
                        view.tcp_flags().is_some()
                            && view.addresses().is_some_and(|a| {
                                vips.contains(&of(a)) && !own.contains(&a.0) && !own.contains(&a.1)
                            })
                    })
                })
            })
            .collect()
    };
    let (requests, replies) = (capture(|a| a.1)?, capture(|a| a.0)?);
    http::burst(&t.client.ns, &scene.ledger, &scene.targets(), WATCHED, 1)?;
    let total =
        |captures: Vec<Capture>| -> Result<u64> { captures.into_iter().map(Capture::stop).sum() };
    report.requests_at_balancer = total(requests)?;
    report.replies_at_balancer = total(replies)?;
    let (to, from) = (report.requests_at_balancer, report.replies_at_balancer);
    let dsr = t.kind == Kind::Dsr;
    let holds = to > 0 && (from == 0) == dsr;
    let which = if dsr {
        "servers answer the clients directly"
    } else {
        "the balancer translates them back"
    };
    verdict(
        report,
        holds,
        format!("{WATCHED} connections: {to} packets to the VIPs, {from} from the VIPs; {which}"),
    );
    Ok(())
}

/// Losses since the last look.
fn new_losses(held: &Held, seen: &mut usize) -> Vec<Loss> {
    let all = held.lost();
    let new = all.get(*seen..).unwrap_or_default().to_vec();
    *seen = all.len();
    new
}

fn changes(scene: &mut Scene, report: &mut SceneReport) -> Result<()> {
    view::headline(&format!(
        "{HELD} connections are opened and stay open, a request over each every second"
    ));
    let client = scene.topology.client.ns.clone();
    let targets = scene.targets();
    let held = Held::start(&client, &scene.ledger, &targets, HELD);
    let opened = wait_ok("the connections to open", Duration::from_secs(20), || {
        let (opened, failed) = held.opened();
        let tried = opened.values().sum::<u64>() as usize + failed.len();
        ensure!(tried == HELD, "{tried} of {HELD} tried");
        ensure!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
        Ok(opened)
    })?;
    report.held = opened.values().sum();
    for (server, connections) in &opened {
        view::fact(&format!("{server:<10} {connections}"));
    }
    let mut seen = 0;
    let stream = Stream::start(&client, &scene.ledger, &targets, STREAM_EVERY);
    sleep(Duration::from_secs(1));
    report.lost_at_rest = new_losses(&held, &mut seen).len() as u64;

    ensure!(
        stream.is_running(),
        "the stream of new requests ended: {:?}",
        stream.stop()
    );
    drain(scene, report)?;
    let losses = new_losses(&held, &mut seen);
    report.lost_on_drain = losses.len() as u64;
    verdict(
        report,
        losses.is_empty(),
        format!("{} of the {HELD} open connections lost", losses.len()),
    );

    kill(scene, report, || held.lost().len() as u64, &opened)?;
    let losses = new_losses(&held, &mut seen);
    let own = losses.iter().filter(|l| l.server == KILLED).count() as u64;
    report.lost_on_kill_of_own = own;
    report.lost_on_kill_of_others = losses.len() as u64 - own;
    let killed_had = opened.get(KILLED).copied().unwrap_or_default();
    verdict(
        report,
        own == killed_had && report.lost_on_kill_of_others == 0,
        format!(
            "lost {own} of the {killed_had} connections that {KILLED} had, and {} of the others'",
            report.lost_on_kill_of_others
        ),
    );

    recovery(scene, report)?;
    stream.stop()?;
    let all = held.stop()?;
    let losses = all.get(seen..).unwrap_or_default();
    report.lost_on_recovery = losses.len() as u64;
    verdict(
        report,
        losses.is_empty(),
        format!("{} more of the open connections lost", losses.len()),
    );
    for loss in all.iter().filter(|l| l.server != KILLED).take(3) {
        view::fact(&format!("lost, of {}: {}", loss.server, loss.why));
    }
    report.expect(report.lost_at_rest == 0, || {
        "connections were lost before anything was changed".into()
    });
    Ok(())
}

/// New requests that a backend answered since `from`.
fn new_on(scene: &Scene, backend: &str, from: usize) -> u64 {
    answered_by(&scene.ledger.since(from), Way::New)
        .get(backend)
        .copied()
        .unwrap_or_default()
}

fn drain(scene: &Scene, report: &mut SceneReport) -> Result<()> {
    view::headline(&format!("{DRAINED} is drained"));
    scene.tell("drain", DRAINED)?;
    scene.wait_condition(DRAINED, "draining")?;
    sleep(SYN_WINDOW);
    let before = scene.ledger.len();
    sleep(Duration::from_secs(2));
    let all = scene.ledger.since(before);
    let news = all.iter().filter(|e| e.way == Way::New).count();
    report.new_on_drained = new_on(scene, DRAINED, before);
    verdict(
        report,
        report.new_on_drained == 0 && news > 0,
        format!(
            "of {news} new requests {} reached it; those under way go on",
            report.new_on_drained
        ),
    );
    scene.tell("enable", DRAINED)?;
    let before = scene.ledger.len();
    wait_for(
        format!("new requests to reach {DRAINED} again"),
        Duration::from_secs(15),
        || new_on(scene, DRAINED, before) > 0,
    )
}

fn kill(
    scene: &mut Scene,
    report: &mut SceneReport,
    lost: impl Fn() -> u64,
    opened: &BTreeMap<String, u64>,
) -> Result<()> {
    view::headline(&format!("the nginx of {KILLED} gets SIGKILL"));
    let lost_before = lost();
    let before = scene.ledger.len();
    let killed_at = Instant::now();
    scene.kill(KILLED)?;
    wait_ok(
        format!("{KILLED} to be out"),
        Duration::from_secs(15),
        || {
            let rows = scene.rows(KILLED)?;
            ensure!(rows.iter().all(|r| r["condition"] != "up"), "it is up");
            Ok(())
        },
    )?;
    // Its own connections notice with their next request.
    let own = opened.get(KILLED).copied().unwrap_or_default();
    let _ = wait_for("its connections to end", Duration::from_secs(12), || {
        lost() - lost_before >= own
    });
    sleep(Duration::from_secs(2).saturating_sub(killed_at.elapsed()) + Duration::from_secs(1));
    let exchanges = scene.ledger.since(before);
    let failed: Vec<Duration> = exchanges
        .iter()
        .filter(|e| e.way == Way::New && e.answer.is_err())
        .map(|e| e.begun.saturating_duration_since(killed_at))
        .collect();
    let in_time = failed.iter().filter(|after| **after <= NOTICED_WITHIN);
    report.failed_until_noticed = in_time.count() as u64;
    let out = failed.iter().max().copied().unwrap_or_default();
    report.seconds_until_out = out.as_secs_f64();
    verdict(
        report,
        out <= NOTICED_WITHIN,
        format!(
            "out after {:.2} s (checked every 500 ms, twice); until then {} new requests were refused, since then none",
            report.seconds_until_out, report.failed_until_noticed
        ),
    );
    scene.show("backends")
}

fn recovery(scene: &mut Scene, report: &mut SceneReport) -> Result<()> {
    view::headline(&format!("the nginx of {KILLED} is started again"));
    let (before, started) = (scene.ledger.len(), Instant::now());
    scene.revive(KILLED)?;
    scene.wait_condition(KILLED, "up")?;
    wait_for(
        format!("new requests to reach {KILLED} again"),
        Duration::from_secs(15),
        || new_on(scene, KILLED, before) > 0,
    )?;
    let after = started.elapsed();
    sleep(Duration::from_secs(2));
    report.new_on_recovered = new_on(scene, KILLED, before);
    verdict(
        report,
        report.new_on_recovered > 0,
        format!(
            "it gets new requests again after {:.1} s ({} so far)",
            after.as_secs_f64(),
            report.new_on_recovered
        ),
    );
    view::headline("what an operator sees");
    for command in ["status", "services", "backends"] {
        scene.show(command)?;
    }
    let metrics = scene.metrics()?;
    let shown = [
        "lb_service_connections_opened_total",
        "lb_service_connections_active{",
        "lb_backend_up",
        "lb_flow_table_entries",
        "lb_xdp_mode",
    ];
    let lines: Vec<&str> = metrics
        .lines()
        .filter(|line| shown.iter().any(|name| line.starts_with(name)))
        .filter(|line| !(line.starts_with("lb_xdp_mode") && line.ends_with(" 0")))
        .collect();
    view::command(
        "curl -s http://127.0.0.1:9464/metrics | grep …",
        &lines.join("\n"),
    );
    let up = lines
        .iter()
        .filter(|line| line.starts_with("lb_backend_up") && line.ends_with(" 1"))
        .count();
    let wanted = scene.nginx.len() * scene.targets().len();
    report.expect(up == wanted, || {
        format!("the metrics say that {up} of {wanted} backends are up")
    });
    Ok(())
}
