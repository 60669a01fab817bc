//! Checks that are neither TCP nor HTTP, of real servers, and loads that they
//! tell.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    cleanup::TempDir,
    config::Config,
    netns::Netns,
    process::{Process, wait_ok},
    site::{DNS, Site, UDP, WEB_INSIDE},
    topology::{Host, Kind, Options},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// What every check here has in common.
const TIMING: &str = "interval: 500ms, timeout: 450ms, rise: 1, fall: 2";

/// Has the pools of nginx checked by these.
fn check_by(config: &mut Config, checks: &[String]) {
    for pool in config
        .pools
        .iter_mut()
        .filter(|p| p.name.starts_with("web"))
    {
        let checks: Vec<String> = checks
            .iter()
            .map(|keys| format!("{{{keys}, {TIMING}}}"))
            .collect();
        pool.extra = vec![format!("health: [{}]", checks.join(", "))];
    }
}

fn wait_shares(site: &Site, service: &str, expected: [f64; 3]) -> Result<()> {
    // The least interval between two changes of shares is 10 s.
    wait_ok("the shares to follow the load", SOON * 3, || {
        let shares = site.shares(service)?;
        let is_right = (1..).zip(expected).all(|(number, share)| {
            let now = shares.get(&format!("backend-{number}"));
            now.is_some_and(|now| (now - share).abs() < 0.02)
        });
        ensure!(is_right, "shares are {shares:?}, expected {expected:?}");
        Ok(())
    })
}

/// A server that says what is in a file to everybody.
struct Says {
    _process: Process,
    dir: TempDir,
}

impl Says {
    fn start(ns: &Netns, port: u16, text: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let says = Self {
            _process: ns.spawn(
                &format!("socat on port {port}"),
                &[
                    "socat",
                    &format!("TCP6-LISTEN:{port},fork,reuseaddr,ipv6only=0"),
                    &format!(
                        "SYSTEM:cat {}/says; read answer; read answer",
                        dir.path().display()
                    ),
                ],
            )?,
            dir,
        };
        says.says(text)?;
        Ok(says)
    }

    fn says(&self, text: &str) -> Result<()> {
        // Whole: a reader finds the old text or the new one.
        fs::write(self.dir.join("new"), text)?;
        Ok(fs::rename(self.dir.join("new"), self.dir.join("says"))?)
    }
}

/// net-snmp's daemon, which tells a made-up number as its load, over versions 2c
/// and 3.
struct Snmpd {
    process: Process,
    _dir: TempDir,
}

/// The first load average times 100 (UCD-SNMP-MIB).
const LOAD: &str = "1.3.6.1.4.1.2021.10.1.5.1";

impl Snmpd {
    fn start(ns: &Netns, load: u8) -> Result<Self> {
        let dir = TempDir::new()?;
        fs::write(
            dir.join("snmpd.conf"),
            format!(
                "agentaddress udp:161,udp6:161\nrocommunity se-cret\nrocommunity6 se-cret\n\
                 createUser lb SHA-256 \"authenticate me\" AES \"encrypt it all\"\nrouser lb priv\n\
                 override {LOAD} integer {load}\n"
            ),
        )?;
        let path = dir.path().display().to_string();
        let mut command = ns.command("snmpd");
        command
            .args(["-f", "-Lo", "-C", "-c", &format!("{path}/snmpd.conf")])
            .args([
                "-p",
                &format!("{path}/pid"),
                "-I",
                "-smux,mteTrigger,mteTriggerConf",
            ])
            .env("SNMP_PERSISTENT_DIR", &path);
        let process = Process::spawn(&format!("snmpd in {}", ns.name()), command)?;
        Ok(Self { process, _dir: dir })
    }
}

/// Every backend's server of one kind.
fn of_all<T>(site_hosts: &[Host], start: impl Fn(usize, &Netns) -> Result<T>) -> Result<Vec<T>> {
    let hosts = site_hosts.iter().enumerate();
    hosts.map(|(index, host)| start(index, &host.ns)).collect()
}

/// The checks of `lbctl probe`, by their types.
fn probed(site: &Site, backend: &str) -> Result<BTreeMap<String, Value>> {
    let output = site
        .daemon
        .ctl_output(&["probe", backend, "--output", "json"])?;
    let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "lbctl probe said {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    let checks: BTreeMap<String, Value> = answer["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|check| {
            let kind = check["kind"].as_str().unwrap_or_default();
            (kind.to_owned(), check.clone())
        })
        .collect();
    let all_pass = checks.values().all(|check| check["verdict"] == "pass");
    ensure!(
        output.status.success() == all_pass,
        "exit status {} of {checks:?}",
        output.status
    );
    Ok(checks)
}

