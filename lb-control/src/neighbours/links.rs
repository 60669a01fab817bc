//! Network interfaces as the kernel describes them.

use lb_common::abi::Tags;
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol,
};
use serde::Serialize;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The kernel's name of it.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address; zero where it has none.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Set up by the administrator and with a carrier.
    pub up: bool,
    /// Kind of a virtual device as `ip -d link` shows it: "veth", "vlan".
    pub kind: Option<String>,
    /// Where it is a VLAN device.
    pub vlan: Option<Vlan>,
    /// Index of the interface that its packets come in and go out by: its own,
    /// or the one below a VLAN device.
    pub port: u32,
    /// The name of that interface; empty until it is known.
    pub port_name: String,
    /// VLAN tags of its packets there.
    pub tags: Tags,
}

/// A VLAN (8021q) device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vlan {
    /// Index of the device it is on, which may be another VLAN device.
    pub parent: u32,
    /// TPID in the upper half, VLAN id in the lower.
    pub tag: u32,
}

impl Link {
    /// From the kernel's message; `None` where it lacks the name, as the
    /// messages of a bridge about its ports do.
    pub fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut name = None;
        let mut link = Self {
            name: String::new(),
            ifindex: message.header.index,
            mac: [0; 6],
            mtu: 0,
            up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            kind: None,
            vlan: None,
            port: message.header.index,
            port_name: String::new(),
            tags: [0; 2],
        };
        let mut parent = None;
        let mut tag = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value.clone()),
                LinkAttribute::Address(value) => {
                    link.mac = value.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Mtu(value) => link.mtu = *value,
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    tag = infos.iter().find_map(|info| match info {
                        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(tag_of(vlan)),
                        _ => None,
                    });
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        // Other devices have a parent, too: a veth its peer.
        link.vlan = parent
            .zip(tag)
            .map(|(parent, tag)| Vlan { parent, tag });
        name.map(|name| Self { name, ..link })
    }
}

fn tag_of(attributes: &[InfoVlan]) -> u32 {
    let mut id = 0;
    let mut protocol = VlanProtocol::Ieee8021Q;
    for attribute in attributes {
        match attribute {
            InfoVlan::Id(value) => id = *value,
            InfoVlan::Protocol(value) => protocol = *value,
            _ => {}
        }
    }
    let tpid: u32 = match protocol {
        VlanProtocol::Ieee8021Ad => 0x88a8,
        _ => 0x8100,
    };
    tpid << 16 | u32::from(id & 0xfff)
}
