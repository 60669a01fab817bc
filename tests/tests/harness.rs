//! The harness itself: what it makes works, is what it says, and is gone
//! afterwards.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    cleanup::{self, Bpffs, TempDir},
    config::Config,
    conns::Lost,
    daemon::Daemon,
    netns::Netns,
    packet::{
        Capture, CapturedFrame, Flood, FloodKind, FloodOptions, Mac, Packet, View, arp_request,
        neighbor_solicitation, protocol, send_raw, tcp_flags, verify,
    },
    process::wait_for,
    servers::{self, EchoServer, Hold, Iperf3Server, Nginx},
    topology::{Kind, Offloads, Options, Topology},
};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(10);

fn any() -> [SocketAddr; 2] {
    [
        (Ipv4Addr::UNSPECIFIED, PORT).into(),
        (Ipv6Addr::UNSPECIFIED, PORT).into(),
    ]
}

fn topology(kind: Kind, backends: usize) -> Result<Topology> {
    Topology::new(
        kind,
        &Options {
            backends,
            ..Options::default()
        },
    )
}

/// Echo servers on every backend, both families, TCP and UDP.
fn echo_servers(t: &Topology) -> Result<Vec<EchoServer>> {
    t.backends
        .iter()
        .map(|b| EchoServer::start(&b.ns, &b.name, &any(), &any(), &[]))
        .collect()
}

/// A pair of hosts on one link, without anything else.
fn pair() -> Result<(Netns, Netns)> {
    let (a, b) = (Netns::new("a")?, Netns::new("b")?);
    a.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n\
             addr add 10.0.0.1/24 dev eth0\n",
            b.name()
        ),
    )?;
    b.feed(
        &["ip", "-batch", "-"],
        "link set eth0 up\naddr add 10.0.0.2/24 dev eth0\n",
    )?;
    Ok((a, b))
}

// Life and death.

#[test]
fn a_namespace_is_gone_after_drop() {
    check(|| {
        let ns = Netns::new("gone")?;
        let path = ns.path();
        ensure!(path.exists(), "{} was not made", path.display());
        drop(ns);
        ensure!(!path.exists(), "{} is still there", path.display());
        Ok(())
    });
}

#[test]
fn everything_is_gone_after_a_panic() {
    check(|| {
        let (sender, receiver) = std::sync::mpsc::channel::<(Vec<PathBuf>, libc::pid_t)>();
        let result = std::thread::spawn(move || {
            let ns = Netns::new("panic").expect("a namespace");
            let dir = TempDir::new().expect("a directory");
            let bpffs = Bpffs::mount(&dir).expect("a BPF file system");
            let process = ns.spawn("sleep", &["sleep", "1000"]).expect("a process");
            let paths = vec![ns.path(), dir.path().into(), bpffs.path().into()];
            sender
                .send((paths, process.pid()))
                .expect("the test listens");
            panic!("on purpose");
        })
        .join();
        ensure!(result.is_err(), "the thread did not panic");
        let (paths, pid) = receiver.recv()?;
        for path in paths {
            ensure!(!path.exists(), "{} is still there", path.display());
        }
        ensure!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} is still there"
        );
        Ok(())
    });
}

#[test]
fn a_killed_process_takes_its_children_along() {
    check(|| {
        let ns = Netns::new("group")?;
        let process = ns.spawn("shell", &["sh", "-c", "sleep 1000 & echo $!; wait"])?;
        wait_for("the child's number", SOON, || !process.log().is_empty())?;
        let child = PathBuf::from(format!("/proc/{}", process.log().trim()));
        ensure!(child.exists(), "{} does not run", child.display());
        drop(process);
        wait_for("the child to be gone", SOON, || !child.exists())
    });
}

