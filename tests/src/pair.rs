//! Two balancers on one switch, with a cable between them:
//!
//! ```text
//!     client – router – [switch: lb1 .10, lb2 .20, backends]   10.2.0.0/24
//!                        lb1 10.9.0.1 ══ 10.9.0.2 lb2          the peer link
//! ```
//!
//! One virtual router, VRID 51, has the VIPs, and what else has to move along:
//! under NAT the servers' gateway, under full NAT its pool's addresses.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cleanup::TempDir,
    config::Config,
    daemon::Daemon,
    netns::Netns,
    packet::Mac,
    process::wait_ok,
    servers::EchoServer,
    site::{self, LIST, list_config},
    topology::{Host, Interface, Kind, Options, Port, Topology, Wires},
};

mod building;

pub use building::Building;

/// Of the virtual router.
pub const VRID: u8 = 51;

/// Of its advertisements.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// What is waited for comes within this.
const SOON: Duration = Duration::from_secs(30);

/// Between two states that `lbctl` shows.
const SHOWN_EVERY: Duration = Duration::from_millis(1_100);

/// The gateway of servers behind NAT.
const GATEWAY: [&str; 2] = ["10.2.0.101", "fd00:2::101"];

/// Full NAT's addresses.
const POOL: [&str; 2] = ["10.2.0.200", "fd00:2::200"];

/// How packets get to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Direct server return.
    Dsr,
    /// The balancers are the servers' gateway.
    Nat,
    /// Servers answer an address of the balancers.
    FullNat,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Dsr, Self::Nat, Self::FullNat];

    const fn kind(self) -> Kind {
        match self {
            Self::Dsr | Self::FullNat => Kind::Dsr,
            Self::Nat => Kind::NatFlatOneArmed,
        }
    }
}

/// One of the balancers.
#[derive(Debug)]
pub struct Node {
    /// It.
    pub daemon: Daemon,
    /// Its configuration, as last written by [`Self::reload`].
    pub config: Config,
    /// Where it lives.
    pub host: Host,
}

/// Both, and what is around them. On drop the balancers go first.
#[derive(Debug)]
pub struct Pair {
    /// The first has the higher priority.
    pub nodes: [Node; 2],
    /// Servers on each backend.
    pub echo: Vec<EchoServer>,
    _wires: Wires,
    /// Two of everything else, where asked for.
    pub building: Option<Building>,
    /// Hosts and links; its balancer is the first one.
    pub topology: Topology,
    _secrets: TempDir,
}

impl Pair {
    /// Starts both; `adapt` changes the configuration of each, by its number.
    /// Ready when the first is active and the second in sync.
    pub fn start(
        method: Method,
        backends: usize,
        adapt: impl FnMut(usize, &mut Config),
    ) -> Result<Self> {
        let pair = Self::launch(method, backends, adapt)?;
        pair.wait_state(0, "active")?;
        pair.wait_state(1, "backup")?;
        pair.wait_in_sync(1)?;
        Ok(pair)
    }

    /// Starts both, and waits for nothing.
    pub fn launch(
        method: Method,
        backends: usize,
        adapt: impl FnMut(usize, &mut Config),
    ) -> Result<Self> {
        Self::build(method, backends, false, adapt)
    }

    /// As [`Self::start`] with direct server return, with two switches and two
    /// routers.
    pub fn in_building(backends: usize, adapt: impl FnMut(usize, &mut Config)) -> Result<Self> {
        let pair = Self::build(Method::Dsr, backends, true, adapt)?;
        pair.wait_state(0, "active")?;
        pair.wait_state(1, "backup")?;
        pair.wait_in_sync(1)?;
        Ok(pair)
    }

