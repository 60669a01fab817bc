//! What else is on the balancer's segment: another host that has a VIP, clients
//! beside the servers, and servers that are clients.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    netns::Netns,
    packet::{Mac, arp_reply, send_raw},
    process::wait_ok,
    servers,
    site::{LIST, Site, UDP, WEB, curl, dig, family},
    topology::{Kind, Options, Topology},
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

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
    wait_ok("the other host's link", SOON, || {
        let link = ns.exec(&["ip", "-o", "link", "show", "eth0"])?;
        ensure!(link.contains(" state UP "), "{link}");
        Ok(())
    })?;
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
            // One claim a second is noted.
            thread::sleep(Duration::from_millis(2100));
            other.exec(&["ip", "link", "set", "eth0", "address", mac])?;
            wait_ok("the claims to be shown", SOON, || {
                for (vip, last) in t.vips().into_iter().zip(&mut seen) {
                    let (shown, interface, when) =
                        claimed(&site, vip)?.with_context(|| format!("{vip} isn't shown"))?;
                    ensure!(
                        shown == mac && interface == "eth0" && when > *last,
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
        let claim = arp_reply(mac, t.vip4, Mac::BROADCAST, t.vip4);
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

/// With the addresses of full NAT beside the servers of [`Kind::NatTwoArmed`].
const FULL_NAT: &str = "full_nat: {addresses: [10.3.0.200, \"fd00:3::200\"]}";

fn events(site: &Site, name: &str) -> Result<u64> {
    let services = site.daemon.ctl_json(&["services"])?;
    let rows = services.as_array().into_iter().flatten();
    Ok(rows.filter_map(|row| row["events"][name].as_u64()).sum())
}

/// The VIP is the server's own, so its kernel answers, whoever else serves it.
#[test]
fn under_direct_return_a_server_that_is_a_client_is_its_own_server() {
    check(|| {
        let site = Site::full(Kind::Dsr, &Options::default(), |_| {})?;
        let t = &site.topology;
        for backend in &t.backends {
            for vip in t.vips() {
                let pages = curl(&backend.ns, SocketAddr::new(vip, WEB), "own", 5, false)?;
                let answer = dig(&backend.ns, vip)?;
                ensure!(
                    pages.iter().all(|page| page.server == backend.name) && answer == backend.name,
                    "{} was answered by {answer} and {pages:?}",
                    backend.name
                );
            }
        }
        // The counters are read once a second.
        thread::sleep(Duration::from_millis(1500));
        let services = site.daemon.ctl_json(&["services"])?;
        let reached = |service: &Value| service["totals"]["packets"].as_u64();
        ensure!(
            services
                .as_array()
                .is_some_and(|all| all.iter().all(|one| reached(one) == Some(0))),
            "the balancer was asked: {services}"
        );
        Ok(())
    });
}

/// All servers are asked, the client's own as well: they see the pool.
#[test]
fn under_nat_a_server_that_is_a_client_is_served_where_full_nat_has_an_address() {
    check(|| {
        let site = Site::full(Kind::NatTwoArmed, &Options::default(), |config| {
            config.extra = vec![FULL_NAT.into()];
        })?;
        let t = &site.topology;
        let client = &t.backends[0];
        for vip in t.vips() {
            let pages = curl(&client.ns, SocketAddr::new(vip, WEB), "page", 30, false)?;
            for backend in &t.backends {
                let answered = pages.iter().filter(|page| page.server == backend.name);
                ensure!(answered.count() > 0, "{} never answered", backend.name);
            }
            for _ in 0..5 {
                dig(&client.ns, vip)?;
            }
        }
        wait_ok("the bindings to be counted", SOON, || {
            ensure!(events(&site, "binding_opened")? > 0, "none");
            Ok(())
        })?;
        ensure!(events(&site, "local_client")? == 0);
        let drops = site.drops()?;
        ensure!(drops.is_empty(), "dropped: {drops:?}");
        Ok(())
    });
}

#[test]
fn under_nat_a_server_that_is_a_client_is_counted_where_full_nat_has_none() {
    check(|| {
        let site = Site::full(Kind::NatTwoArmed, &Options::default(), |_| {})?;
        let t = &site.topology;
        let client = &t.backends[0].ns;
        for vip in t.vips() {
            let url = format!("http://{}/", SocketAddr::new(vip, WEB));
            let output = client.output(&["curl", "-sS", "--max-time", "1", &url])?;
            ensure!(!output.status.success(), "{url} was answered");
        }
        wait_ok("the clients to be counted", SOON, || {
            let counted = events(&site, "local_client")?;
            ensure!(counted >= 2, "{counted}");
            Ok(())
        })
    });
}

/// A second VIP of each family whose services have the same pools.
fn second_vip(site_vip: IpAddr) -> IpAddr {
    match site_vip {
        IpAddr::V4(_) => Ipv4Addr::new(10, 2, 0, 101).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 101).into(),
    }
}

fn two_services_of_one_backend(extra: &[&str]) -> Result<Site> {
    let options = Options {
        backends: 1,
        ..Options::default()
    };
    Site::full(Kind::NatTwoArmed, &options, |config| {
        config.extra = extra.iter().map(|&line| line.into()).collect();
        for service in &mut config.services {
            if service.protocol == "udp" {
                service.port = UDP.to_string();
            }
        }
        let second: Vec<_> = config
            .services
            .iter()
            .cloned()
            .map(|mut service| {
                service.name = format!("second-{}", service.name);
                service.address = second_vip(service.address);
                service
            })
            .collect();
        config.services.extend(second);
    })
}

/// A connection from this port, and what its server says to a line.
fn connect(local: SocketAddr, to: SocketAddr) -> Result<BufReader<TcpStream>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&local.into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(BufReader::new(socket.into()))
}

fn speak(connection: &mut BufReader<TcpStream>, word: &str) -> Result<()> {
    connection
        .get_mut()
        .write_all(format!("{word}\n").as_bytes())?;
    loop {
        let mut line = String::new();
        ensure!(connection.read_line(&mut line)? > 0, "closed by the server");
        if line.trim_end().ends_with(&format!(" {word}")) {
            return Ok(());
        }
    }
}

/// The same client port to both services: TCP, then datagrams.
fn one_port_to_both(site: &Site, vip: IpAddr) -> Result<()> {
    let both = [vip, second_vip(vip)];
    let local = SocketAddr::new(site.topology.client.address(vip), 47_001);
    site.topology.client.ns.run(|| {
        let [first, second] = both.map(|to| SocketAddr::new(to, LIST[0]));
        let mut first = connect(local, first).context("the first")?;
        speak(&mut first, "one")?;
        let mut second = connect(local, second).context("the second")?;
        for round in 0..5 {
            speak(&mut first, &format!("first{round}"))?;
            speak(&mut second, &format!("second{round}"))?;
        }
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        for round in 0..5 {
            for to in both.map(|to| SocketAddr::new(to, UDP)) {
                socket.send_to(round.to_string().as_bytes(), to)?;
                let mut answer = [0; 64];
                let (_, from) = socket
                    .recv_from(&mut answer)
                    .with_context(|| format!("no datagram from {to}"))?;
                ensure!(from == to, "{to} was asked, {from} answered");
            }
        }
        Ok(())
    })?
}

#[test]
fn one_client_port_reaches_two_services_of_one_backend_through_full_nat() {
    check(|| {
        let site = two_services_of_one_backend(&[FULL_NAT])?;
        for vip in site.topology.vips() {
            one_port_to_both(&site, vip)?;
            for vip in [vip, second_vip(vip)] {
                let name = format!("page-{}", family(vip));
                let client = &site.topology.client.ns;
                curl(client, SocketAddr::new(vip, WEB), &name, 10, false)?;
            }
        }
        let drops = site.drops()?;
        ensure!(drops.is_empty(), "dropped: {drops:?}");
        Ok(())
    });
}

/// As `lbctl check` and the start warn.
#[test]
fn without_full_nat_the_second_connection_from_one_port_is_refused_and_counted() {
    check(|| {
        let site = two_services_of_one_backend(&[])?;
        let warning = "one client port can't be used towards both at a time";
        ensure!(
            site.daemon.log().contains(warning),
            "no warning:\n{}",
            site.daemon.log()
        );
        for vip in site.topology.vips() {
            // Other ports to both.
            for vip in [vip, second_vip(vip)] {
                let target = SocketAddr::new(vip, LIST[0]);
                let pause = Duration::from_millis(300);
                let report = servers::rate(&site.topology.client.ns, target, 2, pause)?;
                ensure!(report.failed == 0 && report.requests > 0, "{report:?}");
            }
            let error = match one_port_to_both(&site, vip) {
                Ok(()) => anyhow::bail!("{vip}: one port reached both"),
                Err(error) => format!("{error:#}"),
            };
            ensure!(error.starts_with("the second"), "{error}");
            let service = format!("second-list-{}", family(vip));
            wait_ok("the conflict to be counted", SOON, || {
                let drops = site.drops()?;
                let key = (service.clone(), "reply_conflict".to_owned());
                ensure!(drops.contains_key(&key), "{drops:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}
