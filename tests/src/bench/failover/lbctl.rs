//! Two `lbctl` with a peer link, direct server return.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Fault, Subject,
    carrier::Carrier,
    probe::{self, Echo},
};
use crate::{
    pair::{INTERVAL, Method, Pair},
    topology::Topology,
};

/// See the module's description.
pub struct Lbctl {
    _echo: Echo,
    carrier: Carrier,
    pair: Pair,
}

impl Lbctl {
    /// Starts both.
    pub fn start(interval: Duration) -> Result<Self> {
        let pair = Pair::start(Method::Dsr, 1, |_, config| {
            let mut echo = config.services[0].clone();
            echo.name = "echo".into();
            echo.port = probe::PORT.to_string();
            echo.protocol = "udp".into();
            config.services.push(echo);
            let of =
                |interval: Duration| format!("advertisement_interval: {}ms", interval.as_millis());
            for extra in &mut config.extra {
                *extra = extra.replace(&of(INTERVAL), &of(interval));
            }
        })?;
        let macs = [0, 1].map(|node| pair.nodes[node].host.interface().mac);
        let topology = &pair.topology;
        Ok(Self {
            _echo: Echo::on_server(&topology.backends[0], topology.vip4, macs)?,
            carrier: Carrier::of(&topology.balancer_ports[0])?,
            pair,
        })
    }
}

impl Subject for Lbctl {
    fn topology(&self) -> &Topology {
        &self.pair.topology
    }

    fn wait_ready(&self) -> Result<()> {
        self.pair.wait_state(0, "active")?;
        self.pair.wait_state(1, "backup")?;
        self.pair.wait_in_sync(1)
    }

    fn inject(&mut self, fault: Fault) -> Result<Instant> {
        let daemon = &self.pair.nodes[0].daemon;
        let at = Instant::now();
        match fault {
            Fault::Kill => daemon.process()?.signal_group(libc::SIGKILL)?,
            Fault::Link => self.carrier.set(false)?,
            Fault::Planned => drop(daemon.ctl(&["failover"])?),
        }
        Ok(at)
    }

    fn recover(&mut self, fault: Fault) -> Result<()> {
        let [first, second] = &mut self.pair.nodes;
        match fault {
            Fault::Kill => {
                first.daemon.kill9()?;
                first.daemon.launch()
            }
            Fault::Link => self.carrier.set(true),
            Fault::Planned => second.daemon.ctl(&["failover"]).map(drop),
        }
    }
}
