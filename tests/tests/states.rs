//! What becomes of a backend's share, and of its connections, when it is slow,
//! dead or back: nginx with one worker, real connections, the servers' names in
//! their answers.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    process::wait_ok,
    servers::Nginx,
    site::{self, Site, WEB, WEB_INSIDE},
    topology::{Kind, Options, Topology},
};

const SERVICE: &str = "web-v4";
const FALL: u32 = 3;
const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(150);
/// For a busy machine.
const SLACK: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(20);

/// Connections that a server accepts before its worker takes them: a stopped
/// worker is soon seen by a check that only connects.
const ACCEPT_QUEUE: &str = "8";

/// Connections that are held open, and those that are made to count shares.
const HELD: usize = 60;
const COUNTED: usize = 200;

fn health(more: &str) -> String {
    format!("health: [{{type: tcp, interval: 200ms, timeout: 150ms, rise: 2, fall: {FALL}{more}}}]")
}

/// nginx on four backends, and the service `web-v4` alone.
fn start(kind: Kind) -> Result<Site> {
    let options = Options {
        backends: 4,
        ..Options::default()
    };
    let topology = Topology::new(kind, &options)?;
    for backend in &topology.backends {
        backend.ns.sysctl("net/core/somaxconn", ACCEPT_QUEUE)?;
    }
    Site::full_in(topology, |config| {
        config.set_dataplane("dead_after", "1s");
        config.services.retain(|service| service.name == SERVICE);
        config.pools.retain(|pool| pool.name == SERVICE);
        config.pools[0].extra = vec![health("")];
    })
}

/// A connection on which a request can be made again and again.
struct Client(TcpStream);

impl Client {
    /// The name of the server that answers.
    fn ask(&mut self) -> Result<String> {
        let stream = &mut self.0;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut piece = [0; 1024];
        loop {
            let n = stream.read(&mut piece)?;
            ensure!(n > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..n]);
            let text = String::from_utf8_lossy(&answer);
            // The body is the name and a line end.
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && let Some(name) = head.lines().find_map(|l| l.strip_prefix("X-Server: "))
                && body.ends_with('\n')
            {
                return Ok(name.to_owned());
            }
        }
    }
}

fn target(site: &Site) -> SocketAddr {
    SocketAddr::new(site.topology.vip4.into(), WEB)
}

/// New connections, each asked once, with the server that has it.
fn connect(site: &Site, connections: usize) -> Result<Vec<(Client, String)>> {
    let target = target(site);
    site.topology.client.ns.run(|| {
        (0..connections)
            .map(|_| {
                let stream = TcpStream::connect_timeout(&target, Duration::from_secs(8))?;
                stream.set_read_timeout(Some(Duration::from_secs(8)))?;
                let mut client = Client(stream);
                let server = client.ask()?;
                Ok((client, server))
            })
            .collect()
    })?
}

/// Of [`COUNTED`] new connections, how many each server gets.
fn shares(site: &Site) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for (_, server) in connect(site, COUNTED)? {
        *shares.entry(server).or_default() += 1;
    }
    Ok(shares)
}

fn name(site: &Site, backend: usize) -> String {
    site.topology.backends[backend].name.clone()
}

fn wait_health(site: &Site, backend: usize, health: &str) -> Result<()> {
    let name = name(site, backend);
    wait_ok(format!("{name} to be {health}"), SOON, || {
        let row = site.backend(SERVICE, &name)?;
        ensure!(row["health"] == health, "it is {row}");
        Ok(())
    })
}

fn stop(site: &Site, backend: usize) -> Result<()> {
    site.web[backend].process.signal_group(libc::SIGSTOP)
}

fn go_on(site: &Site, backend: usize) -> Result<()> {
    site.web[backend].process.signal_group(libc::SIGCONT)
}

