//! Virtual routers that this node is one of.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;

use super::{Notify, Track};

/// A virtual router: one VRID on one interface. Its addresses of IPv4 and those of
/// IPv6 are decided on independently (RFC 9568 §1.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vrrp {
    /// Number of the virtual router, 1 to 255.
    pub vrid: u8,
    /// The interface that it is on.
    pub interface: String,
    /// 1 to 254, or 255 for who has the addresses itself.
    pub priority: u8,
    /// Between two advertisements.
    pub interval: Duration,
    /// 2 or 3.
    pub version: u8,
    /// Takes over from an active one of lower priority.
    pub preempt: bool,
    /// But not before so long after it was able to.
    pub preempt_delay: Duration,
    /// After its start it doesn't claim for so long.
    pub startup_delay: Duration,
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// The checksum of version 3 over IPv4 covers a pseudo-header (RFC 5798), too.
    pub pseudo_header: bool,
    /// Who is told; empty: the group.
    pub peers: Vec<IpAddr>,
    /// What it watches beside its peers.
    pub track: Track,
    /// Who is told of its state.
    pub notify: Option<Notify>,
    /// The addresses have the virtual router's own MAC address, and not that of the
    /// interface (RFC 9568 §7.3).
    pub virtual_mac: bool,
    /// Those of one name are active, backups or failed together.
    pub sync_group: Option<String>,
}

/// Which owner words there are, by VRID and family. 0 is everybody's.
pub const fn owner_word(vrid: u8, is_v4: bool) -> u16 {
    if is_v4 {
        vrid as u16
    } else {
        256 + vrid as u16
    }
}
