//! Path MTUs, hops, fragments and jumbo frames with real clients and servers.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    config::Config,
    decapsulator::Decapsulator,
    netns::Netns,
    process::wait_ok,
    site::{Site, UDP, WEB, family},
    topology::{Host, Kind, Options},
};

const SOON: Duration = Duration::from_secs(10);

/// Size of `/big` on the servers.
const BIG: &str = "4194304";

fn start(kind: Kind) -> Result<Site> {
    start_with(kind, |_| {})
}

fn start_with(kind: Kind, adapt: impl FnOnce(&mut Config)) -> Result<Site> {
    Site::full(kind, &Options::default(), |config| {
        for service in &mut config.services {
            if service.protocol == "udp" {
                service.port = "any".into();
            }
        }
        adapt(config);
    })
}

/// Services through tunnels to backends of their own family, or of the other one
/// (`crossed`), and the ends of the tunnels.
fn tunnels(method: &str, crossed: bool) -> Result<(Site, Vec<Decapsulator>)> {
    let site = start_with(Kind::Dsr, |config| {
        for service in &mut config.services {
            service.forwarding = method.into();
            if crossed {
                let (from, to) = if service.address.is_ipv4() {
                    ("-v4", "-v6")
                } else {
                    ("-v6", "-v4")
                };
                service.pool = service.pool.replace(from, to);
            }
        }
    })?;
    let vips = site.topology.vips();
    let backends = site.topology.backends.iter();
    let ends = backends
        .map(|host| Decapsulator::start(host, &vips))
        .collect::<Result<_>>()?;
    Ok((site, ends))
}

/// Addresses of full NAT's pool, beside the servers.
fn pool(kind: Kind) -> [IpAddr; 2] {
    let net: u8 = if kind == Kind::NatTwoArmed { 3 } else { 2 };
    let v6 = [0xfd00, net.into(), 0, 0, 0, 0, 0, 0x200];
    [[10, net, 0, 200].into(), v6.into()]
}

/// Every service under full NAT.
fn full_nat(kind: Kind) -> Result<Site> {
    start_with(kind, |config| {
        for service in &mut config.services {
            service.forwarding = "full-nat".into();
        }
        let [v4, v6] = pool(kind);
        config.extra = vec![format!(
            "full_nat: {{addresses: [\"{v4}\", \"{v6}\"], ports: \"2000-6095\"}}"
        )];
    })
}

/// The event was counted for the web service of this VIP.
fn counted(site: &Site, vip: IpAddr, name: &str) -> Result<()> {
    let service = format!("web-{}", family(vip));
    wait_ok("the errors to be counted", SOON, || {
        let count = events(site, &service, name)?;
        ensure!(count > 0, "no {name} for {service}");
        Ok(())
    })
}

/// What each server knows of the path to an address.
fn known_by_servers(site: &Site, to: IpAddr) -> Result<Vec<Option<u32>>> {
    let backends = site.topology.backends.iter();
    backends.map(|backend| known_mtu(backend, to)).collect()
}

fn set_mtu(ns: &Netns, interface: &str, mtu: u32) -> Result<()> {
    ns.exec(&["ip", "link", "set", interface, "mtu", &mtu.to_string()])?;
    Ok(())
}

/// The path MTU that a host knows towards `to`, as the kernel's route shows it.
fn known_mtu(host: &Host, to: IpAddr) -> Result<Option<u32>> {
    let route = host.ns.exec(&["ip", "route", "get", &to.to_string()])?;
    let mut words = route.split_whitespace();
    words.find(|word| *word == "mtu");
    Ok(words.next().and_then(|mtu| mtu.parse().ok()))
}

fn url(vip: IpAddr, path: &str) -> String {
    format!("http://{}/{path}", SocketAddr::new(vip, WEB))
}

/// Fetches `/big`, whole.
fn download(site: &Site, vip: IpAddr) -> Result<()> {
    let size = site.topology.client.ns.exec(&[
        "curl",
        "-sS",
        "--max-time",
        "20",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        &url(vip, "big"),
    ])?;
    ensure!(size == BIG, "{vip}: {size} of {BIG} bytes");
    Ok(())
}