fn restart(site: &mut Site, backend: usize) -> Result<()> {
    let host = &site.topology.backends[backend];
    site.web[backend] = Nginx::start(&host.ns, &host.name, &site::any([WEB, WEB_INSIDE]))?;
    Ok(())
}

/// The line of `lbctl status` about the pool, once it contains `words`.
fn wait_warning(site: &Site, words: &str) -> Result<String> {
    wait_ok(format!("status to say {words:?}"), SOON, || {
        let status = site.daemon.ctl(&["status"])?;
        let line = status
            .lines()
            .find(|line| line.starts_with("Pool ") && line.contains(words));
        Ok(line.with_context(|| status.clone())?.to_owned())
    })
}

/// A server that is stopped keeps its connections and gets no new ones; when it
/// goes on, all of them are as they were. The same server killed is out in time.
fn a_slow_server_keeps_its_connections_and_a_dead_one_is_out_in_time(
    site: &mut Site,
) -> Result<()> {
    let victim = name(site, 0);
    let mut held = connect(site, HELD)?;
    let own = held.iter().filter(|(_, server)| *server == victim).count();
    ensure!(own > 0, "{victim} has none of {HELD} connections");

    stop(site, 0)?;
    wait_health(site, 0, "overloaded")?;
    let row = site.wait_condition(SERVICE, &victim, "overloaded")?;
    ensure!(row["weight_effective"] == 0, "{row}");
    let fresh = shares(site)?;
    ensure!(!fresh.contains_key(&victim), "{fresh:?}");
    go_on(site, 0)?;
    for (client, server) in &mut held {
        let answer = client.ask().with_context(|| format!("held by {server}"))?;
        ensure!(answer == *server, "{server}'s is answered by {answer}");
    }
    println!(
        "{victim} stopped: none of its {own} connections lost, none of {COUNTED} new ones its; now {}",
        row["last_result"]
    );
    wait_health(site, 0, "up")?;

    let bound = INTERVAL * FALL + TIMEOUT;
    let down = format!("backend=\"{SERVICE}/{victim}\" was=up now=down");
    site.web[0].kill9()?;
    let died = Instant::now();
    wait_ok("the dead server to be out", SOON, || {
        ensure!(site.daemon.log().contains(&down), "not yet");
        Ok(())
    })?;
    let took = died.elapsed();
    println!("{victim} killed: out after {took:?}; fall × interval + timeout is {bound:?}");
    ensure!(took <= bound + SLACK, "{took:?}");
    site.wait_condition(SERVICE, &victim, "dead")?;
    restart(site, 0)?;
    site.wait_condition(SERVICE, &victim, "up").map(drop)
}

/// With three of four stopped one goes on getting flows; with all of them
/// stopped, all do, and nobody is turned away.
fn no_more_than_half_are_ejected_and_when_nobody_is_up_all_share(site: &mut Site) -> Result<()> {
    for backend in 1..4 {
        stop(site, backend)?;
    }
    for backend in 1..4 {
        wait_health(site, backend, "overloaded")?;
    }
    println!(
        "{}",
        wait_warning(site, "max_ejected is reached (3 overloaded")?
    );
    let rows = || (0..4).map(|b| site.backend(SERVICE, &name(site, b)));
    wait_ok("two to be in", SOON, || {
        let rows = rows().collect::<Result<Vec<_>>>()?;
        let up = rows.iter().filter(|row| row["condition"] == "up").count();
        ensure!(up == 2, "{up} are in");
        Ok(())
    })?;
    let table = site.daemon.ctl(&["backends"])?;
    ensure!(
        table.contains("overloaded, kept in by max_ejected"),
        "{table}"
    );

    stop(site, 0)?;
    println!(
        "{}",
        wait_warning(site, "the 4 overloaded ones share the load")?
    );
    wait_ok("all to be in", SOON, || {
        for row in rows() {
            let row = row?;
            ensure!(row["condition"] == "up" && row["slots"] != 0, "{row}");
        }
        Ok(())
    })?;
    for backend in 0..4 {
        go_on(site, backend)?;
    }
    for backend in 0..4 {
        wait_health(site, backend, "up")?;
    }
    // For three seconds first SYNs still go where they may have gone before.
    wait_ok("all to get connections", SOON, || {
        let shares = shares(site)?;
        ensure!(shares.len() == 4, "{shares:?}");
        Ok(())
    })
}

