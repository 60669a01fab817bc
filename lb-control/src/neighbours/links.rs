//! Network interfaces as the kernel describes them.

use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoPortData, InfoVlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
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
    /// Index of the bridge or bond that it is a part of.
    pub master: Option<u32>,
    /// Which VLAN it is, of a VLAN device.
    pub vlan: Option<Vlan>,
    /// Whether frames pass: not where spanning tree blocks a bridge's port.
    pub forwards: bool,
}

/// Which VLAN a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vlan {
    /// Index of the device that has the frames with their tag.
    pub parent: u32,
    /// The tag's TPID: 0x8100 or 0x88a8.
    pub tpid: u16,
    /// VLAN id.
    pub id: u16,
}

impl Vlan {
    /// TPID in the upper half, VLAN id in the lower.
    pub fn tag(self) -> u32 {
        u32::from(self.tpid) << 16 | u32::from(self.id & 0xfff)
    }
}

impl Link {
    /// Whether it is a Linux bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// From the kernel's message; `None` where it lacks the name.
    pub fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut name = None;
        let mut parent = None;
        let mut link = Self {
            name: String::new(),
            ifindex: message.header.index,
            mac: [0; 6],
            mtu: 0,
            up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            kind: None,
            master: None,
            vlan: None,
            forwards: true,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value.clone()),
                LinkAttribute::Address(value) => {
                    link.mac = value.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Mtu(value) => link.mtu = *value,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.learn(info)),
                _ => {}
            }
        }
        // The parent of another kind of device, a veth's peer for instance,
        // means something else.
        link.vlan = link
            .vlan
            .zip(parent)
            .map(|(vlan, parent)| Vlan { parent, ..vlan });
        name.map(|name| Self { name, ..link })
    }

    fn learn(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vlan(data)) => {
                let mut vlan = Vlan {
                    parent: 0,
                    tpid: 0x8100,
                    id: 0,
                };
                for item in data {
                    match item {
                        InfoVlan::Id(id) => vlan.id = *id,
                        InfoVlan::Protocol(protocol) => vlan.tpid = u16::from(*protocol),
                        _ => {}
                    }
                }
                self.vlan = Some(vlan);
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                self.forwards = data.iter().all(|item| {
                    !matches!(item, InfoBridgePort::State(state) if *state != BridgePortState::Forwarding)
                });
            }
            _ => {}
        }
    }
}
