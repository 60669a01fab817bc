//! Errors that the data path sends to clients itself: time exceeded where NAT
//! uses up the last hop, and too big where a packet is longer than the way to
//! the backend carries (RFC 792, RFC 1191 §4; RFC 4443 §3.2, §3.3).

use core::arch::asm;

use aya_ebpf::{helpers::bpf_xdp_load_bytes, programs::XdpContext};
use lb_common::{
    checksum::fold,
    counter::{DropReason, Event},
    net::{Addr, Be16, protocol},
};

use crate::{
    clock,
    frame::{Frame, Handed},
    maps,
    packet::{
        ETHERNET, Ethernet, Header, Icmp, Ipv4, Ipv6, MacWords, Packet, frame_bytes, grow, resize,
    },
    parse::Parsed,
    stats,
    verdict::Verdict,
};

const TTL: u8 = 64;
const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMP: usize = 8;
const TAG: usize = 4;

/// What is quoted of the packet at most. Far below what either family allows
/// (RFC 1812 §4.3.2.3, RFC 4443 §2.4), and it holds the ports behind any IPv4
/// options.
pub const QUOTE: usize = 128;

/// Bytes of layer 4 that have to be quoted (RFC 792).
const QUOTED_UPPER: usize = 8;

/// Shortest MTU of an IPv6 link (RFC 8200 §5).
const IPV6_MTU: u32 = 1280;

/// Traffic class of what routers say (RFC 1812 §5.3.2).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// Answers a packet that another program has dropped; the drop stays counted.
/// That it is no error itself, no later fragment and from a single host (RFC
/// 1122 §3.2.2, RFC 4443 §2.4) was seen before.
#[inline(always)]
pub fn answer(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let (service, reason) = (handed.service, handed.detail);
    let dropped = Verdict::drop(service, reason);
    let (type_code, rest) = message(parsed, reason, handed.fitting);
    let network = parsed.network_offset();
    let bytes = parsed.end(&frame.packet).wrapping_sub(network);
    // In whole words, for the checksum.
    let quoted = if bytes < QUOTE { bytes & !3 } else { QUOTE };
    if parsed.offset() + QUOTED_UPPER > network + quoted {
        return dropped;
    }
    let config = frame.config;
    if config.icmp_cost == 0
        || !maps::take_icmp(|limit| {
            limit.take(clock::jiffies(), config.icmp_cost, config.second_steps)
        })
    {
        stats::event(service, Event::IcmpLimited);
        return dropped;
    }
    if !build(frame, parsed, quoted, type_code, rest) {
        return dropped;
    }
    stats::dropped(service, reason);
    stats::event(service, Event::IcmpErrorSent);
    Verdict::BOUNCE
}

/// Type, code and the word behind the checksum.
#[inline(always)]
fn message(parsed: &Parsed, reason: u32, fitting: u32) -> ([u8; 2], u32) {
    let v4 = parsed.is_v4();
    if reason == DropReason::TtlExceeded as u32 {
        return (if v4 { [11, 0] } else { [3, 0] }, 0);
    }
    if v4 {
        return ([3, 4], fitting.to_be());
    }
    // A host takes nothing below for a packet's length.
    ([2, 0], fitting.max(IPV6_MTU).to_be())
}

/// Turns the frame into the error. `false`: there was no room before it.
#[inline(always)]
fn build(frame: &Frame<'_>, parsed: &Parsed, quoted: usize, type_code: [u8; 2], rest: u32) -> bool {
    let network = parsed.network_offset();
    // All of the quote has to be in the linear part.
    if frame.packet.len() < network + quoted {
        return false;
    }
    let client = frame.ethernet.source();
    let own = MacWords::new(frame.ingress.mac);
    let cut = (network + quoted) as i32 - frame_bytes(frame.ctx) as i32;
    if resize(frame.ctx, cut).is_none() {
        return false;
    }
    let room = if parsed.is_v4() { IPV4 } else { IPV6 } + ICMP;
    let Some(packet) = grow(frame.ctx, room as i32) else {
        return false;
    };
    write(
        (frame.ctx, &packet),
        parsed,
        room,
        quoted,
        (type_code, rest),
        (own, client),
    )
    .is_some()
}

