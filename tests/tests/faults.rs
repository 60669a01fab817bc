//! Two balancers with a link between them survive what may happen to them.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    check,
    cleanup::TempDir,
    config::Config,
    held::Held,
    owners::{Owned, Watch},
    pair::{INTERVAL, Method, Pair},
    process::wait_ok,
    servers::Hold,
    site::LIST,
    topology::Port,
};

/// Of each family.
const CONNECTIONS: u32 = 100;

/// What is waited for comes within this.
const SOON: Duration = Duration::from_secs(30);

/// A moment in which two may own while one hands over: an answer's travel time, on
/// a machine with much else to do.
const ANSWER: Duration = Duration::from_millis(150);

/// A lease's end is known to a jiffy, which has 10 ms at most.
const JIFFY: Duration = Duration::from_millis(10);

/// Longer than a standby waits before it claims.
const LONG: Duration = Duration::from_millis(1_200);

/// The router is the reference host.
fn with_references(config: &mut Config) {
    for extra in &mut config.extra {
        let hosts = "track: {reference_hosts: [10.2.0.1, \"fd00:2::1\"]}, addresses:";
        *extra = extra.replace("addresses: [\"10.2", &format!("{hosts} [\"10.2"));
    }
}

fn start() -> Result<Pair> {
    Pair::start(Method::Dsr, 2, |_, config| with_references(config))
}

/// Nobody is active beside node `active`, which is and stays.
fn stays(pair: &Pair, active: usize, what: &str) -> Result<Owned> {
    let watch = Watch::start(pair)?;
    std::thread::sleep(LONG);
    let owned = watch.end()?;
    println!("{what}: {owned:?}");
    pair.wait_state(active, "active")?;
    ensure!(owned.both == Duration::ZERO, "{what}: two own: {owned:?}");
    ensure!(
        owned.nobody == Duration::ZERO,
        "{what}: nobody owns: {owned:?}"
    );
    Ok(owned)
}

/// Something happens after which node `next` is active. How the owners were.
fn moves(
    pair: &Pair,
    next: usize,
    what: &str,
    fault: impl FnOnce() -> Result<()>,
) -> Result<Owned> {
    // What is shown may be a second old.
    pair.wait_state(next, "backup")?;
    pair.wait_state(1 - next, "active")?;
    let watch = Watch::start(pair)?;
    fault()?;
    pair.wait_state(next, "active")?;
    let owned = watch.end()?;
    println!("{what}: {owned:?}");
    Ok(owned)
}

fn wait_why(pair: &Pair, node: usize, words: &str) -> Result<()> {
    wait_ok(format!("lb{} to say: {words}", node + 1), SOON, || {
        let text = pair.nodes[node].daemon.ctl(&["vrrp"])?;
        ensure!(text.contains(words), "{text}");
        Ok(())
    })
}

/// Waits until a backup hears the other one on the segment again.
fn wait_hears(pair: &Pair, node: usize) -> Result<()> {
    wait_ok(
        format!("lb{} to hear the other one", node + 1),
        SOON,
        || {
            let text = pair.nodes[node].daemon.ctl(&["vrrp"])?;
            let waits = ["peer link alone", "isolated", "reference hosts answer"];
            ensure!(!waits.iter().any(|words| text.contains(words)), "{text}");
            Ok(())
        },
    )
}

/// Sets something of a node's port of the switch.
fn set_port(port: &Port, what: &str, value: &str) -> Result<()> {
    let argv = ["bridge", "link", "set", "dev", &port.interface, what, value];
    port.ns.exec(&argv).map(drop)
}

/// The switch forwards nothing for the port of this node, which has its carrier.
fn cut_cable(pair: &Pair, node: usize, cut: bool) -> Result<()> {
    let port = &pair.topology.balancer_ports[node];
    set_port(port, "state", if cut { "0" } else { "3" })
}

/// The two don't reach each other on the segment; everybody else does.
fn cut_trunk(pair: &Pair, cut: bool) -> Result<()> {
    let mut ports = pair.topology.balancer_ports.iter();
    ports.try_for_each(|port| set_port(port, "isolated", if cut { "on" } else { "off" }))
}

fn cut_peer_link(pair: &Pair, cut: bool) -> Result<()> {
    let state = if cut { "down" } else { "up" };
    let ns = &pair.nodes[0].host.ns;
    ns.exec(&["ip", "link", "set", "peer0", state]).map(drop)
}

fn carrier(pair: &Pair, node: usize, state: &str) -> Result<()> {
    let port = &pair.topology.balancer_ports[node];
    let argv = ["ip", "link", "set", &port.interface, state];
    port.ns.exec(&argv).map(drop)
}