/// Sends 900,000 bytes; nginx reads and forgets them.
fn upload(site: &Site, vip: IpAddr) -> Result<()> {
    let client = &site.topology.client.ns;
    let url = url(vip, "upload");
    let mut curl = client.command("curl");
    curl.args([
        "-sS",
        "--max-time",
        "20",
        "-H",
        "Expect:",
        "-o",
        "/dev/null",
    ]);
    curl.args([
        "-w",
        "%{http_code} %{size_upload}",
        "--data-binary",
        "@-",
        &url,
    ]);
    curl.stdin(std::process::Stdio::piped());
    curl.stdout(std::process::Stdio::piped());
    let mut child = curl.spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    std::io::Write::write_all(&mut stdin, &vec![b'x'; 900_000])?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said == "200 900000", "{vip}: {said:?}");
    Ok(())
}

fn events(site: &Site, service: &str, name: &str) -> Result<u64> {
    let services = site.daemon.ctl_json(&["services"])?;
    let row = services
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["name"] == service);
    Ok(row
        .and_then(|row| row["events"][name].as_u64())
        .unwrap_or(0))
}

/// The router's link to the client carries less than the servers send; what
/// the router says of that goes to the VIP.
#[test]
fn servers_learn_the_mtu_of_a_path_to_the_client() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed, Kind::NatOneArmed] {
            let site = start(kind)?;
            let t = &site.topology;
            set_mtu(&t.router.ns, "eth0", 1400)?;
            for vip in t.vips() {
                download(&site, vip).with_context(|| format!("{kind:?}"))?;
                let client = t.client.address(vip);
                let learned = t
                    .backends
                    .iter()
                    .map(|backend| known_mtu(backend, client))
                    .collect::<Result<Vec<_>>>()?;
                ensure!(
                    learned.contains(&Some(1400)),
                    "{kind:?}: no server knows the MTU to {client}: {learned:?}"
                );
                wait_ok("the errors to be counted", SOON, || {
                    let service = format!("web-{}", family(vip));
                    let count = events(&site, &service, "icmp_forwarded")?;
                    ensure!(count > 0, "{kind:?}: none for {service}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    });
}

/// The balancer's own link to the servers carries less than the client sends.
#[test]
fn a_client_learns_the_mtu_of_the_link_to_the_servers() {
    check(|| {
        let site = start(Kind::NatTwoArmed)?;
        let t = &site.topology;
        let (inside, backends) = (&t.balancer.interfaces[1], &t.backends);
        // The servers would say less than the client may send.
        ensure!(backends.len() == 3 && known_mtu(&t.client, t.vips()[0])?.is_none());
        set_mtu(&t.balancer.ns, &inside.name, 1400)?;
        for vip in t.vips() {
            // Until the daemon has heard of the new MTU.
            wait_ok("the MTU to be learned", SOON, || {
                upload(&site, vip)?;
                let known = known_mtu(&t.client, vip)?;
                ensure!(known == Some(1400), "{vip}: {known:?}");
                Ok(())
            })?;
            upload(&site, vip)?;
            wait_ok("the errors to be counted", SOON, || {
                let service = format!("web-{}", family(vip));
                let count = events(&site, &service, "icmp_error_sent")?;
                ensure!(count > 0, "none for {service}");
                Ok(())
            })?;
        }
        let drops = site.drops()?;
        ensure!(
            drops.keys().all(|(_, reason)| reason == "too_big"),
            "{drops:?}"
        );
        Ok(())
    });
}

/// The client's link carries less than the servers send, and NAT is the router.
#[test]
fn the_kernel_tells_servers_of_the_mtu_behind_nat() {
    check(|| {
        let site = start(Kind::NatTwoArmed)?;
        let t = &site.topology;
        set_mtu(&t.balancer.ns, "eth0", 1400)?;
        set_mtu(&t.router.ns, "eth1", 1400)?;
        for vip in t.vips() {
            download(&site, vip)?;
            let client = t.client.address(vip);
            let learned = t
                .backends
                .iter()
                .map(|backend| known_mtu(backend, client))
                .collect::<Result<Vec<_>>>()?;
            ensure!(learned.contains(&Some(1400)), "{client}: {learned:?}");
        }
        Ok(())
    });
}

/// Addresses by hop; none where nobody answered.
fn traceroute(site: &Site, vip: IpAddr, args: &[&str]) -> Result<Vec<Option<IpAddr>>> {
    let vip = vip.to_string();
    let mut argv = vec!["traceroute", "-n", "-q", "1", "-w", "2", "-m", "4"];
    argv.extend(args);
    argv.push(&vip);
    let text = site.topology.client.ns.exec(&argv)?;
    Ok(text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(|address| address.parse().ok())
        .collect())
}

#[test]
fn traceroute_sees_nat_as_a_hop_and_the_server_behind_it() {
    check(|| {
        let site = start(Kind::NatTwoArmed)?;
        let t = &site.topology;
        let port = WEB.to_string();
        for vip in t.vips() {
            let router = if vip.is_ipv4() {
                IpAddr::from(t.router.interface().v4[0])
            } else {
                IpAddr::from(t.router.interface().v6[0])
            };
            let hops = traceroute(&site, vip, &["-T", "-p", &port])?;
            // The router, the balancer as the VIP, the server as the VIP.
            ensure!(
                hops == [Some(router), Some(vip), Some(vip)],
                "TCP to {vip}: {hops:?}"
            );
            // Closed UDP ports of a service for any port.
            let hops = traceroute(&site, vip, &["-U", "-p", "20000"])?;
            ensure!(
                hops == [Some(router), Some(vip), Some(vip)],
                "UDP to {vip}: {hops:?}"
            );
        }
        Ok(())
    });
}

/// A reply whose hops are used up at the balancer is the server's to hear of.
#[test]
fn traceroute_from_a_server_sees_the_balancer() {
    check(|| {
        let site = start(Kind::NatTwoArmed)?;
        let t = &site.topology;
        for vip in t.vips() {
            let client = t.client.address(vip).to_string();
            let gateway = t.balancer.address(vip).to_string();
            // From the port of the service, so that it is taken for a reply.
            let text = t.backends[0].ns.exec(&[
                "traceroute",
                "-n",
                "-q",
                "1",
                "-w",
                "2",
                "-m",
                "1",
                "-U",
                "--sport=20001",
                "-p",
                "40000",
                &client,
            ])?;
            ensure!(text.contains(&format!(" 1  {gateway} ")), "{text}");
        }
        Ok(())
    });
}

/// One datagram there and one back, each in fragments.
fn exchange(client: &Netns, target: SocketAddr, bytes: usize) -> Result<()> {
    client.run(|| {
        let any: IpAddr = if target.is_ipv4() {
            [0; 4].into()
        } else {
            [0u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let request = vec![b'q'; bytes];
        socket.send(&request)?;
        let mut answer = vec![0; 65_536];
        let length = socket
            .recv(&mut answer)
            .with_context(|| format!("no answer to {bytes} bytes from {target}"))?;
        ensure!(
            answer[..length].ends_with(&request),
            "{length} bytes came back for {bytes}"
        );
        Ok(())
    })?
}

#[test]
fn datagrams_in_fragments_reach_one_server_and_come_back() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = start(kind)?;
            let t = &site.topology;
            for vip in t.vips() {
                for bytes in [1473, 4000, 9000] {
                    for _ in 0..10 {
                        exchange(&t.client.ns, SocketAddr::new(vip, UDP), bytes)
                            .with_context(|| format!("{kind:?}"))?;
                    }
                }
            }
            let drops = site.drops()?;
            ensure!(drops.is_empty(), "{kind:?}: {drops:?}");
        }
        Ok(())
    });
}

/// A client without path-MTU discovery before a router with a smaller link:
/// the router makes fragments of TCP.
#[test]
fn tcp_in_fragments_is_balanced() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = start(kind)?;
            let t = &site.topology;
            t.client.ns.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
            set_mtu(&t.router.ns, "eth1", 1400)?;
            let before = t.router.ns.exec(&["nstat", "-asz", "IpFragCreates"])?;
            upload(&site, t.vips()[0]).with_context(|| format!("{kind:?}"))?;
            let after = t.router.ns.exec(&["nstat", "-asz", "IpFragCreates"])?;
            ensure!(before != after, "{kind:?}: no fragments were made: {after}");
        }
        Ok(())
    });
}

