//! Replies under NAT: recognised by the backend's address and port, or flow by
//! flow, given the VIP as their source and routed to the client.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibParameters,
    },
    helpers::bpf_fib_lookup,
};
use lb_common::{
    abi::{Config, MemberEntry, NeighbourRequest, ReplyKey, ServiceEntry},
    counter::{DropReason, Event},
    flow::{self, FlowKey, FlowTable as _, FlowWord, Idle, Mark},
    hash::{self, Tuple},
    net::{Addr, Be16, Mac, family},
    track::Kind,
};

use crate::{
    balance::{Frame, backend_port},
    clock,
    forward::nat,
    maps,
    maps::Flows,
    packet::MacWords,
    parse::Segment,
    stats,
    verdict::Verdict,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[inline(always)]
fn idle(config: &Config, open_units: u32) -> Idle {
    Idle {
        open_units,
        half_units: config.half_units,
    }
}

/// Makes sure that the reply to a packet on its way to `member` will be
/// recognised. One client port towards one backend port belongs to one member
/// at a time, whatever the VIP.
#[inline(always)]
pub fn expect(
    config: &Config,
    service: &ServiceEntry,
    segment: &Segment,
    id: u32,
    member: &MemberEntry,
) -> Result<(), DropReason> {
    let there = Tuple {
        destination: member.address,
        destination_port: backend_port(member.port, segment.tuple.destination_port),
        ..segment.tuple
    };
    let flows = Flows::replies(config);
    let key = FlowKey::new(
        hash::flow_hash(config.hash_key, &there.reversed()),
        config.reply_buckets,
    );
    let now = clock::ticks(config);
    let mark = mark(segment);
    // Whoever has the key: the tuple at the backend is the same.
    let found = flow::find(&flows, key, |entry| same_backend(entry.member(), member));
    let Some(found) = found else {
        let entry = FlowWord::new(key.tag, id, now, mark);
        let longest = idle(config, config.longest_idle_units);
        return match flow::insert(&flows, key, entry, now, longest) {
            true => Ok(()),
            false => Err(DropReason::ReplyTableFull),
        };
    };
    if found.entry.member() == id {
        flow::touch(&flows, &found, now, mark);
        return Ok(());
    }
    let taken = found.entry.is_live(now, idle(config, service.idle_units))
        && !found.entry.is_closing()
        && maps::member_state(found.entry.member()).serves();
    let entry = FlowWord::new(key.tag, id, now, mark);
    if taken || !flows.replace(found.bucket, found.word, found.entry.0, entry.0) {
        return Err(DropReason::ReplyConflict);
    }
    Ok(())
}

#[inline(always)]
fn mark(segment: &Segment) -> Mark {
    match segment.kind {
        // A reply flow's RST or FIN may be followed by replies all the same.
        Kind::Syn => Mark::Half,
        other => other.mark(),
    }
}

#[inline(always)]
fn same_backend(id: u32, member: &MemberEntry) -> bool {
    maps::member(id).is_some_and(|m| m.address == member.address && m.protocol == member.protocol)
}

/// The member that a packet from a backend is a reply of.
#[inline(always)]
fn member_of(config: &Config, tuple: &Tuple) -> Option<(u32, &'static MemberEntry)> {
    let mut key = ReplyKey {
        address: tuple.source,
        port: tuple.source_port,
        protocol: tuple.protocol,
        family: tuple.family,
    };
    let entry = match maps::reply(&key) {
        Some(entry) => entry,
        None => {
            key.port = Be16::default();
            maps::reply(&key)?
        }
    };
    if entry.member != 0 {
        return Some((entry.member, maps::member(entry.member)?));
    }
    let flows = Flows::replies(config);
    let key = FlowKey::new(
        hash::flow_hash(config.hash_key, tuple),
        config.reply_buckets,
    );
    let now = clock::ticks(config);
    let found = flow::find(&flows, key, |entry| {
        maps::member(entry.member())
            .is_some_and(|m| m.address == tuple.source && m.protocol == tuple.protocol)
    });
    let Some(found) = found.filter(|f| {
        f.entry
            .is_live(now, idle(config, config.longest_idle_units))
    }) else {
        stats::event(0, Event::ReplyUnmatched);
        return None;
    };
    let mark = if found.entry.is_confirmed() {
        Mark::Open
    } else {
        Mark::Half
    };
    flow::touch(&flows, &found, now, mark);
    Some((found.entry.member(), maps::member(found.entry.member())?))
}

/// A packet that isn't addressed to us: a reply to translate, or none of ours.
#[inline(always)]
pub fn translate(frame: &Frame<'_>, segment: &Segment) -> Verdict {
    let tuple = &segment.tuple;
    let Some((id, member)) = member_of(frame.config, tuple) else {
        return Verdict::PASS;
    };
    let service = member.service;

    // The route is asked first: what is for this host (the answer to a health
    // check) or stays on its link is never translated.
    let (result, route) = route(frame, tuple, member.vip);
    let routed = match result {
        BPF_FIB_LKUP_RET_SUCCESS => true,
        BPF_FIB_LKUP_RET_NOT_FWDED => return Verdict::PASS,
        BPF_FIB_LKUP_RET_FWD_DISABLED => {
            stats::event(service, Event::ForwardingOff);
            return Verdict::PASS;
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            return Verdict::drop(service, DropReason::NoRoute);
        }
        _ => false,
    };
    if !nat::has_hop(segment.ip) {
        return Verdict::drop(service, DropReason::TtlExceeded);
    }
    let egress = if routed {
        maps::link_of(route.ifindex)
    } else {
        None
    };
    nat::rewrite(segment, nat::End::Source, member.vip, member.vip_port);
    stats::replied(id, frame.packet.len() as u64);
    let Some(link) = egress else {
        // The kernel resolves the neighbour, or knows a way that we don't; it
        // uses up the hop itself.
        stats::event(service, Event::ReplyUnresolved);
        if result == BPF_FIB_LKUP_RET_NO_NEIGH {
            maps::request_neighbour(NeighbourRequest {
                address: route.next_hop,
                ifindex: route.ifindex,
                family: u32::from(tuple.family),
            });
        }
        return Verdict::PASS;
    };
    nat::hop(segment.ip);
    frame
        .ethernet
        .set_destination(MacWords::new(route.destination_mac));
    frame.ethernet.set_source(MacWords::new(link.mac));
    Verdict::send(link.ifindex, frame.ingress.ifindex)
}

struct Route {
    ifindex: u32,
    destination_mac: Mac,
    next_hop: Addr,
}

/// The kernel's route to a reply's destination, as if it came from the VIP.
#[inline(always)]
fn route(frame: &Frame<'_>, tuple: &Tuple, vip: Addr) -> (u32, Route) {
    // SAFETY: integers and unions of integers.
    let mut fib: FibParameters = unsafe { core::mem::zeroed() };
    fib.ifindex = frame.ingress.ifindex;
    fib.l4_protocol = tuple.protocol;
    if tuple.family == family::V4 {
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = vip.0[0];
        fib.__bindgen_anon_4.ipv4_dst = tuple.destination.0[0];
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_3.ipv6_src = vip.0;
        fib.__bindgen_anon_4.ipv6_dst = tuple.destination.0;
    }
    // SAFETY: the context is the program's own, the parameters are on the stack.
    let result = unsafe {
        bpf_fib_lookup(
            frame.ctx.as_ptr(),
            &raw mut fib,
            core::mem::size_of::<FibParameters>() as i32,
            0,
        )
    };
    // SAFETY: all variants are integers of the same size; the kernel leaves the
    // gateway where the destination stood.
    let next_hop = unsafe {
        if fib.family == AF_INET {
            Addr::v4(fib.__bindgen_anon_4.ipv4_dst)
        } else {
            Addr(fib.__bindgen_anon_4.ipv6_dst)
        }
    };
    // An errno of the helper is none of the codes below.
    (
        result as u32,
        Route {
            ifindex: fib.ifindex,
            destination_mac: fib.dmac,
            next_hop,
        },
    )
}
