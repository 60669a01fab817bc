//! Balancers whose interface is more than a NIC: a bond, or a NIC that carries
//! VLANs. Kernels without the modules can't make them.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Offloads, Port, Topology};
use crate::process::wait_ok;

/// VLAN of the outside in [`Topology::tag_balancer`].
pub const OUTSIDE_VLAN: u16 = 10;
/// VLAN of the inside.
pub const INSIDE_VLAN: u16 = 20;
/// The tag around both in [`Topology::tag_balancer_twice`].
const SERVICE_VLAN: u16 = 100;

/// What the bond is called on the balancer.
pub const BOND: &str = "bond0";

/// How a bond uses its slaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BondMode {
    /// One after the other; the switch knows nothing of it.
    ActiveBackup,
    /// All at once, agreed with the switch by LACP.
    Lacp,
}

impl Topology {
    /// Puts the bond [`BOND`] in the place of the balancer's only interface,
    /// with two slaves: see [`Self::add_slave`].
    pub fn bond_balancer(&mut self, mode: BondMode) -> Result<()> {
        let (balancer, switch) = (&self.balancer.ns, &self.switch);
        let old = self.balancer.interface().clone();
        ensure!(
            self.balancer.interfaces.len() == 1,
            "only a balancer with one arm can have a bond here"
        );
        let options = match mode {
            BondMode::ActiveBackup => "mode active-backup miimon 50",
            BondMode::Lacp => "mode 802.3ad miimon 50 lacp_rate fast xmit_hash_policy layer3+4",
        };
        balancer.feed(
            &["ip", "-batch", "-"],
            &format!(
                "link del {}\nlink add {BOND} address {} type bond {options}\n",
                old.name, old.mac
            ),
        )?;
        if mode == BondMode::Lacp {
            switch.feed(
                &["ip", "-batch", "-"],
                &format!("link add balancer type bond {options}\n"),
            )?;
        }
        self.balancer.interfaces[0].name = BOND.into();
        self.balancer_ports.clear();
        for number in 1..=2 {
            self.add_slave(mode, number)?;
        }
        let mut batch = format!("link set {BOND} up\n");
        for address in &old.v4 {
            writeln!(batch, "addr add {address}/24 dev {BOND}")?;
        }
        for address in &old.v6 {
            writeln!(batch, "addr add {address}/64 dev {BOND} nodad")?;
        }
        let router = self.router.interfaces[1].clone();
        for gateway in [router.v4[0].to_string(), router.v6[0].to_string()] {
            writeln!(batch, "route add default via {gateway}")?;
        }
        self.balancer.ns.feed(&["ip", "-batch", "-"], &batch)?;
        if mode == BondMode::Lacp {
            self.switch.feed(
                &["ip", "-batch", "-"],
                "link set balancer master br0\nlink set balancer up\n",
            )?;
        }
        let up = || match mode {
            BondMode::ActiveBackup => Ok(()),
            BondMode::Lacp => self.ensure_aggregated(2),
        };
        wait_ok("the bond to come up", Duration::from_secs(10), up)
    }

    /// Adds the slave `uplink<number>` to the balancer's bond. Its far end is
    /// the switch's `balancer-<number>`, in a bond of its own with LACP and a
    /// port without.
    pub fn add_slave(&mut self, mode: BondMode, number: u8) -> Result<Port> {
        let (near, far) = (format!("uplink{number}"), format!("balancer-{number}"));
        let (balancer, switch) = (&self.balancer.ns, &self.switch);
        balancer.feed(
            &["ip", "-batch", "-"],
            &format!(
                "link add {near} type veth peer name {far} netns {}\n",
                switch.name()
            ),
        )?;
        Offloads::Off.apply(balancer, &near, false)?;
        Offloads::Off.apply(switch, &far, true)?;
        let master = match mode {
            BondMode::ActiveBackup => "br0",
            BondMode::Lacp => "balancer",
        };
        switch.feed(
            &["ip", "-batch", "-"],
            &format!("link set {far} master {master}\nlink set {far} up\n"),
        )?;
        // The kernel makes no slave of an interface that is up, and brings it
        // up itself.
        balancer.feed(
            &["ip", "-batch", "-"],
            &format!("link set {near} master {BOND}\n"),
        )?;
        let port = Port {
            ns: switch.clone(),
            interface: far,
        };
        self.balancer_ports.push(port.clone());
        Ok(port)
    }

