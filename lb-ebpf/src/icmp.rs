//! ICMP and ICMPv6 addressed to a VIP: echo is answered here, since the VIP
//! exists nowhere else.

use lb_common::{
    checksum::Delta,
    counter::{DropReason, Event},
};

use crate::{
    balance::Frame,
    packet::{Header, Icmp, MacWords},
    parse::{Ip, Other},
    stats,
    verdict::{NO_SERVICE, Verdict},
};

const TTL: u8 = 64;

/// Answers an echo request; the rest is dropped.
#[inline(always)]
pub fn answer(frame: &Frame<'_>, other: &Other, icmp: Header<Icmp>) -> Verdict {
    // Echo request to echo reply: RFC 792, RFC 4443 §4.1 and §4.2.
    let old = icmp.type_code();
    let new = match (other.ip, old) {
        (Ip::V4(_), [8, 0]) => [0, 0],
        (Ip::V6(_), [128, 0]) => [129, 0],
        _ => return Verdict::drop(NO_SERVICE, DropReason::Icmp),
    };
    let delta = Delta::NONE.replace16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
    icmp.set_type_code(new);
    icmp.set_checksum(delta.apply(icmp.checksum()));
    match other.ip {
        // Swapping the addresses changes no checksum.
        Ip::V4(ip) => {
            let (source, destination) = (ip.source(), ip.destination());
            ip.set_source(destination);
            ip.set_destination(source);
            let old = ip.ttl_protocol();
            let new = [TTL, old[1]];
            let delta = Delta::NONE.replace16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
            ip.set_ttl_protocol(new);
            ip.set_checksum(delta.apply(ip.checksum()));
        }
        Ip::V6(ip) => {
            let (source, destination) = (ip.source(), ip.destination());
            ip.set_source(destination);
            ip.set_destination(source);
            ip.set_hop_limit(TTL);
        }
    }
    frame.ethernet.set_destination(frame.ethernet.source());
    frame.ethernet.set_source(MacWords::new(frame.ingress.mac));
    stats::event(NO_SERVICE, Event::EchoReply);
    Verdict::BOUNCE
}
