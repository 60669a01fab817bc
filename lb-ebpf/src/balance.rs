//! The way of a packet through the data path.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    abi::{ServiceEntry, feature, link_flag, program, service_flag},
    counter::DropReason,
    hash,
    net::{Addr, family},
};

use crate::{
    defence, forward,
    frame::{self, Frame, Handed},
    full_nat,
    lookup::{self, Vip},
    maps,
    packet::{Ethernet, Packet},
    parse::{self, Parsed, What},
    probe, reset, schedule, select,
    verdict::{NO_SERVICE, Verdict},
    virtual_mac,
};

const ETHER_IPV4: u16 = 0x0800;
const ETHER_ARP: u16 = 0x0806;
const ETHER_IPV6: u16 = 0x86dd;

/// What becomes of a packet.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Verdict {
    let packet = Packet::new(ctx);
    let Some(ethernet) = packet.at::<Ethernet>(0) else {
        return Verdict::PASS;
    };
    let outer = frame::outer(&packet, ethernet);
    let ether_type = outer.ether_type;
    if !matches!(ether_type, ETHER_IPV4 | ETHER_IPV6 | ETHER_ARP) {
        return Verdict::PASS;
    }
    let Some(config) = maps::config() else {
        return Verdict::PASS;
    };
    let index = maps::find_link(ctx.ingress_ifindex() as u32, outer.tags);
    let Some(ingress) = maps::link(index) else {
        return Verdict::PASS;
    };
    if ingress.flags & link_flag::BLOCKED != 0 {
        return Verdict::PASS;
    }
    let frame = Frame {
        ctx,
        packet,
        ethernet,
        config,
        ingress,
        link: index,
    };
    let parsed = Parsed::nothing(outer.bytes, packet.len() as u32).forget(config.hash_key[0]);
    if ether_type == ETHER_ARP {
        return frame.hand_over(&parsed, program::NEIGHBOUR);
    }
    // A switch floods frames for an address it has forgotten. One that isn't
    // addressed to this interface would come back and be forwarded again.
    let may_be_for_us = frame.is_for_us() || ethernet.destination().virtual_router().is_some();
    let for_group = ether_type == ETHER_IPV6 && ethernet.destination().is_ipv6_multicast();
    // On a bridge replies pass by, addressed to somebody behind the other port.
    let passes_by = frame.is_bridged() && config.features & feature::REPLIES != 0;
    if !may_be_for_us && !for_group && !passes_by {
        return Verdict::PASS;
    }
    let parsed = match ether_type {
        ETHER_IPV4 => parse::ipv4(ctx, &packet, parsed),
        _ => parse::ipv6(ctx, &packet, parsed),
    };
    let parsed = parsed.forget(config.hash_key[0]);
    if !virtual_mac::take(&frame) {
        return virtual_mac::NOT_OWNER;
    }
    let for_us = frame.is_for_us();
    match parsed.what() {
        What::Segment if for_us => segment(&frame, &parsed),
        What::Segment if passes_by => frame.hand_over(&parsed, program::REPLY),
        What::Icmp if parsed.is_discovery() => frame.hand_over(&parsed, program::NEIGHBOUR),
        What::Icmp if for_us || passes_by => frame.hand_over(&parsed, program::ICMP),
        What::Fragment if for_us || passes_by => frame.hand_over(&parsed, program::FRAGMENT),
        What::Bad if for_us => bad(&parsed),
        _ => Verdict::PASS,
    }
}

/// A TCP or UDP packet: whole, or the first fragment.
#[inline(always)]
pub fn segment(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    let Some(service) = lookup::service(frame.config, &parsed.tuple()) else {
        return unserved(frame, parsed);
    };
    settle(frame, parsed, service, balance(frame, parsed, service))
}

/// What becomes of a packet of a service, or why nothing does.
#[inline(always)]
fn settle(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    outcome: Result<Verdict, DropReason>,
) -> Verdict {
    match outcome {
        Ok(verdict) => verdict,
        Err(DropReason::BackendGone) => reset::begin(frame, parsed, service.id),
        Err(reason) => frame.refuse(parsed, service.id, reason),
    }
}

/// A packet of a service.
#[inline(always)]
fn balance(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &'static ServiceEntry,
) -> Result<Verdict, DropReason> {
    let tuple = &parsed.tuple();
    if !lookup::owns(service.owner) {
        return Err(DropReason::NotOwner);
    }
    if !can_be_replied_to(tuple.source, tuple.family) || tuple.source == tuple.destination {
        return Err(DropReason::BadSource);
    }
    if lookup::has_flag(service, service_flag::GUARDED) {
        defence::admit(frame.config, service, parsed)?;
    }
    if lookup::has_flag(service, service_flag::FULL_TRACKING) {
        return Ok(frame.hand_over(parsed, program::SCHEDULE));
    }
    if full_nat::is_wanted(frame.config, service, tuple) {
        return Ok(frame.pass_on(parsed, 0, 0, program::FULL_NAT));
    }
    let flow_hash = hash::flow_hash(frame.config.hash_key, tuple);
    let slot = select::slot_of_flow(service, flow_hash)?;
    // That program also has later fragments follow.
    if slot.word.is_tracked()
        || lookup::has_flag(service, service_flag::BY_SOURCE)
        || parsed.is_first_fragment()
    {
        return Ok(frame.pass_on(parsed, 0, flow_hash, program::TRACKED));
    }
    let id = slot.word.current();
    let member = select::member(service, id, parsed.kind())?;
    forward::to_member::<false>(frame, parsed, service, flow_hash, id, member)
}

