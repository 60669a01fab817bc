//! Backends whose kernel takes packets out of tunnels.

use std::net::SocketAddr;

use anyhow::ensure;
use lb_tests::{
    machine::in_machine,
    servers::Nginx,
    site::{WEB, any, curl, family},
    topology::{Kind, Options, Topology},
    tunnel::{self, GUE_PORT},
};

/// The kernel's own tunnels lead to what the tests of the data path's rely on.
#[test]
fn backends_decapsulate_ipip_and_gue_of_all_families() {
    in_machine(|| {
        let options = Options {
            backends: 1,
            ..Options::default()
        };
        let t = Topology::new(Kind::Dsr, &options)?;
        let backend = &t.backends[0];
        tunnel::decapsulate(backend)?;
        let _web = Nginx::start(&backend.ns, &backend.name, &any([WEB]))?;
        let gue = format!("encap gue encap-sport auto encap-dport {GUE_PORT}");
        for outer in [t.balancer.v4().into(), t.balancer.v6().into()] {
            for vip in t.vips() {
                for encap in ["", &gue] {
                    let name = format!("{}-in-{}", family(vip), family(outer));
                    let kind = match (vip.is_ipv4(), outer.is_ipv4()) {
                        (true, true) => "ipip mode ipip",
                        (false, true) => "sit mode ip6ip",
                        (true, false) => "ip6tnl mode ipip6 encaplimit none",
                        (false, false) => "ip6tnl mode ip6ip6 encaplimit none",
                    };
                    let remote = backend.address(outer);
                    let kind = kind.replacen(' ', &format!(" local {outer} remote {remote} "), 1);
                    // Answers go from the backend to the balancer directly.
                    t.balancer.ns.feed(
                        &["ip", "-batch", "-"],
                        &format!(
                            "link add out type {kind} {encap}\nlink set out up\nroute add {vip} dev out\n"
                        ),
                    )?;
                    let target = SocketAddr::new(vip, WEB);
                    let pages = curl(&t.balancer.ns, target, &name, 2, false);
                    let pages = pages.map_err(|e| e.context(format!("{name} {encap}")))?;
                    let carried = t.balancer.ns.counters("out")?.tx_packets;
                    ensure!(
                        pages.len() == 2 && carried >= 10,
                        "{name} {encap}: {carried} packets in the tunnel"
                    );
                    t.balancer.ns.exec(&["ip", "link", "del", "out"])?;
                }
            }
        }
        Ok(())
    });
}
