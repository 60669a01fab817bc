//! Who may use a service: real clients of both families, TCP and UDP, over
//! reloads of the lists.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    netns::Netns,
    process::wait_ok,
    site::{Site, WEB, curl, dig, family},
    topology::{Kind, Options},
};

/// The client's network, and the client.
const NETWORK: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];
const CLIENT: [&str; 2] = ["10.1.0.2/32", "fd00:1::2/128"];

/// Gives every service these lists, each with the prefix of its family.
fn set(site: &mut Site, lists: &[(&str, [&str; 2])]) -> Result<()> {
    for service in &mut site.config.services {
        let of_family = |both: &[&str; 2]| both[usize::from(service.address.is_ipv6())].to_owned();
        service.extra = lists
            .iter()
            .map(|(key, prefixes)| format!("{key}: [\"{}\"]", of_family(prefixes)))
            .collect();
    }
    site.reload()
}

fn is_served(site: &Site, from: &Netns) -> Result<()> {
    for vip in site.topology.vips() {
        curl(from, SocketAddr::new(vip, WEB), "page", 10, false)?;
        dig(from, vip)?;
    }
    Ok(())
}

fn is_kept_out(site: &Site, from: &Netns) -> Result<()> {
    for vip in site.topology.vips() {
        let before = denied(site, vip)?;
        let url = format!("http://{}/", SocketAddr::new(vip, WEB));
        let page = from.output(&["curl", "-sS", "--max-time", "1", &url])?;
        let at = format!("@{vip}");
        let name = from.output(&["dig", &at, "+tries=1", "+time=1", "example.org", "TXT"])?;
        ensure!(
            !page.status.success() && !name.status.success(),
            "{vip} has answered: {page:?}, {name:?}"
        );
        wait_ok(
            "what was denied to be counted",
            Duration::from_secs(5),
            || {
                let now = denied(site, vip)?;
                let counted = [now[0] - before[0], now[1] - before[1]];
                ensure!(counted.iter().all(|n| *n > 0), "{vip}: {counted:?}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Packets of the VIP's services for pages and names that were denied.
fn denied(site: &Site, vip: IpAddr) -> Result<[u64; 2]> {
    let drops = site.drops()?;
    Ok(["web", "dns"].map(|service| {
        let key = (format!("{service}-{}", family(vip)), "denied".to_owned());
        drops.get(&key).copied().unwrap_or_default()
    }))
}

#[test]
fn sources_of_both_families_are_kept_out_and_let_in_by_reloads() {
    check(|| {
        let mut site = Site::full(Kind::Dsr, &Options::default(), |_| {})?;
        let client = site.topology.client.ns.clone();
        let neighbour = site.topology.router.ns.clone();
        is_served(&site, &client)?;
        set(&mut site, &[("deny", NETWORK)])?;
        is_kept_out(&site, &client)?;
        is_served(&site, &neighbour)?;
        // The longest prefix decides; with an `allow` everybody else is denied.
        set(&mut site, &[("deny", NETWORK), ("allow", CLIENT)])?;
        is_served(&site, &client)?;
        is_kept_out(&site, &neighbour)?;
        set(&mut site, &[])?;
        is_served(&site, &client)?;
        is_served(&site, &neighbour)
    });
}
