//! Interfaces that are more than a NIC: bonds and VLANs.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::{
    machine::in_machine,
    process::wait_ok,
    site::Site,
    topology::{BondMode, Kind, Options, Port, Topology},
};

use crate::{everything_is_answered, nothing_was_dropped, unhurried};

const SOON: Duration = Duration::from_secs(10);

fn two_backends(kind: Kind) -> Result<Topology> {
    let options = Options {
        backends: 2,
        ..Options::default()
    };
    Topology::new(kind, &options)
}

/// Frames in and out of the balancer, as its far end counts them.
fn frames(port: &Port) -> Result<(u64, u64)> {
    let counters = port.ns.counters(&port.interface)?;
    Ok((counters.tx_packets, counters.rx_packets))
}

fn set(port: &Port, state: &str) -> Result<()> {
    port.ns
        .exec(&["ip", "link", "set", &port.interface, state])
        .map(drop)
}

#[test]
fn a_bond_with_lacp_carries_traffic_on_all_its_links() {
    in_machine(|| {
        let mut t = two_backends(Kind::Dsr)?;
        t.bond_balancer(BondMode::Lacp)?;
        let site = Site::full_in(t, unhurried)?;
        let t = &site.topology;
        t.ensure_aggregated(2)?;
        let ports = t.balancer_ports.clone();
        let before = ports.iter().map(frames).collect::<Result<Vec<_>>>()?;
        everything_is_answered(&site, "both")?;
        nothing_was_dropped(&site)?;
        for (port, (was_in, was_out)) in ports.iter().zip(before) {
            let (frames_in, frames_out) = frames(port)?;
            let (carried_in, carried_out) = (frames_in - was_in, frames_out - was_out);
            println!("{}: {carried_in} in, {carried_out} out", port.interface);
            // Five packets a page at the least.
            ensure!(
                carried_in >= 20 && carried_out >= 20,
                "{} carried {carried_in} frames in and {carried_out} out",
                port.interface
            );
        }
        set(&ports[0], "down")?;
        wait_ok("the bond to go on by one link", SOON, || {
            t.ensure_aggregated(1)
        })?;
        everything_is_answered(&site, "one")
    });
}

#[test]
fn an_active_backup_bond_fails_over_and_takes_new_slaves() {
    in_machine(|| {
        let mut t = two_backends(Kind::Dsr)?;
        t.bond_balancer(BondMode::ActiveBackup)?;
        let mut site = Site::full_in(t, unhurried)?;
        everything_is_answered(&site, "first")?;
        nothing_was_dropped(&site)?;

        let active = site.topology.active_slave()?;
        let ports = site.topology.balancer_ports.clone();
        let (used, other) = if active == "uplink1" { (0, 1) } else { (1, 0) };
        set(&ports[used], "down")?;
        wait_ok("the bond to fail over", SOON, || {
            let now = site.topology.active_slave()?;
            ensure!(now != active, "{now} is still active");
            Ok(())
        })?;
        let (_, before) = frames(&ports[other])?;
        everything_is_answered(&site, "second")?;
        let (_, after) = frames(&ports[other])?;
        ensure!(
            after - before >= 100,
            "{} frames left by the other slave",
            after - before
        );

        // A slave that the daemon hasn't seen at its start.
        let port = site.topology.add_slave(BondMode::ActiveBackup, 3)?;
        let _wire = port.wire()?;
        set(&ports[other], "down")?;
        wait_ok("the bond to use its new slave", SOON, || {
            let now = site.topology.active_slave()?;
            ensure!(now == "uplink3", "{now} is active");
            Ok(())
        })?;
        wait_ok("the new slave to be known", SOON, || {
            everything_is_answered(&site, "third")
        })
    });
}

#[test]
fn vlans_on_one_interface_are_balanced_from_one_to_the_other() {
    in_machine(|| {
        let t = two_backends(Kind::NatOneArmed)?;
        t.tag_balancer()?;
        let site = Site::full_in(t, unhurried)?;
        everything_is_answered(&site, "vlan")?;
        nothing_was_dropped(&site)
    });
}