/// Writes all headers; the quote stands where it has to already.
#[inline(always)]
fn write(
    (ctx, packet): (&XdpContext, &Packet),
    parsed: &Parsed,
    room: usize,
    quoted: usize,
    (type_code, rest): ([u8; 2], u32),
    (source_mac, destination_mac): (MacWords, MacWords),
) -> Option<()> {
    let network = parsed.network_offset();
    let old = packet.at::<Ethernet>(room)?.read();
    packet.at::<Ethernet>(0)?.write(Ethernet {
        destination: destination_mac,
        source: source_mac,
        ether_type: old.ether_type,
    });
    // The way back has the tags of the way here.
    let mut tag = ETHERNET;
    while tag < ETHERNET + 2 * TAG {
        if tag < network {
            let old = packet.at::<[u8; TAG]>(room + tag)?.read();
            packet.at::<[u8; TAG]>(tag)?.write(old);
        }
        tag += TAG;
    }
    // From whom the client expects to hear.
    let (source, destination) = (parsed.destination(), parsed.source());
    let length = Be16::new((ICMP + quoted) as u16);
    let icmp = opaque(network + room - ICMP);
    let mut sum =
        words(ctx, icmp + ICMP, quoted)? + u32::from(u16::from_ne_bytes(type_code)) + halves(rest);
    if parsed.is_v4() {
        ipv4(packet.at(network)?, length, source.0[0], destination.0[0]);
    } else {
        ipv6(packet.at(network)?, length, source, destination);
        // The pseudo-header (RFC 4443 §2.3).
        sum += u32::from(length.wire()) + u32::from(Be16::new(protocol::ICMPV6.into()).wire());
        for word in source.0 {
            sum += halves(word);
        }
        for word in destination.0 {
            sum += halves(word);
        }
    }
    packet.at::<Icmp>(icmp)?.write(Icmp {
        type_code,
        checksum: !fold(sum),
        rest,
    });
    Some(())
}

/// The same number, of which the compiler forgets where it comes from: it would
/// check the bounds of one number and use another, which the verifier doesn't
/// follow.
#[inline(always)]
fn opaque(offset: usize) -> usize {
    let mut offset = offset as u64;
    // SAFETY: a register keeps its value. (Without any instruction two lines of
    // the source would have the same place, which the kernel refuses.)
    unsafe { asm!("{0} = {0}", inout(reg) offset, options(pure, nomem, preserves_flags)) };
    offset as usize
}

/// RFC 791 §3.1. Short enough for every link, so never fragmented.
#[inline(always)]
fn ipv4(ip: Header<Ipv4>, length: Be16, source: u32, destination: u32) {
    let mut header = Ipv4 {
        version_ihl: 0x45,
        tos: INTERNETWORK_CONTROL,
        total_length: Be16::new(length.get() + IPV4 as u16),
        id: 0,
        fragment: Be16::new(0x4000),
        ttl_protocol: [TTL, protocol::ICMP],
        checksum: 0,
        source,
        destination,
    };
    let sum = u32::from(u16::from_ne_bytes([header.version_ihl, header.tos]))
        + u32::from(header.total_length.wire())
        + u32::from(header.fragment.wire())
        + u32::from(u16::from_ne_bytes(header.ttl_protocol))
        + halves(source)
        + halves(destination);
    header.checksum = !fold(sum);
    ip.write(header);
}

/// RFC 8200 §3.
#[inline(always)]
fn ipv6(ip: Header<Ipv6>, length: Be16, source: Addr, destination: Addr) {
    ip.write(Ipv6 {
        version: 0x60 | INTERNETWORK_CONTROL >> 4,
        flow: [0; 3],
        payload_length: length,
        next_header: protocol::ICMPV6,
        hop_limit: TTL,
        source,
        destination,
    });
}

/// The sum over the quote: `bytes` from offset `from` on, with zeros behind them.
/// A copy is summed up, since a loop over the packet would end in as many places
/// as it has steps, and Linux 6.1's verifier follows each.
#[inline(always)]
fn words(ctx: &XdpContext, from: usize, bytes: usize) -> Option<u32> {
    let quote = maps::quote()?;
    *quote = [0; QUOTE / 4];
    // 1 to QUOTE, in a way that the verifier sees.
    let bytes = (opaque(bytes.wrapping_sub(1)) & (QUOTE - 1)) + 1;
    let room = quote.as_mut_ptr().cast();
    // SAFETY: there is room for so many bytes.
    if unsafe { bpf_xdp_load_bytes(ctx.ctx, from as u32, room, bytes as u32) } != 0 {
        return None;
    }
    let mut sum = 0;
    for word in quote {
        sum += halves(*word);
    }
    Some(sum)
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}