fn wait_linked(pair: &Pair) -> Result<()> {
    wait_ok("the peer link", SOON, || {
        for node in &pair.nodes {
            let links = node.daemon.ctl_json(&["sync"])?;
            ensure!(links[0]["up"] == true, "{links}");
        }
        Ok(())
    })
}

#[test]
fn planned_hand_overs_lose_no_connection_and_have_no_gap() {
    check(|| {
        let mut pair = start()?;
        let mut held = Held::open(&pair.topology, LIST[0], CONNECTIONS)?;
        pair.wait_in_sync(1)?;
        let mut gaps = vec![];
        for round in 0..4 {
            let (active, next) = (round % 2, 1 - round % 2);
            let node = &pair.nodes[active];
            let owned = moves(&pair, next, "failover", || {
                let text = node.daemon.ctl(&["failover"])?;
                let expected = format!("virtual router 51 (IPv4): lb{} is active", next + 1);
                ensure!(text.contains(&expected), "{text}");
                Ok(())
            })?;
            ensure!(owned.nobody <= Duration::from_millis(5), "{owned:?}");
            ensure!(owned.both <= ANSWER, "{owned:?}");
            gaps.push(owned);
            wait_why(&pair, active, &format!("handed over to lb{}", next + 1))?;
        }
        // What was handed over stays, though the priority here is higher.
        pair.nodes[0]
            .daemon
            .ctl(&["failover", "--vrid", "51", "--to", "lb2"])?;
        stays(&pair, 1, "handed over")?;
        let refused = |node: usize, args: &[&str], words: &str| -> Result<()> {
            let output = pair.nodes[node].daemon.ctl_output(args)?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                output.status.code() == Some(1) && text.contains(words),
                "{text}"
            );
            Ok(())
        };
        refused(0, &["failover"], "no virtual router is active on this node")?;
        refused(
            1,
            &["failover", "--vrid", "9"],
            "virtual router 9 is not active on this node",
        )?;
        refused(
            1,
            &["failover", "--to", "lb7"],
            "no peer is called lb7; there are: lb1",
        )?;
        held.none_lost("five hand-overs")?;

        // In order: the other one is active before this one lets go.
        let watch = Watch::start(&pair)?;
        pair.nodes[1].daemon.stop()?;
        let owned = watch.end()?;
        println!("stop: {owned:?}");
        pair.wait_state(0, "active")?;
        ensure!(owned.nobody <= Duration::from_millis(5), "{owned:?}");
        held.none_lost("a stop")?;
        Ok(())
    });
}

