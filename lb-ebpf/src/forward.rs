//! How a packet reaches the member that gets it: one file a forwarding method.

use lb_common::{
    abi::{MemberEntry, ServiceEntry, method, service_flag},
    counter::DropReason,
};

use crate::{frame::Frame, maps, parse::Parsed, reply, verdict::Verdict};

pub mod l2;
pub mod nat;

/// Rewrites a TCP or UDP packet (whole, or the first fragment) for member `id`
/// and sends it on its way. All refusals come before the first change of the
/// packet; those that its sender is to be told of are verdicts.
#[inline(always)]
pub fn to_member(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    id: u32,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    if !member.next_hop().is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    let link = maps::link(member.next_hop().link().into()).ok_or(DropReason::NoNeighbour)?;
    // Nobody but its sender can make it smaller, also where it may be
    // fragmented: this program can't, and under direct server return the kernel
    // has no route for it.
    if frame.is_too_big(parsed, link) {
        return Ok(Verdict::too_big(service.id, link.mtu as u16));
    }
    if member.method == method::NAT {
        if !nat::has_hop(&frame.packet, parsed) {
            return Ok(Verdict::drop(service.id, DropReason::TtlExceeded as u32));
        }
        if service.flags & service_flag::REPLY_FLOWS != 0 {
            reply::expect(frame.config, service, parsed, id)?;
        }
    }
    l2::address(frame.ethernet, member.next_hop(), link);
    if member.method == method::NAT {
        nat::hop(&frame.packet, parsed);
        nat::rewrite(
            &frame.packet,
            parsed,
            nat::End::Destination,
            member.address,
            member.port,
        )?;
    }
    Ok(Verdict::send(link.ifindex, frame.ingress.ifindex))
}
