//! Two of everything: a second switch behind a trunk, and a second router.
//!
//! ```text
//!              client .2  [front]      10.1.0.0/24, gateway .254
//!              /               \
//!      router-1 .1          router-2 .3     keepalived, one sync group
//!          |                    |
//!      [switch A] == trunk == [switch B]    10.2.0.0/24, gateway .254
//!       lb1, odd backends      lb2, even backends
//! ```
//!
//! IPv4 alone.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cleanup::TempDir,
    netns::Netns,
    packet::Mac,
    process::{Process, wait_ok},
    topology::{Host, Interface, Offloads, Topology},
};

/// What is waited for comes within this.
const SOON: Duration = Duration::from_secs(20);

/// The second switch and the routers. On drop the routers go first.
#[derive(Debug)]
pub struct Building {
    routers: [Router; 2],
    /// The second switch, with the port `trunk` to the first.
    pub switch: Netns,
    _front: Netns,
}

/// A router that speaks VRRP.
#[derive(Debug)]
struct Router {
    keepalived: Option<Process>,
    dir: TempDir,
    ns: Netns,
}

const BRIDGE: &str = "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                      link set br0 up\n";

impl Building {
    /// Builds it around a topology of direct server return, whose second balancer
    /// is there.
    pub(super) fn new(t: &mut Topology) -> Result<Self> {
        let switch = second_switch(t)?;
        let front = Netns::new("front")?;
        front.feed(&["ip", "-batch", "-"], BRIDGE)?;
        let second = second_router(&switch, &front)?;
        face_front(&t.client, 2, &front, "client")?;
        face_front(&t.router, 1, &front, "router")?;
        let routers = [
            Router::start(t.router.ns.clone(), 150)?,
            Router::start(second, 100)?,
        ];
        let gateway = |ns: &Netns, via: &str| {
            let argv = ["ip", "route", "replace", "default", "via", via];
            ns.exec(&argv).map(drop)
        };
        gateway(&t.client.ns, "10.1.0.254")?;
        for host in t.backends.iter().chain([&t.balancer]) {
            gateway(&host.ns, "10.2.0.254")?;
        }
        let building = Self {
            routers,
            switch,
            _front: front,
        };
        building.wait_active(0)?;
        Ok(building)
    }

    /// Waits until a router has both gateways.
    pub fn wait_active(&self, router: usize) -> Result<()> {
        let ns = &self.routers[router].ns;
        wait_ok(format!("router-{} to be active", router + 1), SOON, || {
            let shown = ns.exec(&["ip", "-o", "-4", "addr"])?;
            let has = |address: &str| shown.contains(&format!(" {address}/"));
            ensure!(has("10.1.0.254") && has("10.2.0.254"), "{shown}");
            Ok(())
        })
    }

    /// A router is gone: its links, too.
    pub fn kill_router(&mut self, router: usize) -> Result<()> {
        let router = &mut self.routers[router];
        let mut process = router.keepalived.take().context("it doesn't run")?;
        for interface in ["eth0", "eth1"] {
            router.ns.exec(&["ip", "link", "set", interface, "down"])?;
        }
        process.signal_group(libc::SIGKILL)?;
        process.kill9()
    }

    /// Cuts the trunk, or mends it.
    pub fn cut_trunk(&self, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        let argv = ["ip", "link", "set", "trunk", state];
        self.switch.exec(&argv).map(drop)
    }
}

impl Router {
    fn start(ns: Netns, priority: u8) -> Result<Self> {
        let instance = |name: &str, interface: &str, vrid: u8, vip: &str| {
            format!(
                "vrrp_instance {name} {{\n  state BACKUP\n  interface {interface}\n  virtual_router_id {vrid}\n  \
                 priority {priority}\n  advert_int 0.1\n  version 3\n  virtual_ipaddress {{ {vip}/24 }}\n}}\n"
            )
        };
        let text = "global_defs { router_id router }\n\
                    vrrp_sync_group both { group { front back } }\n"
            .to_owned()
            + &instance("front", "eth0", 11, "10.1.0.254")
            + &instance("back", "eth1", 12, "10.2.0.254");
        let dir = TempDir::new()?;
        fs::write(dir.join("keepalived.conf"), text)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let (conf, pid, vrrp) = (path("keepalived.conf"), path("pid"), path("vrrp.pid"));
        let mut command = ns.command("keepalived");
        command
            .args(["-n", "-l", "-D", "-P", "-f", &conf, "-p", &pid, "-r", &vrrp])
            .arg("--no-syslog");
        let process = Process::spawn("keepalived of a router", command)?;
        Ok(Self {
            keepalived: Some(process),
            dir,
            ns,
        })
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Its children are of its group.
        if let Some(process) = &self.keepalived {
            let _ = process.signal_group(libc::SIGKILL);
        }
        let _ = &self.dir;
    }
}