/// A packet of a service in a tracked slot: its flow is looked up. Or one of a
/// service by source; or one that has its member already, by the scheduler; or
/// a first fragment, in whatever slot.
#[inline(always)]
pub fn tracked(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let Some(service) = lookup::service(frame.config, &parsed.tuple()) else {
        return Verdict::drop(NO_SERVICE, DropReason::NoService as u32);
    };
    let outcome = to_tracked(frame, parsed, service, handed);
    settle(frame, parsed, service, outcome)
}

#[inline(always)]
fn to_tracked(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &'static ServiceEntry,
    handed: &Handed,
) -> Result<Verdict, DropReason> {
    let flow_hash = handed.flow_hash;
    let mut id = handed.member;
    if id == 0 {
        id = select::id(frame, service, parsed, flow_hash);
    }
    let member = select::member(service, id, parsed.kind())?;
    if handed.detail == full_nat::CHOOSE {
        return Ok(frame.pass_on(parsed, id, flow_hash, program::FULL_NAT));
    }
    forward::to_member::<true>(frame, parsed, service, flow_hash, id, member)
}

/// A packet of a service with full tracking. It is delivered by another
/// program: the stack is small.
#[inline(always)]
pub fn scheduled(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    let Some(service) = lookup::service(frame.config, &parsed.tuple()) else {
        return Verdict::drop(NO_SERVICE, DropReason::NoService as u32);
    };
    let outcome = to_scheduled(frame, parsed, service);
    settle(frame, parsed, service, outcome)
}

#[inline(always)]
fn to_scheduled(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &'static ServiceEntry,
) -> Result<Verdict, DropReason> {
    let flow_hash = select::flow_hash(frame.config, parsed);
    let slot = select::slot(frame.config, service, parsed, flow_hash)?;
    let kind = select::kind(frame, service, parsed);
    let id = schedule::member(frame.config, service, &slot, flow_hash, kind);
    if id >= select::REFUSED {
        return Ok(Verdict::drop(service.id, id - select::REFUSED));
    }
    if id == 0 {
        return Err(DropReason::NoBackend);
    }
    // The flow is counted by its entry, whatever source it gets.
    let place = if full_nat::is_wanted(frame.config, service, &parsed.tuple()) {
        program::FULL_NAT
    } else {
        program::TRACKED
    };
    Ok(frame.pass_on(parsed, id, flow_hash, place))
}

/// A TCP or UDP packet that no service is there for.
#[inline(always)]
fn unserved(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    match lookup::vip(parsed.destination(), parsed.family()) {
        Vip::Owned => Verdict::drop(NO_SERVICE, DropReason::NoService as u32),
        Vip::NotOwned => Verdict::drop(NO_SERVICE, DropReason::NotOwner as u32),
        Vip::Pool => frame.hand_over(parsed, program::BINDING),
        Vip::No if probe::is_answer(frame, parsed) => frame.hand_over(parsed, program::PROBED),
        Vip::No if frame.config.features & feature::REPLIES != 0 => {
            frame.hand_over(parsed, program::REPLY)
        }
        Vip::No => Verdict::PASS,
    }
}

/// A packet that can't be balanced.
#[inline(always)]
fn bad(parsed: &Parsed) -> Verdict {
    match lookup::vip(parsed.destination(), parsed.family()) {
        Vip::No => Verdict::PASS,
        Vip::NotOwned => Verdict::drop(NO_SERVICE, DropReason::NotOwner as u32),
        Vip::Owned | Vip::Pool => Verdict::drop(NO_SERVICE, parsed.reason()),
    }
}

/// Whether an answer to this address can reach anybody: not unspecified, not
/// loopback, not multicast, not broadcast (RFC 1122 §3.2.1.3, RFC 4291 §2.7).
#[inline(always)]
pub fn can_be_replied_to(source: Addr, family: u8) -> bool {
    if family == family::V4 {
        let first = source.0[0].to_ne_bytes()[0];
        return first != 0 && first != 127 && first < 224;
    }
    let [a, b, c, d] = source.0;
    let is_low = a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1;
    !is_low && a.to_ne_bytes()[0] != 0xff
}
