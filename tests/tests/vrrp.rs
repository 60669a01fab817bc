//! VRRP beside keepalived: two nodes, one owner.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    cleanup::TempDir,
    config::Config,
    netns::Netns,
    process::{Process, wait_ok},
    site::Site,
    topology::{Kind, Options, Topology},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);
const VRID: u8 = 51;

/// How both nodes are set up.
#[derive(Clone, Copy)]
struct Case {
    version: u8,
    /// Of `lbctl` and of keepalived.
    priorities: (u8, u8),
    interval: Duration,
    /// The RFC's form of the checksum, which keepalived doesn't send by default.
    rfc_checksum: bool,
    unicast: bool,
    preempt: bool,
}

const FAST: Case = Case {
    version: 3,
    priorities: (150, 100),
    interval: Duration::from_millis(100),
    rfc_checksum: false,
    unicast: false,
    preempt: true,
};

/// keepalived on the same switch, at 10.2.0.20 and fd00:2::20.
struct Keepalived {
    ns: Netns,
    process: Option<Process>,
    dir: TempDir,
}

impl Keepalived {
    fn prepare(t: &Topology, case: Case) -> Result<Self> {
        Self::prepare_in(t, 2, &configuration(t, case))
    }

    /// In the subnet 10.`net`.0.0/24, whose switch is the topology's.
    fn prepare_in(t: &Topology, net: u8, configuration: &str) -> Result<Self> {
        let ns = Netns::new("keepalived")?;
        ns.feed(
            &["ip", "-batch", "-"],
            &format!(
                "link set lo up\nlink add eth0 type veth peer name keepalived netns {}\n\
                 addr add 10.{net}.0.20/24 dev eth0\naddr add fd00:{net}::20/64 dev eth0 nodad\n\
                 link set eth0 up\n",
                t.switch.name()
            ),
        )?;
        t.switch.feed(
            &["ip", "-batch", "-"],
            "link set keepalived master br0\nlink set keepalived up\n",
        )?;
        let dir = TempDir::new()?;
        fs::write(dir.join("keepalived.conf"), configuration)?;
        Ok(Self {
            ns,
            process: None,
            dir,
        })
    }

    fn start(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (conf, pid, vrrp) = (path("keepalived.conf"), path("pid"), path("vrrp.pid"));
        for stale in [&pid, &vrrp] {
            let _ = fs::remove_file(stale);
        }
        let mut command = self.ns.command("keepalived");
        command
            .args(["-n", "-l", "-D", "-P", "-f", &conf, "-p", &pid, "-r", &vrrp])
            .arg("--no-syslog");
        self.process = Some(Process::spawn("keepalived", command)?);
        Ok(())
    }

    /// Whether it has the address.
    fn owns(&self, vip: IpAddr) -> Result<bool> {
        let shown = self.ns.exec(&["ip", "-o", "addr", "show", "dev", "eth0"])?;
        let vip = format!(" {vip}/");
        Ok(shown.lines().any(|line| line.contains(&vip)))
    }

    /// It gets no time to say that it leaves.
    fn kill9(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it doesn't run")?;
        process.signal_group(libc::SIGKILL)?;
        process.kill9()
    }

    fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}

fn configuration(t: &Topology, case: Case) -> String {
    let seconds = case.interval.as_secs_f64();
    let balancer = &t.balancer;
    let instance = |name: &str, vips: &[String], own: &str, peer: &str| {
        let unicast = if case.unicast {
            format!("unicast_src_ip {own}\n  unicast_peer {{ {peer} }}\n")
        } else {
            String::new()
        };
        let preempt = if case.preempt { "" } else { "nopreempt\n" };
        format!(
            "vrrp_instance {name} {{\n  state BACKUP\n  interface eth0\n  virtual_router_id {VRID}\n  \
             priority {}\n  advert_int {seconds}\n  version {}\n  {unicast}  {preempt}  \
             virtual_ipaddress {{ {} }}\n}}\n",
            case.priorities.1,
            case.version,
            vips.join("\n")
        )
    };
    let [v4, v6] = t.vips();
    let mut text = "global_defs { router_id other }\n".to_owned();
    text += &instance(
        "v4",
        &[format!("{v4}/32")],
        "10.2.0.20",
        &balancer.v4().to_string(),
    );
    if case.version == 3 {
        // RFC 9568 wants a link-local one first.
        let local = format!("fe80::200:5eff:fe00:{:x}/64", 0x200 + u16::from(VRID));
        text += &instance(
            "v6",
            &[local, format!("{v6}/128")],
            "fd00:2::20",
            &balancer.v6().to_string(),
        );
    }
    text
}