    /// Fails unless balancer and switch use this many links together.
    pub fn ensure_aggregated(&self, links: usize) -> Result<()> {
        for (ns, bond) in [(&self.balancer.ns, BOND), (&self.switch, "balancer")] {
            let shown = ns.exec(&["ip", "-d", "link", "show", "dev", bond])?;
            ensure!(
                shown.contains(&format!("ad_num_ports {links} ")),
                "{bond} does not use {links} links:\n{shown}"
            );
        }
        Ok(())
    }

    /// The slave that an active-backup bond uses.
    pub fn active_slave(&self) -> Result<String> {
        let shown = self
            .balancer
            .ns
            .exec(&["ip", "-d", "link", "show", "dev", BOND])?;
        let mut words = shown.split_whitespace();
        words
            .find(|word| *word == "active_slave")
            .and_then(|_| words.next())
            .map(str::to_owned)
            .with_context(|| format!("no slave is active:\n{shown}"))
    }

    /// Of [`super::Kind::NatOneArmed`]: makes VLANs of the two subnets, which
    /// the balancer alone gets with tags: its addresses are on `eth0.10` and
    /// `eth0.20`, and the switch takes no untagged frames from it.
    pub fn tag_balancer(&self) -> Result<()> {
        let eth0 = &self.balancer.interface().name;
        self.keep_tags_in_frames()?;
        let mut batch = format!("addr flush dev {eth0}\n");
        self.vlan_devices(eth0, &mut batch)?;
        self.balancer.ns.feed(&["ip", "-batch", "-"], &batch)?;
        self.separate_vlans()
    }

    /// As [`Self::tag_balancer`], with a tag of 802.1ad around both VLANs: the
    /// addresses are on `eth0.100.10` and `eth0.100.20`.
    pub fn tag_balancer_twice(&self) -> Result<()> {
        let eth0 = &self.balancer.interface().name;
        self.keep_tags_in_frames()?;
        let outer = format!("{eth0}.{SERVICE_VLAN}");
        // Room for the tags.
        let mut batch = format!(
            "addr flush dev {eth0}\nlink set {eth0} mtu 1508\n\
             link add link {eth0} name {outer} mtu 1504 type vlan proto 802.1ad id {SERVICE_VLAN}\n\
             link set {outer} up\n"
        );
        self.vlan_devices(&outer, &mut batch)?;
        self.balancer.ns.feed(&["ip", "-batch", "-"], &batch)?;

        let mut batch = format!(
            "link set balancer nomaster\nlink set balancer mtu 1508\n\
             link add link balancer name trunk mtu 1504 type vlan proto 802.1ad id {SERVICE_VLAN}\n\
             link set trunk up\n\
             link add br1 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br1 up\n"
        );
        for (vlan, bridge) in [(OUTSIDE_VLAN, "br0"), (INSIDE_VLAN, "br1")] {
            writeln!(
                batch,
                "link add link trunk name trunk.{vlan} mtu 1500 type vlan id {vlan}\n\
                 link set trunk.{vlan} master {bridge}\nlink set trunk.{vlan} up"
            )?;
        }
        for backend in &self.backends {
            writeln!(batch, "link set {} master br1", backend.name)?;
        }
        self.switch.feed(&["ip", "-batch", "-"], &batch)
    }

    /// Of [`super::Kind::NatOneArmed`], for direct return: as
    /// [`Self::tag_balancer`], but the servers' way out is the router, which is on
    /// their VLAN as well, and the servers have the VIPs.
    pub fn tag_balancer_beside_the_way_out(&self) -> Result<()> {
        self.tag_balancer()?;
        let vlan = INSIDE_VLAN;
        self.switch.feed(
            &["bridge", "-batch", "-"],
            &format!("vlan add dev router vid {vlan}\n"),
        )?;
        self.router.ns.feed(
            &["ip", "-batch", "-"],
            &format!(
                "route del 10.3.0.0/24\nroute del fd00:3::/64\n\
                 link add link eth1 name eth1.{vlan} type vlan id {vlan}\nlink set eth1.{vlan} up\n\
                 addr add 10.3.0.254/24 dev eth1.{vlan}\naddr add fd00:3::254/64 dev eth1.{vlan} nodad\n"
            ),
        )?;
        for backend in &self.backends {
            super::build::vip_on_loopback(self, backend)?;
            backend.ns.feed(
                &["ip", "-batch", "-"],
                "route replace default via 10.3.0.254\nroute replace default via fd00:3::254\n",
            )?;
        }
        Ok(())
    }

