//! How the topologies are put together.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{Host, Interface, Kind, Options, Port, Topology};
use crate::{netns::Netns, packet::Mac, process::wait_ok};

/// Third byte of the subnets: 10.<1>.0.0/24 is 10.1.0.0/24, fd00:1::/64.
const CLIENTS: u8 = 1;
const OUTSIDE: u8 = 2;
const INSIDE: u8 = 3;

const ROUTER: u8 = 1;
const CLIENT: u8 = 2;
const BALANCER: u8 = 10;
const FIRST_BACKEND: u8 = 11;
const VIP: u8 = 100;

fn v4(net: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, net, 0, host)
}

fn v6(net: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, host.into())
}

/// Locally administered, and telling whose it is.
fn mac(net: u8, host: u8) -> Mac {
    Mac([0x02, 0x1b, 0, 0, net, host])
}

fn interface(name: &str, net: u8, host: u8) -> Interface {
    Interface {
        name: name.into(),
        mac: mac(net, host),
        v4: vec![v4(net, host)],
        v6: vec![v6(net, host)],
    }
}

fn host(name: &str, interfaces: Vec<Interface>) -> Result<Host> {
    Ok(Host {
        name: name.into(),
        ns: Netns::new(name)?,
        interfaces,
    })
}

pub(super) fn topology(kind: Kind, options: &Options) -> Result<Topology> {
    ensure!(
        options.backends <= 80,
        "at most 80 backends, {} asked for",
        options.backends
    );
    let servers_net = match kind {
        Kind::Dsr | Kind::NatFlatOneArmed | Kind::NatBridged => OUTSIDE,
        Kind::NatTwoArmed | Kind::NatOneArmed => INSIDE,
    };
    let balancer = match kind {
        Kind::Dsr | Kind::NatFlatOneArmed => vec![interface("eth0", OUTSIDE, BALANCER)],
        Kind::NatTwoArmed => {
            vec![
                interface("eth0", OUTSIDE, BALANCER),
                interface("eth1", INSIDE, ROUTER),
            ]
        }
        Kind::NatBridged => {
            // Both are ports of br0, which has the address.
            let eth0 = interface("eth0", OUTSIDE, BALANCER);
            let eth1 = Interface {
                name: "eth1".into(),
                mac: mac(INSIDE, BALANCER),
                ..eth0.clone()
            };
            vec![eth0, eth1]
        }
        Kind::NatOneArmed => {
            let mut eth0 = interface("eth0", OUTSIDE, BALANCER);
            eth0.v4.push(v4(INSIDE, ROUTER));
            eth0.v6.push(v6(INSIDE, ROUTER));
            vec![eth0]
        }
    };
    let mut t = Topology {
        kind,
        client: host("client", vec![interface("eth0", CLIENTS, CLIENT)])?,
        router: host(
            "router",
            vec![
                interface("eth0", CLIENTS, ROUTER),
                interface("eth1", OUTSIDE, ROUTER),
            ],
        )?,
        balancer: host("balancer", balancer)?,
        backends: (1..=options.backends)
            .map(|i| {
                let number = FIRST_BACKEND - 1 + u8::try_from(i)?;
                host(
                    &format!("backend-{i}"),
                    vec![interface("eth0", servers_net, number)],
                )
            })
            .collect::<Result<_>>()?,
        switch: Netns::new("switch")?,
        balancer_ports: vec![],
        vip4: v4(OUTSIDE, VIP),
        vip6: v6(OUTSIDE, VIP),
    };
    wire(&mut t)?;
    if kind == Kind::NatBridged {
        bridge(&t.balancer)?;
    }
    addresses(&t)?;
    offloads(&t, options)?;
    if kind == Kind::Dsr {
        t.backends.iter().try_for_each(|b| vip_on_loopback(&t, b))?;
    }
    wait_until_up(&t)?;
    Ok(t)
}

/// Makes the host's interfaces ports of a bridge with the first one's MAC.
fn bridge(host: &Host) -> Result<()> {
    let mac = host.interface().mac;
    let mut batch = format!(
        "link add br0 address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set br0 up\n"
    );
    for i in &host.interfaces {
        writeln!(batch, "link set {} master br0", i.name)?;
    }
    host.ns.feed(&["ip", "-batch", "-"], &batch)?;
    Ok(())
}

/// The other end of a host's link.
struct FarEnd<'a> {
    ns: &'a Netns,
    name: &'a str,
    mac: Mac,
    is_switch_port: bool,
}

