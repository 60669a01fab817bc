//! The virtual MAC address (RFC 9568 §7.3): two balancers on a switch, of which
//! neighbours see one address, whoever is active.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    cleanup::TempDir,
    config::Config,
    daemon::Daemon,
    netns::Netns,
    packet::solicited_node,
    process::wait_ok,
    servers::{self, EchoServer, Hold},
    site::{self, LIST, UDP, any},
    topology::{Kind, Options, Topology},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// The servers' gateway: addresses that no service has.
const GATEWAY: [&str; 2] = ["10.2.0.250", "fd00:2::250"];

/// Of VRID 51, for IPv4 and IPv6.
const MACS: [&str; 2] = ["00:00:5e:00:01:33", "00:00:5e:00:02:33"];

fn mac_of(address: IpAddr) -> &'static str {
    MACS[usize::from(address.is_ipv6())]
}

/// Router, servers and two balancers on one switch; the servers' gateway is a
/// virtual address.
struct Pair {
    balancers: [Daemon; 2],
    hosts: [Netns; 2],
    _echo: Vec<EchoServer>,
    _dir: TempDir,
    topology: Topology,
}

/// A host beside the balancer, at 10.2.0.20 and fd00:2::20.
fn beside(t: &Topology) -> Result<Netns> {
    let ns = Netns::new("second")?;
    ns.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link set lo up\nlink add eth0 type veth peer name second netns {}\n\
             addr add 10.2.0.20/24 dev eth0\naddr add fd00:2::20/64 dev eth0 nodad\n\
             link set eth0 up\n",
            t.switch.name()
        ),
    )?;
    t.switch.feed(
        &["ip", "-batch", "-"],
        "link set second master br0\nlink set second up\n",
    )?;
    ns.feed(
        &["ip", "-batch", "-"],
        "route add default via 10.2.0.1\nroute add default via fd00:2::1\n",
    )?;
    Ok(ns)
}

fn config(t: &Topology, secret: &str, priority: u8) -> Config {
    let mut config = site::list_config(t);
    config.set_xdp("generic");
    config.set_dataplane("hash_secret_file", secret);
    let vips = t.vips().map(|vip| vip.to_string());
    let all = [&vips[0], &vips[1], GATEWAY[0], GATEWAY[1]].map(|a| format!("\"{a}\""));
    config.extra.push(format!(
        "vrrp:\n  - {{vrid: 51, interface: eth0, priority: {priority}, \
         advertisement_interval: 100ms, addresses: [{}]}}",
        all.join(", ")
    ));
    config
}

impl Pair {
    fn start() -> Result<Self> {
        let t = Topology::new(Kind::NatFlatOneArmed, &Options::default())?;
        let second = beside(&t)?;
        let dir = TempDir::new()?;
        let secret = dir.join("secret");
        fs::write(&secret, "000102030405060708090a0b0c0d0e0f")?;
        let secret = secret.display().to_string();
        let mut echo = vec![];
        for backend in &t.backends {
            let [v4, v6] = GATEWAY;
            backend.ns.feed(
                &["ip", "-batch", "-"],
                &format!("route replace default via {v4}\nroute replace default via {v6}\n"),
            )?;
            let (tcp, udp) = (any(LIST), any([UDP]));
            echo.push(EchoServer::start(
                &backend.ns,
                &backend.name,
                &tcp,
                &udp,
                &[],
            )?);
        }
        let hosts = [t.balancer.ns.clone(), second];
        let balancers = [
            Daemon::start(&hosts[0], &config(&t, &secret, 150))?,
            Daemon::start(&hosts[1], &config(&t, &secret, 100))?,
        ];
        let pair = Self {
            balancers,
            hosts,
            _echo: echo,
            _dir: dir,
            topology: t,
        };
        pair.wait_states(0, "active")?;
        pair.wait_states(1, "backup")?;
        for daemon in &pair.balancers {
            wait_ok("checks to have passed and slots to be stable", SOON, || {
                let status = daemon.ctl_json(&["status"])?;
                let (ready, flows) = (&status["readiness"], &status["flow_table"]);
                ensure!(ready["ready"] == true, "{ready}");
                ensure!(flows["tracked_slots"] == 0, "{flows}");
                Ok(())
            })?;
        }
        Ok(pair)
    }

    fn rows(&self, balancer: usize) -> Result<Vec<Value>> {
        let rows = self.balancers[balancer].ctl_json(&["vrrp"])?;
        Ok(rows.as_array().cloned().unwrap_or_default())
    }

