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
    if !member.next_hop().is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    if member.method == method::NAT {
        if !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
        if service.flags & service_flag::REPLY_FLOWS != 0 {
            reply::expect(frame.config, service, parsed, id)?;
        }
    }
    let link = l2::address(frame.ethernet, member)?;
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