fn vrrp(t: &Topology, case: Case) -> String {
    let vips = t.vips();
    let all: Vec<String> = vips
        .iter()
        .filter(|vip| vip.is_ipv4() || case.version == 3)
        .map(|vip| format!("\"{vip}\""))
        .collect();
    let peers = if case.unicast {
        ", unicast_peers: [10.2.0.20, \"fd00:2::20\"]"
    } else {
        ""
    };
    let checksum = if case.rfc_checksum {
        "rfc9568"
    } else {
        "pseudo-header"
    };
    format!(
        "vrrp:\n  - {{vrid: {VRID}, interface: eth0, priority: {}, version: {}, \
         advertisement_interval: {}ms, addresses: [{}], checksum: {checksum}, preempt: {}{peers}}}",
        case.priorities.0,
        case.version,
        case.interval.as_millis(),
        all.join(", "),
        case.preempt,
    )
}

/// A balancer that speaks VRRP, and keepalived, which doesn't run yet.
fn start(case: Case) -> Result<(Site, Keepalived)> {
    let topology = Topology::new(Kind::Dsr, &Options::default())?;
    let other = Keepalived::prepare(&topology, case)?;
    let vrrp = vrrp(&topology, case);
    let site = Site::full_in(topology, |config: &mut Config| config.extra.push(vrrp))?;
    Ok((site, other))
}

/// Rows of `lbctl vrrp`.
fn rows(site: &Site) -> Result<Vec<Value>> {
    let rows = site.daemon.ctl_json(&["vrrp"])?;
    Ok(rows.as_array().cloned().unwrap_or_default())
}

fn wait_state(site: &Site, state: &str) -> Result<()> {
    wait_ok(format!("lbctl to be {state}"), SOON, || {
        let rows = rows(site)?;
        ensure!(
            !rows.is_empty() && rows.iter().all(|row| row["state"] == state),
            "{rows:?}"
        );
        Ok(())
    })
}

fn wait_other(other: &Keepalived, vips: &[IpAddr], owns: bool) -> Result<()> {
    wait_ok(format!("keepalived to own: {owns}"), SOON, || {
        for vip in vips {
            ensure!(
                other.owns(*vip)? == owns,
                "{vip}; its log:\n{}",
                other.log()
            );
        }
        Ok(())
    })
}

/// The MAC address that the router finds for a VIP now; `None` if nobody answers.
fn answered_by(site: &Site, vip: IpAddr) -> Result<Option<String>> {
    let router = &site.topology.router.ns;
    let vip = vip.to_string();
    let device = "eth1";
    router.exec(&["ip", "neigh", "flush", "dev", device])?;
    let _ = router.output(&["ping", "-c1", "-W1", &vip])?;
    let shown = router.exec(&["ip", "neigh", "show", &vip, "dev", device])?;
    let mut words = shown.split_whitespace();
    Ok(words
        .find(|word| *word == "lladdr")
        .and_then(|_| words.next())
        .map(str::to_owned))
}

/// The virtual MAC address, at which this node has a VIP; keepalived has it at its
/// interface's.
fn own(vip: IpAddr) -> &'static str {
    if vip.is_ipv4() {
        "00:00:5e:00:01:33"
    } else {
        "00:00:5e:00:02:33"
    }
}

fn vips(site: &Site, case: Case) -> Vec<IpAddr> {
    let all = site.topology.vips().into_iter();
    all.filter(|vip| vip.is_ipv4() || case.version == 3)
        .collect()
}

/// Each node takes over from the other, in all the ways there are.
fn one_after_the_other(case: Case) -> Result<()> {
    let (mut site, mut other) = start(case)?;
    let vips = vips(&site, case);
    wait_state(&site, "active")?;
    for vip in &vips {
        let (mac, own) = (answered_by(&site, *vip)?, own(*vip));
        ensure!(
            mac.as_deref() == Some(own),
            "{vip} is at {mac:?}, not {own}"
        );
    }

    // A lower priority changes nothing.
    other.start()?;
    std::thread::sleep(case.interval * 10 + Duration::from_secs(1));
    wait_state(&site, "active")?;
    wait_other(&other, &vips, false)?;
    for row in rows(&site)? {
        ensure!(
            row["rejected"].as_object().is_some_and(|r| r.is_empty()),
            "{row}"
        );
    }

    // Without a word: the lease ends, and the other one claims.
    let dead = Instant::now();
    site.daemon.kill9()?;
    wait_other(&other, &vips, true)?;
    println!("SIGKILL: keepalived owns after {:?}", dead.elapsed());
    for vip in &vips {
        let mac = answered_by(&site, *vip)?;
        ensure!(
            mac.is_some() && mac.as_deref() != Some(own(*vip)),
            "{vip} is at {mac:?}: the dead daemon's data path still owns it"
        );
    }

    // It comes back, with the higher priority.
    site.daemon.launch()?;
    if case.preempt {
        wait_state(&site, "active")?;
        wait_other(&other, &vips, false)?;
        for vip in &vips {
            wait_ok("the VIP to come back", SOON, || {
                let mac = answered_by(&site, *vip)?;
                ensure!(mac.as_deref() == Some(own(*vip)), "{vip} is at {mac:?}");
                Ok(())
            })?;
        }
        // In order: within the skew.
        let stopped = Instant::now();
        site.daemon.stop()?;
        wait_other(&other, &vips, true)?;
        println!("stop: keepalived owns after {:?}", stopped.elapsed());
        site.daemon.launch()?;
        wait_state(&site, "active")?;
    } else {
        wait_state(&site, "backup")?;
        wait_other(&other, &vips, true)?;
        other.kill9()?;
        wait_state(&site, "active")?;
    }
    Ok(())
}