#[test]
fn jumbo_frames_are_balanced() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = start(kind)?;
            let t = &site.topology;
            let mut switch = vec!["balancer".to_owned()];
            switch.extend(t.backends.iter().map(|b| b.name.clone()));
            if kind == Kind::Dsr {
                switch.push("router".into());
            }
            switch.push("br0".into());
            for name in &switch {
                set_mtu(&t.switch, name, 9000)?;
            }
            for host in t.hosts() {
                for interface in &host.interfaces {
                    set_mtu(&host.ns, &interface.name, 9000)?;
                }
            }
            for vip in t.vips() {
                wait_ok("the new MTU to be known", SOON, || upload(&site, vip))
                    .with_context(|| format!("{kind:?}"))?;
                download(&site, vip).with_context(|| format!("{kind:?}"))?;
                let before = t.client.ns.counters("eth0")?;
                upload(&site, vip)?;
                let after = t.client.ns.counters("eth0")?;
                let packets = after.tx_packets - before.tx_packets;
                ensure!(packets < 400, "{kind:?}: {packets} packets for 900 kB");
            }
        }
        Ok(())
    });
}

#[test]
fn a_client_learns_what_fits_into_a_tunnel() {
    check(|| {
        for (method, crossed) in [("ipip", false), ("ipip", true), ("gue", false)] {
            let (site, ends) = tunnels(method, crossed)?;
            let t = &site.topology;
            for vip in t.vips() {
                let ip = if vip.is_ipv4() == crossed { 40 } else { 20 };
                let fitting = 1500 - ip - if method == "gue" { 12 } else { 0 };
                let what = format!("{method}, {vip}, {fitting} bytes fit");
                ensure!(known_mtu(&t.client, vip)?.is_none(), "{what}");
                upload(&site, vip).with_context(|| what.clone())?;
                let known = known_mtu(&t.client, vip)?;
                ensure!(known == Some(fitting), "{what}: {known:?}");
                counted(&site, vip, "icmp_error_sent")?;
                download(&site, vip)?;
            }
            let drops = site.drops()?;
            ensure!(
                drops.keys().all(|(_, reason)| reason == "too_big"),
                "{drops:?}"
            );
            for end in &ends {
                let found = end.found();
                ensure!(found.wrong.is_empty(), "{:#?}", found.wrong);
                ensure!(found.direct == 0, "{found:?}");
            }
            let packets: u64 = ends.iter().map(|end| end.found().packets).sum();
            ensure!(packets > 1000, "{packets} packets for 1,800 kB");
        }
        Ok(())
    });
}