/// A server that comes back has a tenth of its share at first.
fn a_server_that_comes_back_gets_its_share_little_by_little(site: &mut Site) -> Result<()> {
    let victim = name(site, 1);
    site.config.pools[0].extra = vec![health(", hold_down_limit: 0s"), "slow_start: 8s".into()];
    site.reload()?;
    site.web[1].kill9()?;
    site.wait_condition(SERVICE, &victim, "dead")?;
    restart(site, 1)?;
    let row = site.wait_condition(SERVICE, &victim, "up")?;
    let began = Instant::now();
    ensure!(row["share_reasons"][0] == "slow start 10 %", "{row}");
    // First SYNs go to where they may have gone before for a while; the first
    // step takes 1.6 s.
    let early = shares(site)?.get(&victim).copied().unwrap_or_default();
    let still = site.backend(SERVICE, &victim)?;
    println!(
        "{early} of {COUNTED} connections at first, {}",
        still["share_reasons"]
    );
    ensure!(early <= COUNTED / 8, "{early} of {COUNTED} at first");
    wait_ok("the full share", SOON, || {
        let row = site.backend(SERVICE, &victim)?;
        ensure!(row["share_factor"] == 1.0, "{row}");
        Ok(())
    })?;
    let took = began.elapsed();
    ensure!(took >= Duration::from_secs(6), "all after {took:?}");
    // For three seconds after the last step first SYNs still go elsewhere.
    wait_ok("a quarter of the connections", SOON, || {
        let late = shares(site)?.get(&victim).copied().unwrap_or_default();
        println!("{late} of {COUNTED} connections, all of its share after {took:?}");
        ensure!(late > COUNTED / 6, "{late} of {COUNTED} in the end");
        Ok(())
    })
}

/// Two servers of group 1, two of group 2.
fn group_two_takes_over_what_is_missing_of_group_one_and_gives_it_back(
    site: &mut Site,
) -> Result<()> {
    for backend in &mut site.config.pools[0].backends[2..] {
        backend.priority = 2;
    }
    site.config.pools[0].extra = vec![
        health(", hold_down_limit: 0s"),
        "min_available: 100%".into(),
    ];
    site.reload()?;
    let low = |shares: &BTreeMap<String, usize>| -> usize {
        let of = |backend| {
            shares
                .get(&name(site, backend))
                .copied()
                .unwrap_or_default()
        };
        of(2) + of(3)
    };
    // For three seconds first SYNs still go where they may have gone before.
    let wait_low = |what: &str, share: usize, most_off: usize| {
        wait_ok(format!("group 2's part with {what}"), SOON, || {
            let shares = shares(site)?;
            let low = low(&shares);
            ensure!(low.abs_diff(share) <= most_off, "{low}: {shares:?}");
            Ok(low)
        })
    };
    wait_low("all of group 1", 0, 0)?;
    let table = site.daemon.ctl(&["backends"])?;
    ensure!(table.contains("waits in priority group 2"), "{table}");
    stop(site, 0)?;
    site.wait_condition(SERVICE, &name(site, 0), "overloaded")?;
    let part = wait_low("half of group 1", COUNTED / 2, COUNTED / 8)?;
    go_on(site, 0)?;
    site.wait_condition(SERVICE, &name(site, 0), "up")?;
    wait_low("all of group 1 again", 0, 0)?;
    println!("group 2 of {COUNTED} connections: 0, with half of group 1 {part}, then 0");
    Ok(())
}