const SMTP: u16 = 2525;
const AGENT: u16 = 9707;

#[test]
fn every_type_of_check_asks_a_real_server_and_believes_it() {
    check(|| {
        let mut site = Site::full(Kind::NatTwoArmed, &Options::default(), |_| {})?;
        let hosts = &site.topology.backends;
        let mail = of_all(hosts, |_, ns| {
            Says::start(ns, SMTP, "220 ready\r\n250 at your service\r\n")
        })?;
        let agents = of_all(hosts, |_, ns| Says::start(ns, AGENT, "up\n"))?;
        let curl = "command: [/usr/bin/curl, -sSf, --max-time, 1, -o, /dev/null, \
                    \"http://{address}:{port}/\"]";
        // An address of IPv6 would need brackets in the URL.
        let ends = "[/bin/sh, -c, \"exec test $LB_BACKEND != backend-3\"]";
        check_by(
            &mut site.config,
            &[
                "type: ping".into(),
                format!("type: udp, port: {UDP}, send: hello"),
                format!(
                    "type: dns, port: {DNS}, query: example.org, record: TXT, expect: {{min_answers: 1}}"
                ),
                format!("type: smtp, port: {SMTP}"),
                format!("type: agent, port: {AGENT}"),
                "type: tcp, slow_after: 400ms".into(),
                format!("type: exec, command: {ends}"),
            ],
        );
        site.reload()?;
        for service in ["web-v4", "web-v6"] {
            for backend in ["backend-1", "backend-2"] {
                site.wait_health(service, backend, "up", "")?;
            }
            site.wait_health(service, "backend-3", "down", "exit status 1")?;
        }
        for pool in ["web-v4", "web-v6"] {
            let checks = probed(&site, &format!("{pool}/backend-1"))?;
            let kinds: Vec<&str> = checks.keys().map(String::as_str).collect();
            ensure!(
                kinds == ["agent", "dns", "exec", "ping", "smtp", "tcp", "udp"],
                "{kinds:?}"
            );
            for (kind, check) in &checks {
                let steps = check["steps"].as_array().context("no steps")?;
                ensure!(
                    check["verdict"] == "pass" && !steps.is_empty(),
                    "{kind}: {check}"
                );
            }
            let failing = probed(&site, &format!("{pool}/backend-3"))?;
            ensure!(failing["exec"]["verdict"] == "wrong_answer", "{failing:?}");
        }

        agents[0].says("drain # for a nap\n")?;
        site.wait_health(
            "web-v4",
            "backend-1",
            "overloaded",
            "says drain (for a nap)",
        )?;
        agents[0].says("up\n")?;
        site.wait_health("web-v4", "backend-1", "up", "")?;
        mail[0].says("421 too busy\r\n")?;
        site.wait_health("web-v4", "backend-1", "overloaded", "421 too busy")?;
        mail[0].says("554 go away\r\n")?;
        site.wait_health("web-v4", "backend-1", "down", "554 go away")?;

        let second = &site.topology.backends[1].ns;
        second.sysctl("net/ipv4/icmp_echo_ignore_all", "1")?;
        site.wait_health(
            "web-v4",
            "backend-2",
            "overloaded",
            "waiting for the echo reply",
        )?;
        let checks = probed(&site, "web-v4/backend-2")?;
        ensure!(checks["ping"]["verdict"] == "timeout", "{checks:?}");
        ensure!(checks["udp"]["verdict"] == "pass", "{checks:?}");
        second.sysctl("net/ipv4/icmp_echo_ignore_all", "0")?;
        site.wait_health("web-v4", "backend-2", "up", "")?;
        site.echo[1].process.kill9()?;
        site.wait_health("web-v4", "backend-2", "down", "connection refused")?;

        check_by(
            &mut site.config,
            &[format!("type: exec, port: {WEB_INSIDE}, {curl}")],
        );
        site.config.pools.iter_mut().for_each(|pool| {
            if pool.name == "web-v6" {
                pool.extra.clear();
            }
        });
        site.reload()?;
        site.wait_health("web-v4", "backend-3", "up", "exit status 0")?;
        let refused = site.daemon.ctl_output(&["probe", "web-v4/nobody"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.status.code() == Some(1) && said.contains("there is no backend web-v4/nobody"),
            "{said}"
        );
        let unchecked = site.daemon.ctl_output(&["probe", "web-v6/backend-1"])?;
        let said = String::from_utf8_lossy(&unchecked.stderr).into_owned();
        ensure!(said.contains("has no health checks"), "{said}");
        Ok(())
    });
}

/// A ping of full size finds a path that is narrower than it says.
#[test]
fn a_ping_of_full_size_finds_a_link_that_swallows_it() {
    check(|| {
        let mut site = Site::full(Kind::NatTwoArmed, &Options::default(), |_| {})?;
        let backend = &site.topology.backends[0];
        backend.ns.feed(
            &["nft", "-f", "-"],
            "table inet narrow { chain in { type filter hook input priority 0; \
             meta length > 1400 drop; }; }\n",
        )?;
        check_by(&mut site.config, &["type: ping".into()]);
        site.reload()?;
        for service in ["web-v4", "web-v6"] {
            site.wait_health(service, "backend-1", "up", "answered")?;
        }
        check_by(&mut site.config, &["type: ping, packet_size: 1500".into()]);
        site.reload()?;
        for service in ["web-v4", "web-v6"] {
            site.wait_health(service, "backend-1", "down", "no answer within")?;
            site.wait_health(service, "backend-2", "up", "answered")?;
        }
        check_by(&mut site.config, &["type: ping, packet_size: 1501".into()]);
        site.reload()?;
        for service in ["web-v4", "web-v6"] {
            site.wait_health(service, "backend-2", "down", "too large for the path")?;
        }
        Ok(())
    });
}

#[test]
fn shares_follow_the_load_that_agents_and_snmp_tell() {
    check(|| {
        let mut site = Site::full(Kind::NatTwoArmed, &Options::default(), |_| {})?;
        let hosts = &site.topology.backends;
        let agents = of_all(hosts, |_, ns| Says::start(ns, AGENT, "up 100%\n"))?;
        let mut loads = of_all(hosts, |index, ns| {
            Snmpd::start(ns, if index == 0 { 80 } else { 20 })
        })?;
        check_by(&mut site.config, &[format!("type: agent, port: {AGENT}")]);
        site.reload()?;
        let third = 1.0 / 3.0;
        wait_shares(&site, "web-v4", [third; 3])?;
        agents[0].says("50%\n")?;
        wait_shares(&site, "web-v4", [0.2, 0.4, 0.4])?;
        let row = site.backend("web-v4", "backend-1")?;
        ensure!(
            row["last_result"] == "the agent says up, 50 % of its weight",
            "{row}"
        );

        let dir = TempDir::new()?;
        fs::write(dir.join("authentication"), "authenticate me\n")?;
        fs::write(dir.join("privacy"), "encrypt it all\n")?;
        let path = dir.path().display();
        let version_3 = format!(
            "type: snmp, oid: {LOAD}, user: lb, authentication: sha256, \
             authentication_file: {path}/authentication, privacy: aes128, \
             privacy_file: {path}/privacy"
        );
        for (service, access) in [
            (
                "web-v4",
                format!("type: snmp, oid: {LOAD}, community: se-cret"),
            ),
            ("web-v6", version_3),
        ] {
            check_by(&mut site.config, &[access]);
            site.reload()?;
            site.wait_health(service, "backend-1", "up", "80 of 100: 80 % busy")?;
            // 0.2, 0.8 and 0.8 are free.
            wait_shares(&site, service, [0.2 / 1.8, 0.8 / 1.8, 0.8 / 1.8])?;
        }
        // Keys are those of an agent that is gone; another has others.
        loads[0].process.kill9()?;
        site.wait_health("web-v6", "backend-1", "down", "connection refused")?;
        loads[0] = Snmpd::start(&site.topology.backends[0].ns, 20)?;
        site.wait_health("web-v6", "backend-1", "up", "20 of 100: 20 % busy")?;

        check_by(
            &mut site.config,
            &[format!("type: snmp, oid: {LOAD}.7, community: se-cret")],
        );
        site.reload()?;
        site.wait_health("web-v4", "backend-2", "down", "is no number: ")?;
        check_by(
            &mut site.config,
            &[format!("type: snmp, oid: {LOAD}, community: wrong")],
        );
        site.reload()?;
        site.wait_health("web-v4", "backend-2", "down", "no answer within")?;
        let config = fs::read_to_string(site.daemon.config_path())?;
        let log = site.daemon.log();
        ensure!(
            config.contains("wrong") && !log.contains("community"),
            "{log}"
        );
        Ok(())
    });
}
