//! Frames: made, taken apart, verified, compared, sent and captured.
//!
//! Nothing here is shared with the balancer's own crates: what checks them
//! must not repeat their mistakes.

mod build;
mod capture;
mod checksum;
mod diff;
mod flood;
mod link;
mod neighbour;
mod pcap;
mod view;

use std::fmt;

pub use build::{Packet, icmp_error, tcp_flags};
pub use capture::{Capture, CapturedFrame, Direction};
pub use checksum::{internet_checksum, verify};
pub use diff::{assert_same_frame, diff};
pub use flood::{Flood, FloodKind, FloodOptions, Rng};
pub use link::{LinkSocket, send_raw};
pub use neighbour::{
    arp_reply, arp_request, neighbor_advertisement, neighbor_solicitation, solicited_node,
};
pub use pcap::write_pcap;
pub use view::{Fragment, View};

/// A MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// EtherTypes.
pub mod ethertype {
    /// IPv4
    pub const IPV4: u16 = 0x0800;
    /// ARP
    pub const ARP: u16 = 0x0806;
    /// 802.1Q tag
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad tag
    pub const QINQ: u16 = 0x88a8;
    /// IPv6
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP
    pub const ICMP: u8 = 1;
    /// IPv4 in IP
    pub const IPIP: u8 = 4;
    /// TCP
    pub const TCP: u8 = 6;
    /// UDP
    pub const UDP: u8 = 17;
    /// IPv6 in IP
    pub const IPV6: u8 = 41;
    /// IPv6 routing header
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options
    pub const DESTINATION: u8 = 60;
}
