//! Netlink messages of routes and neighbours, to and from this module's types.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState as Nud,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};

use super::{
    OwnAddress,
    netlink::Answer,
    resolve::{Neighbour, NeighbourKey, NeighbourState, Route},
};

/// A request about a neighbour.
#[derive(Debug)]
pub struct Request {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// Make the entry if there is none.
    pub create: bool,
}

/// Have the kernel resolve the neighbour and keep it so (Linux 5.16).
pub fn keep_request(key: NeighbourKey) -> Request {
    let mut message = neighbour_message(key);
    message
        .attributes
        .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        create: true,
    }
}

/// Have the kernel resolve the neighbour once, as a packet to it would.
pub fn use_request(key: NeighbourKey) -> Request {
    Request {
        create: true,
        ..release_request(key)
    }
}

/// Undo [`keep_request`]. An update without NTF_EXT_MANAGED takes the flag
/// away; with NTF_USE it leaves state and MAC address alone.
pub fn release_request(key: NeighbourKey) -> Request {
    let mut message = neighbour_message(key);
    message.header.flags = NeighbourFlags::Use;
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        create: false,
    }
}

fn neighbour_message((ifindex, address): NeighbourKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    message.header.family = family(address);
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
    message
}

/// An address of this node from the kernel's message.
pub fn own_address(message: &AddressMessage) -> Option<OwnAddress> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // On a point-to-point link the other is the far end's.
    Some(OwnAddress {
        address: local.or(address)?,
        prefix_bits: message.header.prefix_len,
        ifindex: message.header.index,
    })
}

/// What a message says of a neighbour; `None` where it is about something
/// else, a bridge's forwarding entry or a proxy.
pub fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        Nud::Reachable | Nud::Stale | Nud::Delay | Nud::Probe | Nud::Noarp => NeighbourState::Known,
        Nud::Permanent => NeighbourState::Permanent,
        Nud::Failed => NeighbourState::Failed,
        _ => NeighbourState::Resolving,
    };
    Some(((message.header.ifindex, address?), Neighbour { state, mac }))
}

/// Ask how an address is reached.
pub fn route_request(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// The answer to [`route_request`].
pub fn route(answer: Answer) -> Route {
    let message = match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(message))) => message,
        Ok(_) => return Route::None("no answer".to_owned()),
        Err(error) => {
            return Route::None(match error.raw_os_error() {
                Some(libc::ENETUNREACH) => "network unreachable".to_owned(),
                Some(libc::EHOSTUNREACH) => "host unreachable".to_owned(),
                Some(libc::EACCES) => "prohibited by a route".to_owned(),
                Some(libc::EINVAL) => "a blackhole route, or an invalid address".to_owned(),
                _ => error.to_string(),
            });
        }
    };
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Route::Local,
        kind => return Route::None(format!("the route is of type {kind:?}").to_lowercase()),
    }
    let mut ifindex = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            _ => {}
        }
    }
    match ifindex {
        Some(ifindex) => Route::Via { ifindex, gateway },
        None => Route::None("the route names no link".to_owned()),
    }
}

/// The prefix a route leads to; `None` where that isn't clear.
pub fn route_prefix(message: &RouteMessage) -> Option<(IpAddr, u8)> {
    let length = message.header.destination_prefix_length;
    let network = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })?;
    Some((network, length))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
