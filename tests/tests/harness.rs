//! The harness itself: what it makes works, is what it says, and is gone
//! afterwards.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    cleanup::{Bpffs, TempDir},
    netns::Netns,
    packet::{
        Capture, Direction, Flood, FloodKind, FloodOptions, Packet, View, send_raw, tcp_flags,
        verify,
    },
    process::wait_for,
    servers::{self, EchoServer, Hold, Iperf3Server, Nginx},
    topology::{Kind, Offloads, Options, Topology},
};

const PORT: u16 = 8080;

fn both_families() -> [SocketAddr; 2] {
    [
        SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, PORT)),
        SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT)),
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
        let process = PathBuf::from(format!("/proc/{pid}"));
        ensure!(!process.exists(), "process {pid} is still there");
        Ok(())
    });
}

#[test]
fn a_killed_process_takes_its_children_along() {
    check(|| {
        let ns = Netns::new("group")?;
        let process = ns.spawn("shell", &["sh", "-c", "sleep 1000 & echo $!; wait"])?;
        wait_for("the child's number", Duration::from_secs(5), || {
            !process.log().is_empty()
        })?;
        let child = PathBuf::from(format!("/proc/{}", process.log().trim()));
        ensure!(child.exists(), "{} does not run", child.display());
        drop(process);
        wait_for("the child to be gone", Duration::from_secs(5), || {
            !child.exists()
        })
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

// Topologies.

fn reaches_every_backend(kind: Kind) {
    check(|| {
        let t = topology(kind, 3)?;
        let mut servers = vec![];
        for b in &t.backends {
            servers.push(EchoServer::start(
                &b.ns,
                &b.name,
                &both_families(),
                &[],
                &[],
            )?);
        }
        for b in &t.backends {
            for address in [IpAddr::from(b.v4()), b.v6().into()] {
                let report = servers::rate(
                    &t.client.ns,
                    (address, PORT).into(),
                    1,
                    Duration::from_millis(50),
                )?;
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
        for (a, b) in t.hosts().flat_map(|a| t.hosts().map(move |b| (a, b))) {
            let server_net_only = t.kind != Kind::Dsr && b.name.starts_with("backend");
            if a.name == b.name || (server_net_only && a.name == "never") {
                continue;
            }
            for address in [IpAddr::from(b.v4()), b.v6().into()] {
                a.ns.exec(&["ping", "-c1", "-W2", &address.to_string()])
                    .with_context(|| format!("{} does not reach {}", a.name, b.name))?;
            }
        }
        Ok(())
    });
}

#[test]
fn dsr_client_reaches_every_backend() {
    reaches_every_backend(Kind::Dsr);
}

#[test]
fn nat_two_armed_client_reaches_every_backend() {
    reaches_every_backend(Kind::NatTwoArmed);
}

#[test]
fn nat_one_armed_client_reaches_every_backend() {
    reaches_every_backend(Kind::NatOneArmed);
}

#[test]
fn nat_flat_one_armed_client_reaches_every_backend() {
    reaches_every_backend(Kind::NatFlatOneArmed);
}
