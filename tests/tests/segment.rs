//! What else is on the balancer's segment: another host that has a VIP, clients
//! beside the servers, and servers that are clients.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    netns::Netns,
    packet::{Mac, arp_reply, send_raw},
    process::wait_ok,
    site::Site,
    topology::{Kind, Options, Topology},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// A host on the servers' segment that has both VIPs.
fn another_owner(t: &Topology) -> Result<Netns> {
    let ns = Netns::new("other")?;
    t.switch.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link add other type veth peer name eth0 netns {}\n\
             link set other master br0 up\n",
            ns.name()
        ),
    )?;
    // Says where its addresses are when its MAC address changes.
    ns.sysctl("net/ipv4/conf/all/arp_notify", "1")?;
    ns.sysctl("net/ipv6/conf/eth0/ndisc_notify", "1")?;
    ns.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            t.vip4, t.vip6
        ),
    )?;
    Ok(ns)
}

/// What `lbctl status` says of one VIP: MAC address, interface, when.
fn claimed(site: &Site, vip: IpAddr) -> Result<Option<(String, String, u64)>> {
    let status = site.daemon.ctl_json(&["status"])?;
    let all = status["duplicate_vips"].as_array().context("no list")?;
    let Some(row) = all.iter().find(|row| row["address"] == vip.to_string()) else {
        return Ok(None);
    };
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let when = row["last_seen"].as_u64().context("no time")?;
    Ok(Some((text(&row["mac"]), text(&row["interface"]), when)))
}

fn warnings(site: &Site) -> usize {
    site.daemon
        .log()
        .matches("somebody else on the segment has a VIP")
        .count()
}

#[test]
fn a_host_that_has_a_vip_is_named_in_the_status_and_warned_of_once() {
    check(|| {
        let site = Site::echo(Kind::Dsr, &Options::default(), |_| {})?;
        let t = &site.topology;
        for vip in t.vips() {
            ensure!(claimed(&site, vip)?.is_none(), "{vip} is claimed already");
        }
        let other = another_owner(t)?;
        let mut seen = [0; 2];
        for mac in ["02:00:00:00:00:fe", "02:00:00:00:00:ff"] {
            wait_ok("the claims to be shown", SOON, || {
                other.exec(&["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"])?;
                other.exec(&["ip", "link", "set", "eth0", "address", mac])?;
                for (vip, last) in t.vips().into_iter().zip(&mut seen) {
                    let (shown, interface, when) =
                        claimed(&site, vip)?.with_context(|| format!("{vip} isn't shown"))?;
                    ensure!(
                        shown == mac && interface == "eth0" && when >= *last,
                        "{vip}: {shown} on {interface} at {when}, before {last}"
                    );
                    *last = when;
                }
                Ok(())
            })?;
        }
        let text = site.daemon.ctl(&["status"])?;
        for vip in t.vips() {
            let line = format!("Duplicate VIP {vip}: 02:00:00:00:00:ff has it too, by eth0, last");
            ensure!(text.contains(&line), "no {line:?} in:\n{text}");
        }
        // Neither the log nor the map grows with the claims.
        let mac = Mac([2, 0, 0, 0, 0, 0xff]);
        let claim = arp_reply(mac, t.vip4, mac, t.vip4);
        send_raw(&other, "eth0", &vec![claim; 500])?;
        wait_ok("the claims to be counted", SOON, || {
            let events = site.daemon.ctl_json(&["status"])?["events"].clone();
            ensure!(events["duplicate_vip"].as_u64() >= Some(500), "{events}");
            Ok(())
        })?;
        ensure!(
            warnings(&site) == 2,
            "{} warnings:\n{}",
            warnings(&site),
            site.daemon.log()
        );
        Ok(())
    });
}
