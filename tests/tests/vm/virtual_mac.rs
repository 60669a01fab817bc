//! The NIC takes a virtual MAC address also where the virtual router is on a
//! device above it.

use anyhow::{Context as _, Result, ensure};
use lb_control::vrrp::packet::PacketSocket;
use lb_tests::{machine::in_machine, netns::Netns};

const MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];

/// Whether a NIC takes frames to the address.
fn takes(ns: &Netns, nic: &str) -> Result<bool> {
    let filter = ns.exec(&["bridge", "fdb", "show", "dev", nic])?;
    Ok(filter.lines().any(|l| l.starts_with("00:00:5e:00:01:33")))
}

/// Index of a device, as `ip` prints it first.
fn index(ns: &Netns, device: &str) -> Result<u32> {
    let shown = ns.exec(&["ip", "-o", "link", "show", device])?;
    let number = shown.split(':').next().context("nothing is shown")?;
    Ok(number.parse()?)
}

#[test]
fn a_virtual_mac_of_a_vlan_or_a_bond_is_taken_by_the_nics_below() {
    in_machine(|| {
        let ns = Netns::new("filter")?;
        ns.feed(
            &["ip", "-batch", "-"],
            "link add nic type veth peer name far\nlink set far up\n\
             link add bond1 type bond mode active-backup\nlink set nic master bond1\n\
             link set bond1 up\nlink add link bond1 name vlan10 type vlan id 10\n\
             link set vlan10 up\n",
        )?;
        for device in ["nic", "bond1", "vlan10"] {
            let index = index(&ns, device)?;
            ensure!(!takes(&ns, "nic")?, "{device}: it is there before");
            let held = ns.run(|| -> Result<PacketSocket> {
                let socket = PacketSocket::open(index)?;
                socket.accept(MAC)?;
                Ok(socket)
            })??;
            ensure!(takes(&ns, "nic")?, "{device}: the NIC doesn't take it");
            drop(held);
            ensure!(!takes(&ns, "nic")?, "{device}: it stays after the end");
        }
        Ok(())
    });
}