/// Another pool's servers stand in; or new connections are dropped.
fn when_all_are_down_another_pool_stands_in_or_flows_are_dropped(site: &mut Site) -> Result<()> {
    let mut spare = site.config.pools[0].clone();
    spare.name = "spare".into();
    spare.extra = vec![health("")];
    spare.backends.drain(..2);
    spare.backends.iter_mut().for_each(|b| b.priority = 1);
    site.config.pools[0].backends.truncate(2);
    site.config.pools.push(spare);
    let pool = &mut site.config.pools[0];
    pool.extra = vec![
        health(", hold_down_limit: 0s"),
        "when_all_down: fallback-pool".into(),
        "fallback_pool: spare".into(),
    ];
    site.reload()?;
    let own = [name(site, 0), name(site, 1)];
    wait_ok("the pool's own servers to get all", SOON, || {
        let shares = shares(site)?;
        ensure!(
            shares.keys().all(|server| own.contains(server)),
            "{shares:?}"
        );
        Ok(())
    })?;
    for backend in 0..2 {
        site.web[backend].kill9()?;
    }
    println!(
        "{}",
        wait_warning(site, "all 2 are down; flows go to pool spare")?
    );
    wait_ok("the other pool to stand in", SOON, || {
        let shares = shares(site)?;
        ensure!(
            shares.len() == 2 && !shares.contains_key(&own[0]),
            "{shares:?}"
        );
        Ok(())
    })?;

    for (backend, name) in own.iter().enumerate() {
        restart(site, backend)?;
        site.wait_condition(SERVICE, name, "up")?;
    }
    site.config.pools[0].extra = vec![
        health(", hold_down_limit: 0s"),
        "when_all_down: fail".into(),
    ];
    site.reload()?;
    for backend in 0..2 {
        site.web[backend].kill9()?;
    }
    wait_warning(site, "new flows are dropped (when_all_down: fail)")?;
    wait_ok("new connections to be dropped", SOON, || {
        let target = target(site);
        let dial = || TcpStream::connect_timeout(&target, Duration::from_millis(700));
        let error = site.topology.client.ns.run(dial)?.err();
        let kind = error.map(|e| e.kind());
        ensure!(kind == Some(std::io::ErrorKind::TimedOut), "{kind:?}");
        Ok(())
    })?;
    wait_ok("the drops to be counted", SOON, || {
        let drops = site.drops()?;
        let key = (SERVICE.to_owned(), "no_backend".to_owned());
        ensure!(drops.contains_key(&key), "{drops:?}");
        Ok(())
    })?;
    site.config.pools[0].extra = vec![health("")];
    site.reload()?;
    wait_ok("them to be sent to those that refuse", SOON, || {
        let target = target(site);
        let dial = || TcpStream::connect_timeout(&target, Duration::from_millis(700));
        let error = site.topology.client.ns.run(dial)?.err();
        let kind = error.map(|e| e.kind());
        ensure!(
            kind == Some(std::io::ErrorKind::ConnectionRefused),
            "{kind:?}"
        );
        Ok(())
    })
}

#[test]
fn shares_follow_the_states_of_the_servers_under_dsr() {
    check(|| {
        let mut site = start(Kind::Dsr)?;
        a_slow_server_keeps_its_connections_and_a_dead_one_is_out_in_time(&mut site)?;
        no_more_than_half_are_ejected_and_when_nobody_is_up_all_share(&mut site)?;
        a_server_that_comes_back_gets_its_share_little_by_little(&mut site)?;
        group_two_takes_over_what_is_missing_of_group_one_and_gives_it_back(&mut site)?;
        when_all_are_down_another_pool_stands_in_or_flows_are_dropped(&mut site)
    });
}

#[test]
fn a_slow_server_keeps_its_connections_under_nat() {
    check(|| {
        let mut site = start(Kind::NatTwoArmed)?;
        a_slow_server_keeps_its_connections_and_a_dead_one_is_out_in_time(&mut site)
    });
}
