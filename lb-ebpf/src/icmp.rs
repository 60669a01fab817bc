//! ICMP and ICMPv6: echo to a VIP is answered here, since the VIP exists nowhere
//! else, and errors about a flow's packets go to who sent those.

use lb_common::{
    abi::{MemberEntry, feature, program, service_flag},
    binding,
    checksum::Delta,
    counter::{DropReason, Event},
    hash,
};

use crate::{
    balance::can_be_replied_to,
    defence,
    forward::{self, nat::End},
    frame::{Frame, Handed},
    full_nat,
    lookup::{self, Vip},
    maps,
    packet::{Header, Icmp, MacWords},
    parse::Parsed,
    quote, select, stats,
    verdict::{NO_SERVICE, Verdict},
};

const TTL: u8 = 64;

/// A message that is addressed to this interface, or passes by on a bridge.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    let vip = if frame.is_for_us() {
        destination(parsed)
    } else {
        Vip::No
    };
    match vip {
        Vip::No if frame.config.features & feature::REPLIES != 0 && is_error(parsed) => {
            frame.hand_over(parsed, program::REPLY)
        }
        Vip::No => Verdict::PASS,
        Vip::NotOwned => Verdict::drop(NO_SERVICE, DropReason::NotOwner as u32),
        Vip::Owned | Vip::Pool => answer(frame, parsed, vip),
    }
}

/// In a function of its own, as others here: the stack of all nested calls is
/// 512 bytes.
#[inline(never)]
fn destination(parsed: &Parsed) -> Vip {
    lookup::vip(parsed.destination(), parsed.family())
}

/// Whether it is an error that is about a packet: destination unreachable, time
/// exceeded, parameter problem (RFC 792), and packet too big (RFC 4443 §3).
/// Source quench is to be ignored (RFC 6633), redirects are for neighbours.
#[inline(always)]
fn is_error(parsed: &Parsed) -> bool {
    if parsed.is_v4() {
        matches!(parsed.icmp_type(), 3 | 11 | 12)
    } else {
        matches!(parsed.icmp_type(), 1..=4)
    }
}

/// Answers an echo request, forwards an error; the rest is dropped.
#[inline(always)]
fn answer(frame: &Frame<'_>, parsed: &Parsed, vip: Vip) -> Verdict {
    let source = parsed.source();
    if !can_be_replied_to(source, parsed.family()) || source == parsed.destination() {
        return Verdict::drop(NO_SERVICE, DropReason::BadSource as u32);
    }
    match vip {
        // About a packet that full NAT sent to a backend, mostly.
        Vip::Pool if is_error(parsed) => frame.hand_over(parsed, program::BINDING),
        _ if is_error(parsed) => to_member(frame, parsed),
        _ => echo(frame, parsed),
    }
}

#[inline(never)]
fn echo(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    reply(frame, parsed).unwrap_or(Verdict::drop(NO_SERVICE, DropReason::Icmp as u32))
}

/// Echo request to echo reply: RFC 792, RFC 4443 §4.1 and §4.2.
#[inline(always)]
fn reply(frame: &Frame<'_>, parsed: &Parsed) -> Option<Verdict> {
    let icmp: Header<Icmp> = frame.packet.at(parsed.offset())?;
    let old = icmp.type_code();
    let new = match (parsed.is_v4(), old) {
        (true, [8, 0]) => [0, 0],
        (false, [128, 0]) => [129, 0],
        _ => return None,
    };
    let delta = Delta::NONE.replace16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
    // Swapping the addresses changes no checksum.
    if parsed.is_v4() {
        let ip = parsed.ipv4(&frame.packet)?;
        let (source, destination) = (ip.source(), ip.destination());
        ip.set_source(destination);
        ip.set_destination(source);
        let old = ip.ttl_protocol();
        let new = [TTL, old[1]];
        let delta = Delta::NONE.replace16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        ip.set_ttl_protocol(new);
        ip.set_checksum(delta.apply(ip.checksum()));
    } else {
        let ip = parsed.ipv6(&frame.packet)?;
        let (source, destination) = (ip.source(), ip.destination());
        ip.set_source(destination);
        ip.set_destination(source);
        ip.set_hop_limit(TTL);
    }
    icmp.set_type_code(new);
    icmp.set_checksum(delta.apply_nonzero(icmp.checksum()));
    frame.ethernet.set_destination(frame.ethernet.source());
    frame.ethernet.set_source(MacWords::new(frame.ingress.mac));
    stats::event(NO_SERVICE, Event::EchoReply);
    Some(Verdict::BOUNCE)
}