#[test]
fn no_single_fault_makes_a_second_owner_or_leaves_none() {
    check(|| {
        let mut pair = start()?;
        let claims = INTERVAL * 3 + INTERVAL;

        // 3: the trunk between the two switches.
        cut_trunk(&pair, true)?;
        stays(&pair, 0, "the trunk is cut")?;
        wait_why(&pair, 1, "lb1 is active, heard by the peer link alone")?;
        cut_trunk(&pair, false)?;
        wait_hears(&pair, 1)?;
        stays(&pair, 0, "the trunk is whole again")?;

        // 4: the standby's own cable, with the peer link and without.
        cut_cable(&pair, 1, true)?;
        stays(&pair, 0, "the standby's cable is cut")?;
        cut_peer_link(&pair, true)?;
        stays(&pair, 0, "and its peer link")?;
        wait_why(&pair, 1, "isolated")?;
        cut_cable(&pair, 1, false)?;
        cut_peer_link(&pair, false)?;
        wait_hears(&pair, 1)?;
        wait_linked(&pair)?;
        stays(&pair, 0, "both are whole again")?;

        // The same of the active one: it finds out, and hands over.
        let owned = moves(&pair, 1, "the active one's cable is cut", || {
            cut_cable(&pair, 0, true)
        })?;
        ensure!(
            owned.nobody <= Duration::from_millis(5) && owned.both <= ANSWER,
            "{owned:?}"
        );
        let back = || cut_cable(&pair, 0, false);
        let owned = moves(&pair, 0, "it is whole again", back)?;
        ensure!(
            owned.nobody == Duration::ZERO && owned.both <= ANSWER,
            "{owned:?}"
        );

        // 2: a switch dies, and takes the carrier away.
        let lost = || carrier(&pair, 0, "down");
        let owned = moves(&pair, 1, "carrier lost", lost)?;
        // As after priority 0: its skew is 61 ms.
        ensure!(
            owned.both <= JIFFY && owned.nobody <= INTERVAL + owned.blind,
            "{owned:?}"
        );
        wait_why(&pair, 0, "eth0 carries no frames")?;
        let watch = Watch::start(&pair)?;
        carrier(&pair, 0, "up")?;
        pair.wait_state(0, "active")?;
        let owned = watch.end()?;
        println!("carrier found: {owned:?}");
        ensure!(
            owned.nobody == Duration::ZERO && owned.both <= ANSWER,
            "{owned:?}"
        );

        // 1: it hangs, and goes on.
        let hang = || pair.nodes[0].daemon.process()?.signal(libc::SIGSTOP);
        let owned = moves(&pair, 1, "SIGSTOP", hang)?;
        ensure!(
            owned.both == Duration::ZERO && owned.nobody <= claims + owned.blind,
            "{owned:?}"
        );
        let watch = Watch::start(&pair)?;
        pair.nodes[0].daemon.process()?.signal(libc::SIGCONT)?;
        pair.wait_state(1, "backup")?;
        pair.wait_state(0, "active")?;
        let owned = watch.end()?;
        println!("SIGCONT: {owned:?}");
        ensure!(
            owned.nobody == Duration::ZERO && owned.both <= ANSWER,
            "{owned:?}"
        );

        // It has too little processor time: half of it is missing, in pieces.
        let watch = Watch::start(&pair)?;
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            for signal in [libc::SIGSTOP, libc::SIGCONT] {
                pair.nodes[0].daemon.process()?.signal(signal)?;
                std::thread::sleep(Duration::from_millis(60));
            }
        }
        let owned = watch.end()?;
        println!("half of the time: {owned:?}");
        ensure!(
            owned.both == Duration::ZERO && owned.nobody <= claims + owned.blind,
            "{owned:?}"
        );
        pair.wait_state(0, "active")?;

        // 6: it dies, and comes back.
        pair.wait_state(1, "backup")?;
        let watch = Watch::start(&pair)?;
        pair.nodes[0].daemon.kill9()?;
        pair.wait_state(1, "active")?;
        let owned = watch.end()?;
        println!("SIGKILL: {owned:?}");
        ensure!(
            owned.both == Duration::ZERO && owned.nobody <= claims + owned.blind,
            "{owned:?}"
        );
        pair.nodes[0].daemon.launch()?;
        pair.wait_state(0, "active")?;
        let log = pair.nodes[0].daemon.log();
        ensure!(!log.contains("panicked"), "{log}");

        // 5: everything between them is cut, and heals.
        wait_linked(&pair)?;
        cut_trunk(&pair, true)?;
        cut_peer_link(&pair, true)?;
        pair.wait_state(1, "active")?;
        pair.wait_state(0, "active")?;
        let watch = Watch::start(&pair)?;
        cut_trunk(&pair, false)?;
        cut_peer_link(&pair, false)?;
        pair.wait_state(1, "backup")?;
        pair.wait_state(0, "active")?;
        let owned = watch.end()?;
        println!("healed: {owned:?}");
        ensure!(
            owned.both > Duration::ZERO,
            "they never both owned: {owned:?}"
        );
        ensure!(owned.nobody == Duration::ZERO, "{owned:?}");
        Ok(())
    });
}

/// Where Debian has it for this machine.
fn faketime() -> Result<String> {
    let shown = std::process::Command::new("faketime")
        .args(["-f", "+0", "printenv", "LD_PRELOAD"])
        .output()
        .context("faketime is missing: `cargo xtask setup` installs it")?;
    Ok(String::from_utf8(shown.stdout)?.trim().to_owned())
}

/// Day and hour so many hours from now, as logs begin.
fn hour(offset: i8) -> Result<String> {
    let when = format!("{offset:+} hours");
    let shown = std::process::Command::new("date")
        .args(["-u", "-d", &when, "+%Y-%m-%dT%H"])
        .output()?;
    Ok(String::from_utf8(shown.stdout)?.trim().to_owned())
}

