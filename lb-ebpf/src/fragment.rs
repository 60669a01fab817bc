//! Fragments (RFC 791 §3.2, RFC 8200 §4.5): the first one has the ports and is
//! treated like a whole packet, the later ones follow it. Those that come before
//! their first one are dropped; what overlaps is the receiver's to judge.

use lb_common::{
    abi::{FragmentEntry, FragmentKey, MemberEntry, Work, direction, feature, method, program},
    counter::DropReason,
    member::MemberState,
    net::{family, protocol},
};

use crate::{
    balance, clock,
    forward::{l2, nat},
    frame::Frame,
    lookup::{self, Vip},
    maps,
    packet::Packet,
    parse::{self, Parsed, Place, What},
    stats,
    verdict::{NO_SERVICE, Verdict},
};

/// What a fragment is to the program that translates replies: value of
/// [`Work::detail`].
pub mod reply {
    /// Its flow is to be found, and the later ones will follow.
    pub const FIRST: u32 = 1;
    /// It belongs to the member in [`Work::member`].
    pub const LATER: u32 = 2;
}

/// A fragment that is addressed to this interface.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, work: &mut Work) -> Verdict {
    work.fragment = identification(&frame.packet, parsed);
    match lookup::vip(parsed.destination(), parsed.family()) {
        Vip::Owned => request(frame, parsed),
        Vip::NotOwned => drop(DropReason::NotOwner),
        Vip::No if frame.config.features & feature::REPLIES != 0 => reply(frame, parsed),
        Vip::No => Verdict::PASS,
    }
}

#[inline(always)]
const fn drop(reason: DropReason) -> Verdict {
    Verdict::drop(NO_SERVICE, reason as u32)
}

/// See [`FragmentKey::id`].
#[inline(always)]
fn identification(packet: &Packet, parsed: &Parsed) -> u32 {
    if parsed.is_v4() {
        parsed.ipv4(packet).map_or(0, |ip| u32::from(ip.id()))
    } else {
        // The last word of the fragment header.
        let word = packet.at::<u32>(parsed.offset().wrapping_sub(4) & 0x3fff);
        word.map_or(0, |word| word.read())
    }
}

/// To a VIP.
#[inline(always)]
fn request(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    if parsed.place() != Place::First {
        return later(frame, parsed);
    }
    let first = parse::first_fragment(&frame.packet, *parsed).forget(frame.config.hash_key[0]);
    match first.what() {
        What::Segment => balance::segment(frame, &first, true),
        What::Bad => drop_bad(&first),
        // Echo and errors are answered and read as whole messages alone.
        _ => drop(DropReason::Fragment),
    }
}

#[inline(always)]
fn drop_bad(parsed: &Parsed) -> Verdict {
    Verdict::drop(NO_SERVICE, parsed.reason())
}

/// From a backend, or somebody else's.
#[inline(always)]
fn reply(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    if parsed.place() == Place::First {
        let first = parse::first_fragment(&frame.packet, *parsed);
        if first.what() != What::Segment {
            return Verdict::PASS;
        }
        let handed_over = frame.hand_over(&first, program::REPLY);
        note(reply::FIRST, 0);
        return handed_over;
    }
    match member_of(frame, parsed, direction::REPLY) {
        0 => Verdict::PASS,
        member => {
            let handed_over = frame.hand_over(parsed, program::REPLY);
            note(reply::LATER, member);
            handed_over
        }
    }
}

#[inline(always)]
fn note(detail: u32, member: u32) {
    if let Some(work) = maps::work() {
        work.detail = detail;
        work.member = member;
    }
}

#[inline(always)]
fn key(parsed: &Parsed) -> FragmentKey {
    FragmentKey {
        source: parsed.source(),
        destination: parsed.destination(),
        id: maps::work().map_or(0, |work| work.fragment),
        protocol: if parsed.family() == family::V4 {
            parsed.protocol()
        } else {
            0
        },
        family: parsed.family(),
        reserved: 0,
    }
}

/// Has the later fragments of the packet at hand follow to `member`.
#[inline(never)]
pub fn remember(frame: &Frame<'_>, parsed: &Parsed, member: u32, direction: u32) {
    let service = maps::member(member).map_or(0, |m| m.service);
    let entry = FragmentEntry {
        member,
        service,
        ticks: clock::ticks(frame.config),
        direction,
    };
    maps::note_fragment(&key(parsed), &entry);
}

/// The member that the first fragment belonged to; zero if none is known.
#[inline(never)]
fn member_of(frame: &Frame<'_>, parsed: &Parsed, direction: u32) -> u32 {
    let Some(entry) = maps::fragment(&key(parsed)) else {
        return 0;
    };
    let Some(member) = maps::member(entry.member) else {
        return 0;
    };
    let end = if direction == direction::REQUEST {
        (member.vip, parsed.destination())
    } else {
        (member.address, parsed.source())
    };
    let is_right = entry.direction == direction
        && entry.is_live(clock::ticks(frame.config))
        && member.service == entry.service
        && end.0 == end.1
        && MemberState(member.state).serves();
    if is_right { entry.member } else { 0 }
}

/// A fragment without ports.
#[inline(always)]
fn later(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    if parsed.place() == Place::Second && parsed.protocol() == protocol::TCP {
        return drop(DropReason::Malformed);
    }
    let id = member_of(frame, parsed, direction::REQUEST);
    if id == 0 {
        return drop(DropReason::Fragment);
    }
    let Some(member) = maps::member(id) else {
        return drop(DropReason::Inconsistent);
    };
    match follow(frame, parsed, member) {
        Ok(verdict) => {
            stats::forwarded(id, parsed.frame_bytes().into(), 0);
            verdict
        }
        Err(reason) => Verdict::drop(member.service, reason as u32),
    }
}

/// Sends a later fragment after the first. Nobody is told of those that can't
/// be sent (RFC 1122 §3.2.2).
#[inline(always)]
fn follow(frame: &Frame<'_>, parsed: &Parsed, member: &MemberEntry) -> Result<Verdict, DropReason> {
    let next_hop = member.next_hop();
    if !next_hop.is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    let link = maps::link(next_hop.link().into()).ok_or(DropReason::NoNeighbour)?;
    if frame.is_too_big(parsed, link) {
        return Err(DropReason::TooBig);
    }
    if member.method == method::NAT {
        if !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
        nat::hop(&frame.packet, parsed);
        nat::rewrite_address(&frame.packet, parsed, nat::End::Destination, member.address)?;
    }
    l2::address(frame.ethernet, next_hop, link);
    Ok(Verdict::send(link.ifindex, frame.ingress.ifindex))
}
