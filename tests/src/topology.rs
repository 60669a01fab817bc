//! Client – router – balancer – backends, over veth.
//!
//! ```text
//!                     10.1.0.0/24         outside 10.2.0.0/24      inside 10.3.0.0/24
//! Dsr                 client – router – [switch: balancer, backends]
//! NatTwoArmed         client – router – balancer – [switch: backends]
//! NatOneArmed         client – router – [switch: balancer, backends], two subnets
//! NatFlatOneArmed     client – router – [switch: balancer, backends], one subnet
//! NatBridged          client – router – balancer (br0) – [switch: backends], one subnet
//! ```
//!
//! Addresses end alike in every topology: router .1, balancer .10 (and .1 of
//! the inside), backend *i* .11+*i*, VIP .100 of the outside; IPv6 is
//! `fd00:<net>::<the same number>`. The VIP is nobody's in the kernel but the
//! backends' under DSR.
//!
//! A switch is a bridge in a namespace of its own. Every host's MAC is in its
//! table from the start, so that it floods no unicast to the balancer;
//! multicast and broadcast reach everybody, and it learns further addresses
//! (a virtual MAC) as they appear.
//!
//! The router forwards and sends no ICMP redirects. The balancer forwards but
//! *does* send redirects, as a fresh Linux does: switching that off where NAT
//! needs it is the balancer's job.

mod build;
mod offloads;
mod trunk;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

pub use offloads::Offloads;
pub use trunk::{BOND, BondMode, INSIDE_VLAN, OUTSIDE_VLAN};
pub use wire::Wires;

use crate::{
    config::{self, Config},
    netns::Netns,
    packet::Mac,
};

/// Which topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Flat, direct server return, one-armed: replies go from the backends to
    /// the router.
    Dsr,
    /// NAT, routed, two-armed: VIP outside, servers inside.
    NatTwoArmed,
    /// NAT, routed, one-armed: VIP's and servers' subnets on one interface.
    NatOneArmed,
    /// NAT, flat, one-armed: the VIP is in the servers' subnet, and their
    /// default route is the balancer.
    NatFlatOneArmed,
    /// NAT, flat, bridged, two-armed: the balancer bridges the router's and the
    /// servers' side; the servers' default route is the router.
    NatBridged,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Dsr,
        Self::NatTwoArmed,
        Self::NatOneArmed,
        Self::NatFlatOneArmed,
        Self::NatBridged,
    ];

    /// Whether the balancer is between the router and the servers.
    pub const fn is_two_armed(self) -> bool {
        matches!(self, Self::NatTwoArmed | Self::NatBridged)
    }

    /// The forwarding method it is made for, as the configuration calls it.
    pub const fn forwarding(self) -> &'static str {
        match self {
            Self::Dsr => "l2-dsr",
            Self::NatTwoArmed | Self::NatOneArmed | Self::NatFlatOneArmed | Self::NatBridged => {
                "nat"
            }
        }
    }
}

/// What can be chosen about a topology.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of backends, at most 80.
    pub backends: usize,
    /// Offloads of every interface.
    pub offloads: Offloads,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backends: 3,
            offloads: Offloads::Off,
        }
    }
}

/// One interface of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name of it.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// IPv4 addresses, all /24.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses, all /64.
    pub v6: Vec<Ipv6Addr>,
}

/// A namespace with interfaces.
#[derive(Clone, Debug)]
pub struct Host {
    /// What it is: `client`, `router`, `balancer`, `backend-1` …
    pub name: String,
    /// Where it lives.
    pub ns: Netns,
    /// Its interfaces, the outside one first.
    pub interfaces: Vec<Interface>,
}

impl Host {
    /// The first interface.
    pub fn interface(&self) -> &Interface {
        &self.interfaces[0]
    }

    /// First IPv4 address of the last interface: the one towards the servers.
    pub fn v4(&self) -> Ipv4Addr {
        self.interfaces[self.interfaces.len() - 1].v4[0]
    }

    /// First IPv6 address of the last interface.
    pub fn v6(&self) -> Ipv6Addr {
        self.interfaces[self.interfaces.len() - 1].v6[0]
    }

    /// The address of the family that `like` has.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() {
            self.v4().into()
        } else {
            self.v6().into()
        }
    }
}

