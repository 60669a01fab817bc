//! From the kernel's links to the devices that the data path knows: what an
//! interface with a VLAN, a bond or a bridge on it looks like to a program that
//! sees frames before any of them.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::Link;

/// VLAN tags of a frame, the outer one first: TPID in the upper half, VLAN id
/// in the lower 12 bits; zero where there is none.
pub type Tags = [u32; 2];

/// A VLAN on a VLAN on a bond that is a bridge's port: nothing sound is deeper.
const MAX_DEPTH: u32 = 4;

/// A device with addresses of its own, and how its frames come in and go out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// The kernel's name of it.
    pub name: String,
    /// Its index, as routes name it.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It is a Linux bridge: what is sent is left to it.
    pub is_bridge: bool,
    /// Spanning tree keeps one of its ports from forwarding.
    pub is_blocked: bool,
    /// Interface that its frames are sent by.
    pub egress: u32,
    /// Tags that its frames have.
    pub tags: Tags,
    /// How its frames come in.
    pub ways: Vec<Way>,
}

/// How frames of a device come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Way {
    /// Interface, as a program attached to it sees it.
    pub ifindex: u32,
    /// Tags they have.
    pub tags: Tags,
    /// Interface by which an answer goes back.
    pub egress: u32,
}

/// The devices behind the managed interfaces, by name: the interfaces
/// themselves, VLANs on them, and the bridge that they are ports of.
pub fn devices(links: &HashMap<u32, Link>, managed: &BTreeSet<String>) -> Vec<Device> {
    let found = Finder { links, managed };
    let mut devices: Vec<Device> = links
        .values()
        .filter(|link| found.is_device(link))
        .map(|link| found.device(link))
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

struct Finder<'a> {
    links: &'a HashMap<u32, Link>,
    managed: &'a BTreeSet<String>,
}

impl Finder<'_> {
    /// Whether its frames pass the data path, and it isn't merely a part of
    /// another device.
    fn is_device(&self, link: &Link) -> bool {
        self.is_covered(link, MAX_DEPTH) && self.bridge_of(link).is_none()
    }

    fn is_covered(&self, link: &Link, depth: u32) -> bool {
        if depth == 0 {
            return false;
        }
        let is_vlan_of_covered = || {
            let parent = link.vlan.and_then(|vlan| self.links.get(&vlan.parent));
            parent.is_some_and(|parent| self.is_covered(parent, depth - 1))
        };
        let is_bridge_of_covered = || {
            link.is_bridge()
                && self
                    .ports(link)
                    .any(|port| self.is_covered(port, depth - 1))
        };
        self.managed.contains(&link.name) || is_vlan_of_covered() || is_bridge_of_covered()
    }

    fn device(&self, link: &Link) -> Device {
        let is_blocked = link.is_bridge()
            && self
                .ports(link)
                .any(|port| self.is_covered(port, MAX_DEPTH) && !port.forwards);
        let (egress, tags) = self.egress(link, MAX_DEPTH);
        Device {
            name: link.name.clone(),
            ifindex: link.ifindex,
            mac: link.mac,
            mtu: link.mtu,
            is_bridge: link.is_bridge(),
            is_blocked,
            egress,
            tags,
            ways: self.ways(link, MAX_DEPTH),
        }
    }

    /// The interface underneath, and the tags it takes to get there.
    fn egress(&self, link: &Link, depth: u32) -> (u32, Tags) {
        let parent = link
            .vlan
            .and_then(|vlan| Some((vlan, self.links.get(&vlan.parent)?)));
        match parent {
            Some((vlan, parent)) if depth > 0 => {
                let (egress, tags) = self.egress(parent, depth - 1);
                (egress, within(tags, vlan.tag()).unwrap_or(tags))
            }
            _ => (link.ifindex, [0; 2]),
        }
    }

    fn ways(&self, link: &Link, depth: u32) -> Vec<Way> {
        if depth == 0 {
            return Vec::new();
        }
        if let Some(vlan) = link.vlan {
            let parent = self.links.get(&vlan.parent);
            return parent
                .into_iter()
                .flat_map(|parent| self.ways(parent, depth - 1))
                .filter_map(|way| {
                    let tags = within(way.tags, vlan.tag())?;
                    Some(Way { tags, ..way })
                })
                .collect();
        }
        let mut ways = Vec::new();
        if link.is_bridge() {
            let mut ports: Vec<_> = self.ports(link).collect();
            ports.sort_by_key(|port| port.ifindex);
            for port in ports {
                if self.is_covered(port, depth - 1) {
                    ways.extend(self.ways(port, depth - 1));
                }
            }
            return ways;
        }
        let way = |ifindex| Way {
            ifindex,
            tags: [0; 2],
            egress: link.ifindex,
        };
        ways.push(way(link.ifindex));
        // On a bond the program runs for the slave that the frame came in by.
        if link.kind.as_deref() == Some("bond") {
            let mut slaves: Vec<_> = self.ports(link).map(|slave| slave.ifindex).collect();
            slaves.sort_unstable();
            ways.extend(slaves.into_iter().map(way));
        }
        ways
    }

    fn ports(&self, master: &Link) -> impl Iterator<Item = &Link> {
        let master = master.ifindex;
        self.links
            .values()
            .filter(move |link| link.master == Some(master))
    }

    fn bridge_of(&self, link: &Link) -> Option<&Link> {
        let master = self.links.get(&link.master?)?;
        master.is_bridge().then_some(master)
    }
}

