//! The kernel's own load balancer, to compare with.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;

use crate::{
    site::{DNS, WEB, WEB_INSIDE},
    topology::{Kind, Topology},
};

/// Makes the topology's balancer one of IPVS: the same services as those of
/// [`crate::site::full_config`] on [`WEB`] and [`DNS`], round robin over all
/// backends. Direct routing in [`Kind::Dsr`], masquerading elsewhere. The data
/// path must not be attached.
pub fn balance(t: &Topology) -> Result<()> {
    let is_dsr = t.kind == Kind::Dsr;
    let mut addresses = String::new();
    let mut services = String::new();
    for vip in t.vips() {
        let (length, flags) = if vip.is_ipv4() {
            (32, "")
        } else {
            (128, " nodad")
        };
        writeln!(
            addresses,
            "addr add {vip}/{length} dev {}{flags}",
            t.balancer.interface().name
        )?;
        let inside = if is_dsr { WEB } else { WEB_INSIDE };
        let method = if is_dsr { "-g" } else { "-m" };
        for (option, port, to) in [("-t", WEB, inside), ("-u", DNS, DNS)] {
            let service = SocketAddr::new(vip, port);
            writeln!(services, "-A {option} {service} -s rr")?;
            for backend in &t.backends {
                let server = SocketAddr::new(backend.address(vip), to);
                writeln!(services, "-a {option} {service} -r {server} {method}")?;
            }
        }
    }
    let ns = &t.balancer.ns;
    ns.feed(&["ip", "-batch", "-"], &addresses)?;
    ns.feed(&["ipvsadm", "-R"], &services)
}

/// Connections and datagrams that IPVS has balanced to a VIP, up to two seconds
/// ago.
pub fn balanced(t: &Topology, vip: IpAddr) -> Result<u64> {
    let text = t
        .balancer
        .ns
        .exec(&["ipvsadm", "-Ln", "--stats", "--exact"])?;
    // `TCP 10.2.0.100:80 connections packets …`
    let services = [WEB, DNS].map(|port| SocketAddr::new(vip, port).to_string());
    let mut all = 0;
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["TCP" | "UDP", service, connections, ..] = words[..]
            && services.iter().any(|s| s == service)
        {
            all += connections.parse::<u64>()?;
        }
    }
    Ok(all)
}
