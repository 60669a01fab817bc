//! Full NAT: clients' packets get an address of the pool as their source, so
//! that the backend's answers come back whatever its routes are; and the way
//! back. Which port stands for which flow is in lb-common's `binding`.

use lb_common::{
    abi::{Bound, Config, MemberEntry, ServiceEntry, VipKey, feature, program, service_flag},
    binding::{self, End, Flow, Opened, Ring, Side},
    counter::{DropReason, Event},
    flow::FlowTable as _,
    hash::{self, Tuple},
    member::MemberState,
    net::{Addr, family},
    track::Kind,
};

use crate::{
    back::{self, Back},
    clock,
    forward::{self, nat},
    frame::{Frame, Handed},
    head, lookup,
    maps::{self, Flows, bindings},
    packet::{MacWords, Packet},
    parse::{Parsed, What},
    quote, reset, select, stats,
    verdict::{NO_SERVICE, Verdict},
};

/// Whether a packet of a service needs another source: by the service's
/// method, or since the backend would answer the client directly.
#[inline(always)]
pub fn is_wanted(config: &Config, service: &ServiceEntry, tuple: &Tuple) -> bool {
    if service.flags & (service_flag::FULL_NAT | service_flag::LOCAL) == 0 {
        return false;
    }
    service.flags & service_flag::FULL_NAT != 0 || is_local(config, service, tuple)
}

#[inline(always)]
fn is_local(config: &Config, service: &ServiceEntry, tuple: &Tuple) -> bool {
    if !bindings::is_local(tuple.source, tuple.family) {
        return false;
    }
    let has_pool = has_pool(config, tuple.family);
    if !has_pool {
        stats::event(service.id, Event::LocalClient);
    }
    has_pool
}

/// Whether the feature of this family is on.
#[inline(always)]
const fn has(config: &Config, family: u8, v4: u32, v6: u32) -> bool {
    let feature = if family == family::V4 { v4 } else { v6 };
    config.features & feature != 0
}

/// What is told with a packet whose client's port is in use towards the same
/// backend.
pub const CONFLICT: u32 = 1;

/// What another program is told of a packet whose member it has to choose, for
/// this one: the stack is small.
pub const CHOOSE: u32 = 2;

/// A packet of a client, on its way to a service.
#[inline(always)]
pub fn client(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let Some(service) = lookup::service(frame.config, &parsed.tuple()) else {
        return Verdict::drop(NO_SERVICE, DropReason::NoService as u32);
    };
    match to_backend(frame, parsed, service, handed) {
        Ok(verdict) => verdict,
        Err(DropReason::NoBinding) if lookup::has_flag(service, service_flag::RESET) => {
            reset::begin(frame, parsed, service.id)
        }
        Err(reason) => frame.refuse(parsed, service.id, reason),
    }
}

#[inline(always)]
fn to_backend(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &'static ServiceEntry,
    handed: &Handed,
) -> Result<Verdict, DropReason> {
    let config = frame.config;
    let flow_hash = hash_of(config, parsed);
    let mut index = known(config, service, parsed, flow_hash);
    if index == 0 {
        // A connection that nobody knows can't be taken up in the middle: the
        // backend would know it by a port that is gone.
        let opens = !parsed.is_tcp() || parsed.kind() == Kind::Syn;
        let is_full = service.flags & service_flag::FULL_NAT != 0;
        if is_full && !opens {
            return Err(DropReason::NoBinding);
        }
        let id = handed.member;
        if id == 0 {
            return Ok(frame.pass_on_and_tell(parsed, (0, flow_hash), program::TRACKED, CHOOSE));
        }
        let member = select::member(service, id, parsed.kind())?;
        let is_bound = is_full || (opens && takes_new(config, service, parsed));
        if !is_bound {
            if handed.detail == CONFLICT {
                return Err(DropReason::ReplyConflict);
            }
            // Under NAT a connection may be older than the pool.
            return forward::to_member::<true>(frame, parsed, service, flow_hash, id, member);
        }
        forward::reachable(frame, parsed, member)?;
        index = new(config, service.id, parsed, flow_hash, id);
    }
    match index {
        EXHAUSTED => return Err(DropReason::NoSourcePort),
        REFUSED => return Err(DropReason::ReplyTableFull),
        _ => {}
    }
    let records = Flows::bindings(config);
    let at = records.bucket(index).ok_or(DropReason::Inconsistent)?;
    let id = binding::member(&records, at);
    let member = maps::member(id).ok_or(DropReason::Inconsistent)?;
    let link = forward::reachable(frame, parsed, member)?;
    let source = binding::pool(&records, at);
    if !rewrite(&frame.packet, parsed, nat::End::Source, &source) {
        return Err(DropReason::Malformed);
    }
    let verdict = if frame.has_tags_of(link) {
        forward::send(frame, parsed, link, member)?
    } else {
        forward::rewrite(frame, parsed, link, member)?;
        let mac = MacWords::of(member.next_hop());
        if head::retag(frame, parsed, &mac, link) == 0 {
            return Err(DropReason::NoHeadroom);
        }
        Verdict::send(link.ifindex, frame.ingress.ifindex)
    };
    forward::note(frame, parsed, service, flow_hash, id, index);
    Ok(verdict)
}

