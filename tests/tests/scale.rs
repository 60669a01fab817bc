//! Ten thousand backends checked every second by one daemon.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    config::{Backend, Config, Pool, Service},
    daemon::Daemon,
    netns::Netns,
    process::wait_ok,
    servers::{EchoServer, Nginx},
};

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(900);

/// Turns are moved by a tenth of the interval to either side: from one to the next
/// it may be a fifth more.
const JITTER: f64 = 0.2;

/// What a debug build may take on top, with the servers on the same two cores.
const SLACK: f64 = 1.0;

const BACKENDS_A_POOL: usize = 1000;

/// A balancer and a host that has 65,536 addresses.
struct Farm {
    daemon: Daemon,
    servers: Netns,
    _balancer: Netns,
}

fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number).expect("few");
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + number).into()
}

fn config(backends: usize, port: u16, health: &str) -> Config {
    let mut config = Config::new("lb1");
    config.interfaces = vec![("eth0".into(), "generic".into())];
    for (key, value) in [
        ("max_members", 20_000),
        ("max_slots", 1_000_000),
        ("max_flows", 100_000),
    ] {
        config.set_dataplane(key, value);
    }
    for pool in 0..backends / BACKENDS_A_POOL {
        let numbers = pool * BACKENDS_A_POOL..(pool + 1) * BACKENDS_A_POOL;
        let name = format!("pool-{pool}");
        config.pools.push(Pool {
            name: name.clone(),
            backends: numbers
                .map(|number| Backend {
                    name: format!("b{number}"),
                    address: address(number),
                    port: Some(port),
                    weight: 1,
                    priority: 1,
                })
                .collect(),
            extra: vec![format!(
                "health: [{{{health}, interval: {}s, timeout: {}ms, rise: 1, fall: 1, hold_down_limit: 0s}}]",
                INTERVAL.as_secs(),
                TIMEOUT.as_millis()
            )],
        });
        config.services.push(Service {
            name: format!("service-{pool}"),
            address: Ipv4Addr::new(10, 9, 0, 1 + u8::try_from(pool).expect("few")).into(),
            port: "80".into(),
            protocol: "tcp".into(),
            forwarding: "nat".into(),
            pool: name,
            extra: vec!["table_size: 16381".into()],
        });
    }
    config
}

impl Farm {
    fn start(config: &Config) -> Result<Self> {
        let (balancer, servers) = (Netns::new("balancer")?, Netns::new("servers")?);
        balancer.feed(
            &["ip", "-batch", "-"],
            &format!(
                "link add eth0 type veth peer name eth0 netns {}\naddr add 10.9.255.1/16 dev eth0\n\
                 link set eth0 up\nlink set lo up\n",
                servers.name()
            ),
        )?;
        servers.feed(
            &["ip", "-batch", "-"],
            "addr add 10.9.255.2/16 dev eth0\nlink set eth0 up\nlink set lo up\n\
             route add local 10.128.0.0/16 dev lo\n",
        )?;
        let via = ["ip", "route", "add", "10.128.0.0/16", "via", "10.9.255.2"];
        balancer.exec(&via)?;
        Ok(Self {
            daemon: Daemon::start(&balancer, config)?,
            servers,
            _balancer: balancer,
        })
    }

    /// Backends by their health.
    fn states(&self) -> Result<BTreeMap<String, usize>> {
        let rows = self.daemon.ctl_json(&["backends"])?;
        let mut states = BTreeMap::new();
        for row in rows.as_array().into_iter().flatten() {
            let health = row["health"].as_str().context("no health")?;
            *states.entry(health.to_owned()).or_default() += 1;
        }
        Ok(states)
    }

    fn wait_all(&self, backends: usize, health: &str) -> Result<()> {
        wait_ok(
            format!("all to be {health}"),
            Duration::from_secs(60),
            || {
                let states = self.states()?;
                ensure!(states.get(health) == Some(&backends), "{states:?}");
                Ok(())
            },
        )
    }

