//! Next hops and TCP checks against the real kernel, in namespaces.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{abi::NeighbourRequest, net::Addr};
use lb_control::{
    health::{BackendKey, Health, HealthState, Verdict},
    model::{
        Backend, Balance, Check, CheckKind, Dataplane, Defence, ForwardingMethod, Interface, Model,
        OnBackendDown, Pool, PoolPolicy, Ports, ProbePath, Protocol, Replies, Service, Tunnel, Via,
        XdpMode,
    },
    neighbours::{
        NeighbourView, Neighbours, Target, Unresolved,
        sysctl::{self, ProcSys},
    },
};
use lb_tests::{check, cleanup::TempDir, netns::Netns, servers::EchoServer};
use tokio::sync::watch;

/// A failed resolution takes the kernel three probes of a second.
const SOON: Duration = Duration::from_secs(12);

const SERVER: &str = "10.9.0.2";
const SERVER6: &str = "fd09::2";
const MAC: &str = "02:00:00:00:09:02";

/// A balancer with `eth0`, where the server is, and `eth9`, which leads to the
/// same namespace but isn't managed.
struct Bench {
    lb: Netns,
    server: Netns,
}

impl Bench {
    fn new() -> Result<Self> {
        let (lb, server) = (Netns::new("lb")?, Netns::new("server")?);
        for (link, subnet) in [("eth0", 9), ("eth9", 99)] {
            ip(
                &lb,
                &format!(
                    "link add {link} type veth peer name {link} netns {}",
                    server.name()
                ),
            )?;
            for (ns, host) in [(&lb, 1), (&server, 2)] {
                ip(
                    ns,
                    &format!("link set {link} address 02:00:00:00:{subnet:02}:0{host}"),
                )?;
                ip(ns, &format!("addr add 10.{subnet}.0.{host}/24 dev {link}"))?;
                ip(
                    ns,
                    &format!("addr add fd{subnet:02}::{host}/64 dev {link} nodad"),
                )?;
                ip(ns, &format!("link set {link} up"))?;
            }
        }
        Ok(Self { lb, server })
    }

    /// Runs asynchronous code in the balancer's namespace.
    fn in_lb<F: Future<Output = Result<()>>>(&self, f: impl FnOnce() -> F + Send) -> Result<()> {
        self.lb.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(f())
        })?
    }
}

fn ip(ns: &Netns, arguments: &str) -> Result<String> {
    let argv: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
    ns.exec(&argv)
}

fn target(address: &str, on_link_only: bool) -> Result<Target> {
    Ok(Target {
        address: address.parse()?,
        on_link_only,
    })
}

type Views = watch::Receiver<Arc<NeighbourView>>;

fn start(targets: &[Target]) -> Result<(Neighbours, Views)> {
    let (neighbours, views) = Neighbours::start(vec!["eth0".to_owned()])?;
    neighbours.set_targets(targets.to_vec());
    Ok((neighbours, views))
}

/// The MAC address of the target's next hop, or the reason in words.
fn hop(view: &NeighbourView, address: &str) -> Result<String, String> {
    let address: IpAddr = address.parse().map_err(|_| "not an address".to_owned())?;
    match view.hops.get(&address) {
        Some(Ok(hop)) => Ok(hop.mac.map(|byte| format!("{byte:02x}")).join(":")),
        Some(Err(Unresolved::Resolving { .. })) => Err("resolving".to_owned()),
        Some(Err(reason)) => Err(reason.to_string()),
        None => Err("not a target".to_owned()),
    }
}

async fn wait(views: &mut Views, address: &str, expected: Result<&str, &str>) -> Result<()> {
    let expected = expected.map(str::to_owned).map_err(str::to_owned);
    let found = tokio::time::timeout(SOON, views.wait_for(|view| hop(view, address) == expected))
        .await
        .map(|view| view.map(drop));
    match found {
        Ok(found) => Ok(found?),
        Err(_) => bail!(
            "expected {expected:?} for {address}, it stayed {:?}",
            hop(&views.borrow(), address)
        ),
    }
}

#[test]
fn next_hops_of_both_families_are_found_and_their_mac_changes_followed() {
    check(|| {
        let bench = Bench::new()?;
        bench.in_lb(async || {
            let (_neighbours, mut views) = start(&[target(SERVER, true)?, target(SERVER6, true)?])?;
            let links = views.borrow().links.clone();
            ensure!(
                links.len() == 1 && links[0].kind.as_deref() == Some("veth") && links[0].up,
                "the first view has the managed link: {links:?}"
            );
            wait(&mut views, SERVER, Ok(MAC)).await?;
            wait(&mut views, SERVER6, Ok(MAC)).await?;
            let managed = ip(&bench.lb, "neigh show 10.9.0.2 dev eth0")?;
            ensure!(managed.contains("managed"), "not kept resolved: {managed}");
            ip(&bench.server, "link set eth0 address 02:00:00:00:09:77")?;
            bench.server.exec(&["ping", "-c1", "-W2", "10.9.0.1"])?;
            bench.server.exec(&["ping", "-c1", "-W2", "fd09::1"])?;
            wait(&mut views, SERVER, Ok("02:00:00:00:09:77")).await?;
            wait(&mut views, SERVER6, Ok("02:00:00:00:09:77")).await
        })
    });
}

