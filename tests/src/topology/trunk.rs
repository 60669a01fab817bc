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
        let eth0 = self.balancer.interface();
        ensure!(
            eth0.v4.len() == 2,
            "the balancer's interface has to be in two subnets"
        );
        // A tag beside the packet, as offloads leave it, is lost when the
        // kernel makes an XDP frame of it.
        for (ns, name) in [
            (&self.balancer.ns, eth0.name.as_str()),
            (&self.switch, "balancer"),
        ] {
            ns.exec(&["ethtool", "-K", name, "txvlan", "off", "rxvlan", "off"])?;
        }
        let mut batch = format!("addr flush dev {}\n", eth0.name);
        for (number, vlan) in [OUTSIDE_VLAN, INSIDE_VLAN].into_iter().enumerate() {
            let name = format!("{}.{vlan}", eth0.name);
            writeln!(
                batch,
                "link add link {} name {name} type vlan id {vlan}",
                eth0.name
            )?;
            writeln!(batch, "link set {name} up")?;
            writeln!(batch, "addr add {}/24 dev {name}", eth0.v4[number])?;
            writeln!(batch, "addr add {}/64 dev {name} nodad", eth0.v6[number])?;
        }
        let router = &self.router.interfaces[1];
        for gateway in [router.v4[0].to_string(), router.v6[0].to_string()] {
            writeln!(batch, "route replace default via {gateway}")?;
        }
        self.balancer.ns.feed(&["ip", "-batch", "-"], &batch)?;

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