/// Whether the pool has an address for new flows; counts a client who needs one.
#[inline(always)]
fn takes_new(config: &Config, service: &ServiceEntry, parsed: &Parsed) -> bool {
    let (v4, v6) = (feature::OPEN_POOL_V4, feature::OPEN_POOL_V6);
    let takes = has(config, parsed.family(), v4, v6);
    if !takes {
        stats::event(service.id, Event::LocalClient);
    }
    takes
}

/// Whether sources of the family's pool can be given.
#[inline(always)]
pub fn has_pool(config: &Config, family: u8) -> bool {
    has(config, family, feature::POOL_V4, feature::POOL_V6)
}

/// Whether the flow of a packet to a service has a binding.
#[inline(never)]
pub fn is_bound(config: &Config, parsed: &Parsed, service: u32) -> bool {
    let tuple = parsed.tuple();
    let flow = Flow {
        tuple: &tuple,
        hash: hash_of(config, parsed),
        service,
    };
    binding::find(&Flows::bindings(config), &Flows::nat(config), &flow).is_some()
}

#[inline(never)]
fn hash_of(config: &Config, parsed: &Parsed) -> u64 {
    hash::flow_hash(config.hash_key, &parsed.tuple())
}

#[inline(never)]
fn rewrite(packet: &Packet, parsed: &Parsed, end: nat::End, new: &End) -> bool {
    nat::rewrite(packet, parsed, end, new.address, new.port).is_ok()
}

/// Index of the flow's binding, which has seen this packet; zero if it has
/// none, or one whose member doesn't serve it any more.
#[inline(never)]
fn known(config: &Config, service: &ServiceEntry, parsed: &Parsed, flow_hash: u64) -> u32 {
    let tuple = parsed.tuple();
    let flow = Flow {
        tuple: &tuple,
        hash: flow_hash,
        service: service.id,
    };
    let (records, flows) = (Flows::bindings(config), Flows::nat(config));
    let Some(found) = binding::find(&records, &flows, &flow) else {
        return 0;
    };
    let index = found.entry.member();
    let (Some(at), now) = (records.bucket(index), clock::ticks(config)) else {
        return 0;
    };
    let state = binding::state(&records, at);
    let id = binding::member(&records, at);
    let member = maps::member_state(id);
    let keeps = parsed.kind() != Kind::Syn
        || member.takes_new()
        || (!state.is_closing() && (state.is_open() || !member.is_down()));
    if !member.serves() || !keeps || !is_of(id, &tuple) {
        binding::end(&records, &flows, &found, now);
        return 0;
    }
    binding::touch(&records, at, now, Side::Client, parsed.kind());
    index
}

/// Whether the member stands for the VIP that the packet is addressed to: a
/// service may have got another address.
#[inline(always)]
fn is_of(id: u32, tuple: &Tuple) -> bool {
    maps::member(id).is_some_and(|m| m.vip == tuple.destination)
}

