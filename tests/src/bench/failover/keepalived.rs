//! Two keepalived that answer by themselves.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Fault, PRIORITIES, REAL_TIME_PRIORITY, Subject, carrier::Carrier, place, probe::Echo};
use crate::{
    cleanup::TempDir,
    process::{Process, require_program, wait_for, wait_ok},
    topology::{Host, Topology},
};

/// What is waited for comes within this.
const SOON: Duration = Duration::from_secs(30);

/// See the module's description.
pub struct Keepalived {
    nodes: [Node; 2],
    carrier: Carrier,
    topology: Topology,
}

struct Node {
    process: Option<Process>,
    _echo: Echo,
    dir: TempDir,
    host: Host,
    vip: String,
}

impl Keepalived {
    /// Starts both.
    pub fn start(interval: Duration) -> Result<Self> {
        require_program("keepalived")?;
        let (topology, second) = place()?;
        let hosts = [topology.balancer.clone(), second];
        let mut nodes = vec![];
        for (number, host) in (0u8..).zip(hosts) {
            // One that routed would keep what comes for the address that it gave up,
            // and send it to the next owner, much later.
            host.ns.sysctl("net/ipv4/ip_forward", "0")?;
            let dir = TempDir::new()?;
            let vip = topology.vip4.to_string();
            let priority = PRIORITIES[usize::from(number)];
            let text = configuration(&vip, priority, interval);
            fs::write(dir.join("keepalived.conf"), text)?;
            let mut node = Node {
                process: None,
                _echo: Echo::on_node(&host.ns, topology.vip4, number)?,
                dir,
                host,
                vip,
            };
            node.launch()?;
            nodes.push(node);
        }
        let nodes = nodes.try_into();
        Ok(Self {
            nodes: nodes.map_err(|_| anyhow::anyhow!("there are two nodes"))?,
            carrier: Carrier::of(&topology.balancer_ports[0])?,
            topology,
        })
    }
}

impl Subject for Keepalived {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn wait_ready(&self) -> Result<()> {
        let [first, second] = &self.nodes;
        wait_ok("keepalived to be active", SOON, || {
            ensure!(first.owns()?, "its log:\n{}", first.log());
            ensure!(!second.owns()?, "the other one still is");
            Ok(())
        })
    }

    fn inject(&mut self, fault: Fault) -> Result<Instant> {
        let process = self.nodes[0].process.as_ref();
        let process = process.context("keepalived doesn't run")?;
        let at = Instant::now();
        match fault {
            Fault::Kill => process.signal_group(libc::SIGKILL)?,
            Fault::Link => self.carrier.set(false)?,
            Fault::Planned => process.signal(libc::SIGTERM)?,
        }
        Ok(at)
    }

    fn recover(&mut self, fault: Fault) -> Result<()> {
        let node = &mut self.nodes[0];
        match fault {
            Fault::Link => return self.carrier.set(true),
            Fault::Kill => node.process = None,
            Fault::Planned => {
                if let Some(mut process) = node.process.take() {
                    process.wait(SOON)?;
                }
            }
        }
        if node.owns()? {
            let address = format!("{}/32", node.vip);
            node.host
                .ns
                .exec(&["ip", "addr", "del", &address, "dev", "eth0"])?;
        }
        node.launch()
    }
}

impl Node {
    fn launch(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (conf, pid, vrrp) = (path("keepalived.conf"), path("pid"), path("vrrp.pid"));
        for stale in [&pid, &vrrp] {
            let _ = fs::remove_file(stale);
        }
        let mut command = self.host.ns.command("keepalived");
        command
            .args(["-n", "-l", "-D", "-P", "-f", &conf, "-p", &pid, "-r", &vrrp])
            .arg("--no-syslog");
        let label = format!("keepalived in {}", self.host.ns.name());
        let process = self.process.insert(Process::spawn(&label, command)?);
        wait_for("keepalived to start", SOON, || {
            fs::exists(&vrrp).unwrap_or_default()
        })?;
        process.ensure_running()
    }

    /// Whether it has the address.
    fn owns(&self) -> Result<bool> {
        let argv = ["ip", "-o", "-4", "addr", "show", "dev", "eth0"];
        Ok(self
            .host
            .ns
            .exec(&argv)?
            .contains(&format!(" {}/", self.vip)))
    }

    fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}

fn configuration(vip: &str, priority: u8, interval: Duration) -> String {
    format!(
        "global_defs {{\n  router_id node\n  vrrp_rt_priority {REAL_TIME_PRIORITY}\n}}\n\
         vrrp_instance v4 {{\n  state BACKUP\n  interface eth0\n  virtual_router_id 51\n  \
         priority {priority}\n  advert_int {}\n  version 3\n  virtual_ipaddress {{ {vip}/32 }}\n}}\n",
        interval.as_secs_f64()
    )
}