#[test]
fn version_3_by_multicast() {
    check(|| one_after_the_other(FAST));
}

#[test]
fn version_3_without_preemption() {
    check(|| {
        one_after_the_other(Case {
            preempt: false,
            ..FAST
        })
    });
}

#[test]
fn version_3_by_unicast() {
    check(|| {
        one_after_the_other(Case {
            unicast: true,
            ..FAST
        })
    });
}

#[test]
fn version_3_every_ten_milliseconds() {
    check(|| {
        one_after_the_other(Case {
            interval: Duration::from_millis(10),
            ..FAST
        })
    });
}

#[test]
fn version_2() {
    check(|| {
        one_after_the_other(Case {
            version: 2,
            interval: Duration::from_secs(1),
            ..FAST
        })
    });
}

#[test]
fn a_higher_priority_of_keepalived_is_respected() {
    check(|| {
        let case = Case {
            priorities: (100, 150),
            ..FAST
        };
        let (site, mut other) = start(case)?;
        let vips = vips(&site, case);
        wait_state(&site, "active")?;
        other.start()?;
        wait_other(&other, &vips, true)?;
        wait_state(&site, "backup")?;
        for row in rows(&site)? {
            ensure!(row["active_priority"] == 150, "{row}");
        }
        for vip in &vips {
            let mac = answered_by(&site, *vip)?;
            ensure!(mac.as_deref() != Some(own(*vip)), "{vip} is at {mac:?}");
        }
        other.kill9()?;
        wait_state(&site, "active")?;
        // keepalived's kernel still has the addresses; that is its own affair.
        let text = site.daemon.ctl(&["vrrp"])?;
        ensure!(
            text.contains("this node") && text.contains("nobody advertises"),
            "{text}"
        );
        Ok(())
    });
}

/// keepalived throws the RFC's form away, and both would claim: that is said, with
/// the remedy, which works.
#[test]
fn who_does_not_understand_the_checksum_is_named_with_the_remedy() {
    check(|| {
        let case = Case {
            rfc_checksum: true,
            ..FAST
        };
        let (mut site, mut other) = start(case)?;
        wait_state(&site, "active")?;
        other.start()?;
        wait_other(&other, &[site.topology.vip4.into()], true)?;
        ensure!(
            other.log().contains("Invalid VRRPv3 checksum"),
            "{}",
            other.log()
        );
        wait_ok("the remedy", SOON, || {
            let log = site.daemon.log();
            ensure!(log.contains("set `checksum: pseudo-header`"), "{log}");
            Ok(())
        })?;
        site.config.extra = vec![vrrp(&site.topology, FAST)];
        site.reload()?;
        wait_state(&site, "active")?;
        wait_other(&other, &vips(&site, FAST), false)
    });
}

/// A hung daemon doesn't own beyond its lease, and doesn't claim when it wakes.
#[test]
fn a_stopped_daemon_lets_go_and_listens_when_it_goes_on() {
    check(|| {
        let case = Case {
            preempt: false,
            ..FAST
        };
        let (site, mut other) = start(case)?;
        let vips = vips(&site, case);
        wait_state(&site, "active")?;
        other.start()?;
        std::thread::sleep(Duration::from_secs(1));
        let process = site.daemon.process()?;
        process.signal(libc::SIGSTOP)?;
        wait_other(&other, &vips, true)?;
        for vip in &vips {
            let mac = answered_by(&site, *vip)?;
            ensure!(
                mac.is_some() && mac.as_deref() != Some(own(*vip)),
                "{vip} is at {mac:?}: what hangs still owns"
            );
        }
        process.signal(libc::SIGCONT)?;
        wait_state(&site, "backup")?;
        let log = site.daemon.log();
        ensure!(log.contains("somebody else may be active"), "{log}");
        // It never claimed meanwhile.
        ensure!(log.matches("now=\"active\"").count() == vips.len(), "{log}");
        wait_other(&other, &vips, true)
    });
}

