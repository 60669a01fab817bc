//! Where connections are held open while something happens to the balancer or
//! to a backend.

use anyhow::Result;
use lb_tests::{
    config::Config,
    site::{Site, UDP, list_config},
    topology::{Kind, Options, Topology},
};

pub const POOLS: [&str; 2] = ["many-v4", "many-v6"];

/// A site of four backends, of which the configuration has the first three,
/// and a UDP service beside the TCP one to count packets with.
pub fn start(kind: Kind, adapt: impl FnOnce(&mut Config)) -> Result<Site> {
    let options = Options {
        backends: 4,
        ..Options::default()
    };
    let topology = Topology::new(kind, &options)?;
    ask_again_every_second(&topology)?;
    let mut config = list_config(&topology);
    config.set_dataplane("dead_after", "1s");
    for pool in &mut config.pools {
        pool.backends.truncate(3);
    }
    let udp: Vec<_> = config
        .services
        .iter()
        .cloned()
        .map(|mut service| {
            service.name = service.name.replace("list", "udp");
            service.port = UDP.to_string();
            service.protocol = "udp".into();
            service
        })
        .collect();
    config.services.extend(udp);
    adapt(&mut config);
    Site::start(topology, config, false)
}

/// Clients and servers repeat unanswered segments every second at the latest
/// (Linux 6.15 and newer). Where a queue on the way was full for seconds, TCP
/// would else ask so rarely that a connection looks lost for long afterwards.
/// Before the servers start: what they accept is like the socket that listens.
fn ask_again_every_second(t: &Topology) -> Result<()> {
    const KEY: &str = "net/ipv4/tcp_rto_max_ms";
    for host in t.backends.iter().chain([&t.client]) {
        if host.ns.read_sysctl(KEY).is_ok() {
            host.ns.sysctl(KEY, "1000")?;
        } else {
            println!("{}: no {KEY}, TCP backs off for longer", host.name);
        }
    }
    Ok(())
}