    fn wait_states(&self, balancer: usize, state: &str) -> Result<()> {
        wait_ok(format!("balancer {balancer} to be {state}"), SOON, || {
            let rows = self.rows(balancer)?;
            ensure!(
                rows.len() == 2 && rows.iter().all(|row| row["state"] == state),
                "{rows:?}"
            );
            Ok(())
        })
    }

    /// The switch's port that leads to an address, as it has learned.
    fn port_of(&self, mac: &str) -> Result<Option<String>> {
        let table = self
            .topology
            .switch
            .exec(&["bridge", "fdb", "show", "br", "br0"])?;
        let mut lines = table.lines().filter(|line| line.starts_with(mac));
        let words = lines.next().map(|line| line.split_whitespace());
        let port = words.and_then(|mut words| words.find(|w| *w == "dev").and(words.next()));
        Ok(port.map(str::to_owned))
    }

    fn wait_port(&self, port: &str) -> Result<()> {
        for mac in MACS {
            wait_ok(format!("{mac} to be found at {port}"), SOON, || {
                let found = self.port_of(mac)?;
                ensure!(found.as_deref() == Some(port), "{mac} is at {found:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// What a host knows of a neighbour.
fn neighbour(ns: &Netns, device: &str, address: IpAddr) -> Result<String> {
    let address = address.to_string();
    let shown = ns.exec(&["ip", "neigh", "show", &address, "dev", device])?;
    let mut words = shown.split_whitespace();
    let mac = words.find(|word| *word == "lladdr").and(words.next());
    mac.map(str::to_owned)
        .with_context(|| format!("{address}: {shown:?}"))
}

fn ping(ns: &Netns, address: IpAddr) -> Result<()> {
    ns.exec(&["ping", "-c1", "-W1", &address.to_string()])
        .map(drop)
}

#[test]
fn neighbours_notice_nothing_of_a_failover() {
    check(|| {
        let mut pair = Pair::start()?;
        let router = pair.topology.router.ns.clone();
        let server = pair.topology.backends[0].ns.clone();
        let client = pair.topology.client.clone();
        let vips = pair.topology.vips();
        let gateways: Vec<IpAddr> = GATEWAY
            .iter()
            .map(|a| a.parse())
            .collect::<Result<_, _>>()?;
        let outside: [IpAddr; 2] = [client.v4().into(), client.v6().into()];
        for row in pair.rows(0)? {
            let is_v4 = row["family"] == "IPv4";
            ensure!(row["mac"] == MACS[usize::from(!is_v4)], "{row}");
        }
        pair.wait_port("balancer")?;
        // The switch forgets in a second; each advertisement reminds it.
        pair.topology.switch.exec(&[
            "ip",
            "link",
            "set",
            "br0",
            "type",
            "bridge",
            "ageing_time",
            "100",
        ])?;

        let through = || -> Result<()> {
            for (vip, gateway) in vips.iter().zip(&gateways) {
                wait_ok(format!("{vip} to be served"), SOON, || {
                    ping(&router, *vip)?;
                    let target = (*vip, LIST[0]).into();
                    let report = servers::rate(&client.ns, target, 2, Duration::from_millis(300))?;
                    ensure!(report.failed == 0 && report.requests > 0, "{report:?}");
                    Ok(())
                })?;
                wait_ok(format!("{gateway} to answer"), SOON, || {
                    ping(&server, *gateway)
                })?;
                for (ns, device, address) in [(&router, "eth1", vip), (&server, "eth0", gateway)] {
                    let mac = neighbour(ns, device, *address)?;
                    ensure!(mac == mac_of(*address), "{address} is at {mac}");
                }
            }
            // The kernel of whoever is active forwards what the servers begin.
            for address in outside {
                wait_ok(format!("{address} to be reached"), SOON, || {
                    ping(&server, address)
                })?;
            }
            Ok(())
        };
        through()?;
        let mut held = vec![];
        for vip in vips {
            let mut hold = Hold::start(&client.ns, (vip, LIST[0]).into(), 20, 100)?;
            let opened = hold.wait_open(SOON)?;
            ensure!(opened.failed_to_open == 0, "{opened:?}");
            held.push((hold, 0));
        }

        // From here on nobody on the segment is told anything but by the nodes.
        std::thread::sleep(Duration::from_secs(3));
        pair.wait_port("balancer")?;
        pair.balancers[0].kill9()?;
        pair.wait_states(1, "active")?;
        for (address, (ns, device)) in vips
            .iter()
            .map(|vip| (vip, (&router, "eth1")))
            .chain(gateways.iter().map(|gateway| (gateway, (&server, "eth0"))))
        {
            let mac = neighbour(ns, device, *address)?;
            ensure!(mac == mac_of(*address), "{address} went to {mac}");
        }
        pair.wait_port("second")?;
        for (hold, messages) in &mut held {
            *messages = hold.report()?.messages;
        }
        through()?;
        // Every slot is stable: both nodes reckon the same server.
        for (mut hold, before) in held {
            wait_ok("the open connections to go on", SOON, || {
                let report = hold.report()?;
                let more = report.messages - before;
                ensure!(more >= 2 * u64::from(report.opened), "{report:?}");
                Ok(())
            })?;
            let report = hold.stop()?;
            ensure!(report.lost.total() == 0, "{report:?}");
        }

        // It comes back, with the higher priority.
        pair.balancers[0].launch()?;
        pair.wait_states(0, "active")?;
        pair.wait_states(1, "backup")?;
        pair.wait_port("balancer")?;
        through()
    });
}

/// Addresses of other hosts that an interface takes frames to.
fn accepted(ns: &Netns) -> Result<usize> {
    let table = ns.exec(&["bridge", "fdb", "show", "dev", "eth0"])?;
    Ok(MACS
        .iter()
        .filter(|mac| table.lines().any(|line| line.starts_with(**mac)))
        .count())
}

#[test]
fn the_interface_takes_the_virtual_mac_while_the_virtual_router_runs() {
    check(|| {
        let mut pair = Pair::start()?;
        // The backup as well: it may be active at any moment.
        for host in &pair.hosts {
            ensure!(accepted(host)? == 2, "{} of 2", accepted(host)?);
        }
        // Without the virtual MAC, by a reload.
        let vip = pair.topology.vip4.into();
        let own = pair.topology.balancer.interface().mac.to_string();
        let path = pair.balancers[0].config_path();
        let text = fs::read_to_string(&path)?;
        let without = text.replace("vrid: 51,", "vrid: 51, virtual_mac: false,");
        ensure!(without != text, "{text}");
        pair.balancers[0].write_yaml(&without)?;
        pair.balancers[0].reload()?;
        let router = pair.topology.router.ns.clone();
        let found = |expected: &str| {
            wait_ok(format!("{vip} to be at {expected}"), SOON, || {
                router.exec(&["ip", "neigh", "flush", "dev", "eth1"])?;
                ping(&router, vip)?;
                let mac = neighbour(&router, "eth1", vip)?;
                ensure!(mac == expected, "{vip} is at {mac}");
                Ok(())
            })
        };
        found(&own)?;
        wait_ok("the virtual MAC to be let go", SOON, || {
            ensure!(accepted(&pair.hosts[0])? == 0, "it isn't");
            Ok(())
        })?;
        pair.balancers[0].write_yaml(&text)?;
        pair.balancers[0].reload()?;
        found(MACS[0])?;
        ensure!(accepted(&pair.hosts[0])? == 2, "it isn't taken again");
        pair.balancers[0].stop()?;
        wait_ok("the virtual MAC to be let go", SOON, || {
            ensure!(accepted(&pair.hosts[0])? == 0, "it isn't");
            Ok(())
        })
    });
}

/// A switch that snoops sends solicitations to those alone that have asked for the
/// address's group by MLD.
#[test]
fn neighbour_discovery_passes_a_switch_that_snoops() {
    check(|| {
        let pair = Pair::start()?;
        let switch = &pair.topology.switch;
        switch.exec(&[
            "ip",
            "link",
            "set",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "1",
            "mcast_query_response_interval",
            "100",
            "mcast_mld_version",
            "2",
            "mcast_querier",
            "1",
        ])?;
        let vip: IpAddr = pair.topology.vip6.into();
        let (group, _) = solicited_node(pair.topology.vip6);
        for port in ["balancer", "second"] {
            wait_ok(format!("{group} to be known at {port}"), SOON, || {
                let table = switch.exec(&["bridge", "mdb", "show", "dev", "br0"])?;
                let is_known = table.lines().any(|line| {
                    line.contains(&format!("port {port} "))
                        && line.contains(&format!("grp {group} "))
                });
                ensure!(is_known, "{table}");
                Ok(())
            })?;
        }
        let router = &pair.topology.router.ns;
        wait_ok("the VIP to be found", SOON, || {
            router.exec(&["ip", "-6", "neigh", "flush", "dev", "eth1"])?;
            ping(router, vip)?;
            let mac = neighbour(router, "eth1", vip)?;
            ensure!(mac == MACS[1], "{vip} is at {mac}");
            Ok(())
        })
    });
}