/// The second balancer and the even backends move to a switch of their own.
fn second_switch(t: &mut Topology) -> Result<Netns> {
    let second = Netns::new("switch-2")?;
    second.feed(&["ip", "-batch", "-"], BRIDGE)?;
    let name = second.name().to_owned();
    t.switch.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link add trunk type veth peer name trunk netns {name}\n\
             link set trunk master br0\nlink set trunk up\n"
        ),
    )?;
    second.feed(
        &["ip", "-batch", "-"],
        "link set trunk master br0\nlink set trunk up\n",
    )?;
    let evens = t.backends.iter().skip(1).step_by(2);
    let mut moved: Vec<(String, Mac)> = evens
        .map(|host| (host.name.clone(), host.interface().mac))
        .collect();
    moved.push(("balancer-2".into(), super::SECOND_MAC));
    let (mut there, mut fdb, mut near) = (String::new(), String::new(), String::new());
    for (port, mac) in &moved {
        let argv = ["ip", "link", "set", port, "netns", &name];
        t.switch.exec(&argv)?;
        writeln!(there, "link set {port} master br0\nlink set {port} up")?;
        writeln!(fdb, "fdb replace {mac} dev {port} master static")?;
        writeln!(near, "fdb replace {mac} dev trunk master static")?;
    }
    let odds = t.backends.iter().step_by(2).map(Host::interface);
    for interface in odds.chain([t.balancer.interface(), &t.router.interfaces[1]]) {
        writeln!(fdb, "fdb replace {} dev trunk master static", interface.mac)?;
    }
    second.feed(&["ip", "-batch", "-"], &there)?;
    second.feed(&["bridge", "-batch", "-"], &fdb)?;
    t.switch.feed(&["bridge", "-batch", "-"], &near)?;
    for port in &mut t.balancer_ports {
        if port.interface == "balancer-2" {
            port.ns = second.clone();
        }
    }
    Ok(second)
}

fn second_router(switch: &Netns, front: &Netns) -> Result<Netns> {
    let ns = Netns::new("router-2")?;
    ns.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link set lo up\n\
             link add eth0 type veth peer name router-2 netns {}\n\
             link add eth1 type veth peer name router-2 netns {}\n\
             addr add 10.1.0.3/24 dev eth0\naddr add 10.2.0.3/24 dev eth1\n\
             link set eth0 up\nlink set eth1 up\n",
            front.name(),
            switch.name()
        ),
    )?;
    for far in [front, switch] {
        far.feed(
            &["ip", "-batch", "-"],
            "link set router-2 master br0\nlink set router-2 up\n",
        )?;
    }
    for (ns, interface) in [
        (&ns, "eth0"),
        (&ns, "eth1"),
        (front, "router-2"),
        (switch, "router-2"),
    ] {
        Offloads::Off.apply(ns, interface, false)?;
    }
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    for conf in ["all", "default", "eth0", "eth1"] {
        ns.sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
        ns.sysctl(&format!("net/ipv4/conf/{conf}/send_redirects"), "0")?;
    }
    Ok(ns)
}

/// The first interface of a host leads to the front's switch.
fn face_front(host: &Host, number: u8, front: &Netns, port: &str) -> Result<()> {
    let Interface { name, mac, .. } = host.interface();
    // Of the client; the router's has gone with it.
    let _ = host.ns.exec(&["ip", "link", "del", name]);
    host.ns.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link add {name} address {mac} type veth peer name {port} netns {}\n\
             addr add 10.1.0.{number}/24 dev {name}\nlink set {name} up\n",
            front.name()
        ),
    )?;
    front.feed(
        &["ip", "-batch", "-"],
        &format!("link set {port} master br0\nlink set {port} up\n"),
    )?;
    Offloads::Off.apply(&host.ns, name, false)?;
    Offloads::Off.apply(front, port, false)
}