/// Makes the links and the switch.
fn wire(t: &mut Topology) -> Result<()> {
    t.switch.feed(
        &["ip", "-batch", "-"],
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set br0 up\n",
    )?;
    let router_end = |i: usize| {
        let Interface { name, mac, .. } = &t.router.interfaces[i];
        FarEnd {
            ns: &t.router.ns,
            name,
            mac: *mac,
            is_switch_port: false,
        }
    };
    link(&t.client.ns, t.client.interface(), &router_end(0))?;
    let mut plugged: Vec<(&Host, &Interface)> = vec![];
    let mut balancer_ports = vec![];
    if t.kind.is_two_armed() {
        link(&t.balancer.ns, t.balancer.interface(), &router_end(1))?;
        plugged.push((&t.balancer, &t.balancer.interfaces[1]));
        balancer_ports.push(Port {
            ns: t.router.ns.clone(),
            interface: "eth1".into(),
        });
    } else {
        plugged.push((&t.router, &t.router.interfaces[1]));
        plugged.push((&t.balancer, t.balancer.interface()));
    }
    balancer_ports.push(Port {
        ns: t.switch.clone(),
        interface: "balancer".into(),
    });
    plugged.extend(t.backends.iter().map(|b| (b, b.interface())));
    let mut fdb = String::new();
    for (host, interface) in plugged {
        let [.., net, number] = interface.mac.0;
        let mac = Mac([0x02, 0x1b, 0, 1, net, number]);
        let port = FarEnd {
            ns: &t.switch,
            name: &host.name,
            mac,
            is_switch_port: true,
        };
        link(&host.ns, interface, &port)?;
        writeln!(
            fdb,
            "fdb replace {} dev {} master static",
            interface.mac, host.name
        )?;
    }
    if t.kind == Kind::NatBridged {
        for mac in [t.router.interfaces[1].mac, t.balancer.interface().mac] {
            writeln!(fdb, "fdb replace {mac} dev balancer master static")?;
        }
    }
    t.switch.feed(&["bridge", "-batch", "-"], &fdb)?;
    t.balancer_ports = balancer_ports;
    Ok(())
}

/// A veth from a host's interface, both ends up.
fn link(ns: &Netns, near: &Interface, far: &FarEnd<'_>) -> Result<()> {
    let Interface { name, mac, .. } = near;
    let FarEnd {
        ns: far_ns,
        name: far_name,
        mac: far_mac,
        ..
    } = far;
    let peer = format!(
        "peer name {far_name} address {far_mac} netns {}",
        far_ns.name()
    );
    ns.feed(
        &["ip", "-batch", "-"],
        &format!("link add {name} address {mac} type veth {peer}\nlink set {name} up\n"),
    )?;
    let master = if far.is_switch_port {
        format!("link set {far_name} master br0\n")
    } else {
        String::new()
    };
    far_ns.feed(
        &["ip", "-batch", "-"],
        &format!("{master}link set {far_name} up\n"),
    )
}

/// Waits until every interface carries packets.
///
/// The kernel notices that a link is up with a delay of up to a second; until
/// then the interface, and a switch port with it, drops what it should send.
fn wait_until_up(t: &Topology) -> Result<()> {
    let has_bridge =
        |h: &Host| usize::from(t.kind == Kind::NatBridged && h.name == t.balancer.name);
    let mut namespaces: Vec<(&Netns, usize)> = t
        .hosts()
        .map(|h| (&h.ns, h.interfaces.len() + has_bridge(h)))
        .collect();
    let plugged: usize = t.backends.len() + if t.kind.is_two_armed() { 1 } else { 2 };
    namespaces.push((&t.switch, plugged + 1));
    for (ns, interfaces) in namespaces {
        wait_ok(
            format!("the links of {}", ns.name()),
            Duration::from_secs(10),
            || {
                let links = ns.exec(&["ip", "-o", "link"])?;
                let up = links.lines().filter(|l| l.contains(" state UP ")).count();
                ensure!(up == interfaces, "{up} of {interfaces} are up:\n{links}");
                Ok(())
            },
        )?;
    }
    wait_ok("the switch's ports", Duration::from_secs(10), || {
        let ports = t.switch.exec(&["bridge", "link"])?;
        let forwarding = ports
            .lines()
            .filter(|l| l.contains(" state forwarding "))
            .count();
        ensure!(
            forwarding == plugged,
            "{forwarding} of {plugged} forward:\n{ports}"
        );
        Ok(())
    })
}

