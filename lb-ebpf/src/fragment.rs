//! Fragments (RFC 791 §3.2, RFC 8200 §4.5): the first one has the ports and is
//! treated like a whole packet, the later ones follow it. Those that come before
//! their first one are dropped; what overlaps is the receiver's to judge.

use lb_common::{
    abi::{FragmentEntry, FragmentKey, MemberEntry, direction, feature, program},
    counter::DropReason,
    member::MemberState,
    net::{family, protocol},
};

use crate::{
    balance, clock,
    forward::{self, nat},
    frame::{Frame, Handed},
    full_nat,
    lookup::{self, Vip},
    maps,
    packet::Packet,
    parse::{self, Parsed, Place, What},
    verdict::{NO_SERVICE, Verdict},
};

/// Where a first fragment went.
pub struct Followed {
    member: u32,
    direction: u32,
    hash: u32,
    binding: u32,
}

impl Followed {
    /// To member `id`. `hash` is [`lb_common::hash::bucket_bits`] of the flow's;
    /// `binding` full NAT's, or zero.
    #[inline(always)]
    pub const fn request(id: u32, hash: u32, binding: u32) -> Self {
        Self {
            member: id,
            direction: direction::REQUEST,
            hash,
            binding,
        }
    }

    /// From member `id` to a client, by full NAT's `binding` or none.
    #[inline(always)]
    pub const fn reply(id: u32, binding: u32) -> Self {
        Self {
            member: id,
            direction: direction::REPLY,
            hash: 0,
            binding,
        }
    }
}

/// A fragment that is addressed to this interface, or passes by on a bridge.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    if let Some(work) = maps::work() {
        work.fragment = identification(&frame.packet, parsed);
    }
    if !frame.is_for_us() {
        return reply(frame, parsed, program::REPLY);
    }
    match lookup::vip(parsed.destination(), parsed.family()) {
        Vip::Owned => request(frame, parsed),
        Vip::NotOwned => drop(DropReason::NotOwner),
        Vip::Pool => reply(frame, parsed, program::BINDING),
        Vip::No if frame.config.features & feature::REPLIES != 0 => {
            reply(frame, parsed, program::REPLY)
        }
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
        What::Segment => balance::segment(frame, &first),
        What::Bad => drop_bad(&first),
        // Echo and errors are answered and read as whole messages alone.
        _ => drop(DropReason::Fragment),
    }
}

#[inline(always)]
fn drop_bad(parsed: &Parsed) -> Verdict {
    Verdict::drop(NO_SERVICE, parsed.reason())
}

/// From a backend, or somebody else's. The program at `place` knows such.
#[inline(always)]
fn reply(frame: &Frame<'_>, parsed: &Parsed, place: u32) -> Verdict {
    // What is for an address of the pool is for nobody else.
    let unknown = if place == program::BINDING {
        drop(DropReason::Fragment)
    } else {
        Verdict::PASS
    };
    if parsed.place() == Place::First {
        let first = parse::first_fragment(&frame.packet, *parsed);
        return match first.what() {
            What::Segment => frame.hand_over(&first, place),
            _ => unknown,
        };
    }
    let mut entry = FragmentEntry::default();
    if !find(frame, parsed, direction::REPLY, &mut entry) {
        return unknown;
    }
    if let Some(work) = maps::work() {
        work.member = entry.member;
    }
    frame.tell(parsed, place, entry.binding)
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

/// Has the later fragments of the packet at hand follow its first.
#[inline(never)]
pub fn remember(frame: &Frame<'_>, parsed: &Parsed, to: &Followed) {
    let entry = FragmentEntry {
        member: to.member,
        service: maps::member(to.member).map_or(0, |m| m.service),
        ticks: clock::ticks(frame.config),
        direction: to.direction,
        hash: to.hash,
        binding: to.binding,
    };
    maps::note_fragment(&key(parsed), &entry);
}

/// Where the first fragment went, if that is known and still holds.
#[inline(never)]
fn find(frame: &Frame<'_>, parsed: &Parsed, direction: u32, entry: &mut FragmentEntry) -> bool {
    let Some(found) = maps::fragment(&key(parsed)) else {
        return false;
    };
    *entry = found;
    let Some(member) = maps::member(entry.member) else {
        return false;
    };
    let end = if direction == direction::REQUEST {
        (member.vip, parsed.destination())
    } else {
        (member.address, parsed.source())
    };
    entry.direction == direction
        && entry.is_live(clock::ticks(frame.config))
        && member.service == entry.service
        && end.0 == end.1
        && MemberState(member.state).serves()
}

/// A fragment without ports.
#[inline(always)]
fn later(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    if parsed.place() == Place::Second && parsed.protocol() == protocol::TCP {
        return drop(DropReason::Malformed);
    }
    let mut entry = FragmentEntry::default();
    if !find(frame, parsed, direction::REQUEST, &mut entry) {
        return drop(DropReason::Fragment);
    }
    let Some(member) = maps::member(entry.member) else {
        return drop(DropReason::Inconsistent);
    };
    match follow(frame, parsed, &entry, member) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::drop(member.service, reason as u32),
    }
}

/// Sends a later fragment after the first. Nobody is told of those that can't
/// be sent (RFC 1122 §3.2.2).
#[inline(always)]
fn follow(
    frame: &Frame<'_>,
    parsed: &Parsed,
    entry: &FragmentEntry,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let link = forward::reachable(frame, parsed, member)?;
    if entry.binding != 0 {
        let source = full_nat::source(frame.config, entry.binding, entry.member)
            .ok_or(DropReason::Fragment)?;
        nat::rewrite_address(&frame.packet, parsed, nat::End::Source, source)?;
    }
    let to = (entry.member, member);
    forward::carry_on(frame, parsed, link, to, entry.hash.into())
}