#[test]
fn a_node_without_a_carrier_declares_itself_failed_and_comes_back() {
    check(|| {
        let (site, mut other) = start(FAST)?;
        let vips = vips(&site, FAST);
        wait_state(&site, "active")?;
        other.start()?;
        std::thread::sleep(Duration::from_secs(1));
        let port = &site.topology.balancer_ports[0];
        let set = |state: &str| {
            let argv = ["ip", "link", "set", &port.interface, state];
            port.ns.exec(&argv).map(drop)
        };
        set("down")?;
        wait_state(&site, "fault")?;
        wait_other(&other, &vips, true)?;
        let text = site.daemon.ctl(&["vrrp"])?;
        ensure!(text.contains("eth0 carries no frames"), "{text}");
        set("up")?;
        wait_state(&site, "active")?;
        wait_other(&other, &vips, false)
    });
}

/// The servers' gateway on the inside of NAT with two arms.
const GATEWAY: &str = "10.3.0.250";

fn inside(priority: u8) -> String {
    format!(
        "global_defs {{ router_id other }}\nvrrp_instance inside {{\n  state BACKUP\n  interface eth0\n  \
         virtual_router_id 52\n  priority {priority}\n  advert_int 0.1\n  version 3\n  \
         virtual_ipaddress {{ {GATEWAY}/32 }}\n}}\n"
    )
}

/// State and reason by VRID.
fn states(site: &Site) -> Result<Vec<(u64, String, String)>> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = rows(site)?.into_iter();
    let mut states: Vec<_> = rows
        .map(|row| {
            let vrid = row["vrid"].as_u64().unwrap_or_default();
            (vrid, text(&row, "state"), text(&row, "reason"))
        })
        .collect();
    states.sort();
    Ok(states)
}

fn wait_states(site: &Site, expected: [(u64, &str, &str); 2]) -> Result<()> {
    wait_ok(format!("{expected:?}"), SOON, || {
        let states = states(site)?;
        let is_right = states.len() == 2
            && states.iter().zip(expected).all(|(now, wanted)| {
                (now.0, now.1.as_str()) == (wanted.0, wanted.1) && now.2.contains(wanted.2)
            });
        ensure!(is_right, "{states:?}");
        Ok(())
    })
}

/// Where the balancer is the servers' gateway, outside and inside go together.
#[test]
fn a_sync_group_moves_outside_and_inside_together() {
    check(|| {
        let topology = Topology::new(Kind::NatTwoArmed, &Options::default())?;
        let mut other = Keepalived::prepare_in(&topology, 3, &inside(100))?;
        let common = "priority: 150, advertisement_interval: 100ms, checksum: pseudo-header, \
                      sync_group: site";
        let vrrp = format!(
            "vrrp:\n  - {{vrid: 51, interface: eth0, addresses: [{}], {common}}}\n  \
             - {{vrid: 52, interface: eth1, addresses: [{GATEWAY}], {common}}}",
            topology.vip4
        );
        let site = Site::full_in(topology, |config| config.extra.push(vrrp))?;
        let gateway: IpAddr = GATEWAY.parse()?;
        let server = &site.topology.backends[0].ns;
        let is_answered = || server.exec(&["ping", "-c1", "-W1", GATEWAY]).map(drop);
        wait_states(&site, [(51, "active", ""), (52, "active", "")])?;
        wait_ok("the gateway to answer", SOON, is_answered)?;
        other.start()?;
        std::thread::sleep(Duration::from_secs(1));
        wait_other(&other, &[gateway], false)?;

        // No outside: no use as a gateway either.
        let outside = site.topology.balancer_ports[0].clone();
        let set = |state: &str| {
            let argv = ["ip", "link", "set", &outside.interface, state];
            outside.ns.exec(&argv).map(drop)
        };
        set("down")?;
        let lost = "eth0 carries no frames";
        wait_states(
            &site,
            [(51, "fault", lost), (52, "fault", "its sync group: eth0")],
        )?;
        wait_other(&other, &[gateway], true)?;
        set("up")?;
        wait_states(&site, [(51, "active", ""), (52, "active", "")])?;
        wait_other(&other, &[gateway], false)?;

        // A better one on the inside takes the outside along.
        other.kill9()?;
        fs::write(other.dir.join("keepalived.conf"), inside(200))?;
        other.start()?;
        let better = "advertises a better priority";
        let together = [(51, "backup", "its sync group"), (52, "backup", better)];
        wait_states(&site, together)?;
        // Nobody is better outside; it waits for the inside all the same.
        std::thread::sleep(Duration::from_secs(3));
        wait_states(&site, together)?;
        let log = site.daemon.log();
        other.kill9()?;
        wait_states(&site, [(51, "active", ""), (52, "active", "")])?;
        let took = site.daemon.log().len() - log.len();
        ensure!(
            took < 4000,
            "it changed again and again:\n{}",
            site.daemon.log()
        );
        Ok(())
    });
}
