//! Path MTUs, hops, fragments and jumbo frames with real clients and servers.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    netns::Netns,
    process::wait_ok,
    site::{Site, UDP, WEB, family},
    topology::{Host, Kind, Options},
};

const SOON: Duration = Duration::from_secs(10);

/// Size of `/big` on the servers.
const BIG: &str = "4194304";

fn start(kind: Kind) -> Result<Site> {
    Site::full(kind, &Options::default(), |config| {
        for service in &mut config.services {
            if service.protocol == "udp" {
                service.port = "any".into();
            }
        }
    })
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
