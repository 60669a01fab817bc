//! What runs in the test machine alone: Debian's Linux 6.1 under emulation,
//! with the modules that other kernels may lack. `cargo xtask vm-test` boots it
//! and runs this in it.

mod compare;
mod trunk;
mod tunnels;
mod verifier;
mod virtual_mac;

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};
use lb_tests::{
    config::Config,
    site::{Site, WEB, curl, dig, family},
};

/// Checks with time enough for an emulated processor.
fn unhurried(config: &mut Config) {
    for pool in &mut config.pools {
        for line in &mut pool.extra {
            *line = line
                .replace(
                    "interval: 500ms, timeout: 400ms",
                    "interval: 3s, timeout: 3s",
                )
                .replace("rise: 2, fall: 3", "rise: 1, fall: 3");
        }
    }
}

/// A few pages and names for both families through the balancer: all are
/// answered, by every backend, which all see the client's own address.
fn everything_is_answered(site: &Site, round: &str) -> Result<()> {
    let t = &site.topology;
    for vip in t.vips() {
        let name = format!("{round}-{}", family(vip));
        let pages = curl(&t.client.ns, SocketAddr::new(vip, WEB), &name, 16, false)?;
        let servers: BTreeSet<_> = pages.iter().map(|page| &page.server).collect();
        ensure!(
            servers.len() == t.backends.len(),
            "{name}: of {} servers only {servers:?} answered",
            t.backends.len()
        );
        dig(&t.client.ns, vip)?;
    }
    let clients = [t.client.v4().to_string(), t.client.v6().to_string()];
    for web in &site.web {
        for line in web.access_log()? {
            ensure!(clients.contains(&line.peer), "{round}: {line:?}");
        }
    }
    Ok(())
}

fn nothing_was_dropped(site: &Site) -> Result<()> {
    let drops = site.drops()?;
    ensure!(drops.is_empty(), "dropped: {drops:?}");
    Ok(())
}