/// Sets addresses, routes and forwarding.
fn addresses(t: &Topology) -> Result<()> {
    for host in t.hosts() {
        let mut batch = String::new();
        let bridged = t.kind == Kind::NatBridged && host.name == t.balancer.name;
        let devices = if bridged {
            vec![("br0", host.interface())]
        } else {
            host.interfaces
                .iter()
                .map(|i| (i.name.as_str(), i))
                .collect()
        };
        for (device, i) in devices {
            for a in &i.v4 {
                writeln!(batch, "addr add {a}/24 dev {device}")?;
            }
            for a in &i.v6 {
                writeln!(batch, "addr add {a}/64 dev {device} nodad")?;
            }
        }
        host.ns.feed(&["ip", "-batch", "-"], &batch)?;
        for conf in ["all", "default", "eth0"] {
            host.ns
                .sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
        }
    }
    for host in [&t.router, &t.balancer] {
        host.ns.sysctl("net/ipv4/ip_forward", "1")?;
        host.ns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    for conf in ["all", "eth0", "eth1"] {
        t.router
            .ns
            .sysctl(&format!("net/ipv4/conf/{conf}/send_redirects"), "0")?;
    }
    routes(t)
}

fn routes(t: &Topology) -> Result<()> {
    let default = |host: &Host, net: u8, via: u8| {
        let (v4, v6) = (v4(net, via), v6(net, via));
        let batch = format!("route add default via {v4}\nroute add default via {v6}\n");
        host.ns.feed(&["ip", "-batch", "-"], &batch)
    };
    default(&t.client, CLIENTS, ROUTER)?;
    default(&t.balancer, OUTSIDE, ROUTER)?;
    for backend in &t.backends {
        match t.kind {
            Kind::Dsr | Kind::NatBridged => default(backend, OUTSIDE, ROUTER)?,
            Kind::NatTwoArmed | Kind::NatOneArmed => default(backend, INSIDE, ROUTER)?,
            Kind::NatFlatOneArmed => default(backend, OUTSIDE, BALANCER)?,
        }
    }
    if matches!(t.kind, Kind::NatTwoArmed | Kind::NatOneArmed) {
        let (via4, via6) = (v4(OUTSIDE, BALANCER), v6(OUTSIDE, BALANCER));
        t.router.ns.feed(
            &["ip", "-batch", "-"],
            &format!("route add 10.3.0.0/24 via {via4}\nroute add fd00:3::/64 via {via6}\n"),
        )?;
    }
    Ok(())
}

fn offloads(t: &Topology, options: &Options) -> Result<()> {
    let faces_balancer = |ns: &Netns, name: &str| {
        t.balancer_ports
            .iter()
            .any(|p| p.ns.name() == ns.name() && p.interface == name)
    };
    for host in t.hosts() {
        for i in &host.interfaces {
            options
                .offloads
                .apply(&host.ns, &i.name, faces_balancer(&host.ns, &i.name))?;
        }
    }
    let mut on_switch: Vec<&str> = t.backends.iter().map(|b| b.name.as_str()).collect();
    on_switch.push("balancer");
    if !t.kind.is_two_armed() {
        on_switch.push("router");
    }
    for name in on_switch {
        options
            .offloads
            .apply(&t.switch, name, faces_balancer(&t.switch, name))?;
    }
    Ok(())
}

/// Lets a backend accept packets for the VIPs without claiming them.
///
/// IPv4: Linux answers ARP on any interface for any local address, so
/// `arp_ignore=1` (answer only for addresses of the receiving interface) and
/// `arp_announce=2` (never name the VIP as the sender of its own requests).
///
/// IPv6 needs no switch: Linux answers a neighbour solicitation only for
/// addresses of the interface that received it (or proxied ones), and joins no
/// solicited-node group there for an address on `lo`. /128, so that no other
/// address becomes local.
fn vip_on_loopback(t: &Topology, backend: &Host) -> Result<()> {
    for conf in ["all", "eth0"] {
        backend
            .ns
            .sysctl(&format!("net/ipv4/conf/{conf}/arp_ignore"), "1")?;
        backend
            .ns
            .sysctl(&format!("net/ipv4/conf/{conf}/arp_announce"), "2")?;
    }
    let (vip4, vip6) = (t.vip4, t.vip6);
    let batch = format!("addr add {vip4}/32 dev lo\naddr add {vip6}/128 dev lo nodad\n");
    backend.ns.feed(&["ip", "-batch", "-"], &batch)
}
