//! The way of packets to clients, where this program knows it: replies under
//! NAT, and ICMP errors about what NAT sent to backends.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        bpf_fib_lookup as bpf_fib_lookup_abi,
    },
    helpers::bpf_fib_lookup,
};
use lb_common::{
    abi::{LinkEntry, NeighbourRequest, link_flag},
    counter::{DropReason, Event},
    net::{Addr, Mac},
};

use crate::{
    forward::{Way, nat},
    fragment::{self, Followed},
    frame::{self, Frame},
    head, maps,
    packet::MacWords,
    parse::{Parsed, What},
    stats,
    verdict::Verdict,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A packet on its way to a client: whose it is.
pub struct Back {
    pub member: u32,
    pub service: u32,
    /// Full NAT's binding, or zero.
    pub binding: u32,
}

impl Back {
    /// What is addressed to full NAT's pool the kernel can't carry on itself, nor
    /// tell its sender of.
    #[inline(always)]
    fn untranslated(&self, frame: &Frame<'_>, parsed: &Parsed, reason: DropReason) -> Verdict {
        if self.binding == 0 {
            return Verdict::PASS;
        }
        frame.refuse(parsed, self.service, reason)
    }
}

/// Sends a packet to the client from the VIP, which `rewrite` makes of it. The
/// route is asked before anything is changed: what is for this host (the answer
/// to a health check) or stays on its link is never translated.
#[inline(always)]
pub fn send(
    frame: &Frame<'_>,
    parsed: &Parsed,
    to: &Back,
    (vip, client): (Addr, Addr),
    rewrite: impl FnOnce() -> bool,
) -> Verdict {
    let malformed = Verdict::drop(to.service, DropReason::Malformed as u32);
    // On a bridge, addressed to somebody behind the other port: the bridge
    // carries it on, and is no hop.
    if frame.is_bridged() && !frame.is_for_us() {
        if !rewrite() {
            return malformed;
        }
        note(frame, parsed, to);
        return Verdict::PASS;
    }
    let Some(fib) = maps::route() else {
        return Verdict::drop(to.service, DropReason::Inconsistent as u32);
    };
    *fib = FibParameters::default();
    let egress = match route(frame, parsed, vip, client, fib) {
        BPF_FIB_LKUP_RET_SUCCESS => fib.link(),
        BPF_FIB_LKUP_RET_NOT_FWDED => {
            return to.untranslated(frame, parsed, DropReason::NoRoute);
        }
        // The kernel tells the backend; otherwise it makes fragments.
        BPF_FIB_LKUP_RET_FRAG_NEEDED if !may_be_fragmented(frame, parsed) => {
            let reason = frame::too_big(fib.total_length.into());
            return to.untranslated(frame, parsed, reason);
        }
        BPF_FIB_LKUP_RET_FWD_DISABLED => {
            stats::event(to.service, Event::ForwardingOff);
            return to.untranslated(frame, parsed, DropReason::NoRoute);
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            return Verdict::drop(to.service, DropReason::NoRoute as u32);
        }
        _ => None,
    };
    // The kernel tells the backend that no hop is left.
    if !nat::has_hop(&frame.packet, parsed) {
        return to.untranslated(frame, parsed, DropReason::TtlExceeded);
    }
    if !rewrite() {
        return malformed;
    }
    carry_on(frame, parsed, to, by_us(frame, egress), fib)
}

/// Sends and counts a packet that was rewritten by the link and to the neighbour
/// that the kernel named, or leaves it to the kernel.
#[inline(always)]
fn carry_on(
    frame: &Frame<'_>,
    parsed: &Parsed,
    to: &Back,
    link: Option<&LinkEntry>,
    fib: &FibParameters,
) -> Verdict {
    let Some(link) = link else {
        note(frame, parsed, to);
        stats::event(to.service, Event::ReplyUnresolved);
        return Verdict::PASS;
    };
    nat::hop(&frame.packet, parsed);
    let destination = MacWords::new(fib.destination_mac);
    if link.flags & link_flag::BRIDGE != 0 {
        note(frame, parsed, to);
        frame.ethernet.set_destination(destination);
        return Verdict::PASS;
    }
    if frame.has_tags_of(link) {
        frame.ethernet.set_destination(destination);
        frame.ethernet.set_source(MacWords::new(link.mac));
    } else if head::retag(frame, parsed, &destination, link) == 0 {
        return Verdict::drop(to.service, DropReason::NoHeadroom as u32);
    }
    note(frame, parsed, to);
    Verdict::send(link.ifindex, frame.ingress.ifindex)
}

/// Counts what goes to a client, and has the later fragments follow it.
#[inline(never)]
fn note(frame: &Frame<'_>, parsed: &Parsed, to: &Back) {
    if parsed.what() == What::Icmp {
        stats::event(to.service, Event::IcmpForwarded);
        return;
    }
    stats::replied(to.member, parsed.frame_bytes().into());
    if parsed.is_first_fragment() {
        fragment::remember(frame, parsed, &Followed::reply(to.member, to.binding));
    }
}

/// The link, if this program sends by it. Otherwise the kernel resolves the
/// neighbour, or knows a way that we don't; it uses up the hop itself.
#[inline(always)]
fn by_us(frame: &Frame<'_>, link: Option<&'static LinkEntry>) -> Option<&'static LinkEntry> {
    link.filter(|link| Way::of(frame, link) != Way::Kernel)
}

/// Whether routers may fragment the packet (RFC 791 §3.1; RFC 8200 §4.5).
#[inline(always)]
fn may_be_fragmented(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    let ip = parsed.ipv4(&frame.packet).filter(|_| parsed.is_v4());
    ip.is_some_and(|ip| ip.fragment().get() & 0x4000 == 0)
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
    fn link(&self) -> Option<&'static LinkEntry> {
        maps::link(maps::find_link(self.ifindex, [0; 2]))
    }
}

const _: () = assert!(size_of::<FibParameters>() == size_of::<bpf_fib_lookup_abi>());

/// The kernel's route to a reply's destination, as if it came from the VIP. An
/// errno of the helper is none of the codes.
#[inline(always)]
fn route(
    frame: &Frame<'_>,
    parsed: &Parsed,
    vip: Addr,
    client: Addr,
    fib: &mut FibParameters,
) -> u32 {
    fib.address_family = if parsed.is_v4() { AF_INET } else { AF_INET6 };
    fib.l4_protocol = parsed.protocol();
    fib.ifindex = frame.ingress.device;
    let bytes = parsed
        .end(&frame.packet)
        .wrapping_sub(parsed.network_offset()) as u32;
    // A longer one was put together by the kernel, which takes it apart again.
    if bytes <= frame.ingress.mtu {
        fib.total_length = bytes as u16;
    }
    fib.source = vip;
    fib.destination = client;
    // SAFETY: the context is the program's own, the parameters are laid out as
    // the kernel's, see the assertion above.
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
