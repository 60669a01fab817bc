//! The small device by which probes of health checks leave for VIPs, and their
//! answers come back: a veth pair without ARP. [`OUTER`] is where this host sends
//! and receives; the data path has a program at [`INNER`], its other end.
//!
//! The kernel would ask the segment for the VIP, which is this balancer's own. So
//! packets with a mark are led to the device by one rule for each family, one
//! table and its default route. Rules carry this program's protocol number, which
//! is how they are known again; the routes go with the device.

use std::{fs, io, net::IpAddr, path::Path};

use lb_common::net::Mac;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    netlink::{ACKNOWLEDGED, Answer, Requests},
    offload,
};
use crate::model::ProbePath;

/// This host's end.
pub const OUTER: &str = "lbprobe0";
/// The data path's end.
pub const INNER: &str = "lbprobe1";

/// Of [`OUTER`]: what the device is known by.
const ALIAS: &str = "lbctl: probes of health checks";

/// Locally administered.
const OUTER_MAC: Mac = [0x02, b'l', b'b', b'p', b'r', 0];
const INNER_MAC: Mac = [0x02, b'l', b'b', b'p', b'r', 1];

/// Of routes and rules (rtnetlink(7)): nobody else's known one.
const PROTOCOL: u8 = 108;

/// Before those of most others; after the one for local addresses.
const RULE_PRIORITY: u32 = 100;

const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;

/// The device, as the data path needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeDevice {
    /// Index of [`INNER`].
    pub inner: u32,
    /// MAC address of [`OUTER`].
    pub mac: Mac,
    /// MTU of both in bytes.
    pub mtu: u32,
}

/// Makes the device, anew if there is one, with rules and routes. Packets have at
/// most `mtu` bytes.
///
/// # Errors
/// The kernel refuses something; in words. Nothing is left behind then.
pub fn make(path: &ProbePath, mtu: u32) -> Result<ProbeDevice, String> {
    remove().map_err(|error| format!("removing the former {OUTER}: {error}"))?;
    try_make(path, mtu).inspect_err(|_| {
        let _ = remove();
    })
}

fn try_make(path: &ProbePath, mtu: u32) -> Result<ProbeDevice, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    let mut requests = Requests::open().map_err(failed("netlink"))?;
    let new = |message| (message, ACKNOWLEDGED | NLM_F_CREATE_EXCL);
    one(&mut requests, new(RouteNetlinkMessage::NewLink(pair(mtu))))
        .map_err(failed(&format!("making {OUTER} and {INNER}")))?;
    set_up(&mut requests).map_err(failed(&format!("setting up {OUTER}")))?;
    let outer = index_of(&mut requests, OUTER).map_err(failed(OUTER))?;
    let inner = index_of(&mut requests, INNER).map_err(failed(INNER))?;
    let (Some((outer, _)), Some((inner, _))) = (outer, inner) else {
        return Err(format!("{OUTER} is gone again"));
    };
    let address = RouteNetlinkMessage::NewAddress(dummy_address(outer));
    one(&mut requests, new(address)).map_err(failed("adding the address of probes' device"))?;
    for family in families() {
        let route = RouteNetlinkMessage::NewRoute(route(family, path.table, outer));
        one(&mut requests, new(route)).map_err(failed("adding the default route of probes"))?;
        let rule = RouteNetlinkMessage::NewRule(rule(family, path));
        one(&mut requests, new(rule)).map_err(failed("adding the rule of probes"))?;
    }
    Ok(ProbeDevice {
        inner,
        mac: OUTER_MAC,
        mtu,
    })
}

/// Removes device, rules and routes; whether there was anything.
///
/// # Errors
/// The kernel refuses, or a device of this name is somebody else's.
pub fn remove() -> io::Result<bool> {
    let mut requests = Requests::open()?;
    let mut found = false;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut rules = Vec::new();
        let mut request = RuleMessage::default();
        request.header.family = family;
        requests.dump(RouteNetlinkMessage::GetRule(request), |message| {
            if let RouteNetlinkMessage::NewRule(rule) = message
                && is_ours(&rule)
            {
                rules.push(rule);
            }
        })?;
        for rule in rules {
            found = true;
            one(
                &mut requests,
                (RouteNetlinkMessage::DelRule(rule), ACKNOWLEDGED),
            )?;
        }
    }
    if let Some((index, alias)) = index_of(&mut requests, OUTER)? {
        if alias.as_deref() != Some(ALIAS) {
            return Err(io::Error::other(format!(
                "{OUTER} is somebody else's; rename that device"
            )));
        }
        let mut link = LinkMessage::default();
        link.header.index = index;
        one(
            &mut requests,
            (RouteNetlinkMessage::DelLink(link), ACKNOWLEDGED),
        )?;
        found = true;
    }
    Ok(found)
}