#[test]
fn what_a_dead_process_left_behind_is_swept() {
    check(|| {
        let mut short_lived = Command::new("true").spawn()?;
        let dead = short_lived.id();
        short_lived.wait()?;
        let name = format!("lb{dead}-0-left");
        let dir = std::env::temp_dir().join(format!("lb{dead}-tmp0"));
        ensure!(
            Command::new("ip")
                .args(["netns", "add", &name])
                .status()?
                .success(),
            "ip netns"
        );
        let namespace = Path::new(cleanup::NETNS_DIR).join(&name);
        std::fs::create_dir_all(dir.join("bpf"))?;
        let mount = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(dir.join("bpf"))
            .status()?;
        ensure!(mount.success(), "mount");
        let mut left = Command::new("nsenter")
            .arg(format!("--net={}", namespace.display()))
            .args(["sleep", "1000"])
            .spawn()?;
        let inside = std::fs::read_link("/proc/self/ns/net")?;
        wait_for("the process to enter", SOON, || {
            std::fs::read_link(format!("/proc/{}/ns/net", left.id())).is_ok_and(|l| l != inside)
        })?;
        cleanup::sweep_now();
        let status = left.wait()?;
        ensure!(!status.success(), "the process inside was not killed");
        ensure!(!namespace.exists(), "{name} is still there");
        ensure!(!dir.exists(), "{} is still there", dir.display());
        Ok(())
    });
}

