//! Replies under NAT: recognised by the backend's address and port, or flow by
//! flow, given the VIP as their source and routed to the client.

use lb_common::{
    abi::{Config, MemberEntry, ReplyKey, ServiceEntry, program},
    binding,
    counter::{DropReason, Event},
    flow::{self, FlowKey, FlowTable as _, FlowWord, Idle, Mark, Place},
    hash::{self, Tuple},
    net::{Addr, Be16},
};

use crate::{
    back::{self, Back},
    clock,
    forward::{
        self,
        nat::{self, End},
    },
    frame::{Frame, Handed},
    full_nat, lookup, maps,
    maps::Flows,
    packet::Packet,
    parse::{Parsed, What},
    quote, stats,
    verdict::{NO_SERVICE, Verdict},
};

#[inline(always)]
fn idle(config: &Config, open_units: u32) -> Idle {
    Idle {
        open_units,
        half_units: config.half_units,
    }
}

/// A packet on its way to a member whose replies are recognised by flow: one
/// client port towards one backend port belongs to one member at a time,
/// whatever the VIP.
#[inline(always)]
pub fn expect(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let Some(service) = lookup::service(frame.config, &parsed.tuple()) else {
        return Verdict::drop(NO_SERVICE, DropReason::NoService as u32);
    };
    match expected(frame, parsed, service, handed) {
        Ok(verdict) => verdict,
        // This flow gets another source.
        Err(DropReason::ReplyConflict) if full_nat::has_pool(frame.config, parsed.family()) => {
            let whose = (handed.member, handed.flow_hash);
            frame.pass_on_and_tell(parsed, whose, program::FULL_NAT, full_nat::CONFLICT)
        }
        Err(reason) => frame.refuse(parsed, service.id, reason),
    }
}

#[inline(always)]
fn expected(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    handed: &Handed,
) -> Result<Verdict, DropReason> {
    let (id, flow_hash) = (handed.member, handed.flow_hash);
    let member = maps::member(id).ok_or(DropReason::Inconsistent)?;
    forward::reachable(frame, parsed, member)?;
    match reserve(frame.config, service.idle_units, parsed, id) {
        RESERVED => forward::deliver::<true>(frame, parsed, service, flow_hash, id, member),
        CONFLICT => Err(DropReason::ReplyConflict),
        _ => Err(DropReason::ReplyTableFull),
    }
}

const RESERVED: u32 = 0;
const CONFLICT: u32 = 1;
const FULL: u32 = 2;

/// The hash under which the reply to a packet on its way to `member` is known.
#[inline(never)]
fn hash_of_reply(config: &Config, parsed: &Parsed, member: &MemberEntry) -> u64 {
    let tuple = parsed.tuple();
    let reply = Tuple {
        source: member.address,
        source_port: member.port.or(tuple.destination_port),
        destination: tuple.source,
        destination_port: tuple.source_port,
        ..tuple
    };
    hash::flow_hash(config.hash_key, &reply)
}

/// In a function of its own: the stack of all nested calls is 512 bytes.
#[inline(never)]
fn insert(config: &Config, home: u32, entry: u64, now: u32) -> u32 {
    let entry = FlowWord(entry);
    let key = FlowKey {
        tag: entry.tag(),
        home,
    };
    let longest = idle(config, config.longest_idle_units);
    if flow::insert(
        &Flows::replies(config),
        key,
        entry,
        Place::Free,
        now,
        longest,
    ) {
        RESERVED
    } else {
        FULL
    }
}

#[inline(never)]
fn reserve(config: &Config, idle_units: u32, parsed: &Parsed, id: u32) -> u32 {
    let Some(member) = maps::member(id) else {
        return FULL;
    };
    let flows = Flows::replies(config);
    let key = FlowKey::new(hash_of_reply(config, parsed, member), config.reply_buckets);
    let now = clock::ticks(config);
    let mark = parsed.kind().mark();
    // Whoever has the key: the tuple at the backend is the same.
    let found = flow::find(&flows, key, |entry| same_backend(entry.member(), member));
    if let Some(found) = found
        && found.entry.member() == id
    {
        flow::touch(&flows, &found, now, mark);
        return RESERVED;
    }
    // A flow that was given another source, when the port was taken, keeps it.
    if full_nat::has_pool(config, parsed.family())
        && full_nat::is_bound(config, parsed, member.service)
    {
        return CONFLICT;
    }
    let Some(found) = found else {
        let entry = FlowWord::new(key.tag, id, now, mark);
        return insert(config, key.home, entry.0, now);
    };
    let taken = found.entry.is_live(now, idle(config, idle_units))
        && !found.entry.is_closing()
        && maps::member_state(found.entry.member()).serves();
    let entry = FlowWord::new(key.tag, id, now, mark);
    if taken || !flows.replace(found.bucket, found.word, found.entry.0, entry.0) {
        return CONFLICT;
    }
    RESERVED
}

#[inline(always)]
fn same_backend(id: u32, member: &MemberEntry) -> bool {
    is_backend(id, member.address, member.protocol)
}

