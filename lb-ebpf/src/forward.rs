//! How a packet reaches the member that gets it: one file a forwarding method.

use lb_common::{
    abi::{MemberEntry, ServiceEntry, method, service_flag},
    counter::DropReason,
};

use crate::{frame::Frame, parse::Parsed, reply, verdict::Verdict};

pub mod l2;
pub mod nat;

/// Rewrites a whole TCP or UDP packet for member `id` and sends it on its way.
/// All refusals come before the first change of the packet.
#[inline(always)]
pub fn to_member(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    id: u32,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    reachable(frame, parsed, member)?;
    if member.method == method::NAT && service.flags & service_flag::REPLY_FLOWS != 0 {
        reply::expect(frame.config, service, parsed, id)?;
    }
    send(frame, parsed, member)
}

/// Whether packets are routed to the member, with addresses of its own.
#[inline(always)]
const fn is_routed(member: &MemberEntry) -> bool {
    matches!(member.method, method::NAT | method::FULL_NAT)
}

/// Refuses what can't be sent to the member.
#[inline(always)]
pub fn reachable(
    frame: &Frame<'_>,
    parsed: &Parsed,
    member: &MemberEntry,
) -> Result<(), DropReason> {
    if !member.next_hop().is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    if is_routed(member) && !nat::has_hop(&frame.packet, parsed) {
        return Err(DropReason::TtlExceeded);
    }
    Ok(())
}

/// Rewrites and sends a packet that can be sent.
#[inline(always)]
pub fn send(
    frame: &Frame<'_>,
    parsed: &Parsed,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let link = l2::address(frame.ethernet, member)?;
    if is_routed(member) {
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
