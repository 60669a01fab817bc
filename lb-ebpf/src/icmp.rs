//! ICMP and ICMPv6 addressed to a VIP: echo is answered here, since the VIP
//! exists nowhere else.

use lb_common::{
    abi::Work,
    checksum::Delta,
    counter::{DropReason, Event},
};

use crate::{
    balance::can_be_replied_to,
    frame::Frame,
    lookup::{self, Vip},
    packet::{Header, Icmp, MacWords},
    parse::Parsed,
    stats,
    verdict::{NO_SERVICE, Verdict},
};

const TTL: u8 = 64;

/// A message that is addressed to this interface.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, _: &mut Work) -> Verdict {
    match lookup::vip(parsed.destination(), parsed.family()) {
        Vip::No => Verdict::PASS,
        Vip::NotOwned => Verdict::drop(NO_SERVICE, DropReason::NotOwner as u32),
        Vip::Owned | Vip::Pool => answer(frame, parsed),
    }
}

/// Answers an echo request; the rest is dropped.
#[inline(always)]
fn answer(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    let source = parsed.source();
    if !can_be_replied_to(source, parsed.family()) || source == parsed.destination() {
        return Verdict::drop(NO_SERVICE, DropReason::BadSource as u32);
    }
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