/// Somebody sets the clock of both nodes, forward and back.
#[test]
fn a_step_of_the_clock_moves_nothing() {
    check(|| {
        let mut pair = start()?;
        let dir = TempDir::new()?;
        let file = dir.join("clock");
        fs::write(&file, "+0h\n")?;
        for number in [1, 0] {
            let daemon = &mut pair.nodes[number].daemon;
            daemon.set_environment("LD_PRELOAD", faketime()?);
            daemon.set_environment("FAKETIME_TIMESTAMP_FILE", file.display());
            daemon.set_environment("FAKETIME_NO_CACHE", 1);
            // As the kernel has it: nobody can set that one.
            daemon.set_environment("FAKETIME_DONT_FAKE_MONOTONIC", 1);
            daemon.stop()?;
            daemon.launch()?;
        }
        pair.wait_state(0, "active")?;
        pair.wait_state(1, "backup")?;
        let mut held = Held::open(&pair.topology, LIST[0], CONNECTIONS)?;
        pair.wait_in_sync(1)?;
        for offset in [5, -3, 0] {
            let before = hour(offset)?;
            fs::write(&file, format!("{offset:+}h\n"))?;
            stays(&pair, 0, &format!("the clock was set {offset:+} h"))?;
            for node in &pair.nodes {
                node.reload()?;
                let log = node.daemon.log();
                let last = log
                    .lines()
                    .rfind(|line| line.contains("configuration reloaded"));
                let stamp = last.context("no reload in the log")?.to_owned();
                let is_set = [before.clone(), hour(offset)?]
                    .iter()
                    .any(|hour| stamp.contains(hour));
                ensure!(is_set, "its clock wasn't set {offset:+} h: {stamp}");
            }
            pair.wait_in_sync(1)?;
        }
        wait_linked(&pair)?;
        held.none_lost("steps of the clock")
    });
}

/// Between two lines of a connection.
const SETTLE: Duration = Duration::from_millis(1_300);

/// Two switches and a trunk, and routers that fail as well.
#[test]
fn connections_survive_routers_a_trunk_and_a_balancer_that_fail_one_after_another() {
    check(|| {
        // The gateway, and a server at each switch.
        let hosts = "track: {reference_hosts: [10.2.0.254, 10.2.0.11, 10.2.0.12]}, addresses:";
        let mut pair = Pair::in_building(4, |_, config| {
            config.services.retain(|service| service.address.is_ipv4());
            for extra in &mut config.extra {
                *extra = extra.replace(
                    "addresses: [\"10.2.0.100\", \"fd00:2::64\"]",
                    "addresses: [10.2.0.100]",
                );
                *extra = extra.replace("addresses:", hosts);
            }
        })?;
        let target = SocketAddr::new(pair.topology.vip4.into(), LIST[0]);
        let mut held = Hold::start(&pair.topology.client.ns, target, 2 * CONNECTIONS, 400)?;
        let report = held.wait_open(SOON)?;
        ensure!(
            report.failed_to_open == 0 && report.per_server.len() == 4,
            "{report:?}"
        );
        let mut none_lost = |after: &str| -> Result<()> {
            let before = held.report()?.messages;
            std::thread::sleep(SETTLE);
            let report = held.report()?;
            println!(
                "{after}: {} of {} lost, longest wait so far {} ms",
                report.lost.total(),
                report.opened,
                report.max_stall_ms
            );
            ensure!(report.lost.total() == 0, "{report:?}");
            ensure!(report.messages > before, "nobody spoke after {after}");
            Ok(())
        };
        none_lost("opening")?;

        let building = pair.building.as_mut().context("it has no building")?;
        building.kill_router(0)?;
        building.wait_active(1)?;
        none_lost("a router died")?;
        stays(&pair, 0, "a router died")?;

        let building = pair.building.as_ref().context("it has no building")?;
        building.cut_trunk(true)?;
        let owned = stays_or_moves(&pair)?;
        building.cut_trunk(false)?;
        println!("the trunk was cut and mended: {owned:?}");
        ensure!(owned.nobody <= INTERVAL * 4 + owned.blind, "{owned:?}");
        ensure!(owned.both <= ANSWER, "{owned:?}");
        let active = wait_ok("one active node", SOON, || {
            let is = |node: usize| -> Result<bool> {
                let rows = pair.nodes[node].daemon.ctl_json(&["vrrp"])?;
                Ok(rows[0]["state"] == "active")
            };
            match (is(0)?, is(1)?) {
                (true, false) => Ok(0),
                (false, true) => Ok(1),
                both => bail!("{both:?}"),
            }
        })?;
        none_lost("the trunk was cut and mended")?;

        pair.wait_in_sync(1 - active)?;
        pair.nodes[active].daemon.kill9()?;
        wait_ok("the other one to own", SOON, || {
            let rows = pair.nodes[1 - active].daemon.ctl_json(&["vrrp"])?;
            ensure!(rows[0]["state"] == "active", "{rows}");
            Ok(())
        })?;
        none_lost("a balancer died")?;
        Ok(())
    });
}

/// Who owns while the trunk is cut: the one that reaches more.
fn stays_or_moves(pair: &Pair) -> Result<Owned> {
    let watch = Watch::start(pair)?;
    std::thread::sleep(2 * LONG);
    watch.end()
}