#[test]
fn a_change_of_the_gateway_is_followed() {
    check(|| {
        let bench = Bench::new()?;
        ip(&bench.lb, "route add 203.0.113.0/24 via 10.9.0.2")?;
        // The second gateway is reached at another MAC address.
        ip(
            &bench.lb,
            "neigh add 10.9.0.3 lladdr 02:00:00:00:09:03 dev eth0 nud permanent",
        )?;
        bench.in_lb(async || {
            let (_neighbours, mut views) = start(&[target("203.0.113.5", false)?])?;
            wait(&mut views, "203.0.113.5", Ok(MAC)).await?;
            ip(&bench.lb, "route replace 203.0.113.0/24 via 10.9.0.3")?;
            wait(&mut views, "203.0.113.5", Ok("02:00:00:00:09:03")).await?;
            let entry = ip(&bench.lb, "neigh show 10.9.0.3 dev eth0")?;
            ensure!(
                entry.contains("PERMANENT"),
                "a permanent entry was touched: {entry}"
            );
            ip(&bench.lb, "route del 203.0.113.0/24")?;
            wait(
                &mut views,
                "203.0.113.5",
                Err("no route: network unreachable"),
            )
            .await
        })
    });
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_followed() {
    check(|| {
        let bench = Bench::new()?;
        bench.in_lb(async || {
            let (_neighbours, mut views) = start(&[target(SERVER, true)?])?;
            wait(&mut views, SERVER, Ok(MAC)).await?;
            // The peer goes down: the carrier is lost, the route stays.
            ip(&bench.server, "link set eth0 down")?;
            wait(&mut views, SERVER, Err("eth0 is down")).await?;
            ip(&bench.server, "link set eth0 up")?;
            wait(&mut views, SERVER, Ok(MAC)).await?;
            ip(&bench.lb, "link set eth0 down")?;
            wait(&mut views, SERVER, Err("no route: network unreachable")).await?;
            ip(&bench.lb, "link set eth0 up")?;
            wait(&mut views, SERVER, Ok(MAC)).await
        })
    });
}

#[test]
fn what_cannot_be_resolved_says_why() {
    check(|| {
        let bench = Bench::new()?;
        ip(&bench.lb, "route add 203.0.113.0/24 via 10.9.0.2")?;
        bench.in_lb(async || {
            let targets = [
                target("10.9.0.77", true)?,
                target("fd09::77", true)?,
                target("10.99.0.2", false)?,
                target("203.0.113.5", true)?,
                target("10.9.0.1", true)?,
            ];
            let (_neighbours, mut views) = start(&targets)?;
            for (address, reason) in [
                ("10.99.0.2", "reached over eth9, which isn't under interfaces"),
                (
                    "203.0.113.5",
                    "reached through the router 10.9.0.2 on eth0; L2 DSR needs it on a link of this machine",
                ),
                ("10.9.0.1", "is an address of this machine"),
                ("10.9.0.77", "10.9.0.77 on eth0 doesn't answer ARP"),
                ("fd09::77", "fd09::77 on eth0 doesn't answer neighbour solicitations"),
            ] {
                wait(&mut views, address, Err(reason)).await?;
            }
            // The server appears: the kernel goes on asking, so no event of
            // ours is needed.
            ip(&bench.server, "addr add 10.9.0.77/24 dev eth0")?;
            wait(&mut views, "10.9.0.77", Ok(MAC)).await
        })
    });
}

#[test]
fn stopping_lets_go_of_the_neighbours_and_dropping_does_not() {
    check(|| {
        let bench = Bench::new()?;
        bench.in_lb(async || {
            let managed = || -> Result<bool> {
                Ok(ip(&bench.lb, "neigh show 10.9.0.2 dev eth0")?.contains("managed"))
            };
            let (neighbours, mut views) = start(&[target(SERVER, true)?])?;
            wait(&mut views, SERVER, Ok(MAC)).await?;
            drop(neighbours);
            tokio::time::sleep(Duration::from_millis(100)).await;
            ensure!(managed()?, "a crash must not take the next hops with it");
            let (neighbours, mut views) = start(&[target(SERVER, true)?])?;
            wait(&mut views, SERVER, Ok(MAC)).await?;
            neighbours.stop().await;
            ensure!(!managed()?, "the flag is still there");
            Ok(())
        })
    });
}

#[test]
fn two_thousand_targets_are_resolved_and_a_route_change_does_not_stall() {
    check(|| {
        let bench = Bench::new()?;
        ip(&bench.lb, "route add 198.18.0.0/16 via 10.9.0.2")?;
        bench.in_lb(async || {
            let targets = (0..2000_u32)
                .map(|n| target(&format!("198.18.{}.{}", n / 250, n % 250 + 1), false))
                .collect::<Result<Vec<Target>>>()?;
            let started = Instant::now();
            let (_neighbours, mut views) = start(&targets)?;
            tokio::time::timeout(
                SOON,
                views.wait_for(|view| {
                    view.hops.len() == 2000 && view.hops.values().all(Result::is_ok)
                }),
            )
            .await
            .context("not all were resolved")??;
            ensure!(
                started.elapsed() < Duration::from_secs(3),
                "took {:?}",
                started.elapsed()
            );
            ip(&bench.lb, "route replace 198.18.0.0/16 dev eth9")?;
            wait(
                &mut views,
                "198.18.7.250",
                Err("reached over eth9, which isn't under interfaces"),
            )
            .await
        })
    });
}

#[test]
fn a_storm_of_events_ends_in_the_right_view() {
    check(|| {
        let bench = Bench::new()?;
        bench.in_lb(async || {
            let (_neighbours, mut views) = start(&[target(SERVER, true)?])?;
            wait(&mut views, SERVER, Ok(MAC)).await?;
            // Nobody reads the events meanwhile: this thread is the watcher's.
            let storm: String = (0..20_000_u32)
                .map(|n| format!("route add 100.64.{}.{} dev eth9\n", n / 250, n % 250))
                .collect();
            let last = "neigh replace 10.9.0.2 lladdr 02:00:00:00:09:55 dev eth0 nud permanent\n";
            bench
                .lb
                .feed(&["ip", "-batch", "-"], &format!("{storm}{last}"))?;
            wait(&mut views, SERVER, Ok("02:00:00:00:09:55")).await
        })
    });
}

fn model(address: &str, port: u16) -> Result<Model> {
    Ok(Model {
        node: "lb".to_owned(),
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            xdp: XdpMode::Auto,
        }],
        dataplane: Dataplane {
            max_flows: 1,
            max_services: 1,
            max_members: 1,
            max_slots: 1,
            max_source_prefixes: 1024,
            max_limited_sources: 1024,
            max_bindings: 64,
            max_fragments: 64,
            max_persistent_sources: 64,
            icmp_rate: 1000,
            tcp_idle: Duration::ZERO,
            udp_idle: Duration::ZERO,
            dead_after: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            hash_secret_file: None,
            pin_dir: "/sys/fs/bpf/lb".into(),
            debug_log: false,
            manage_sysctls: true,
            yields_when_daemon_dead: false,
            tunnel: Tunnel::default(),
            probes: ProbePath::default(),
        },
        metrics: None,
        full_nat: None,
        vrrp: Vec::new(),
        sync: None,
        pools: BTreeMap::from([(
            "web".to_owned(),
            Pool {
                backends: vec![Backend {
                    name: "a".to_owned(),
                    address: address.parse()?,
                    port: None,
                    weight: 1,
                    priority: 1,
                    max_connections: 0,
                }],
                health: vec![Check {
                    kind: CheckKind::Tcp,
                    port: None,
                    via: Some(Via::Address),
                    interval: Duration::from_millis(200),
                    timeout: Duration::from_millis(300),
                    slow_after: None,
                    fast_interval: None,
                    rise: 2,
                    fall: 3,
                    overloaded_limit: Duration::ZERO,
                    hold_down_limit: Duration::ZERO,
                }],
                policy: PoolPolicy::default(),
            },
        )]),
        services: vec![Service {
            name: "web".to_owned(),
            address: "192.0.2.1".parse()?,
            ports: Ports::Ranges(vec![(port, port)]),
            protocol: Protocol::Tcp,
            forwarding: ForwardingMethod::L2Dsr,
            replies: Replies::Port,
            defence: Defence::default(),
            on_backend_down: OnBackendDown::Keep,
            balance: Balance::default(),
            persistence: None,
            topology: Default::default(),
            pool: "web".to_owned(),
            table_size: 101,
            table_size_is_explicit: false,
        }],
    })
}

