//! The XDP data path.
//!
//! `parse` says what a packet is, `lookup` whose it is, `select` which member
//! gets it, `forward` how. That is the program `lb`; the rest are programs that
//! it hands packets over to: `neighbour` and `icmp` answer for the VIPs, `icmp`
//! forwards the errors of flows, `icmp_error` makes new ones, `fragment` has
//! later fragments follow the first, `reply` translates what comes back,
//! `full_nat` both ways, `back` knows the way to clients, `reset` ends connections, `head` puts packets into
//! tunnels and changes VLAN tags. `defence` says what a service takes in,
//! `persistence` which server a source has; `probe` sends health checks the way of
//! clients' packets; `virtual_mac` says which frames to virtual routers are this
//! node's. `frame` is what they all start from. Packet memory is touched in `packet` alone, map
//! memory in `maps` alone. What can be decided without either stands in
//! lb-common, where the host tests it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features)]
// The attribute macros make public items that have nobody to read about them.
#![allow(missing_docs)]

mod back;
mod balance;
mod clock;
mod defence;
mod forward;
mod fragment;
mod frame;
mod full_nat;
mod head;
mod icmp;
mod icmp_error;
mod lookup;
mod maps;
mod neighbour;
mod packet;
mod parse;
mod persistence;
mod probe;
mod quote;
mod reply;
mod reset;
mod sample;
mod schedule;
mod select;
mod stats;
mod verdict;
mod virtual_mac;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Entry point of every packet.
#[xdp(frags)]
pub fn lb(ctx: XdpContext) -> u32 {
    balance::packet(&ctx).finish(&ctx)
}

/// ARP and neighbour discovery.
#[xdp(frags)]
pub fn lb_neighbour(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, neighbour::answer).finish(&ctx)
}

/// ICMP and ICMPv6 messages.
#[xdp(frags)]
pub fn lb_icmp(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, icmp::handle).finish(&ctx)
}

/// Replies of backends.
#[xdp(frags)]
pub fn lb_reply(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, reply::handle).finish(&ctx)
}

/// Packets in tracked slots.
#[xdp(frags)]
pub fn lb_tracked(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, balance::tracked).finish(&ctx)
}

/// Packets whose replies have to be recognised by flow.
#[xdp(frags)]
pub fn lb_expect(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, reply::expect).finish(&ctx)
}

/// Connections whose backend is gone.
#[xdp(frags)]
pub fn lb_reset(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, reset::handle).finish(&ctx)
}

/// Clients' packets that get another source.
#[xdp(frags)]
pub fn lb_full_nat(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, full_nat::client).finish(&ctx)
}

/// Packets to full NAT's addresses: replies.
#[xdp(frags)]
pub fn lb_binding(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, full_nat::backend).finish(&ctx)
}

/// Packets of services with full tracking.
#[xdp(frags)]
pub fn lb_schedule(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, balance::scheduled).finish(&ctx)
}

/// Packets to members that leave with a head of another length.
#[xdp(frags)]
pub fn lb_head(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, head::to_member).finish(&ctx)
}

/// Probes of this host, on the device that is there for them.
#[xdp(frags)]
pub fn lb_probe(ctx: XdpContext) -> u32 {
    probe::packet(&ctx).finish(&ctx)
}

/// Answers to probes.
#[xdp(frags)]
pub fn lb_probed(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, probe::answer).finish(&ctx)
}

/// Errors for clients whose packets can't be forwarded.
#[xdp(frags)]
pub fn lb_icmp_error(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, icmp_error::answer).finish(&ctx)
}

/// Fragments.
#[xdp(frags)]
pub fn lb_fragment(ctx: XdpContext) -> u32 {
    frame::resumed(&ctx, fragment::handle).finish(&ctx)
}

/// Reads the clocks for the controller, which can't read jiffies. Started by
/// BPF_PROG_TEST_RUN only; attached nowhere.
#[xdp(frags)]
pub fn lb_clock(_ctx: XdpContext) -> u32 {
    clock::publish();
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
