//! Replies under NAT: recognised by the backend's address and port, or flow by
//! flow, given the VIP as their source and routed to the client.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as bpf_fib_lookup_abi,
    },
    helpers::bpf_fib_lookup,
};
use lb_common::{
    abi::{
        Config, LinkEntry, MemberEntry, NeighbourRequest, ReplyKey, ServiceEntry, link_flag,
        program,
    },
    counter::{DropReason, Event},
    flow::{self, FlowKey, FlowTable as _, FlowWord, Idle, Mark, Place},
    hash::{self, Tuple},
    net::{Addr, Be16, Mac},
};

use crate::{
    clock,
    forward::{self, Way, nat},
    frame::{Frame, Handed},
    full_nat, head, lookup, maps,
    maps::Flows,
    packet::{MacWords, Packet},
    parse::Parsed,
    stats,
    verdict::{NO_SERVICE, Verdict},
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
            frame.tell(parsed, program::FULL_NAT, full_nat::CONFLICT)
        }
        Err(reason) => Verdict::drop(service.id, reason as u32),
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
        RESERVED => forward::deliver(frame, parsed, service, flow_hash, id, member),
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
    maps::member(id).is_some_and(|m| m.address == member.address && m.protocol == member.protocol)
}

/// Id of the member that a packet from a backend is a reply of; zero if none.
#[inline(never)]
fn member_of(config: &Config, parsed: &Parsed) -> u32 {
    let tuple = parsed.tuple();
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
    match entry {
        None => 0,
        Some(entry) if entry.member != 0 => entry.member,
        Some(_) => member_of_flow(config, parsed),
    }
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
        maps::member(entry.member()).is_some_and(|m| m.address == source && m.protocol == protocol)
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

/// A packet that isn't addressed to us: a reply to translate, or none of ours.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    match member_of(frame.config, parsed) {
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
    if frame.is_bridged() && !frame.is_for_us() {
        return pass_by(frame, parsed, id, member);
    }
    // The route is asked before anything is changed: what is for this host (the
    // answer to a health check) or stays on its link is never translated.
    let mut fib = FibParameters::default();
    let egress = match route(frame, parsed, member.vip, parsed.destination(), &mut fib) {
        BPF_FIB_LKUP_RET_SUCCESS => fib.link(),
        BPF_FIB_LKUP_RET_NOT_FWDED => return Verdict::PASS,
        BPF_FIB_LKUP_RET_FWD_DISABLED => {
            stats::event(member.service, Event::ForwardingOff);
            return Verdict::PASS;
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            return Verdict::drop(member.service, DropReason::NoRoute as u32);
        }
        _ => None,
    };
    let link = by_us(frame, egress);
    if !nat::has_hop(&frame.packet, parsed) {
        return Verdict::drop(member.service, DropReason::TtlExceeded as u32);
    }
    if !rewrite_source(&frame.packet, parsed, member) {
        return Verdict::drop(member.service, DropReason::Malformed as u32);
    }
    let of = Of {
        member: id,
        service: member.service,
    };
    send(frame, parsed, of, link, &fib)
}

/// Whose reply it is.
#[derive(Clone, Copy)]
pub struct Of {
    pub member: u32,
    pub service: u32,
}

/// Sends and counts a reply that was rewritten by the link and to the neighbour
/// that the kernel named, or leaves it to the kernel.
#[inline(always)]
pub fn send(
    frame: &Frame<'_>,
    parsed: &Parsed,
    of: Of,
    link: Option<&LinkEntry>,
    fib: &FibParameters,
) -> Verdict {
    let Some(link) = link else {
        stats::replied(of.member, parsed.frame_bytes().into());
        stats::event(of.service, Event::ReplyUnresolved);
        return Verdict::PASS;
    };
    nat::hop(&frame.packet, parsed);
    let destination = MacWords::new(fib.destination_mac);
    if link.flags & link_flag::BRIDGE != 0 {
        stats::replied(of.member, parsed.frame_bytes().into());
        frame.ethernet.set_destination(destination);
        return Verdict::PASS;
    }
    if frame.has_tags_of(link) {
        frame.ethernet.set_destination(destination);
        frame.ethernet.set_source(MacWords::new(link.mac));
    } else if head::retag(frame, parsed, &destination, link) == 0 {
        return Verdict::drop(of.service, DropReason::NoHeadroom as u32);
    }
    stats::replied(of.member, parsed.frame_bytes().into());
    Verdict::send(link.ifindex, frame.ingress.ifindex)
}

/// The link, if this program sends by it. Otherwise the kernel resolves the
/// neighbour, or knows a way that we don't; it uses up the hop itself.
#[inline(always)]
pub fn by_us(frame: &Frame<'_>, link: Option<&'static LinkEntry>) -> Option<&'static LinkEntry> {
    link.filter(|link| Way::of(frame, link) != Way::Kernel)
}

/// A reply on a bridge that is addressed to somebody behind the other port: the
/// bridge carries it on, and is no hop.
#[inline(always)]
fn pass_by(frame: &Frame<'_>, parsed: &Parsed, id: u32, member: &MemberEntry) -> Verdict {
    if !rewrite_source(&frame.packet, parsed, member) {
        return Verdict::drop(member.service, DropReason::Malformed as u32);
    }
    stats::replied(id, parsed.frame_bytes().into());
    Verdict::PASS
}

#[inline(never)]
fn rewrite_source(packet: &Packet, parsed: &Parsed, member: &MemberEntry) -> bool {
    nat::rewrite(
        packet,
        parsed,
        nat::End::Source,
        member.vip,
        member.vip_port,
    )
    .is_ok()
}

/// `struct bpf_fib_lookup` of linux/bpf.h: the question and the answer.
#[repr(C)]
#[derive(Default)]
pub struct FibParameters {
    address_family: u8,
    l4_protocol: u8,
    source_port: u16,
    destination_port: u16,
    total_length: u16,
    /// Ingress; in the answer egress.
    ifindex: u32,
    traffic_class: u32,
    source: Addr,
    /// In the answer the next hop.
    destination: Addr,
    vlan: u32,
    source_mac: Mac,
    destination_mac: Mac,
}

impl FibParameters {
    /// The device that the answer names, if it is one of ours.
    #[inline(always)]
    pub fn link(&self) -> Option<&'static LinkEntry> {
        maps::link(maps::find_link(self.ifindex, [0; 2]))
    }
}

const _: () = assert!(size_of::<FibParameters>() == size_of::<bpf_fib_lookup_abi>());

/// The kernel's route to a reply's destination, as if it came from the VIP. An
/// errno of the helper is none of the codes.
#[inline(always)]
pub fn route(
    frame: &Frame<'_>,
    parsed: &Parsed,
    vip: Addr,
    client: Addr,
    fib: &mut FibParameters,
) -> u32 {
    fib.address_family = if parsed.is_v4() { AF_INET } else { AF_INET6 };
    fib.l4_protocol = parsed.protocol();
    fib.ifindex = frame.ingress.device;
    fib.source = vip;
    fib.destination = client;
    // SAFETY: the context is the program's own, the parameters are on the stack
    // and laid out as the kernel's, see the assertion above.
    let result = unsafe {
        bpf_fib_lookup(
            frame.ctx.as_ptr(),
            (&raw mut *fib).cast(),
            size_of::<FibParameters>() as i32,
            0,
        )
    } as u32;
    if result == BPF_FIB_LKUP_RET_NO_NEIGH {
        maps::request_neighbour(NeighbourRequest {
            address: fib.destination,
            ifindex: fib.ifindex,
            family: u32::from(parsed.family()),
        });
    }
    result
}