#[test]
fn a_server_is_up_then_down_when_killed_and_up_again_and_a_blackhole_is_told_apart() {
    check(|| {
        let bench = Bench::new()?;
        let address: SocketAddr = (SERVER.parse::<IpAddr>()?, 8080).into();
        let serve = || EchoServer::start(&bench.server, "server", &[address], &[], &[]);
        let mut running = Some(serve()?);
        bench.in_lb(async || {
            let (health, mut changes) = Health::start(&model(SERVER, 8080)?, 1, BTreeMap::new());
            let mut next = async || -> Result<(HealthState, String)> {
                let change = tokio::time::timeout(SOON, changes.recv())
                    .await
                    .context("the state didn't change")?
                    .context("the checks ended")?;
                Ok((change.state, change.reason))
            };
            let expect = |state, reason: &str| (state, reason.to_owned());
            ensure!(next().await? == expect(HealthState::Up, "connected"));
            drop(running.take());
            let killed = Instant::now();
            ensure!(next().await? == expect(HealthState::Down, "connection refused"));
            // Three failures: at least two intervals less their jitter.
            ensure!(killed.elapsed() > Duration::from_millis(300), "too soon");
            ensure!(killed.elapsed() < Duration::from_millis(1500), "too late");
            running = Some(serve()?);
            ensure!(next().await? == expect(HealthState::Up, "connected"));
            bench.server.feed(
                &["nft", "-f", "-"],
                "table inet t { chain in { type filter hook input priority 0; tcp dport 8080 drop; }; }\n",
            )?;
            // Silence of a server that was answering is overload first; with a limit
            // of zero the next probe decides.
            for state in [HealthState::Overloaded, HealthState::Down] {
                let found = next().await?;
                let expected = expect(state, "no answer within 300ms: connecting");
                ensure!(found == expected, "{found:?}, expected {expected:?}");
            }
            let snapshot = health.snapshot();
            let key = BackendKey { pool: "web".to_owned(), backend: "a".to_owned() };
            let known = snapshot.get(&key).context("not in the snapshot")?;
            ensure!(known.results.failures() >= 6 && known.results.of(Verdict::Pass) >= 3, "{known:?}");
            let waiting = bench.server.exec(&["ss", "-Htan", "state", "time-wait"])?;
            ensure!(waiting.is_empty(), "checks left connections behind: {waiting}");
            drop(running.take());
            Ok(())
        })
    });
}

