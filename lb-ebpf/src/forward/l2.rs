//! Direct server return: the MAC addresses change, the IP packet stays as it
//! is, TTL included.

use lb_common::{abi::LinkEntry, net::NextHop};

use crate::packet::{Ethernet, Header, MacWords};

/// Addresses the frame to the next hop on `link`.
#[inline(always)]
pub fn address(ethernet: Header<Ethernet>, next_hop: NextHop, link: &LinkEntry) {
    ethernet.set_destination(MacWords::of(next_hop));
    ethernet.set_source(MacWords::new(link.mac));
}
