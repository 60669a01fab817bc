//! The stage: topology, servers, balancer.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{ledger::Ledger, view};
use crate::{
    daemon::Daemon,
    process::wait_ok,
    servers::{AccessLogLine, Nginx},
    topology::{Kind, Options, Topology, Wires},
};

/// Port of the services.
const PORT: u16 = 80;

/// Port of nginx where NAT may rewrite it.
const NAT_PORT: u16 = 8080;

/// Weights of the backends, in order.
const WEIGHTS: [u16; 3] = [100, 100, 50];

/// Time the balancer has to do what it was told.
const SOON: Duration = Duration::from_secs(15);

/// Slow enough for a busy machine, and quick to watch.
const CHECK: &str = "health: [{type: tcp, interval: 500ms, timeout: 400ms, rise: 2, fall: 2}]";

/// Longest log line shown, in characters.
const LOG_LINE: usize = 110;

const METRICS: &str = "127.0.0.1:9464";

/// Everything of a scene. Dropped in this order: what uses something goes
/// before it.
pub struct Scene {
    /// The balancer.
    pub daemon: Daemon,
    /// nginx by backend; none while it is killed.
    pub nginx: BTreeMap<String, Option<Nginx>>,
    /// Logs of servers that were killed.
    pub old_logs: BTreeMap<String, Vec<AccessLogLine>>,
    _wires: Wires,
    /// The network.
    pub topology: Topology,
    /// What the client asked.
    pub ledger: Ledger,
}

impl Scene {
    /// Builds everything and waits until the balancer is ready.
    pub fn build(kind: Kind) -> Result<Self> {
        let topology = Topology::new(kind, &Options::default())?;
        let wires = topology.wire_balancer()?;
        view::headline("the network");
        view::block(&topology.diagram());
        view::fact(&format!(
            "and the same over IPv6, VIP {}; every host is a network namespace",
            topology.vip6
        ));
        let port = server_port(kind);
        let mut nginx = BTreeMap::new();
        for host in &topology.backends {
            nginx.insert(host.name.clone(), Some(start_nginx(host, port)?));
        }
        let mut config = topology.config(PORT);
        config.metrics = Some(METRICS.parse()?);
        for pool in &mut config.pools {
            pool.extra = vec![CHECK.into()];
            for (backend, weight) in pool.backends.iter_mut().zip(WEIGHTS) {
                backend.weight = weight;
                backend.port = (port != PORT).then_some(port);
            }
        }
        view::headline("the configuration: lb.yaml");
        view::block(&config.to_yaml());
        view::headline("the balancer starts: lbctl run -c lb.yaml");
        let daemon = Daemon::start(&topology.balancer.ns, &config)?;
        let scene = Self {
            daemon,
            nginx,
            old_logs: BTreeMap::new(),
            _wires: wires,
            topology,
            ledger: Ledger::default(),
        };
        wait_ok("the balancer to be ready", SOON, || {
            let status = scene.daemon.ctl_json(&["status"])?;
            ensure!(
                status["readiness"]["ready"] == true,
                "{}",
                status["readiness"]["reasons"]
            );
            Ok(())
        })
        .with_context(|| scene.daemon.log())?;
        for name in scene.nginx.keys() {
            scene.wait_condition(name, "up")?;
        }
        view::block(&plain(&scene.daemon.log()));
        view::fact("(this demo's veths have what the warning asks for; a NIC needs none of it)");
        Ok(scene)
    }

    /// The VIPs with the services' port.
    pub fn targets(&self) -> Vec<SocketAddr> {
        self.topology
            .vips()
            .map(|vip| SocketAddr::new(vip, PORT))
            .into()
    }

    /// What the weights make of each backend's share.
    pub fn configured_shares(&self) -> BTreeMap<String, f64> {
        let sum: f64 = WEIGHTS.iter().map(|w| f64::from(*w)).sum();
        let hosts = self.topology.backends.iter();
        hosts
            .zip(WEIGHTS)
            .map(|(host, weight)| (host.name.clone(), f64::from(weight) / sum))
            .collect()
    }

    /// A backend's rows of `lbctl backends`.
    pub fn rows(&self, backend: &str) -> Result<Vec<Value>> {
        let all = self.daemon.ctl_json(&["backends"])?;
        let rows = all.as_array().context("backends are a list")?.iter();
        Ok(rows.filter(|r| r["backend"] == backend).cloned().collect())
    }

    /// Waits until the data path treats a backend so in every service.
    pub fn wait_condition(&self, backend: &str, condition: &str) -> Result<()> {
        wait_ok(format!("{backend} to be {condition}"), SOON, || {
            let rows = self.rows(backend)?;
            let right = rows.iter().filter(|r| r["condition"] == condition).count();
            ensure!(
                right == rows.len() && right == self.targets().len(),
                "{right} of {} rows",
                rows.len()
            );
            Ok(())
        })
    }

    /// Tells the balancer something about a backend in both pools, and shows it.
    pub fn tell(&self, command: &str, backend: &str) -> Result<()> {
        for family in ["v4", "v6"] {
            let name = format!("web-{family}/{backend}");
            let answer = self.daemon.ctl(&[command, &name])?;
            view::command(&format!("lbctl {command} {name}"), &answer);
        }
        Ok(())
    }

    /// Shows a command of `lbctl`.
    pub fn show(&self, command: &str) -> Result<()> {
        let answer = self.daemon.ctl(&[command])?;
        view::command(&format!("lbctl {command}"), &answer);
        Ok(())
    }

    /// The metrics, as curl gets them.
    pub fn metrics(&self) -> Result<String> {
        let url = format!("http://{METRICS}/metrics");
        self.topology
            .balancer
            .ns
            .exec(&["curl", "-sS", "--fail", "--max-time", "5", &url])
    }

    /// SIGKILL to a backend's nginx.
    pub fn kill(&mut self, backend: &str) -> Result<()> {
        let place = self.nginx.get_mut(backend).context("no such backend")?;
        let mut server = place.take().context("it is dead already")?;
        server.kill9()?;
        self.old_logs
            .insert(backend.to_owned(), server.access_log()?);
        Ok(())
    }

    /// Starts a killed nginx again.
    pub fn revive(&mut self, backend: &str) -> Result<()> {
        let mut hosts = self.topology.backends.iter();
        let host = hosts
            .find(|h| h.name == backend)
            .context("no such backend")?;
        let server = start_nginx(host, server_port(self.topology.kind))?;
        self.nginx.insert(backend.to_owned(), Some(server));
        Ok(())
    }
}

fn server_port(kind: Kind) -> u16 {
    if kind == Kind::Dsr { PORT } else { NAT_PORT }
}

fn start_nginx(host: &crate::topology::Host, port: u16) -> Result<Nginx> {
    let listen = [
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
    ];
    Nginx::start(&host.ns, &host.name, &listen)
}

/// Log lines without their time stamps, and not too long.
fn plain(log: &str) -> String {
    log.lines()
        .map(|line| match line.split_once("Z ") {
            Some((stamp, rest)) if stamp.starts_with("20") => rest.trim_start(),
            _ => line,
        })
        .map(|line| match line.char_indices().nth(LOG_LINE) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}