#[test]
fn settings_for_nat_are_made_in_the_namespace_and_put_back() {
    check(|| {
        let bench = Bench::new()?;
        let dir = TempDir::new()?;
        let record = dir.join("sysctls.json");
        let mut nat = model(SERVER, 80)?;
        for service in &mut nat.services {
            service.forwarding = ForwardingMethod::Nat;
        }
        let mut v6 = nat.services.clone();
        for service in &mut v6 {
            service.address = "2001:db8::1".parse()?;
        }
        nat.services.extend(v6);
        let read = || -> Result<Vec<String>> {
            [
                "net/ipv4/conf/eth0/forwarding",
                "net/ipv4/conf/all/send_redirects",
                "net/ipv6/conf/all/forwarding",
                "net/ipv6/conf/eth0/forwarding",
                "net/ipv6/conf/eth9/forwarding",
            ]
            .iter()
            .map(|key| bench.lb.read_sysctl(key))
            .collect()
        };
        bench.lb.sysctl("net/ipv4/conf/all/send_redirects", "1")?;
        let before = read()?;
        bench.lb.run(|| -> Result<()> {
            let changes = sysctl::plan_sysctls(&nat, &[], &ProcSys)?;
            sysctl::apply(&changes, &mut ProcSys, &record)?;
            let left = sysctl::plan_sysctls(&nat, &[], &ProcSys)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })??;
        ensure!(read()? == ["1", "0", "1", "1", "1"], "{:?}", read()?);
        bench.lb.run(|| sysctl::restore(&mut ProcSys, &record))??;
        ensure!(read()? == before, "{:?} instead of {before:?}", read()?);
        Ok(())
    });
}

#[test]
fn a_clients_next_hop_that_the_data_path_asks_for_is_resolved() {
    check(|| {
        let bench = Bench::new()?;
        bench.in_lb(async || {
            let (neighbours, views) = start(&[])?;
            let ifindex = views.borrow().links[0].ifindex;
            let (address, family) = Addr::from_ip(SERVER.parse()?);
            for _ in 0..5000 {
                neighbours.resolve_client(NeighbourRequest {
                    address,
                    ifindex,
                    family: family.into(),
                });
            }
            let asked = Instant::now();
            while !ip(&bench.lb, "neigh show 10.9.0.2 dev eth0")?.contains(MAC) {
                ensure!(asked.elapsed() < SOON, "not resolved");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
    });
}