#[test]
fn an_interrupt_undoes_everything() {
    const CHILD: &str = "LB_TEST_INTERRUPTED_CHILD";
    if std::env::var_os(CHILD).is_some() {
        cleanup::on_interrupt().expect("signal handlers");
        let ns = Netns::new("interrupted").expect("a namespace");
        let _sleep = ns.spawn("sleep", &["sleep", "1000"]).expect("a process");
        println!("made {}", ns.path().display());
        std::io::stdout().flush().expect("standard output");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    check(|| {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "an_interrupt_undoes_everything", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let path = lines
            .map_while(Result::ok)
            .find_map(|l| l.split_once("made ").map(|(_, path)| PathBuf::from(path)))
            .context("the child did not say what it made")?;
        ensure!(path.exists(), "{} was not made", path.display());
        // SAFETY: kill has no memory effects; the child is ours and not reaped.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
        let status = child.wait()?;
        ensure!(status.code() == Some(130), "exit status {status}");
        ensure!(!path.exists(), "{} is still there", path.display());
        Ok(())
    });
}

#[test]
fn a_missing_program_is_named() {
    check(|| {
        let ns = Netns::new("missing")?;
        let error = ns.exec(&["no-such-program"]).err().context("it ran")?;
        ensure!(
            format!("{error:#}").contains("no-such-program"),
            "{error:#}"
        );
        Ok(())
    });
}

#[test]
fn a_daemon_is_started_killed_restarted_and_detached() {
    check(|| {
        let dir = TempDir::new()?;
        let (lbctl, calls) = (dir.join("lbctl"), dir.join("calls"));
        std::fs::write(
            &lbctl,
            format!(
                "#!/bin/sh\necho \"$@\" >> {}\ncase $1 in\n\
                 run) sleep 0.1; touch $5; exec sleep 1000;;\n\
                 status) test -e $3$5;;\nversion) echo '{{\"a\": 1}}';;\nesac\n",
                calls.display()
            ),
        )?;
        std::fs::set_permissions(&lbctl, std::fs::Permissions::from_mode(0o755))?;
        let ns = Netns::new("daemon")?;
        let mut daemon = Daemon::prepare_program(lbctl, &ns, &Config::new("lb1"))?;
        daemon.launch()?;
        let yaml = std::fs::read_to_string(daemon.config_path())?;
        ensure!(
            yaml.contains(&format!("pin_dir: {}", daemon.pin_dir().display())),
            "{yaml}"
        );
        std::fs::create_dir(daemon.pin_dir())?;
        ensure!(daemon.ctl_json(&["version"])?["a"] == 1, "no JSON");
        let first = daemon.process()?.pid();
        daemon.restart()?;
        ensure!(daemon.process()?.pid() != first, "not restarted");
        daemon.reload()?;
        let pins = daemon.pin_dir();
        drop(daemon);
        ensure!(!pins.exists(), "{} is still there", pins.display());
        let calls = std::fs::read_to_string(calls)?;
        ensure!(
            calls.lines().filter(|l| l.starts_with("run -c ")).count() == 2,
            "{calls}"
        );
        ensure!(
            calls.lines().any(|l| l.starts_with("reload --socket ")),
            "{calls}"
        );
        let last = calls.lines().last().unwrap_or_default();
        ensure!(last.starts_with("detach -c "), "the last call was {last:?}");
        Ok(())
    });
}

// Topologies.

fn everybody_reaches_everybody(kind: Kind) {
    check(|| {
        let t = topology(kind, 3)?;
        let _servers = echo_servers(&t)?;
        for b in &t.backends {
            for address in [IpAddr::from(b.v4()), b.v6().into()] {
                let target = (address, PORT).into();
                let report = servers::rate(&t.client.ns, target, 1, Duration::from_millis(50))?;
                ensure!(
                    report.failed == 0 && report.requests > 0,
                    "{address}: {report:?}"
                );
                ensure!(
                    report.per_server.keys().eq([&b.name]),
                    "{address}: {report:?}"
                );
            }
        }
        for (from, to) in t.hosts().flat_map(|a| t.hosts().map(move |b| (a, b))) {
            for address in [IpAddr::from(to.v4()), to.v6().into()] {
                from.ns
                    .exec(&["ping", "-c1", "-W2", &address.to_string()])
                    .with_context(|| format!("{} does not reach {}", from.name, to.name))?;
            }
        }
        Ok(())
    });
}

#[test]
fn dsr_everybody_reaches_everybody() {
    everybody_reaches_everybody(Kind::Dsr);
}

#[test]
fn nat_two_armed_everybody_reaches_everybody() {
    everybody_reaches_everybody(Kind::NatTwoArmed);
}

#[test]
fn nat_one_armed_everybody_reaches_everybody() {
    everybody_reaches_everybody(Kind::NatOneArmed);
}

#[test]
fn nat_flat_one_armed_everybody_reaches_everybody() {
    everybody_reaches_everybody(Kind::NatFlatOneArmed);
}

#[test]
fn offloads_are_as_asked() {
    check(|| {
        let is_on = |ns: &Netns, interface: &str, feature: &str| -> Result<bool> {
            let all = ns.exec(&["ethtool", "-k", interface])?;
            let line = all
                .lines()
                .find(|l| l.trim_start().starts_with(&format!("{feature}:")));
            Ok(line
                .with_context(|| format!("no feature {feature}"))?
                .contains(": on"))
        };
        for offloads in [Offloads::Off, Offloads::On, Offloads::Wire] {
            let t = Topology::new(
                Kind::Dsr,
                &Options {
                    backends: 1,
                    offloads,
                },
            )?;
            let (host, port) = (&t.backends[0], &t.balancer_ports[0]);
            for feature in [
                "tx-checksumming",
                "tcp-segmentation-offload",
                "generic-segmentation-offload",
            ] {
                let at_host = is_on(&host.ns, "eth0", feature)?;
                ensure!(
                    at_host == (offloads != Offloads::Off),
                    "{offloads:?}: {feature} {at_host}"
                );
                let at_port = is_on(&port.ns, &port.interface, feature)?;
                ensure!(
                    at_port == (offloads == Offloads::On),
                    "{offloads:?}: {feature} {at_port}"
                );
            }
            for (ns, interface) in [(&host.ns, "eth0"), (&port.ns, port.interface.as_str())] {
                ensure!(
                    is_on(ns, interface, "generic-receive-offload")?,
                    "{offloads:?}: no GRO"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn counters_follow_the_packets() {
    check(|| {
        let (a, b) = pair()?;
        let before = b.counters("eth0")?;
        let frame = Packet::udp("10.0.0.1:9".parse()?, "10.0.0.2:9".parse()?)
            .payload(*b"x")
            .build();
        send_raw(&a, "eth0", &vec![frame.clone(); 100])?;
        let after = b.counters("eth0")?;
        ensure!(
            after.rx_packets - before.rx_packets >= 100,
            "{before:?} {after:?}"
        );
        ensure!(
            after.rx_bytes - before.rx_bytes >= 100 * frame.len() as u64,
            "{after:?}"
        );
        Ok(())
    });
}

/// Captures what comes from the VIP at the far end of the balancer's links.
fn replies_at_the_balancer(t: &Topology, from: IpAddr) -> Result<Vec<Capture>> {
    t.balancer_ports
        .iter()
        .map(|port| {
            Capture::start(&port.ns, &port.interface, move |frame| {
                View::parse(&frame.bytes)
                    .is_ok_and(|v| v.addresses().is_some_and(|(source, _)| source == from))
            })
        })
        .collect()
}

fn a_dsr_backend_serves_the_vip(vip: impl Fn(&Topology) -> IpAddr) {
    check(|| {
        let t = topology(Kind::Dsr, 2)?;
        let _servers = echo_servers(&t)?;
        let vip = vip(&t);
        // The place of the balancer: one backend for all.
        let mac = t.backends[1].interface().mac.to_string();
        t.router.ns.exec(&[
            "ip",
            "neigh",
            "replace",
            &vip.to_string(),
            "lladdr",
            &mac,
            "dev",
            "eth1",
        ])?;
        let captures = replies_at_the_balancer(&t, vip)?;
        let target = (vip, PORT).into();
        let report = servers::rate(&t.client.ns, target, 2, Duration::from_millis(200))?;
        ensure!(report.failed == 0 && report.requests > 0, "{report:?}");
        ensure!(report.per_server.keys().eq(["backend-2"]), "{report:?}");
        for capture in captures {
            let count = capture.stop()?;
            ensure!(count == 0, "{count} replies crossed the balancer");
        }
        Ok(())
    });
}

#[test]
fn under_dsr_a_backend_serves_the_ipv4_vip_and_replies_past_the_balancer() {
    a_dsr_backend_serves_the_vip(|t| t.vip4.into());
}

#[test]
fn under_dsr_a_backend_serves_the_ipv6_vip_and_replies_past_the_balancer() {
    a_dsr_backend_serves_the_vip(|t| t.vip6.into());
}

#[test]
fn under_flat_nat_replies_cross_the_balancer_and_the_capture_sees_them() {
    check(|| {
        let t = topology(Kind::NatFlatOneArmed, 1)?;
        let _servers = echo_servers(&t)?;
        // A redirect would take the balancer out of the way.
        t.balancer
            .ns
            .sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        t.balancer
            .ns
            .sysctl("net/ipv4/conf/eth0/send_redirects", "0")?;
        let backend = IpAddr::from(t.backends[0].v4());
        let captures = replies_at_the_balancer(&t, backend)?;
        let target = (backend, PORT).into();
        let report = servers::rate(&t.client.ns, target, 1, Duration::from_millis(100))?;
        ensure!(report.failed == 0 && report.requests > 0, "{report:?}");
        for capture in captures {
            let count = capture.stop()?;
            ensure!(
                count > report.requests,
                "{count} frames of {} replies",
                report.requests
            );
        }
        Ok(())
    });
}

#[test]
fn no_dsr_backend_answers_for_the_vip() {
    check(|| {
        let t = topology(Kind::Dsr, 2)?;
        let router = &t.router.interfaces[1];
        let claims = |vip4: Ipv4Addr, vip6: Ipv6Addr| {
            move |frame: &CapturedFrame| {
                let Ok(view) = View::parse(&frame.bytes) else {
                    return false;
                };
                let arp = view.ethertype == 0x0806
                    && frame.bytes.get(20..22) == Some(&[0, 2])
                    && frame.bytes.get(28..32) == Some(&vip4.octets());
                let advertisement = view.protocol == protocol::ICMPV6
                    && view.layer4().first() == Some(&136)
                    && view.layer4().get(8..24) == Some(&vip6.octets());
                arp || advertisement
            }
        };
        let ask = |ip4: Ipv4Addr, ip6: Ipv6Addr| -> Result<u64> {
            let capture = Capture::start(&t.router.ns, "eth1", claims(ip4, ip6))?;
            let frames = [
                arp_request(router.mac, router.v4[0], ip4),
                neighbor_solicitation(router.mac, router.v6[0], ip6),
            ];
            send_raw(&t.router.ns, "eth1", &frames)?;
            std::thread::sleep(Duration::from_millis(300));
            capture.stop()
        };
        // The question is a good one: for an own address there are answers.
        let own = &t.backends[0];
        ensure!(
            ask(own.v4(), own.v6())? == 2,
            "no answers for a backend's own addresses"
        );
        let answers = ask(t.vip4, t.vip6)?;
        ensure!(answers == 0, "{answers} backends answered for the VIP");
        Ok(())
    });
}

// Servers and clients.

#[test]
fn nginx_tells_its_name_and_logs_who_asked() {
    check(|| {
        let t = topology(Kind::Dsr, 1)?;
        let backend = &t.backends[0];
        let nginx = Nginx::start(&backend.ns, &backend.name, &any())?;
        for (id, address) in [
            ("one", IpAddr::from(backend.v4())),
            ("two", backend.v6().into()),
        ] {
            let url = format!("http://{}/some/path", SocketAddr::new(address, PORT));
            let header = format!("X-Request-Id: {id}");
            let body = t
                .client
                .ns
                .exec(&["curl", "-sS", "-H", &header, &url, &url])?;
            ensure!(body == "backend-1\nbackend-1\n", "{body:?}");
            let log = nginx.access_log()?;
            let seen: Vec<_> = log.iter().filter(|l| l.id == id).collect();
            ensure!(seen.len() == 2, "{log:?}");
            ensure!(
                seen[0].port == seen[1].port,
                "the connection was not kept alive: {log:?}"
            );
            let client = t.client.address(address).to_string();
            ensure!(seen[0].peer == client && seen[0].status == 200, "{log:?}");
        }
        Ok(())
    });
}

#[test]
fn dig_gets_the_servers_name() {
    check(|| {
        let t = topology(Kind::NatTwoArmed, 1)?;
        let backend = &t.backends[0];
        let at = [
            (Ipv4Addr::UNSPECIFIED, 53).into(),
            (Ipv6Addr::UNSPECIFIED, 53).into(),
        ];
        let _server = EchoServer::start(&backend.ns, &backend.name, &[], &[], &at)?;
        for address in [IpAddr::from(backend.v4()), backend.v6().into()] {
            let server = format!("@{address}");
            let args = [
                "dig",
                &server,
                "+short",
                "+tries=1",
                "+time=2",
                "TXT",
                "who.example",
            ];
            let answer = t.client.ns.exec(&args)?;
            ensure!(answer.trim() == "\"backend-1\"", "{answer}");
        }
        Ok(())
    });
}

#[test]
fn iperf3_measures() {
    check(|| {
        let t = topology(Kind::Dsr, 1)?;
        let _server = Iperf3Server::start(&t.backends[0].ns, 5201)?;
        let target = (t.backends[0].v4(), 5201).into();
        let result = servers::iperf3(&t.client.ns, target, &["-t", "1"])?;
        let received = result["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
        ensure!(received > 1_000_000, "{received} bytes received");
        Ok(())
    });
}

#[test]
fn held_connections_to_a_good_server_are_not_lost() {
    check(|| {
        let (a, b) = pair()?;
        let target = "10.0.0.2:8080".parse()?;
        let mut server = EchoServer::start(&b, "b", &[target], &[], &[])?;
        let mut hold = Hold::start(&a, target, 500, 2000)?;
        hold.wait_open(SOON)?;
        ensure!(server.counts()?.open == 500, "{:?}", server.counts()?);
        wait_for("each to send three times", SOON, || {
            hold.report().is_ok_and(|r| r.messages >= 1500)
        })?;
        let report = hold.stop()?;
        ensure!(
            report.opened == 500 && report.failed_to_open == 0,
            "{report:?}"
        );
        ensure!(report.lost == Lost::default(), "{report:?}");
        ensure!(
            report.per_server == [("b".to_owned(), 500)].into(),
            "{report:?}"
        );
        ensure!(server.counts()?.accepted == 500, "{:?}", server.counts()?);
        Ok(())
    });
}

#[test]
fn a_killed_servers_connections_are_counted_as_reset() {
    check(|| {
        let t = topology(Kind::Dsr, 1)?;
        let mut servers = echo_servers(&t)?;
        let target = (t.backends[0].v4(), PORT).into();
        let mut hold = Hold::start(&t.client.ns, target, 200, 2000)?;
        hold.wait_open(SOON)?;
        servers[0].kill9()?;
        wait_for("the losses", SOON, || {
            hold.report().is_ok_and(|r| r.lost.total() == 200)
        })?;
        let report = hold.stop()?;
        ensure!(report.lost.reset == 200, "{report:?}");
        ensure!(
            report.lost_per_server == [("backend-1".to_owned(), 200)].into(),
            "{report:?}"
        );
        Ok(())
    });
}

#[test]
fn connections_into_a_black_hole_are_counted_as_stalled() {
    check(|| {
        let t = topology(Kind::Dsr, 1)?;
        let _servers = echo_servers(&t)?;
        let target = (t.backends[0].v4(), PORT).into();
        let mut hold = Hold::start(&t.client.ns, target, 20, 2000)?;
        hold.wait_open(SOON)?;
        t.backends[0]
            .ns
            .exec(&["ip", "link", "set", "eth0", "down"])?;
        wait_for("the losses", Duration::from_secs(20), || {
            hold.report().is_ok_and(|r| r.lost.total() == 20)
        })?;
        let report = hold.stop()?;
        ensure!(report.lost.stall + report.lost.timeout == 20, "{report:?}");
        ensure!(report.max_stall_ms >= 9_900, "{report:?}");
        Ok(())
    });
}

#[test]
fn an_answer_from_another_server_is_counted_as_wrong_server() {
    check(|| {
        let (a, b) = pair()?;
        let listener = b.run(|| std::net::TcpListener::bind("10.0.0.2:8080"))??;
        let liar = std::thread::spawn(move || -> std::io::Result<()> {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept()?;
                std::thread::spawn(move || -> std::io::Result<()> {
                    stream.write_all(b"b\n")?;
                    let mut line = String::new();
                    let mut lines = BufReader::new(stream.try_clone()?);
                    lines.read_line(&mut line)?;
                    write!(stream, "b {line}")?;
                    lines.read_line(&mut line)?;
                    writeln!(stream, "c 1")?;
                    lines.read_line(&mut line)?;
                    Ok(())
                });
            }
            Ok(())
        });
        let mut hold = Hold::start(&a, "10.0.0.2:8080".parse()?, 2, 100)?;
        wait_for("the losses", SOON, || {
            hold.report().is_ok_and(|r| r.lost.total() == 2)
        })?;
        let report = hold.stop()?;
        ensure!(
            report.lost.wrong_server == 2 && report.messages == 2,
            "{report:?}"
        );
        liar.join().ok().context("the liar panicked")??;
        Ok(())
    });
}

/// Rewrites what goes to the first backend to the second, and back, without
/// any state: what a balancer does that forgets its flows.
fn redirect_first_to_second(t: &Topology) -> Result<()> {
    let (first, second) = (t.backends[0].v4(), t.backends[1].v4());
    t.router.ns.feed(
        &["nft", "-f", "-"],
        &format!(
            "table ip move {{\n chain raw {{ type filter hook prerouting priority raw;\n\
             ip daddr {first} ip daddr set {second}\n\
             ip saddr {second} ip saddr set {first}\n }}\n}}\n"
        ),
    )
}

#[test]
fn connections_moved_by_nftables_are_counted_as_reset() {
    check(|| {
        let t = topology(Kind::Dsr, 2)?;
        let _servers = echo_servers(&t)?;
        let target = (t.backends[0].v4(), PORT).into();
        let mut hold = Hold::start(&t.client.ns, target, 50, 2000)?;
        hold.wait_open(SOON)?;
        redirect_first_to_second(&t)?;
        wait_for("the losses", SOON, || {
            hold.report().is_ok_and(|r| r.lost.total() == 50)
        })?;
        let report = hold.stop()?;
        ensure!(report.lost.reset == 50, "{report:?}");
        Ok(())
    });
}

#[test]
fn udp_sockets_moved_by_nftables_are_counted() {
    check(|| {
        let t = topology(Kind::Dsr, 2)?;
        let _servers = echo_servers(&t)?;
        let target = (t.backends[0].v4(), PORT).into();
        let report = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let interval = Duration::from_millis(50);
                servers::udp(&t.client.ns, target, 10, interval, Duration::from_secs(2))
            });
            std::thread::sleep(Duration::from_secs(1));
            redirect_first_to_second(&t)?;
            client.join().ok().context("the client panicked")?
        })?;
        ensure!(report.moved == 10, "{report:?}");
        ensure!(
            report.unanswered <= 10 && report.wrong_answer == 0,
            "{report:?}"
        );
        ensure!(report.per_server.len() == 2, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_refused_connection_is_counted_by_kind() {
    check(|| {
        let (a, _b) = pair()?;
        let target = "10.0.0.2:9".parse()?;
        let report = servers::rate(&a, target, 1, Duration::from_millis(20))?;
        ensure!(report.failed > 0 && report.requests == 0, "{report:?}");
        ensure!(report.failures.keys().eq(["refused"]), "{report:?}");
        Ok(())
    });
}

// Floods and captures.

fn flood_arrives(kind: FloodKind, target: &'static str) {
    check(|| {
        let (a, b) = pair()?;
        let target: SocketAddr = target.parse()?;
        let capture = Capture::start(&b, "eth0", move |frame| {
            View::parse(&frame.bytes).is_ok_and(|v| v.destination() == Some(target))
        })?;
        let options = FloodOptions {
            kind,
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            target,
            rate: Some(5_000),
            duration: Some(Duration::from_millis(500)),
            seed: 7,
        };
        let sent = Flood::start(&a, "eth0", &options)?.wait()?;
        ensure!(
            (1_500..=3_500).contains(&sent),
            "{sent} frames at 5,000 a second in 0.5 s"
        );
        capture.wait_for(sent, SOON)?;
        let frames = capture.frames();
        let mut sources = std::collections::BTreeSet::new();
        for frame in &frames {
            verify(&frame.bytes)?;
            let view = View::parse(&frame.bytes)?;
            let flags = match kind {
                FloodKind::Syn => Some(tcp_flags::SYN),
                FloodKind::StrayAck => Some(tcp_flags::ACK),
                FloodKind::Udp => None,
            };
            ensure!(view.tcp_flags() == flags, "{view:?}");
            sources.insert(view.source());
        }
        ensure!(
            capture.stop()? == sent,
            "captured another number than the {sent} sent"
        );
        ensure!(
            sources.len() * 100 >= frames.len() * 99,
            "{} sources",
            sources.len()
        );
        Ok(())
    });
}

#[test]
fn a_syn_flood_arrives() {
    flood_arrives(FloodKind::Syn, "10.0.0.2:80");
}

#[test]
fn a_stray_ack_flood_arrives_over_ipv6() {
    flood_arrives(FloodKind::StrayAck, "[fd00::2]:80");
}

#[test]
fn a_udp_flood_arrives() {
    flood_arrives(FloodKind::Udp, "10.0.0.2:53");
}

#[test]
fn a_flood_without_a_limit_ends_on_drop() {
    check(|| {
        let (a, _b) = pair()?;
        let options = FloodOptions {
            kind: FloodKind::Syn,
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            target: "10.0.0.2:80".parse()?,
            rate: None,
            duration: None,
            seed: 1,
        };
        let flood = Flood::start(&a, "eth0", &options)?;
        wait_for("a hundred thousand frames", SOON, || flood.sent() > 100_000)?;
        drop(flood);
        let before = a.counters("eth0")?.tx_packets;
        std::thread::sleep(Duration::from_millis(50));
        let after = a.counters("eth0")?.tx_packets;
        ensure!(
            after - before < 10,
            "{} frames after the end",
            after - before
        );
        Ok(())
    });
}

#[test]
fn a_capture_shows_the_vlan_tag_that_the_kernel_takes_off() {
    check(|| {
        let (a, b) = pair()?;
        let frame = Packet::udp("10.0.0.1:7".parse()?, "10.0.0.2:7".parse()?)
            .vlan(42)
            .build();
        let wanted = frame.clone();
        let capture = Capture::start(&b, "eth0", move |f| f.bytes == wanted)?;
        send_raw(&a, "eth0", &[frame])?;
        capture.wait_for(1, SOON)
    });
}

#[test]
fn a_failed_test_leaves_a_pcap_and_shows_its_logs() {
    const CHILD: &str = "LB_TEST_FAILING_CHILD";
    if std::env::var_os(CHILD).is_some() {
        check(|| {
            let (a, b) = pair()?;
            let _process = a.spawn("talker", &["echo", "last words"])?;
            let capture = Capture::start(&b, "eth0", |_| true)?;
            let frame = Packet::udp("10.0.0.1:7".parse()?, "10.0.0.2:7".parse()?).build();
            send_raw(&a, "eth0", &[frame])?;
            capture.wait_for(1, SOON)?;
            anyhow::bail!("on purpose")
        });
    }
    check(|| {
        let dir = TempDir::new()?;
        let output = Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "a_failed_test_leaves_a_pcap_and_shows_its_logs",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .env("LB_TEST_ARTIFACTS", dir.path())
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "the test did not fail");
        ensure!(
            text.contains("last words") && text.contains("on purpose"),
            "{text}"
        );
        let files: Vec<PathBuf> = std::fs::read_dir(dir.path())?
            .flatten()
            .map(|e| e.path())
            .collect();
        ensure!(files.len() == 1, "{files:?}");
        let pcap = std::fs::read(&files[0])?;
        ensure!(
            pcap.len() > 24 + 16 && pcap[..4] == [0xd4, 0xc3, 0xb2, 0xa1],
            "not a pcap file"
        );
        Ok(())
    });
}