    fn build(
        method: Method,
        backends: usize,
        in_building: bool,
        mut adapt: impl FnMut(usize, &mut Config),
    ) -> Result<Self> {
        let options = Options {
            backends,
            ..Options::default()
        };
        let mut topology = Topology::new(method.kind(), &options)?;
        let second = second_balancer(&mut topology)?;
        cable(&topology.balancer.ns, &second.ns)?;
        if method == Method::Nat {
            lead_to_gateway(&topology)?;
        }
        let building = in_building.then(|| Building::new(&mut topology));
        let building = building.transpose()?;
        let ports = site::any(LIST);
        let echo = topology
            .backends
            .iter()
            .map(|backend| EchoServer::start(&backend.ns, &backend.name, &ports, &[], &[]))
            .collect::<Result<_>>()?;
        let wires = topology.wire_balancer()?;
        let secrets = TempDir::new()?;
        let hosts = [topology.balancer.clone(), second];
        let mut nodes = vec![];
        for (number, host) in hosts.into_iter().enumerate() {
            let mut config = configuration(&topology, method, number, &secrets)?;
            adapt(number, &mut config);
            let daemon = Daemon::start(&host.ns, &config)?;
            nodes.push(Node {
                daemon,
                config,
                host,
            });
        }
        let nodes = nodes
            .try_into()
            .map_err(|_| anyhow::anyhow!("there are two nodes"))?;
        Ok(Self {
            nodes,
            echo,
            _wires: wires,
            building,
            topology,
            _secrets: secrets,
        })
    }

    /// Waits until all virtual routers of a node are in this state.
    pub fn wait_state(&self, node: usize, state: &str) -> Result<()> {
        self.wait_states(node, [state; 2])
    }

    /// Waits until the virtual routers of IPv4 and IPv6 of a node are in these
    /// states.
    pub fn wait_states(&self, node: usize, states: [&str; 2]) -> Result<()> {
        let daemon = &self.nodes[node].daemon;
        wait_ok(format!("lb{} to be {states:?}", node + 1), SOON, || {
            let rows = daemon.ctl_json(&["vrrp"])?;
            let rows = rows.as_array().context("no rows")?;
            let is_so = |row: &Value| {
                let is_v4 = row["family"] == "IPv4";
                row["state"] == states[usize::from(!is_v4)]
            };
            ensure!(!rows.is_empty() && rows.iter().all(is_so), "{rows:?}");
            Ok(())
        })
    }

    /// What a node replicates with the other one.
    pub fn replication(&self, node: usize) -> Result<Value> {
        let all = self.nodes[node].daemon.ctl_json(&["sync"])?;
        let row = all.get(0).map(|row| row["replication"].clone());
        row.with_context(|| format!("no peer: {all}"))
    }

    /// Waits until a node has everything that the other one has now.
    pub fn wait_in_sync(&self, node: usize) -> Result<()> {
        wait_ok(format!("lb{} to be in sync", node + 1), SOON, || {
            let heard = self.replication(node)?;
            ensure!(heard["hears"] == "in_sync", "{heard}");
            let told = self.replication(1 - node)?;
            ensure!(told["tells"] == true, "{told}");
            Ok(())
        })?;
        // What changed before now is there when a later look is. What is shown is
        // of up to a second ago.
        let since = Instant::now();
        wait_ok(format!("lb{} to be current", node + 1), SOON, || {
            let told = self.replication(1 - node)?;
            let lag = told["lag_ms"].as_u64().context("no lag")?;
            let passed = since.elapsed().saturating_sub(SHOWN_EVERY);
            ensure!(
                u128::from(lag) < passed.as_millis(),
                "{lag} ms of {passed:?}: {told}"
            );
            Ok(())
        })
    }

    /// Slots of the first service in which a node looks flows up, and all.
    pub fn tracked(&self, node: usize) -> Result<(u64, u64)> {
        let rows = self.nodes[node].daemon.ctl_json(&["services"])?;
        let row = rows.get(0).context("no services")?;
        let of = |key: &str| row[key].as_u64().unwrap_or_default();
        Ok((of("tracked_slots"), of("slots")))
    }
}

impl Node {
    /// Writes [`Self::config`] and has it read.
    pub fn reload(&self) -> Result<()> {
        self.daemon.write_config(&self.config)?;
        self.daemon.reload()
    }
}

const SECOND_MAC: Mac = Mac([0x02, 0x1b, 0, 0, 2, 20]);