    /// Of [`super::Kind::NatFlatOneArmed`]: the router's and the servers' side
    /// become VLANs, which the balancer bridges over its one cable. Its
    /// interfaces are then `eth0.10` and `eth0.20`.
    pub fn bridge_vlans(&mut self) -> Result<()> {
        self.keep_tags_in_frames()?;
        let eth0 = self.balancer.interface().clone();
        let mut batch = format!(
            "addr flush dev {}\n\
             link add br0 address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br0 up\n",
            eth0.name, eth0.mac
        );
        let names = [OUTSIDE_VLAN, INSIDE_VLAN].map(|vlan| (vlan, format!("{}.{vlan}", eth0.name)));
        for (vlan, name) in &names {
            writeln!(
                batch,
                "link add link {} name {name} type vlan id {vlan}\n\
                 link set {name} master br0\nlink set {name} up",
                eth0.name
            )?;
        }
        writeln!(batch, "addr add {}/24 dev br0", eth0.v4[0])?;
        writeln!(batch, "addr add {}/64 dev br0 nodad", eth0.v6[0])?;
        let router = &self.router.interfaces[1];
        for host in [&self.balancer].into_iter().chain(&self.backends) {
            let is_balancer = host.name == self.balancer.name;
            let mut own = if is_balancer {
                batch.clone()
            } else {
                String::new()
            };
            for gateway in [router.v4[0].to_string(), router.v6[0].to_string()] {
                writeln!(own, "route replace default via {gateway}")?;
            }
            host.ns.feed(&["ip", "-batch", "-"], &own)?;
        }
        self.balancer.interfaces = names
            .map(|(_, name)| super::Interface {
                name,
                ..eth0.clone()
            })
            .to_vec();
        self.separate_vlans()
    }

    /// A tag beside the packet, as offloads leave it, is lost when the kernel
    /// makes an XDP frame of it.
    fn keep_tags_in_frames(&self) -> Result<()> {
        let ends = [
            (&self.balancer.ns, self.balancer.interface().name.as_str()),
            (&self.switch, "balancer"),
        ];
        for (ns, name) in ends {
            let mut argv = vec!["ethtool", "-K", name];
            for offload in [
                "txvlan",
                "rxvlan",
                "tx-vlan-stag-hw-insert",
                "rx-vlan-stag-hw-parse",
            ] {
                argv.extend([offload, "off"]);
            }
            ns.exec(&argv)?;
        }
        Ok(())
    }

    /// The balancer's two subnets on VLAN devices of `parent`.
    fn vlan_devices(&self, parent: &str, batch: &mut String) -> Result<()> {
        let eth0 = self.balancer.interface();
        ensure!(
            eth0.v4.len() == 2,
            "the balancer's interface has to be in two subnets"
        );
        for (number, vlan) in [OUTSIDE_VLAN, INSIDE_VLAN].into_iter().enumerate() {
            let name = format!("{parent}.{vlan}");
            writeln!(
                batch,
                "link add link {parent} name {name} mtu 1500 type vlan id {vlan}"
            )?;
            writeln!(batch, "link set {name} up")?;
            writeln!(batch, "addr add {}/24 dev {name}", eth0.v4[number])?;
            writeln!(batch, "addr add {}/64 dev {name} nodad", eth0.v6[number])?;
        }
        let router = &self.router.interfaces[1];
        for gateway in [router.v4[0].to_string(), router.v6[0].to_string()] {
            writeln!(batch, "route replace default via {gateway}")?;
        }
        Ok(())
    }

    /// Makes VLANs of the router's and the servers' ports, and a trunk of the
    /// balancer's.
    fn separate_vlans(&self) -> Result<()> {
        let mut vlans = String::new();
        let mut access = |port: &str, vlan: u16| {
            writeln!(vlans, "vlan del dev {port} vid 1")?;
            writeln!(vlans, "vlan add dev {port} vid {vlan} pvid untagged")
        };
        access("router", OUTSIDE_VLAN)?;
        for backend in &self.backends {
            access(&backend.name, INSIDE_VLAN)?;
        }
        writeln!(vlans, "vlan del dev balancer vid 1")?;
        for vlan in [OUTSIDE_VLAN, INSIDE_VLAN] {
            writeln!(vlans, "vlan add dev balancer vid {vlan}")?;
        }
        self.switch.exec(&[
            "ip",
            "link",
            "set",
            "br0",
            "type",
            "bridge",
            "vlan_filtering",
            "1",
        ])?;
        self.switch.feed(&["bridge", "-batch", "-"], &vlans)
    }
}
