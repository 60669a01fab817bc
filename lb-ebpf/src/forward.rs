//! How a packet reaches the member that gets it: one file a forwarding method.

use lb_common::{
    abi::{MemberEntry, ServiceEntry, method, program, service_flag},
    counter::DropReason,
    tunnel::is_tunnel,
};

use crate::{frame::Frame, maps, parse::Parsed, reply, verdict::Verdict};

pub mod l2;
pub mod nat;
pub mod tunnel;

/// Rewrites a whole TCP or UDP packet for member `id` and sends it on its way,
/// or leaves that to the program that changes a packet's head. All refusals
/// of this program come before the first change of the packet.
#[inline(always)]
pub fn to_member(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    id: u32,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let next_hop = member.next_hop();
    if !next_hop.is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    let link = maps::link(next_hop.link().into()).ok_or(DropReason::NoNeighbour)?;
    if member.method == method::NAT {
        if !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
        if service.flags & service_flag::REPLY_FLOWS != 0 {
            reply::expect(frame.config, service, parsed, id)?;
        }
        nat::hop(&frame.packet, parsed);
        nat::rewrite(
            &frame.packet,
            parsed,
            nat::End::Destination,
            member.address,
            member.port,
        )?;
    }
    l2::address(frame.ethernet, next_hop, link);
    let verdict = if is_tunnel(member.method) || !frame.has_tags_of(link) {
        Verdict::hand_over(program::HEAD)
    } else {
        Verdict::send(link.ifindex, frame.ingress.ifindex)
    };
    Ok(verdict.blur(frame.config.hash_key[0]))
}