    /// Processor time that the daemon has used, and its resident memory in KiB.
    fn used(&self) -> Result<(Duration, u64)> {
        let pid = self.daemon.process()?.pid();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>())
            .sum::<Result<_, _>>()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .context("no VmRSS")?;
        // USER_HZ is 100 wherever Linux runs.
        Ok((Duration::from_millis(ticks * 10), resident.parse()?))
    }

    /// Prints what the checks cost.
    fn cost(&self, what: &str, backends: usize) -> Result<()> {
        let (before, _) = self.used()?;
        let time = Duration::from_secs(5);
        thread::sleep(time);
        let (after, resident) = self.used()?;
        let cores = (after - before).as_secs_f64() / time.as_secs_f64();
        println!(
            "{backends} by {what} each second: {cores:.2} cores, {} KiB resident in all, {:.1} a backend",
            resident,
            resident as f64 / backends as f64
        );
        Ok(())
    }

    /// Prints how many verdicts came after interval and time-out, and when the last
    /// one came after `since`; fails if that is later than it may be here.
    fn ensure_in_time(&self, backends: usize, now: &str, since: SystemTime) -> Result<()> {
        let wanted = format!("was=up now={now}");
        let mut found = BTreeMap::new();
        let since = since.duration_since(UNIX_EPOCH)?.as_secs_f64();
        let log = std::fs::read_to_string(self.daemon.process()?.log_path())?;
        for line in log.lines().filter(|line| line.contains(&wanted)) {
            let at = seconds_of_day(line).with_context(|| line.to_owned())?;
            let after = (at - since % 86_400.0).rem_euclid(86_400.0);
            let name = line.split("backend=").nth(1).context("no backend")?;
            found.insert(name.split(' ').next().unwrap_or_default().to_owned(), after);
        }
        ensure!(
            found.len() == backends,
            "{} of {backends} verdicts",
            found.len()
        );
        let bound = INTERVAL.as_secs_f64() * (1.0 + JITTER) + TIMEOUT.as_secs_f64();
        let late = found.values().filter(|after| **after > bound).count();
        let last = found
            .values()
            .fold(0.0, |last: f64, after| last.max(*after));
        println!(
            "{now}: {late} of {backends} after more than {bound:.1} s, the last after {last:.3} s"
        );
        ensure!(
            last <= bound + SLACK,
            "the last verdict came after {last:.3} s"
        );
        Ok(())
    }
}

/// Of a line of the log: `2026-01-02T03:04:05.678901Z …`.
fn seconds_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.split_once('T')?;
    let (time, _) = time.split_once('Z')?;
    let mut parts = time.split(':');
    let (hours, minutes): (f64, f64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some((hours * 60.0 + minutes) * 60.0 + seconds)
}

#[test]
fn ten_thousand_servers_are_checked_by_tcp_and_none_late() {
    check(|| {
        const BACKENDS: usize = 10_000;
        let farm = Farm::start(&config(BACKENDS, 80, "type: tcp"))?;
        let listen = ["0.0.0.0:80".parse()?];
        let mut server = EchoServer::start(&farm.servers, "all", &listen, &[], &[])?;
        farm.wait_all(BACKENDS, "up")?;
        farm.cost("tcp", BACKENDS)?;

        let closed = SystemTime::now();
        server.process.kill9()?;
        farm.wait_all(BACKENDS, "down")?;
        farm.ensure_in_time(BACKENDS, "down", closed)?;

        let _server = EchoServer::start(&farm.servers, "all", &listen, &[], &[])?;
        farm.wait_all(BACKENDS, "up")?;
        // All at once are silent: ten thousand probes are under way.
        let gone = SystemTime::now();
        farm.servers.feed(
            &["nft", "-f", "-"],
            "table inet hole { chain in { type filter hook input priority 0; tcp dport 80 drop; }; }\n",
        )?;
        farm.wait_all(BACKENDS, "overloaded")?;
        farm.ensure_in_time(BACKENDS, "overloaded", gone)?;
        Ok(())
    });
}

#[test]
fn two_thousand_servers_are_checked_by_http_and_none_late() {
    check(|| {
        const BACKENDS: usize = 2_000;
        let health = "type: http, path: /healthz, expect: {body_contains: all}";
        let farm = Farm::start(&config(BACKENDS, 8080, health))?;
        let mut server = Nginx::start(&farm.servers, "all", &["0.0.0.0:8080".parse()?])?;
        farm.wait_all(BACKENDS, "up")?;
        farm.cost("http", BACKENDS)?;
        let closed = SystemTime::now();
        server.kill9()?;
        farm.wait_all(BACKENDS, "down")?;
        farm.ensure_in_time(BACKENDS, "down", closed)?;
        Ok(())
    });
}
