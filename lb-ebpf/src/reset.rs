//! Tells a client that the backend of its connection is gone: an RST from the
//! VIP, whatever the forwarding method.

use lb_common::{
    abi::program,
    checksum::fold,
    counter::{DropReason, Event},
    net::{Be16, protocol},
    reset::{Reset, Segment},
    track::Kind,
};

use crate::{
    defence,
    frame::{Frame, Handed},
    maps,
    packet::{self, Ethernet, Ipv4, Ipv6, MacWords, Packet, Tcp},
    parse::Parsed,
    stats,
    verdict::{NO_SERVICE, Verdict},
};

const TTL: u8 = 64;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;

/// Bytes behind an answer over IPv4, so that no frame is shorter than Ethernet
/// allows: where a NIC sends what it is given, nobody else fills it up.
const PADDING: usize = 6;

/// Leaves the packet of a service to [`handle`].
#[inline(always)]
pub fn begin(frame: &Frame<'_>, parsed: &Parsed, service: u32) -> Verdict {
    if let Some(work) = maps::work() {
        work.service = service;
    }
    frame.hand_over(parsed, program::RESET)
}

/// A TCP segment of a flow whose member is gone.
#[inline(always)]
pub fn handle(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let service = handed.service;
    if parsed.kind() == Kind::Rst || !defence::may_reset(frame.config) {
        return Verdict::drop(service, DropReason::BackendGone as u32);
    }
    match answer(frame, parsed) {
        Some(()) => {
            stats::event(service, Event::Reset);
            Verdict::BOUNCE
        }
        None => Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32),
    }
}

/// Makes the answer of the frame.
#[inline(always)]
fn answer(frame: &Frame<'_>, parsed: &Parsed) -> Option<()> {
    let reset = Reset::answering(segment(&frame.packet, parsed)?);
    let client = frame.ethernet.source();
    let network = parsed.network_offset();
    let bytes = if parsed.is_v4() {
        let least = network + IPV4 + TCP;
        if parsed.frame_bytes() as usize >= least + PADDING {
            least + PADDING
        } else {
            least
        }
    } else {
        network + IPV6 + TCP
    };
    let by = bytes as i32 - parsed.frame_bytes() as i32;
    let packet = packet::resize(frame.ctx, by)?;
    let ethernet = packet.at::<Ethernet>(0)?;
    ethernet.set_destination(client);
    ethernet.set_source(MacWords::new(frame.ingress.mac));
    if parsed.is_v4() {
        ipv4(&packet, parsed, network)?;
        tcp(&packet, parsed, reset, network + IPV4)?;
        if let Some(padding) = packet.at::<[u8; PADDING]>(network + IPV4 + TCP) {
            padding.write([0; PADDING]);
        }
    } else {
        ipv6(&packet, parsed, network)?;
        tcp(&packet, parsed, reset, network + IPV6)?;
    }
    Some(())
}

#[inline(always)]
fn segment(packet: &Packet, parsed: &Parsed) -> Option<Segment> {
    let tcp = packet.at::<Tcp>(parsed.offset())?.read();
    let end = parsed.network_offset()
        + if parsed.is_v4() {
            usize::from(parsed.ipv4(packet)?.total_length().get())
        } else {
            IPV6 + usize::from(parsed.ipv6(packet)?.payload_length().get())
        };
    let data = parsed.offset() + usize::from(tcp.data_offset >> 4) * 4;
    Some(Segment {
        sequence: u32::from_be(tcp.sequence),
        acknowledgement: u32::from_be(tcp.acknowledgement),
        flags: tcp.flags,
        data_bytes: end.wrapping_sub(data) as u32,
    })
}

/// RFC 791 §3.1: without options, not to be fragmented.
#[inline(always)]
fn ipv4(packet: &Packet, parsed: &Parsed, at: usize) -> Option<()> {
    let mut header = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: Be16::new((IPV4 + TCP) as u16),
        id: 0,
        fragment: Be16::new(0x4000),
        ttl_protocol: [TTL, protocol::TCP],
        checksum: 0,
        source: parsed.destination().0[0],
        destination: parsed.source().0[0],
    };
    let sum = u32::from(u16::from_ne_bytes([0x45, 0]))
        + u32::from(header.total_length.wire())
        + u32::from(header.fragment.wire())
        + u32::from(u16::from_ne_bytes(header.ttl_protocol))
        + halves(header.source)
        + halves(header.destination);
    header.checksum = !fold(sum);
    packet.at::<Ipv4>(at)?.write(header);
    Some(())
}

/// RFC 8200 §3, without extension headers.
#[inline(always)]
fn ipv6(packet: &Packet, parsed: &Parsed, at: usize) -> Option<()> {
    packet.at::<Ipv6>(at)?.write(Ipv6 {
        version: 0x60,
        flow: [0; 3],
        payload_length: Be16::new(TCP as u16),
        next_header: protocol::TCP,
        hop_limit: TTL,
        source: parsed.destination(),
        destination: parsed.source(),
    });
    Some(())
}

/// RFC 9293 §3.1, with the pseudo-header's part of the checksum, which is the
/// same number in both families.
#[inline(always)]
fn tcp(packet: &Packet, parsed: &Parsed, reset: Reset, at: usize) -> Option<()> {
    let tuple = parsed.tuple();
    let mut header = Tcp {
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        sequence: reset.sequence.to_be(),
        acknowledgement: reset.acknowledgement.to_be(),
        data_offset: (TCP as u8 / 4) << 4,
        flags: reset.flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let mut sum = u32::from(Be16::new(protocol::TCP.into()).wire())
        + u32::from(Be16::new(TCP as u16).wire())
        + u32::from(header.source_port.wire())
        + u32::from(header.destination_port.wire())
        + halves(header.sequence)
        + halves(header.acknowledgement)
        + u32::from(u16::from_ne_bytes([header.data_offset, header.flags]));
    for word in tuple.source.0 {
        sum += halves(word);
    }
    for word in tuple.destination.0 {
        sum += halves(word);
    }
    header.checksum = !fold(sum);
    packet.at::<Tcp>(at)?.write(header);
    Some(())
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}