/// A second balancer at .20.
pub(crate) fn second_balancer(t: &mut Topology) -> Result<Host> {
    let interface = Interface {
        name: "eth0".into(),
        mac: SECOND_MAC,
        v4: vec![Ipv4Addr::new(10, 2, 0, 20)],
        v6: vec![Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x20)],
    };
    let ns = Netns::new("balancer-2")?;
    let (mac, switch) = (interface.mac, t.switch.name());
    ns.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link set lo up\n\
             link add eth0 address {mac} type veth peer name balancer-2 netns {switch}\n\
             addr add 10.2.0.20/24 dev eth0\naddr add fd00:2::20/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ),
    )?;
    t.switch.feed(
        &["ip", "-batch", "-"],
        "link set balancer-2 master br0\nlink set balancer-2 up\n",
    )?;
    let fdb = format!("fdb replace {mac} dev balancer-2 master static\n");
    t.switch.feed(&["bridge", "-batch", "-"], &fdb)?;
    ns.feed(
        &["ip", "-batch", "-"],
        "route add default via 10.2.0.1\nroute add default via fd00:2::1\n",
    )?;
    for conf in ["all", "default", "eth0"] {
        ns.sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
    }
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let host = Host {
        name: "balancer-2".into(),
        ns,
        interfaces: vec![interface],
    };
    let port = Port {
        ns: t.switch.clone(),
        interface: "balancer-2".into(),
    };
    for (ns, interface) in [(&host.ns, "eth0"), (&t.switch, "balancer-2")] {
        Options::default()
            .offloads
            .apply(ns, interface, interface != "eth0")?;
    }
    t.balancer_ports.push(port);
    Ok(host)
}

/// The cable between them.
fn cable(first: &Netns, second: &Netns) -> Result<()> {
    first.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link add peer0 type veth peer name peer0 netns {}\n\
             addr add 10.9.0.1/24 dev peer0\nlink set peer0 up\n",
            second.name()
        ),
    )?;
    second.feed(
        &["ip", "-batch", "-"],
        "addr add 10.9.0.2/24 dev peer0\nlink set peer0 up\n",
    )
}

fn lead_to_gateway(t: &Topology) -> Result<()> {
    let [v4, v6] = GATEWAY;
    for backend in &t.backends {
        backend.ns.feed(
            &["ip", "-batch", "-"],
            &format!("route replace default via {v4}\nroute replace default via {v6}\n"),
        )?;
    }
    Ok(())
}

fn configuration(t: &Topology, method: Method, number: usize, secrets: &TempDir) -> Result<Config> {
    let mut config = list_config(t);
    config.node = format!("lb{}", number + 1);
    let (hash, key) = (secrets.join("hash.key"), secrets.join("sync.key"));
    if number == 0 {
        fs::write(&hash, "00112233445566778899aabbccddeeff\n")?;
        fs::write(&key, "5a".repeat(32))?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    }
    config.set_dataplane("hash_secret_file", hash.display());
    let mut addresses: Vec<String> = t.vips().iter().map(IpAddr::to_string).collect();
    match method {
        Method::Dsr => {}
        Method::Nat => addresses.extend(GATEWAY.map(str::to_owned)),
        Method::FullNat => {
            addresses.extend(POOL.map(str::to_owned));
            for service in &mut config.services {
                service.forwarding = "full-nat".into();
            }
            let [v4, v6] = POOL;
            config.extra.push(format!(
                "full_nat: {{addresses: [\"{v4}\", \"{v6}\"], ports: \"2000-9999\"}}"
            ));
        }
    }
    let (priority, own, peer) = match number {
        0 => (150, 1, 2),
        _ => (100, 2, 1),
    };
    config.extra.push(format!(
        "vrrp:\n  - {{vrid: {VRID}, interface: eth0, priority: {priority}, \
         advertisement_interval: {}ms, addresses: [\"{}\"]}}",
        INTERVAL.as_millis(),
        addresses.join("\", \"")
    ));
    config.extra.push(format!(
        "sync:\n  key_file: {}\n  peers:\n    - {{name: lb{peer}, paths: [{{local: \"10.9.0.{own}:9465\", \
         remote: \"10.9.0.{peer}:9465\"}}]}}",
        key.display()
    ));
    Ok(config)
}
