//! How a packet reaches the member that gets it: one file a forwarding method.

use lb_common::{
    abi::{LinkEntry, MemberEntry, ServiceEntry, link_flag, method, program, service_flag},
    counter::{DropReason, Event},
    hash::bucket_bits,
    tunnel::is_tunnel,
};

use crate::{
    fragment::{self, Followed},
    frame::Frame,
    lookup,
    parse::{Parsed, What},
    sample, stats,
    verdict::Verdict,
};

pub mod l2;
pub mod nat;
pub mod tunnel;

/// Sends a TCP or UDP packet (whole, or the first fragment) to member `id`, which
/// was selected for it. All refusals come before the first change of the packet.
/// `PARTS`: it may be a first fragment.
#[inline(always)]
pub fn to_member<const PARTS: bool>(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    flow_hash: u64,
    id: u32,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    if member.method == method::NAT && lookup::has_flag(service, service_flag::REPLY_FLOWS) {
        return Ok(frame.pass_on(parsed, id, flow_hash, program::EXPECT));
    }
    deliver::<PARTS>(frame, parsed, service, flow_hash, id, member)
}

/// As [`to_member`], when the reply is sure to be recognised.
#[inline(always)]
pub fn deliver<const PARTS: bool>(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    flow_hash: u64,
    id: u32,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let link = l2::link(member)?;
    if changes_head(frame, link, member) {
        return Ok(frame.pass_on(parsed, id, flow_hash, program::HEAD));
    }
    check(frame, parsed, link, member)?;
    let verdict = send(frame, parsed, link, member)?;
    if PARTS {
        note(frame, parsed, service, flow_hash, id, 0);
    } else {
        note_whole(frame, parsed, service, flow_hash, id);
    }
    Ok(verdict)
}

/// Counts a packet that goes to member `id`, with full NAT's `binding` or none,
/// and has its later fragments follow.
#[inline(always)]
pub fn note(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    flow_hash: u64,
    id: u32,
    binding: u32,
) {
    note_whole(frame, parsed, service, flow_hash, id);
    if parsed.is_first_fragment() {
        let hash = bucket_bits(flow_hash);
        fragment::remember(frame, parsed, &Followed::request(id, hash, binding));
    }
}

#[inline(always)]
fn note_whole(frame: &Frame<'_>, parsed: &Parsed, service: &ServiceEntry, flow_hash: u64, id: u32) {
    let connections = sample::note(frame.config, service, parsed, flow_hash, id);
    stats::forwarded(id, parsed.frame_bytes().into(), connections);
}

/// Sends what has no ports of its own, a later fragment or an ICMP error, to
/// member `id` by `link`, which [`reachable`] gave: addresses alone change.
#[inline(always)]
pub fn carry_on(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    (id, member): (u32, &MemberEntry),
    flow_hash: u64,
) -> Result<Verdict, DropReason> {
    if changes_head(frame, link, member) {
        return Ok(frame.pass_on(parsed, id, flow_hash, program::HEAD));
    }
    readdress(frame, parsed, link, member)?;
    count(parsed, id, member);
    Ok(out(frame, link, member))
}

/// Counts what has no ports of its own and goes to member `id`.
#[inline(always)]
pub fn count(parsed: &Parsed, id: u32, member: &MemberEntry) {
    if parsed.what() == What::Icmp {
        stats::event(member.service, Event::IcmpForwarded);
    } else {
        stats::forwarded(id, parsed.frame_bytes().into(), 0);
    }
}

/// Whether a packet that is sent by `link` needs a head of another length:
/// outer headers, or other VLAN tags. What is left to the kernel or a bridge
/// gets its tags there.
#[inline(always)]
pub fn changes_head(frame: &Frame<'_>, link: &LinkEntry, member: &MemberEntry) -> bool {
    is_tunnel(member.method) || !frame.has_tags_of(link)
}

/// Whether packets are routed to the member, with addresses of its own.
#[inline(always)]
pub const fn is_nat(member: &MemberEntry) -> bool {
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
    check(frame, parsed, link, member)?;
    Ok(link)
}

#[inline(always)]
fn check(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    member: &MemberEntry,
) -> Result<(), DropReason> {
    let way = Way::of(frame, link);
    if is_nat(member) {
        if way == Way::Routed && !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
    } else if way == Way::Kernel {
        return Err(DropReason::NoNeighbour);
    }
    // Nobody but its sender can make it smaller, also where it may be
    // fragmented: this program can't, and under direct server return the kernel
    // has no route for it. What a tunnel carries is looked at there.
    if !is_tunnel(member.method) {
        frame.fits(parsed, link)?;
    }
    Ok(())
}

/// Translates a packet that can be sent by `link`, where the method does.
#[inline(always)]
pub fn rewrite(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    member: &MemberEntry,
) -> Result<(), DropReason> {
    if is_nat(member) {
        use_hop(frame, parsed, link);
        nat::rewrite(
            &frame.packet,
            parsed,
            nat::End::Destination,
            member.address,
            member.port,
        )?;
    }
    Ok(())
}

/// As [`rewrite`], for what has no ports of its own.
#[inline(always)]
pub fn readdress(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    member: &MemberEntry,
) -> Result<(), DropReason> {
    if is_nat(member) {
        use_hop(frame, parsed, link);
        let end = nat::End::Destination;
        nat::rewrite_address(&frame.packet, parsed, end, member.address)?;
    }
    Ok(())
}

/// Takes a hop from a packet that this program routes.
#[inline(always)]
fn use_hop(frame: &Frame<'_>, parsed: &Parsed, link: &LinkEntry) {
    if Way::of(frame, link) == Way::Routed {
        nat::hop(&frame.packet, parsed);
    }
}

/// Rewrites and sends a packet that can be sent.
#[inline(always)]
pub fn send(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    rewrite(frame, parsed, link, member)?;
    Ok(out(frame, link, member))
}

/// Sends a rewritten packet.
#[inline(always)]
fn out(frame: &Frame<'_>, link: &LinkEntry, member: &MemberEntry) -> Verdict {
    let way = Way::of(frame, link);
    if way != Way::Kernel {
        l2::address(frame, link, member);
    }
    match way {
        Way::Bridged | Way::Kernel => Verdict::PASS,
        Way::Routed => Verdict::send(link.ifindex, frame.ingress.ifindex),
    }
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