/// What the clients' router says goes to the VIP, and in a tunnel to the server.
#[test]
fn servers_in_tunnels_learn_the_mtu_of_a_path_to_the_client() {
    check(|| {
        for (method, crossed) in [("ipip", false), ("gue", true)] {
            let (site, _ends) = tunnels(method, crossed)?;
            let t = &site.topology;
            set_mtu(&t.router.ns, "eth0", 1400)?;
            for vip in t.vips() {
                download(&site, vip).with_context(|| method.to_owned())?;
                let client = t.client.address(vip);
                let learned = known_by_servers(&site, client)?;
                ensure!(
                    learned.contains(&Some(1400)),
                    "{method}: no server knows the MTU to {client}: {learned:?}"
                );
                counted(&site, vip, "icmp_forwarded")?;
            }
        }
        Ok(())
    });
}

/// A datagram's first fragment that doesn't fit into the tunnel makes the client
/// send smaller ones.
#[test]
fn datagrams_in_fragments_go_through_tunnels() {
    check(|| {
        for (method, crossed) in [("ipip", false), ("gue", true)] {
            let (site, ends) = tunnels(method, crossed)?;
            let t = &site.topology;
            for vip in t.vips() {
                let target = SocketAddr::new(vip, UDP);
                wait_ok("the size that fits to be learned", SOON, || {
                    exchange(&t.client.ns, target, 4000)
                })?;
                // Nobody sends a datagram again: each of these got through.
                for bytes in [1473, 4000, 9000] {
                    for _ in 0..10 {
                        exchange(&t.client.ns, target, bytes).with_context(|| method.to_owned())?;
                    }
                }
            }
            let drops = site.drops()?;
            ensure!(
                drops
                    .keys()
                    .all(|(_, reason)| reason == "too_big" || reason == "fragment"),
                "{method}: {drops:?}"
            );
            for end in &ends {
                let found = end.found();
                ensure!(found.wrong.is_empty(), "{:#?}", found.wrong);
            }
        }
        Ok(())
    });
}

