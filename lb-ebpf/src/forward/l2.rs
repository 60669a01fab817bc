//! Direct server return: the MAC addresses change, the IP packet stays as it
//! is, TTL included.

use lb_common::{
    abi::{LinkEntry, MemberEntry, link_flag},
    counter::DropReason,
};

use crate::{frame::Frame, maps, packet::MacWords};

/// The link that the member's next hop is reached by.
#[inline(always)]
pub fn link(member: &MemberEntry) -> Result<&'static LinkEntry, DropReason> {
    let next_hop = member.next_hop();
    if !next_hop.is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    maps::link(next_hop.link().into()).ok_or(DropReason::NoNeighbour)
}

/// Addresses the frame to the member's next hop.
#[inline(always)]
pub fn address(frame: &Frame<'_>, link: &LinkEntry, member: &MemberEntry) {
    frame
        .ethernet
        .set_destination(MacWords::of(member.next_hop()));
    // What stays on a bridge keeps its source: the bridge would learn its own
    // address behind a port.
    if link.flags & link_flag::BRIDGE == 0 {
        frame.ethernet.set_source(MacWords::new(link.mac));
    }
}
