//! Where frames towards the backends have to go: links, routes and the
//! kernel's neighbour tables, followed through netlink; and the two settings
//! of the kernel that forwarding needs, sysctls and multicast groups.
//!
//! [`resolve`] decides without a socket; [`watch`] drives it. May import
//! [`crate::model`] and lb-common only.

pub mod devices;
pub mod links;
mod messages;
pub mod multicast;
mod netlink;
pub mod offload;
pub mod probe_device;
pub mod resolve;
pub mod sysctl;
pub mod watch;

use std::{collections::HashMap, fmt, net::IpAddr};

use rtnetlink::packet_route::{RouteNetlinkMessage, link::LinkMessage};
use serde::Serialize;

pub use devices::Device;
pub use links::Link;
pub use watch::{NeighbourError, Neighbours};

use crate::model::{ForwardingMethod, Model};

/// Where frames for an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Hop {
    /// MAC address of the next hop, first byte first.
    pub mac: [u8; 6],
    /// The link it is reached by.
    pub ifindex: u32,
    /// Longest IP packet that reaches the address, in bytes: the link's MTU, or
    /// the route's where that is smaller.
    pub mtu: u32,
}

/// An address whose next hop is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// Frames must reach it without a router between, as L2 DSR needs.
    pub on_link_only: bool,
}

/// Why frames for an address can't be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Unresolved {
    /// The kernel wasn't asked yet.
    Pending,
    /// There is no route to it, or one that forbids it.
    NoRoute {
        /// The kernel's answer in words.
        detail: String,
    },
    /// It is an address of this machine.
    Local,
    /// The route leads over a link the data path isn't attached to.
    UnmanagedLink {
        /// Name of the link.
        link: String,
    },
    /// L2 DSR, but there is a router between.
    NotOnLink {
        /// The router.
        gateway: IpAddr,
        /// The link it is reached by.
        link: String,
    },
    /// The link is down or has no carrier.
    LinkDown {
        /// Name of the link.
        link: String,
    },
    /// The next hop was asked for its MAC address and hasn't answered yet.
    Resolving {
        /// The next hop.
        next_hop: IpAddr,
        /// The link it should be on.
        link: String,
    },
    /// The next hop doesn't answer ARP or neighbour solicitations.
    Failed {
        /// The next hop.
        next_hop: IpAddr,
        /// The link it should be on.
        link: String,
    },
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => write!(f, "not looked up yet"),
            Self::NoRoute { detail } => write!(f, "no route: {detail}"),
            Self::Local => write!(f, "is an address of this machine"),
            Self::UnmanagedLink { link } => {
                write!(f, "reached over {link}, which isn't under interfaces")
            }
            Self::NotOnLink { gateway, link } => write!(
                f,
                "reached through the router {gateway} on {link}; L2 DSR needs it on a link of this machine"
            ),
            Self::LinkDown { link } => write!(f, "{link} is down"),
            Self::Resolving { next_hop, link } => {
                write!(
                    f,
                    "waiting for {next_hop} on {link} to tell its MAC address"
                )
            }
            Self::Failed { next_hop, link } => write!(
                f,
                "{next_hop} on {link} doesn't answer {}",
                if next_hop.is_ipv4() {
                    "ARP"
                } else {
                    "neighbour solicitations"
                }
            ),
        }
    }
}

/// What is known of all targets and all managed links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeighbourView {
    /// Every target with its next hop, or why there is none.
    pub hops: HashMap<IpAddr, Result<Hop, Unresolved>>,
    /// The managed links that exist, by name.
    pub links: Vec<Link>,
    /// The devices behind them, by name.
    pub devices: Vec<Device>,
    /// The node's own addresses.
    pub addresses: Vec<OwnAddress>,
}

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that are the same for all on its link.
    pub prefix_bits: u8,
    /// The interface that has it.
    pub ifindex: u32,
}

/// The devices behind the interfaces of these names, as they are now.
///
/// # Errors
/// The kernel doesn't tell.
pub fn devices_of(names: impl IntoIterator<Item = String>) -> std::io::Result<Vec<Device>> {
    let mut resolver = resolve::Resolver::new(names);
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    netlink::Requests::open()?.dump(request, |message| {
        if let RouteNetlinkMessage::NewLink(message) = message
            && let Some(link) = Link::from_message(&message)
        {
            resolver.handle_link(link);
        }
    })?;
    Ok(resolver.view().devices)
}

/// The backends' addresses of a model.
pub fn targets(model: &Model) -> Vec<Target> {
    let mut on_link_only: HashMap<IpAddr, bool> = HashMap::new();
    for service in &model.services {
        for (_, backend) in model.backends_of(service) {
            *on_link_only.entry(backend.address).or_default() |=
                service.forwarding == ForwardingMethod::L2Dsr;
        }
    }
    let mut targets: Vec<Target> = on_link_only
        .into_iter()
        .map(|(address, on_link_only)| Target {
            address,
            on_link_only,
        })
        .collect();
    targets.sort();
    targets
}
