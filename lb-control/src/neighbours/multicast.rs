//! Membership of the VIPs' solicited-node groups (RFC 4291 §2.7.1).
//!
//! The data path answers neighbour solicitations for IPv6 VIPs, but the VIPs
//! aren't the kernel's addresses: nobody would tell the NIC's filter, and MLD
//! snooping switches, that their groups are wanted.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv6Addr},
};

use socket2::{Domain, Socket, Type};

/// A group that could not be joined.
#[derive(Debug, thiserror::Error)]
#[error("joining {group} on interface {ifindex}: {source}")]
pub struct JoinError {
    /// The group.
    pub group: Ipv6Addr,
    /// The interface.
    pub ifindex: u32,
    /// The kernel's answer.
    pub source: io::Error,
}

/// A group on an interface.
type Membership = (Ipv6Addr, u32);

/// Groups joined on interfaces, held for as long as this lives.
#[derive(Debug, Default)]
pub struct SolicitedNodes {
    /// A socket's memberships are limited by `net.core.optmem_max`.
    sockets: Vec<Socket>,
    /// Index of the socket that holds it.
    joined: HashMap<Membership, usize>,
}

impl SolicitedNodes {
    /// Joins the groups of these VIPs (IPv4 ones are skipped) on these
    /// interfaces, and leaves those that are no longer wanted. What could not
    /// be joined is returned, and tried again by the next call. In the network
    /// namespace of the thread that calls first.
    pub fn set(&mut self, vips: &[IpAddr], ifindexes: &[u32]) -> Vec<JoinError> {
        let wanted = memberships(vips, ifindexes);
        let sockets = &self.sockets;
        self.joined.retain(|(group, ifindex), socket| {
            let keep = wanted.contains(&(*group, *ifindex));
            if !keep && let Some(socket) = sockets.get(*socket) {
                // Fails where the interface is gone, and the membership with it.
                let _ = socket.leave_multicast_v6(group, *ifindex);
            }
            keep
        });
        let mut failed = Vec::new();
        for (group, ifindex) in wanted {
            if self.joined.contains_key(&(group, ifindex)) {
                continue;
            }
            match self.join(&group, ifindex) {
                Ok(socket) => {
                    self.joined.insert((group, ifindex), socket);
                }
                Err(source) => failed.push(JoinError {
                    group,
                    ifindex,
                    source,
                }),
            }
        }
        failed
    }

    /// Joins on the newest socket, or another one when that is full. Returns
    /// the socket's index.
    fn join(&mut self, group: &Ipv6Addr, ifindex: u32) -> io::Result<usize> {
        if let Some(socket) = self.sockets.last() {
            match socket.join_multicast_v6(group, ifindex) {
                Err(error) if is_full(&error) => {}
                result => return result.map(|()| self.sockets.len() - 1),
            }
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), None)?;
        socket.join_multicast_v6(group, ifindex)?;
        self.sockets.push(socket);
        Ok(self.sockets.len() - 1)
    }
}

fn is_full(error: &io::Error) -> bool {
    [libc::ENOBUFS, libc::ENOMEM]
        .map(Some)
        .contains(&error.raw_os_error())
}

fn memberships(vips: &[IpAddr], ifindexes: &[u32]) -> HashSet<Membership> {
    vips.iter()
        .filter_map(|vip| match vip {
            IpAddr::V4(_) => None,
            IpAddr::V6(vip) => Some(solicited_node(*vip)),
        })
        .flat_map(|group| ifindexes.iter().map(move |ifindex| (group, *ifindex)))
        .collect()
}

/// `ff02::1:ff00:0/104` and the last 24 bits of the address.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | (address.to_bits() & 0x00ff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_ends_in_the_last_24_bits_of_the_address() {
        // The example of RFC 4291 §2.7.1.
        let address: Ipv6Addr = "4037::01:800:200e:8c6c".parse().unwrap();
        let group: Ipv6Addr = "ff02::1:ff0e:8c6c".parse().unwrap();
        assert_eq!(solicited_node(address), group);
    }

    #[test]
    fn vips_that_share_a_group_join_it_once() {
        let vips = ["2001:db8:1::1", "2001:db8:2::1", "192.0.2.1"].map(|vip| vip.parse().unwrap());
        assert_eq!(memberships(&vips, &[2, 3]).len(), 2);
    }

    #[test]
    fn groups_are_joined_and_left_on_the_loopback() {
        let joined = |group: &str| {
            std::fs::read_to_string("/proc/thread-self/net/igmp6")
                .unwrap()
                .lines()
                .any(|line| line.starts_with("1 ") && line.contains(group))
        };
        let group = "ff0200000000000000000001ff7d3a91";
        let mut groups = SolicitedNodes::default();
        let failed = groups.set(&["2001:db8::7d:3a91".parse().unwrap()], &[1]);
        assert!(failed.is_empty(), "{failed:?}");
        assert!(joined(group));
        groups.set(&[], &[1]);
        assert!(!joined(group));
    }

    #[test]
    fn more_groups_than_a_socket_holds_are_joined_all_the_same() {
        let vips: Vec<IpAddr> = (1..=4000_u128)
            .map(|n| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n << 4)))
            .collect();
        let mut groups = SolicitedNodes::default();
        let failed = groups.set(&vips, &[1]);
        assert!(failed.is_empty(), "{:?}", failed.first());
        assert_eq!(groups.joined.len(), vips.len());
        assert!(groups.sockets.len() > 1);
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error_that_names_it() {
        let mut groups = SolicitedNodes::default();
        let failed = groups.set(&["2001:db8::1".parse().unwrap()], &[999_999]);
        let text = failed.first().unwrap().to_string();
        assert!(
            text.starts_with("joining ff02::1:ff00:1 on interface 999999"),
            "{text}"
        );
    }
}