/// In place of an index: no port is free.
const EXHAUSTED: u32 = u32::MAX;
/// In place of an index: there is no room for the flow's entry.
const REFUSED: u32 = u32::MAX - 1;

/// Gives the flow a binding; its index.
#[inline(never)]
fn new(config: &Config, service: u32, parsed: &Parsed, flow_hash: u64, member: u32) -> u32 {
    let records = Flows::bindings(config);
    let now = clock::ticks(config);
    let ring = Ring::new(parsed.family(), config.free_ports);
    let free = Flows::free_ports(config);
    let index = binding::claim(&records, &free, ring, now, parsed.kind());
    if index == 0 {
        return EXHAUSTED;
    }
    let tuple = parsed.tuple();
    let flow = Flow {
        tuple: &tuple,
        hash: flow_hash,
        service,
    };
    let flows = Flows::nat(config);
    match binding::open(&records, &flows, index, &flow, member, now) {
        Opened::Mine => {
            stats::event(service, Event::BindingOpened);
            index
        }
        Opened::Refused => REFUSED,
        // Another core was faster, and its binding is there by now.
        Opened::Theirs => {
            binding::find(&records, &flows, &flow).map_or(EXHAUSTED, |f| f.entry.member())
        }
    }
}

/// A packet to an address of the pool: a backend's answer, an error about a
/// packet to it, or nobody's. Or an error to a VIP, with a binding's index.
#[inline(always)]
pub fn backend(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let Some(bound) = maps::bound() else {
        return Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32);
    };
    if parsed.what() == What::Icmp && handed.detail != 0 {
        return error(frame, parsed, handed.detail, bound);
    }
    let (is_known, otherwise) = match parsed.what() {
        What::Segment => (behind(frame.config, parsed, bound), DropReason::NoBinding),
        What::Icmp => (is_about(frame, parsed, bound), DropReason::IcmpUnmatched),
        // A later fragment: its first one told.
        _ => (
            read(frame.config, handed.detail, bound) && bound.member == handed.member,
            DropReason::NoBinding,
        ),
    };
    if !is_known {
        return Verdict::drop(NO_SERVICE, otherwise as u32);
    }
    to_client(frame, parsed, bound)
}

#[inline(never)]
fn to_client(frame: &Frame<'_>, parsed: &Parsed, bound: &Bound) -> Verdict {
    let to = Back {
        member: bound.member,
        service: bound.service,
        binding: bound.index,
    };
    let ends = (bound.vip.address, bound.client.address);
    back::send(frame, parsed, &to, ends, || translate(frame, parsed, bound))
}

/// An error about a packet that a backend sent to a client by binding `index`:
/// to the backend, from the pool, whatever routes the backend has, and about what
/// the backend sent.
#[inline(never)]
fn error(frame: &Frame<'_>, parsed: &Parsed, index: u32, bound: &mut Bound) -> Verdict {
    let is_known = read(frame.config, index, bound);
    let Some(member) = maps::member(bound.member).filter(|_| is_known) else {
        return Verdict::drop(NO_SERVICE, DropReason::IcmpUnmatched as u32);
    };
    match to_member(frame, parsed, bound, member) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::drop(bound.service, reason as u32),
    }
}

#[inline(always)]
fn to_member(
    frame: &Frame<'_>,
    parsed: &Parsed,
    bound: &Bound,
    member: &MemberEntry,
) -> Result<Verdict, DropReason> {
    let link = forward::reachable(frame, parsed, member)?;
    if !quote::replace(frame, parsed, &bound.backend, &bound.pool) {
        return Err(DropReason::Malformed);
    }
    nat::rewrite_address(&frame.packet, parsed, nat::End::Source, bound.pool.address)?;
    forward::carry_on(frame, parsed, link, (bound.member, member), 0)
}