/// The flow that an error is about.
struct About {
    /// Full NAT's binding, or zero: `member`.
    binding: u32,
    /// The member's id; zero: `refused`.
    member: u32,
    hash: u64,
    refused: Verdict,
}

/// An error about a packet that a backend sent to a client, to its VIP: to the
/// backend that the flow is with.
#[inline(always)]
fn to_member(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    let mut about = About {
        member: 0,
        binding: 0,
        hash: 0,
        refused: Verdict::drop(NO_SERVICE, DropReason::IcmpUnmatched as u32),
    };
    find(frame, parsed, &mut about);
    if about.binding != 0 {
        return frame.tell(parsed, program::BINDING, about.binding);
    }
    if about.member == 0 {
        return about.refused;
    }
    forward(frame, parsed, &about)
}

/// Finds the flow that an error to a VIP is about.
#[inline(never)]
fn find(frame: &Frame<'_>, parsed: &Parsed, about: &mut About) {
    let config = frame.config;
    let quote = match quote::read(&frame.packet, parsed, config.hash_key[0]) {
        Ok(quote) => quote,
        Err(reason) => {
            about.refused = Verdict::drop(NO_SERVICE, reason as u32);
            return;
        }
    };
    if quote.source() != parsed.destination() {
        return;
    }
    let tuple = quote.reversed(parsed.family());
    let Some(service) = lookup::service(config, &tuple) else {
        return;
    };
    about.hash = hash::flow_hash(config.hash_key, &tuple);
    let outcome = if defence::is_denied(service, tuple.source) {
        Err(DropReason::Denied)
    } else {
        if full_nat::has_pool(config, tuple.family) {
            about.binding = full_nat::peek(config, &tuple, about.hash, service.id);
        }
        if about.binding != 0 {
            return;
        }
        if lookup::has_flag(service, service_flag::FULL_NAT) {
            Err(DropReason::IcmpUnmatched)
        } else {
            select::peek(config, service, &tuple, about.hash)
        }
    };
    match outcome {
        Ok(id) => about.member = id,
        Err(reason) => about.refused = Verdict::drop(service.id, reason as u32),
    }
}

#[inline(never)]
fn forward(frame: &Frame<'_>, parsed: &Parsed, about: &About) -> Verdict {
    let Some(member) = maps::member(about.member) else {
        return Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32);
    };
    // Nobody is told what becomes of an error.
    match send(frame, parsed, about, member) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::drop(member.service, reason as u32),
    }
}

#[inline(always)]
fn send(
    frame: &Frame<'_>,
    parsed: &Parsed,
    about: &About,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let link = forward::reachable(frame, parsed, member)?;
    if forward::is_nat(member) && !rewrite_for_member(frame, parsed, member) {
        return Err(DropReason::Malformed);
    }
    forward::carry_on(frame, parsed, link, (about.member, member), about.hash)
}

/// The quote as the backend sent it, under NAT.
#[inline(always)]
fn rewrite_for_member(frame: &Frame<'_>, parsed: &Parsed, member: &MemberEntry) -> bool {
    let sent = binding::End::new(member.address, member.port);
    let places = quote::places(frame, parsed);
    quote::rewrite(&frame.packet, parsed, places, End::Source, &sent)
}
