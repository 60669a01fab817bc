//! How a packet reaches the member that gets it: one file a forwarding method.

use lb_common::{
    abi::{LinkEntry, MemberEntry, ServiceEntry, link_flag, method, service_flag},
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
    let link = reachable(frame, parsed, member)?;
    if member.method == method::NAT && service.flags & service_flag::REPLY_FLOWS != 0 {
        reply::expect(frame.config, service, parsed, id)?;
    }
    send(frame, parsed, link, member)
}

/// Whether packets are routed to the member, with addresses of its own.
#[inline(always)]
const fn is_nat(member: &MemberEntry) -> bool {
    matches!(member.method, method::NAT | method::FULL_NAT)
}

/// The link that a packet to the member goes out by; refuses what can't be sent.
#[inline(always)]
pub fn reachable(
    frame: &Frame<'_>,
    parsed: &Parsed,
    member: &MemberEntry,
) -> Result<&'static LinkEntry, DropReason> {
    let link = l2::link(member)?;
    let way = Way::of(frame, link);
    if is_nat(member) {
        if way == Way::Routed && !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
    } else if way == Way::Kernel {
        return Err(DropReason::NoNeighbour);
    }
    Ok(link)
}

/// Rewrites and sends a packet that can be sent.
#[inline(always)]
pub fn send(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let way = Way::of(frame, link);
    if way != Way::Kernel {
        l2::address(frame, link, member);
    }
    if is_nat(member) {
        if way == Way::Routed {
            nat::hop(&frame.packet, parsed);
        }
        nat::rewrite(
            &frame.packet,
            parsed,
            nat::End::Destination,
            member.address,
            member.port,
        )?;
    }
    Ok(match way {
        Way::Routed => Verdict::send(link.ifindex, frame.ingress.ifindex),
        Way::Bridged | Way::Kernel => Verdict::PASS,
    })
}

/// Who carries a rewritten packet on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// This program: it is sent out, one hop further.
    Routed,
    /// The bridge that it came in by, which is no hop.
    Bridged,
    /// The kernel's routing, which uses up the hop: into a bridge from outside.
    Kernel,
}

impl Way {
    /// Out by `link`.
    #[inline(always)]
    pub fn of(frame: &Frame<'_>, link: &LinkEntry) -> Self {
        if link.flags & link_flag::BRIDGE == 0 {
            Self::Routed
        } else if link.device == frame.ingress.device {
            Self::Bridged
        } else {
            Self::Kernel
        }
    }
}
