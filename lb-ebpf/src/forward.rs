//! How a packet reaches the member that gets it: one file a forwarding method.

use lb_common::{
    abi::{LinkEntry, MemberEntry, ServiceEntry, link_flag, method, program, service_flag},
    counter::DropReason,
    tunnel::is_tunnel,
};

use crate::{frame::Frame, parse::Parsed, reply, verdict::Verdict};

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
    let link = l2::link(member)?;
    let way = Way::of(frame, link);
    let is_nat = member.method == method::NAT;
    let is_tunnel = is_tunnel(member.method);
    if is_nat {
        if way == Way::Routed && !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
        if service.flags & service_flag::REPLY_FLOWS != 0 {
            reply::expect(frame.config, service, parsed, id)?;
        }
    } else if way == Way::Kernel || (is_tunnel && way == Way::Bridged) {
        return Err(DropReason::NoNeighbour);
    }
    if way != Way::Kernel {
        l2::address(frame, link, member);
    }
    if is_nat {
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
    let verdict = match way {
        Way::Bridged | Way::Kernel => Verdict::PASS,
        Way::Routed if is_tunnel || !frame.has_tags_of(link) => {
            Verdict::hand_over(program::HEAD)
        }
        Way::Routed => Verdict::send(link.ifindex, frame.ingress.ifindex),
    };
    Ok(verdict.blur(frame.config.hash_key[0]))
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