/// An interface in a namespace, by name.
#[derive(Clone, Debug)]
pub struct Port {
    /// Where it is.
    pub ns: Netns,
    /// Its name.
    pub interface: String,
}

/// A client, a router, a balancer and backends that reach one another by
/// kernel routing. Removed on drop.
#[derive(Debug)]
pub struct Topology {
    /// Which one it is.
    pub kind: Kind,
    /// Clients live here. `eth0`.
    pub client: Host,
    /// `eth0` towards the client, `eth1` towards the balancer.
    pub router: Host,
    /// `eth0`, and `eth1` towards the backends where it has two arms.
    pub balancer: Host,
    /// `eth0` each.
    pub backends: Vec<Host>,
    /// The bridge `br0` and its ports, named as the hosts on them.
    pub switch: Netns,
    /// The far end of each of the balancer's interfaces.
    ///
    /// Captures belong here: on the balancer itself a native XDP program takes
    /// frames before packet sockets see them.
    pub balancer_ports: Vec<Port>,
    /// The IPv4 VIP.
    pub vip4: Ipv4Addr,
    /// The IPv6 VIP.
    pub vip6: Ipv6Addr,
}

impl Topology {
    /// Builds one.
    pub fn new(kind: Kind, options: &Options) -> Result<Self> {
        build::topology(kind, options).with_context(|| format!("building {kind:?}"))
    }

    /// Both VIPs.
    pub fn vips(&self) -> [IpAddr; 2] {
        [self.vip4.into(), self.vip6.into()]
    }

    /// A configuration with one TCP service per family on `port`, their pools
    /// `web-v4` and `web-v6`, and a fast TCP check each.
    pub fn config(&self, port: u16) -> Config {
        let mut config = Config::new("lb1");
        config.interfaces = self
            .balancer
            .interfaces
            .iter()
            .map(|i| (i.name.clone(), "auto".into()))
            .collect();
        for vip in self.vips() {
            let family = if vip.is_ipv4() { "v4" } else { "v6" };
            let pool = self.pool(&format!("web-{family}"), vip, Some(port));
            config.services.push(config::Service {
                name: format!("shop-{family}"),
                address: vip,
                port: port.to_string(),
                protocol: "tcp".into(),
                forwarding: self.kind.forwarding().into(),
                pool: pool.name.clone(),
                extra: vec![],
            });
            config.pools.push(pool);
        }
        config
    }

    /// A pool of all backends, by their addresses of the family that `like`
    /// has, named `backend-1` …, with a TCP check every 200 ms.
    pub fn pool(&self, name: &str, like: IpAddr, port: Option<u16>) -> config::Pool {
        config::Pool {
            name: name.into(),
            backends: self
                .backends
                .iter()
                .map(|host| config::Backend {
                    name: host.name.clone(),
                    address: host.address(like),
                    port,
                    weight: 100,
                    priority: 1,
                })
                .collect(),
            extra: vec![
                "health: [{type: tcp, interval: 200ms, timeout: 150ms, rise: 2, fall: 2}]".into(),
            ],
        }
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.client, &self.router, &self.balancer]
            .into_iter()
            .chain(&self.backends)
    }

    /// A picture for people.
    pub fn diagram(&self) -> String {
        let addr = |h: &Host| {
            let all: Vec<String> = h
                .interfaces
                .iter()
                .flat_map(|i| &i.v4)
                .map(ToString::to_string)
                .collect();
            format!("{} ({})", h.name, all.join(", "))
        };
        let mut out = format!("  {}\n   |\n  {}\n", addr(&self.client), addr(&self.router));
        out.push_str("   |\n");
        match self.kind {
            Kind::NatTwoArmed | Kind::NatBridged => {
                out.push_str(&format!(
                    "  {}  VIP {}\n   |\n",
                    addr(&self.balancer),
                    self.vip4
                ));
                out.push_str("  switch\n");
            }
            _ => {
                out.push_str("  switch\n");
                out.push_str(&format!(
                    "   +-- {}  VIP {}\n",
                    addr(&self.balancer),
                    self.vip4
                ));
            }
        }
        for backend in &self.backends {
            out.push_str(&format!("   +-- {}\n", addr(backend)));
        }
        out
    }
}