/// The tags of a VLAN whose frames have `tag` behind `outer`; two at the most.
fn within(outer: Tags, tag: u32) -> Option<Tags> {
    match outer {
        [0, 0] => Some([tag, 0]),
        [first, 0] => Some([first, tag]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::links::Vlan;

    const VLAN_10: u32 = 0x8100 << 16 | 10;
    const VLAN_20: u32 = 0x8100 << 16 | 20;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            name: name.to_owned(),
            ifindex,
            mac: [2, 0, 0, 0, 0, ifindex as u8],
            mtu: 1500,
            up: true,
            kind: None,
            master: None,
            vlan: None,
            forwards: true,
        }
    }

    fn kind(ifindex: u32, name: &str, kind: &str) -> Link {
        Link {
            kind: Some(kind.to_owned()),
            ..link(ifindex, name)
        }
    }

    fn port(ifindex: u32, name: &str, master: u32) -> Link {
        Link {
            master: Some(master),
            ..link(ifindex, name)
        }
    }

    fn vlan(ifindex: u32, name: &str, parent: u32, id: u16) -> Link {
        Link {
            vlan: Some(Vlan {
                parent,
                tpid: 0x8100,
                id,
            }),
            ..kind(ifindex, name, "vlan")
        }
    }

    fn found(links: &[Link], managed: &[&str]) -> Vec<Device> {
        let links = links.iter().map(|l| (l.ifindex, l.clone())).collect();
        devices(&links, &managed.iter().map(|&m| m.to_owned()).collect())
    }

    fn ways(device: &Device) -> Vec<(u32, Tags, u32)> {
        let flat = |way: &Way| (way.ifindex, way.tags, way.egress);
        device.ways.iter().map(flat).collect()
    }

    #[test]
    fn an_interface_is_a_device_and_others_are_not() {
        let devices = found(&[link(2, "eth0"), link(3, "eth1")], &["eth0"]);
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].ifindex, devices[0].egress), (2, 2));
        assert_eq!(ways(&devices[0]), [(2, [0, 0], 2)]);
    }

    #[test]
    fn vlans_of_an_interface_are_devices_that_come_in_by_it() {
        let links = [
            link(2, "eth0"),
            vlan(5, "eth0.10", 2, 10),
            vlan(6, "eth0.10.20", 5, 20),
            vlan(7, "eth1.10", 3, 10),
        ];
        let devices = found(&links, &["eth0"]);
        let names: Vec<_> = devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth0.10", "eth0.10.20"]);
        assert_eq!(ways(&devices[1]), [(2, [VLAN_10, 0], 2)]);
        assert_eq!(ways(&devices[2]), [(2, [VLAN_10, VLAN_20], 2)]);
        assert_eq!(
            (devices[2].egress, devices[2].tags),
            (2, [VLAN_10, VLAN_20])
        );
    }

    #[test]
    fn a_vlan_that_is_named_itself_leaves_the_interface_alone() {
        let devices = found(&[link(2, "eth0"), vlan(5, "eth0.10", 2, 10)], &["eth0.10"]);
        assert_eq!(devices.len(), 1);
        assert_eq!(ways(&devices[0]), [(2, [VLAN_10, 0], 2)]);
    }

    #[test]
    fn frames_of_a_bond_come_in_by_its_slaves_and_go_out_by_it() {
        let links = [
            kind(4, "bond0", "bond"),
            port(2, "eth0", 4),
            port(3, "eth1", 4),
            vlan(5, "bond0.10", 4, 10),
        ];
        let devices = found(&links, &["bond0"]);
        assert_eq!(
            ways(&devices[0]),
            [(4, [0, 0], 4), (2, [0, 0], 4), (3, [0, 0], 4)]
        );
        let tags = [VLAN_10, 0];
        assert_eq!(
            ways(&devices[1]),
            [(4, tags, 4), (2, tags, 4), (3, tags, 4)]
        );
    }

    #[test]
    fn the_device_of_a_bridges_ports_is_the_bridge() {
        let links = [
            kind(4, "br0", "bridge"),
            port(2, "eth0", 4),
            port(3, "eth1", 4),
            port(8, "eth2", 4),
        ];
        let devices = found(&links, &["eth0", "eth1"]);
        assert_eq!(devices.len(), 1);
        let bridge = &devices[0];
        assert_eq!((bridge.name.as_str(), bridge.is_bridge), ("br0", true));
        assert_eq!(bridge.mac, [2, 0, 0, 0, 0, 4]);
        assert_eq!(ways(bridge), [(2, [0, 0], 2), (3, [0, 0], 3)]);
        assert!(!bridge.is_blocked);
    }

    #[test]
    fn a_port_that_spanning_tree_blocks_blocks_the_bridge() {
        let blocked = Link {
            forwards: false,
            ..port(3, "eth1", 4)
        };
        let links = [kind(4, "br0", "bridge"), port(2, "eth0", 4), blocked];
        assert!(found(&links, &["eth0", "eth1"])[0].is_blocked);
        // A port that isn't ours says nothing about ours.
        assert!(!found(&links, &["eth0"])[0].is_blocked);
    }

    #[test]
    fn a_bridge_of_vlans_on_one_interface() {
        let vlan_port = |ifindex, name, id| Link {
            master: Some(4),
            ..vlan(ifindex, name, 2, id)
        };
        let links = [
            kind(4, "br0", "bridge"),
            link(2, "eth0"),
            vlan_port(5, "eth0.10", 10),
            vlan_port(6, "eth0.20", 20),
        ];
        let devices = found(&links, &["eth0.10", "eth0.20"]);
        assert_eq!(devices.len(), 1);
        assert_eq!(
            ways(&devices[0]),
            [(2, [VLAN_10, 0], 2), (2, [VLAN_20, 0], 2)]
        );
    }

    #[test]
    fn a_loop_of_links_ends() {
        let a = Link {
            vlan: Some(Vlan {
                parent: 3,
                tpid: 0x8100,
                id: 1,
            }),
            ..link(2, "a")
        };
        assert_eq!(found(&[a, vlan(3, "b", 2, 2)], &["a"]).len(), 2);
    }
}