/// Reads binding `index`, if it is in use and its member serves.
#[inline(never)]
fn read(config: &Config, index: u32, bound: &mut Bound) -> bool {
    let records = Flows::bindings(config);
    let Some(at) = records.bucket(index) else {
        return false;
    };
    let state = binding::state(&records, at);
    bound.index = index;
    bound.member = binding::member(&records, at);
    let Some(member) = maps::member(bound.member) else {
        return false;
    };
    bound.client = binding::client(&records, at);
    bound.pool = binding::pool(&records, at);
    let vip_port = binding::vip_port(&records, at);
    bound.vip = End::new(member.vip, vip_port);
    bound.backend = End::new(member.address, member.port.or(vip_port));
    bound.protocol = member.protocol.into();
    bound.service = member.service;
    // What was read belongs together if the use is the same afterwards.
    index != 0
        && state.is_used()
        && MemberState(member.state).serves()
        && binding::state(&records, at).is_same_use(state)
}

/// Whether a packet with this tuple is from the backend.
#[inline(always)]
fn is_from(bound: &Bound, tuple: &Tuple) -> bool {
    bound.backend.address == tuple.source
        && bound.backend.port == tuple.source_port
        && bound.protocol == u32::from(tuple.protocol)
}

/// Finds the flow that a packet from a backend belongs to, and notes the packet.
#[inline(never)]
fn behind(config: &Config, parsed: &Parsed, bound: &mut Bound) -> bool {
    let tuple = parsed.tuple();
    let index = index_of(&tuple);
    if !read(config, index, bound) || !is_from(bound, &tuple) {
        return false;
    }
    let records = Flows::bindings(config);
    if let Some(at) = records.bucket(index) {
        let now = clock::ticks(config);
        binding::touch(&records, at, now, Side::Backend, parsed.kind());
    }
    true
}

/// Finds the flow that an error about a packet to a backend belongs to. It is no
/// sign of life.
#[inline(never)]
fn is_about(frame: &Frame<'_>, parsed: &Parsed, bound: &mut Bound) -> bool {
    match quote::read(&frame.packet, parsed, frame.config.hash_key[0]) {
        Ok(quote) if quote.source() == parsed.destination() => {
            let tuple = quote.reversed(parsed.family());
            read(frame.config, index_of(&tuple), bound) && is_from(bound, &tuple)
        }
        _ => false,
    }
}

/// Index of the binding of a client's flow to a service; zero if there is none.
/// Nothing is noted.
#[inline(never)]
pub fn peek(config: &Config, tuple: &Tuple, hash: u64, service: u32) -> u32 {
    let flow = Flow {
        tuple,
        hash,
        service,
    };
    binding::find(&Flows::bindings(config), &Flows::nat(config), &flow)
        .map_or(0, |found| found.entry.member())
}

/// The pool address that binding `index` gives to packets to `member`.
#[inline(always)]
pub fn source(config: &Config, index: u32, member: u32) -> Option<Addr> {
    let bound = maps::bound()?;
    let is_right = read(config, index, bound) && bound.member == member;
    is_right.then_some(bound.pool.address)
}

#[inline(always)]
fn index_of(tuple: &Tuple) -> u32 {
    let key = VipKey {
        address: tuple.destination,
        family: tuple.family,
        reserved: [0; 3],
    };
    bindings::pool(&key).map_or(0, |pool| pool.index(tuple.destination_port))
}

/// Gives a packet from the backend the ends that the client knows, an error
/// also the packet that it is about.
#[inline(always)]
fn translate(frame: &Frame<'_>, parsed: &Parsed, bound: &Bound) -> bool {
    let packet = &frame.packet;
    if parsed.is_segment() {
        return rewrite(packet, parsed, nat::End::Source, &bound.vip)
            && rewrite(packet, parsed, nat::End::Destination, &bound.client);
    }
    if parsed.what() == What::Icmp && !quote::replace(frame, parsed, &bound.client, &bound.vip) {
        return false;
    }
    let (vip, client) = (bound.vip.address, bound.client.address);
    nat::rewrite_address(packet, parsed, nat::End::Source, vip).is_ok()
        && nat::rewrite_address(packet, parsed, nat::End::Destination, client).is_ok()
}