/// Id of the member that a packet from a backend is a reply of; zero if none.
#[inline(never)]
fn member_of(config: &Config, parsed: &Parsed) -> u32 {
    match named(&parsed.tuple()) {
        None => 0,
        Some(0) => member_of_flow(config, parsed),
        Some(member) => member,
    }
}

/// The member that gets what `tuple` sends as a reply; zero: the one that the
/// flow names.
#[inline(always)]
fn named(tuple: &Tuple) -> Option<u32> {
    let mut key = ReplyKey {
        address: tuple.source,
        port: tuple.source_port,
        protocol: tuple.protocol,
        family: tuple.family,
    };
    let mut entry = maps::reply(&key);
    if entry.is_none() {
        key.port = Be16::default();
        entry = maps::reply(&key);
    }
    entry.map(|entry| entry.member)
}

/// Id of the member that `tuple` is a reply of; zero if none. Nothing is changed
/// or counted.
#[inline(never)]
fn peek(config: &Config, tuple: &Tuple) -> u32 {
    match named(tuple) {
        None => 0,
        Some(0) => {
            let hash = hash::flow_hash(config.hash_key, tuple);
            peek_flow(config, hash, tuple)
        }
        Some(member) => member,
    }
}

#[inline(never)]
fn peek_flow(config: &Config, hash: u64, tuple: &Tuple) -> u32 {
    let key = FlowKey::new(hash, config.reply_buckets);
    let found = flow::find(&Flows::replies(config), key, |entry| {
        is_backend(entry.member(), tuple.source, tuple.protocol)
    });
    let idle = idle(config, config.longest_idle_units);
    found
        .filter(|found| found.entry.is_live(clock::ticks(config), idle))
        .map_or(0, |found| found.entry.member())
}

#[inline(always)]
fn is_backend(id: u32, address: Addr, protocol: u8) -> bool {
    maps::member(id).is_some_and(|m| m.address == address && m.protocol == protocol)
}

#[inline(never)]
fn hash_of_packet(config: &Config, parsed: &Parsed) -> u64 {
    hash::flow_hash(config.hash_key, &parsed.tuple())
}

#[inline(never)]
fn member_of_flow(config: &Config, parsed: &Parsed) -> u32 {
    let flows = Flows::replies(config);
    let key = FlowKey::new(hash_of_packet(config, parsed), config.reply_buckets);
    let now = clock::ticks(config);
    let source = parsed.source();
    let protocol = parsed.protocol();
    let found = flow::find(&flows, key, |entry| {
        is_backend(entry.member(), source, protocol)
    });
    if let Some(found) = found
        && found
            .entry
            .is_live(now, idle(config, config.longest_idle_units))
    {
        let mark = if found.entry.is_confirmed() {
            Mark::Open
        } else {
            Mark::Half
        };
        flow::touch(&flows, &found, now, mark);
        return found.entry.member();
    }
    stats::event(NO_SERVICE, Event::ReplyUnmatched);
    0
}

/// A packet that isn't addressed to us: a reply to translate, an error about a
/// packet that NAT sent to a backend, or none of ours.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let id = match parsed.what() {
        What::Segment => member_of(frame.config, parsed),
        What::Icmp => backend_of(frame, parsed),
        // A later fragment: its first one told.
        _ => handed.member,
    };
    match id {
        0 => Verdict::PASS,
        id => translate(frame, parsed, id),
    }
}

/// A reply of member `id`.
#[inline(never)]
fn translate(frame: &Frame<'_>, parsed: &Parsed, id: u32) -> Verdict {
    let Some(member) = maps::member(id) else {
        return Verdict::PASS;
    };
    let to = Back {
        member: id,
        service: member.service,
        binding: 0,
    };
    let ends = (member.vip, parsed.destination());
    back::send(frame, parsed, &to, ends, || {
        (parsed.what() != What::Icmp || rewrite_quote(frame, parsed, member))
            && rewrite_source(&frame.packet, parsed, member)
    })
}

/// Id of the member to which the packet was sent that an error to a client is
/// about; zero if none.
#[inline(never)]
fn backend_of(frame: &Frame<'_>, parsed: &Parsed) -> u32 {
    match quote::read(&frame.packet, parsed, frame.config.hash_key[0]) {
        Ok(quote) if quote.source() == parsed.destination() => {
            peek(frame.config, &quote.reversed(parsed.family()))
        }
        _ => 0,
    }
}

#[inline(never)]
fn rewrite_source(packet: &Packet, parsed: &Parsed, member: &MemberEntry) -> bool {
    let vip = member.vip;
    if parsed.is_segment() {
        nat::rewrite(packet, parsed, End::Source, vip, member.vip_port).is_ok()
    } else {
        nat::rewrite_address(packet, parsed, End::Source, vip).is_ok()
    }
}

/// What an error to a client is about, as the client sent it.
#[inline(always)]
fn rewrite_quote(frame: &Frame<'_>, parsed: &Parsed, member: &MemberEntry) -> bool {
    let sent = binding::End::new(member.vip, member.vip_port);
    let places = quote::places(frame, parsed);
    quote::rewrite(&frame.packet, parsed, places, End::Destination, &sent)
}
