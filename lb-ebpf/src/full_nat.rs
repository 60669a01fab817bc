//! Full NAT: clients' packets get an address of the pool as their source, so
//! that the backend's answers come back whatever its routes are; and the way
//! back. Which port stands for which flow is in lb-common's `binding`.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
};
use lb_common::{
    abi::{Config, MemberEntry, ServiceEntry, VipKey, feature, service_flag},
    binding::{self, End, Flow, Opened, Ring, Side},
    counter::{DropReason, Event},
    flow::FlowTable as _,
    hash::{self, Tuple},
    member::MemberState,
    net::{Be16, family},
    track::Kind,
};

use crate::{
    clock,
    forward::{self, nat},
    frame::{Frame, Handed},
    head, lookup,
    maps::{self, Flows, bindings},
    packet::{MacWords, Packet},
    parse::Parsed,
    reply::{self, FibParameters},
    reset, sample, select, stats,
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

/// What is told with a packet whose client's port is in use towards
/// the same backend.
pub const CONFLICT: u32 = 1;

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
        Err(reason) => Verdict::drop(service.id, reason as u32),
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
        let id = if lookup::has_flag(service, service_flag::FULL_TRACKING) {
            handed.member
        } else {
            select::id(frame, service, parsed, flow_hash)
        };
        let member = select::member(service, id, parsed.kind())?;
        let is_bound = is_full || (opens && takes_new(config, service, parsed));
        if !is_bound {
            if handed.detail == CONFLICT {
                return Err(DropReason::ReplyConflict);
            }
            // Under NAT a connection may be older than the pool.
            return forward::to_member(frame, parsed, service, flow_hash, id, member);
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
    Ok(counted(frame, parsed, service, flow_hash, id, verdict))
}

#[inline(always)]
fn counted(
    frame: &Frame<'_>,
    parsed: &Parsed,
    service: &ServiceEntry,
    flow_hash: u64,
    id: u32,
    verdict: Verdict,
) -> Verdict {
    let connections = sample::note(frame.config, service, parsed, flow_hash, id);
    stats::forwarded(id, parsed.frame_bytes().into(), connections);
    verdict
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

/// A packet to an address of the pool: a backend's answer, or nobody's.
#[inline(always)]
pub fn backend(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    let mut flow = Behind::default();
    if !behind(frame.config, parsed, &mut flow) {
        return Verdict::drop(NO_SERVICE, DropReason::NoBinding as u32);
    }
    match to_client(frame, parsed, &flow) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::drop(flow.service, reason as u32),
    }
}

/// Who stands behind a port of the pool.
#[derive(Default)]
struct Behind {
    client: End,
    vip: End,
    member: u32,
    service: u32,
}

/// Finds the flow that a packet from a backend belongs to, and notes the packet.
#[inline(never)]
fn behind(config: &Config, parsed: &Parsed, flow: &mut Behind) -> bool {
    let tuple = parsed.tuple();
    let index = index_of(&tuple);
    let records = Flows::bindings(config);
    let Some(at) = records.bucket(index) else {
        return false;
    };
    let state = binding::state(&records, at);
    flow.member = binding::member(&records, at);
    let Some(member) = maps::member(flow.member) else {
        return false;
    };
    flow.client = binding::client(&records, at);
    flow.vip = End {
        address: member.vip,
        port: binding::vip_port(&records, at),
    };
    flow.service = member.service;
    // What was read belongs together if the use is the same afterwards.
    let is_the_flows = index != 0
        && state.is_used()
        && is_from(member, &tuple, flow.vip.port)
        && MemberState(member.state).serves()
        && binding::state(&records, at).is_same_use(state);
    if is_the_flows {
        let now = clock::ticks(config);
        binding::touch(&records, at, now, Side::Backend, parsed.kind());
    }
    is_the_flows
}

#[inline(always)]
fn is_from(member: &MemberEntry, tuple: &Tuple, vip_port: Be16) -> bool {
    member.address == tuple.source
        && member.protocol == tuple.protocol
        && member.port.or(vip_port) == tuple.source_port
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

#[inline(always)]
fn to_client(frame: &Frame<'_>, parsed: &Parsed, flow: &Behind) -> Result<Verdict, DropReason> {
    let mut fib = FibParameters::default();
    let (vip, client) = (flow.vip.address, flow.client.address);
    let egress = match reply::route(frame, parsed, vip, client, &mut fib) {
        BPF_FIB_LKUP_RET_SUCCESS => fib.link(),
        BPF_FIB_LKUP_RET_NOT_FWDED
        | BPF_FIB_LKUP_RET_BLACKHOLE
        | BPF_FIB_LKUP_RET_UNREACHABLE
        | BPF_FIB_LKUP_RET_PROHIBIT => return Err(DropReason::NoRoute),
        BPF_FIB_LKUP_RET_FWD_DISABLED => {
            stats::event(flow.service, Event::ForwardingOff);
            return Err(DropReason::NoRoute);
        }
        _ => None,
    };
    if !nat::has_hop(&frame.packet, parsed) {
        return Err(DropReason::TtlExceeded);
    }
    let packet = &frame.packet;
    if !rewrite(packet, parsed, nat::End::Source, &flow.vip)
        || !rewrite(packet, parsed, nat::End::Destination, &flow.client)
    {
        return Err(DropReason::Malformed);
    }
    let link = reply::by_us(frame, egress);
    let of = reply::Of {
        member: flow.member,
        service: flow.service,
    };
    Ok(reply::send(frame, parsed, of, link, &fib))
}