/// Servers behind another router, whose way to them carries less: it says so to
/// the pool, and the client has to hear of it.
#[test]
fn a_client_learns_the_mtu_of_a_path_behind_full_nat() {
    check(|| {
        let site = full_nat(Kind::Dsr)?;
        let t = &site.topology;
        let (mut to_router, mut to_servers) = (String::new(), String::new());
        for backend in &t.backends {
            for vip in t.vips() {
                let (server, router) = (backend.address(vip), servers_router(&site, vip));
                let bits = if vip.is_ipv4() { 32 } else { 128 };
                to_router += &format!("route add {server}/{bits} via {router}\n");
                to_servers += &format!("route add {server}/{bits} dev eth1 mtu lock 1300\n");
            }
        }
        t.router.ns.feed(&["ip", "-batch", "-"], &to_servers)?;
        t.balancer.ns.feed(&["ip", "-batch", "-"], &to_router)?;
        for vip in t.vips() {
            // Until the daemon has heard of the new routes.
            wait_ok("the MTU to be learned", SOON, || {
                upload(&site, vip)?;
                let known = known_mtu(&t.client, vip)?;
                ensure!(known == Some(1300), "{vip}: {known:?}");
                Ok(())
            })?;
            upload(&site, vip)?;
            download(&site, vip)?;
            counted(&site, vip, "icmp_forwarded")?;
        }
        // The router sees that the pool is on the servers' own link, and nobody
        // can forbid it to say so in IPv6.
        let redirects = sent_redirects(&t.router.ns)?;
        let drops = site.drops()?;
        ensure!(
            drops.keys().all(|(_, reason)| reason == "icmp")
                && drops.values().sum::<u64>() <= redirects,
            "{drops:?}, {redirects} redirects"
        );
        Ok(())
    });
}

fn sent_redirects(ns: &Netns) -> Result<u64> {
    let text = ns.exec(&["nstat", "-asz", "Icmp6OutRedirects"])?;
    let line = text.lines().find(|line| line.starts_with("Icmp6"));
    let count = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(count.context("no such counter")?.parse()?)
}

/// The router's address on the servers' link.
fn servers_router(site: &Site, like: IpAddr) -> IpAddr {
    let inside = &site.topology.router.interfaces[1];
    if like.is_ipv4() {
        inside.v4[0].into()
    } else {
        inside.v6[0].into()
    }
}

/// What the clients' router says of an answer goes to the VIP; the server, which
/// knows nobody but the pool, has to hear of it.
#[test]
fn servers_behind_full_nat_learn_the_mtu_of_a_path_to_the_client() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = full_nat(kind)?;
            let t = &site.topology;
            set_mtu(&t.router.ns, "eth0", 1400)?;
            for vip in t.vips() {
                download(&site, vip).with_context(|| format!("{kind:?}"))?;
                let [v4, v6] = pool(kind);
                let address = if vip.is_ipv4() { v4 } else { v6 };
                let learned = known_by_servers(&site, address)?;
                ensure!(
                    learned.contains(&Some(1400)),
                    "{kind:?}: no server knows the MTU to {address}: {learned:?}"
                );
                counted(&site, vip, "icmp_forwarded")?;
            }
            let drops = site.drops()?;
            ensure!(drops.is_empty(), "{kind:?}: {drops:?}");
        }
        Ok(())
    });
}

/// The kernel knows nothing of the pool: the data path tells both sides of its
/// own links.
#[test]
fn both_sides_of_full_nat_learn_the_mtu_of_the_balancers_links() {
    check(|| {
        let kind = Kind::NatTwoArmed;
        let site = full_nat(kind)?;
        let t = &site.topology;
        let [outside, inside] = &t.balancer.interfaces[..] else {
            anyhow::bail!("two arms");
        };
        set_mtu(&t.balancer.ns, &outside.name, 1400)?;
        set_mtu(&t.router.ns, "eth1", 1400)?;
        for vip in t.vips() {
            download(&site, vip)?;
            let [v4, v6] = pool(kind);
            let address = if vip.is_ipv4() { v4 } else { v6 };
            let learned = known_by_servers(&site, address)?;
            ensure!(learned.contains(&Some(1400)), "{address}: {learned:?}");
            counted(&site, vip, "icmp_error_sent")?;
        }
        set_mtu(&t.balancer.ns, &inside.name, 1300)?;
        for vip in t.vips() {
            wait_ok("the MTU to be learned", SOON, || {
                upload(&site, vip)?;
                let known = known_mtu(&t.client, vip)?;
                ensure!(known == Some(1300), "{vip}: {known:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn datagrams_in_fragments_go_both_ways_through_full_nat() {
    check(|| {
        for kind in [Kind::Dsr, Kind::NatTwoArmed] {
            let site = full_nat(kind)?;
            let t = &site.topology;
            for vip in t.vips() {
                for bytes in [1473, 4000, 9000] {
                    for _ in 0..10 {
                        exchange(&t.client.ns, SocketAddr::new(vip, UDP), bytes)
                            .with_context(|| format!("{kind:?}"))?;
                    }
                }
            }
            let drops = site.drops()?;
            ensure!(drops.is_empty(), "{kind:?}: {drops:?}");
        }
        Ok(())
    });
}
