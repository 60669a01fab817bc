//! Network interfaces as the kernel describes them.

use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
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
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value.clone()),
                LinkAttribute::Address(value) => {
                    link.mac = value.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Mtu(value) => link.mtu = *value,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        name.map(|name| Self { name, ..link })
    }
}
