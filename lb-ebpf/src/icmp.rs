//! ICMP and ICMPv6: echo to a VIP is answered here, since the VIP exists nowhere
//! else, and errors about a flow's packets go to who sent those.

use lb_common::{
    abi::{MemberEntry, Work, feature, method},
    checksum::Delta,
    counter::{DropReason, Event},
    hash,
};

use crate::{
    balance::can_be_replied_to,
    forward::{
        l2,
        nat::{self, End},
    },
    frame::Frame,
    lookup::{self, Vip},
    maps,
    packet::{Header, Icmp, MacWords},
    parse::Parsed,
    quote::{self, New},
    reply as replies, select, stats,
    verdict::{NO_SERVICE, Verdict},
};

const TTL: u8 = 64;

/// A message that is addressed to this interface.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, _: &mut Work) -> Verdict {
    match destination(parsed) {
        Vip::No if frame.config.features & feature::REPLIES != 0 && is_error(parsed) => {
            from_backend(frame, parsed)
        }
        Vip::No => Verdict::PASS,
        Vip::NotOwned => Verdict::drop(NO_SERVICE, DropReason::NotOwner as u32),
        Vip::Owned => answer(frame, parsed),
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
fn answer(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    let source = parsed.source();
    if !can_be_replied_to(source, parsed.family()) || source == parsed.destination() {
        return Verdict::drop(NO_SERVICE, DropReason::BadSource as u32);
    }
    if is_error(parsed) {
        return to_member(frame, parsed);
    }
    echo(frame, parsed)
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

/// An error about a packet that a backend sent to a client, to its VIP: to the
/// backend that the flow is with.
#[inline(always)]
fn to_member(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    let mut refused = Verdict::PASS;
    match member_of(frame, parsed, &mut refused) {
        0 => refused,
        id => forward(frame, parsed, id),
    }
}

/// Id of the member whose packet an error to a VIP is about; zero: `refused`.
#[inline(never)]
fn member_of(frame: &Frame<'_>, parsed: &Parsed, refused: &mut Verdict) -> u32 {
    let drop = |service, reason| Verdict::drop(service, reason as u32);
    let config = frame.config;
    let quote = match quote::read(&frame.packet, parsed, config.hash_key[0]) {
        Ok(quote) => quote,
        Err(reason) => {
            *refused = drop(NO_SERVICE, reason);
            return 0;
        }
    };
    *refused = drop(NO_SERVICE, DropReason::IcmpUnmatched);
    if quote.source() != parsed.destination() {
        return 0;
    }
    let tuple = quote.reversed(parsed.family());
    let Some(service) = lookup::service(config, &tuple) else {
        return 0;
    };
    match select::peek(config, service, hash::flow_hash(config.hash_key, &tuple)) {
        Ok(id) => id,
        Err(reason) => {
            *refused = drop(service.id, reason);
            0
        }
    }
}

#[inline(never)]
fn forward(frame: &Frame<'_>, parsed: &Parsed, id: u32) -> Verdict {
    let Some(member) = maps::member(id) else {
        return Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32);
    };
    match send(frame, parsed, member) {
        Ok(verdict) => {
            stats::event(member.service, Event::IcmpForwarded);
            verdict
        }
        Err(reason) => Verdict::drop(member.service, reason as u32),
    }
}

#[inline(always)]
fn send(frame: &Frame<'_>, parsed: &Parsed, member: &MemberEntry) -> Result<Verdict, DropReason> {
    let next_hop = member.next_hop();
    if !next_hop.is_resolved() {
        return Err(DropReason::NoNeighbour);
    }
    let link = maps::link(next_hop.link().into()).ok_or(DropReason::NoNeighbour)?;
    if member.method == method::NAT {
        // Nobody is told: it is an error itself.
        if !nat::has_hop(&frame.packet, parsed) {
            return Err(DropReason::TtlExceeded);
        }
        let quote = quote::read(&frame.packet, parsed, frame.config.hash_key[0])?;
        let new = New {
            end: End::Source,
            address: member.address,
            port: member.port,
        };
        nat::hop(&frame.packet, parsed);
        if !quote::rewrite(&frame.packet, parsed, &quote, &new) {
            return Err(DropReason::Malformed);
        }
        nat::rewrite_address(&frame.packet, parsed, End::Destination, member.address)?;
    }
    l2::address(frame.ethernet, next_hop, link);
    Ok(Verdict::send(link.ifindex, frame.ingress.ifindex))
}

/// An error about a packet that NAT sent to a backend, to the client: from the
/// VIP, and about the packet that the client sent.
#[inline(always)]
fn from_backend(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    match backend_of(frame, parsed) {
        0 => Verdict::PASS,
        id => to_client(frame, parsed, id),
    }
}

/// Id of the member to which the packet was sent that an error to a client is
/// about; zero if none.
#[inline(never)]
fn backend_of(frame: &Frame<'_>, parsed: &Parsed) -> u32 {
    match quote::read(&frame.packet, parsed, frame.config.hash_key[0]) {
        Ok(quote) if quote.source() == parsed.destination() => {
            replies::peek(frame.config, &quote.reversed(parsed.family()))
        }
        _ => 0,
    }
}

#[inline(never)]
fn to_client(frame: &Frame<'_>, parsed: &Parsed, id: u32) -> Verdict {
    let Some(member) = maps::member(id) else {
        return Verdict::PASS;
    };
    let (verdict, done) = replies::route_and(frame, parsed, member, || {
        rewrite_for_client(frame, parsed, member)
    });
    if done {
        stats::event(member.service, Event::IcmpForwarded);
    }
    verdict
}

#[inline(never)]
fn rewrite_for_client(frame: &Frame<'_>, parsed: &Parsed, member: &MemberEntry) -> bool {
    let Ok(quote) = quote::read(&frame.packet, parsed, frame.config.hash_key[0]) else {
        return false;
    };
    let new = New {
        end: End::Destination,
        address: member.vip,
        port: member.vip_port,
    };
    quote::rewrite(&frame.packet, parsed, &quote, &new)
        && nat::rewrite_address(&frame.packet, parsed, End::Source, member.vip).is_ok()
}
