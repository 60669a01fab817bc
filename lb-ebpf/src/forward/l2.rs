//! Direct server return: the MAC addresses change, the IP packet stays as it
//! is, TTL included.

use lb_common::{
    abi::{LinkEntry, MemberEntry},
    counter::DropReason,
};

use crate::{
    maps,
    packet::{Ethernet, Header, MacWords},
};

/// Addresses the frame to the member's next hop; the link it goes out by.
#[inline(always)]
pub fn address(
    ethernet: Header<Ethernet>,
    member: &MemberEntry,
) -> Result<&'static LinkEntry, DropReason> {
    let next_hop = member.next_hop();
    if !next_hop.is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    let link = maps::link(next_hop.link().into()).ok_or(DropReason::NoNeighbour)?;
    ethernet.set_destination(MacWords::of(next_hop));
    ethernet.set_source(MacWords::new(link.mac));
    Ok(link)
}