fn is_ours(rule: &RuleMessage) -> bool {
    let protocol = RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL));
    rule.attributes.contains(&protocol)
}

/// Both families, or the one that this kernel has.
fn families() -> impl Iterator<Item = AddressFamily> {
    let v6 = Path::new("/proc/sys/net/ipv6/conf")
        .join(OUTER)
        .exists()
        .then_some(AddressFamily::Inet6);
    std::iter::once(AddressFamily::Inet).chain(v6)
}

fn one(requests: &mut Requests, request: (RouteNetlinkMessage, u16)) -> io::Result<()> {
    let answers: Vec<Answer> = requests.batch(vec![request])?;
    match answers.into_iter().next() {
        Some(answer) => answer.map(drop),
        None => Err(io::Error::other("the kernel did not answer")),
    }
}

/// Index and alias of an interface.
fn index_of(requests: &mut Requests, name: &str) -> io::Result<Option<(u32, Option<String>)>> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let answers = requests.batch(vec![(RouteNetlinkMessage::GetLink(message), 0)])?;
    match answers.into_iter().next() {
        Some(Ok(Some(RouteNetlinkMessage::NewLink(link)))) => {
            let alias = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfAlias(alias) => Some(alias.clone()),
                    _ => None,
                });
            Ok(Some((link.header.index, alias)))
        }
        Some(Err(error)) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Some(Err(error)) => Err(error),
        _ => Err(io::Error::other("the kernel's answer makes no sense")),
    }
}

fn end(name: &str, mac: Mac, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
    ];
    message
}

fn pair(mtu: u32) -> LinkMessage {
    let mut message = end(OUTER, OUTER_MAC, mtu);
    let peer = InfoVeth::Peer(end(INNER, INNER_MAC, mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(peer)),
    ]));
    message
}

/// Settings before the device is up.
fn set_up(requests: &mut Requests) -> io::Result<()> {
    let settings = [
        // The way back to the VIP is not by this device: whether there is one at
        // all is all that can be asked here. It counts for this device alone.
        (format!("net/ipv4/conf/{OUTER}/rp_filter"), "2"),
        // Nobody speaks here but probes: no address of its own, no discovery.
        (format!("net/ipv6/conf/{OUTER}/addr_gen_mode"), "1"),
        (format!("net/ipv6/conf/{OUTER}/accept_ra"), "0"),
        (format!("net/ipv6/conf/{INNER}/disable_ipv6"), "1"),
    ];
    for (key, value) in settings {
        match fs::write(Path::new("/proc/sys").join(&key), value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && key.contains("ipv6") => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{key}: {error}"))),
            Ok(()) => {}
        }
    }
    // The data path translates whole checksums.
    offload::call(OUTER, offload::SET_TX_CHECKSUM, 0)?;
    // What another interface's program sends here is taken in by NAPI, which a
    // veth has while it puts packets together (Linux 5.13).
    offload::call(OUTER, offload::SET_GRO, 1)?;
    for (name, flags) in [
        (OUTER, LinkFlags::Up | LinkFlags::Noarp),
        (INNER, LinkFlags::Up),
    ] {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        if name == OUTER {
            let alias = LinkAttribute::IfAlias(ALIAS.to_owned());
            message.attributes.push(alias);
        }
        message.header.flags = flags;
        message.header.change_mask = flags;
        one(
            requests,
            (RouteNetlinkMessage::SetLink(message), ACKNOWLEDGED),
        )?;
    }
    Ok(())
}

/// Without any address Linux asks for the way back as strictly as if that were by
/// the device itself. This one is nobody's (RFC 7600 §6), and of this host alone.
fn dummy_address(device: u32) -> AddressMessage {
    let address = IpAddr::from([192, 0, 0, 8]);
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Host;
    message.header.index = device;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    message
}

fn route(family: AddressFamily, table: u32, device: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match family {
        AddressFamily::Inet => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(device)];
    message
}

fn rule(family: AddressFamily, path: &ProbePath) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(path.mark),
        RuleAttribute::FwMask(path.mask),
        RuleAttribute::Table(path.table),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}
