//! Probes of health checks that go the way of clients' packets: from this host to
//! the VIP, out of a small device of their own, by the method of the member that
//! `PROBES` names for their port. What comes back is handed to that device as if
//! the VIP were behind it. Nothing of it is a flow or counted as traffic.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    abi::{LinkEntry, MemberEntry, PROBE_PORTS, feature, link_flag, program},
    counter::DropReason,
    net::Addr,
};

use crate::{
    forward::{
        self, l2,
        nat::{self, End},
    },
    frame::{self, Frame, Handed},
    head, maps,
    packet::{Ethernet, MacWords, Packet},
    parse::{self, Parsed},
    select,
    verdict::Verdict,
};

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;

/// A packet that this host sent by the probes' device. What is no probe is left
/// to the kernel, for which nobody is there.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Verdict {
    let packet = Packet::new(ctx);
    let (Some(ethernet), Some(config)) = (packet.at::<Ethernet>(0), maps::config()) else {
        return Verdict::PASS;
    };
    let outer = frame::outer(&packet, ethernet);
    if !matches!(outer.ether_type, ETHER_IPV4 | ETHER_IPV6) {
        return Verdict::PASS;
    }
    let link = maps::find_link(ctx.ingress_ifindex() as u32, outer.tags);
    let Some(ingress) = maps::link(link) else {
        return Verdict::PASS;
    };
    let frame = Frame {
        ctx,
        packet,
        ethernet,
        config,
        ingress,
        link,
    };
    let parsed = Parsed::nothing(outer.bytes, packet.len() as u32).forget(config.hash_key[0]);
    let parsed = match outer.ether_type {
        ETHER_IPV4 => parse::ipv4(ctx, &packet, parsed),
        _ => parse::ipv6(ctx, &packet, parsed),
    };
    let parsed = parsed.forget(config.hash_key[0]);
    if !parsed.is_segment() {
        return Verdict::PASS;
    }
    send(&frame, &parsed)
}

/// The member of a probe that has this end at this host.
#[inline(always)]
fn member_of(frame: &Frame<'_>, own: Addr, port: u16) -> Option<(u32, &'static MemberEntry)> {
    let index = u32::from(port).wrapping_sub(frame.config.probe_port);
    let entry = maps::probe(index)?;
    if entry.address != own || entry.member == 0 {
        return None;
    }
    Some((entry.member, maps::member(entry.member)?))
}

#[inline(always)]
fn send(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    let tuple = parsed.tuple();
    let Some((id, member)) = member_of(frame, tuple.source, tuple.source_port.get()) else {
        return Verdict::PASS;
    };
    if member.vip != tuple.destination {
        return Verdict::PASS;
    }
    match to_member(frame, parsed, id, member) {
        Ok(verdict) => verdict,
        Err(DropReason::TooBig) => frame.refuse(parsed, member.service, DropReason::TooBig),
        // Its check runs out of time and says so.
        Err(_) => Verdict::LOST,
    }
}

#[inline(always)]
fn to_member(
    frame: &Frame<'_>,
    parsed: &Parsed,
    id: u32,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let link = l2::link(member)?;
    if link.flags & link_flag::BRIDGE != 0 {
        return by_bridge(frame, parsed, link, member);
    }
    if forward::changes_head(frame, link, member) {
        let flow_hash = select::flow_hash(frame.config, parsed);
        let whose = (id, flow_hash);
        return Ok(frame.pass_on_and_tell(parsed, whose, program::HEAD, head::PROBE));
    }
    let link = forward::reachable(frame, parsed, member)?;
    forward::send(frame, parsed, link, member)
}

/// Into a bridge, as a host that is on it would send: it forwards the packet.
#[inline(always)]
fn by_bridge(
    frame: &Frame<'_>,
    parsed: &Parsed,
    link: &LinkEntry,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    frame.fits(parsed, link)?;
    forward::rewrite(frame, parsed, link, member)?;
    l2::address(frame, link, member);
    frame.ethernet.set_source(MacWords::new(link.mac));
    Ok(Verdict::send(link.device, frame.ingress.ifindex))
}

/// Whether a packet to this port may be the answer to a probe.
#[inline(always)]
pub fn is_answer(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    let first = frame.config.probe_port;
    let port = u32::from(parsed.tuple().destination_port.get());
    first != 0 && port.wrapping_sub(first) < PROBE_PORTS
}

/// A packet to a port of probes. What is no answer to one is treated as it would
/// be without them.
#[inline(always)]
pub fn answer(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    match answered(frame, parsed) {
        Some(verdict) => verdict,
        None if frame.config.features & feature::REPLIES != 0 => {
            frame.hand_over(parsed, program::REPLY)
        }
        None => Verdict::PASS,
    }
}

#[inline(always)]
fn answered(frame: &Frame<'_>, parsed: &Parsed) -> Option<Verdict> {
    let tuple = parsed.tuple();
    let (_, member) = member_of(frame, tuple.destination, tuple.destination_port.get())?;
    let index = maps::find_link(frame.config.probe_ifindex, [0; 2]);
    let link = maps::link(index)?;
    if forward::is_nat(member) {
        let is_its = tuple.source == member.address
            && tuple.source_port == member.port.or(tuple.source_port);
        if !is_its {
            return None;
        }
        let port = member.vip_port;
        if nat::rewrite(&frame.packet, parsed, End::Source, member.vip, port).is_err() {
            return Some(Verdict::LOST);
        }
    } else if tuple.source != member.vip {
        return None;
    }
    // That of the device's other end, which is this host's.
    let mac = MacWords::new(link.mac);
    if frame.has_tags_of(link) {
        frame.ethernet.set_destination(mac);
    } else if head::retag(frame, parsed, &mac, link) == 0 {
        return Some(Verdict::LOST);
    }
    Some(Verdict::send(link.ifindex, frame.ingress.ifindex))
}
