//! ARP (RFC 826) and neighbour discovery (RFC 4861 §7.2) for the VIPs that this
//! node owns. The kernel never sees these questions.

use lb_common::{
    abi::{Claim, VipKey, program},
    checksum::fold,
    counter::Event,
    net::{Addr, Be16, family},
};

use crate::{
    clock,
    frame::{Frame, Handed},
    lookup, maps,
    packet::{Arp, Ethernet, Header, Ipv6, LinkLayerOption, MacWords, Neighbour, resize},
    parse::{Parsed, What},
    stats,
    verdict::{NO_SERVICE, Verdict},
    virtual_mac,
};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Either message without options.
const MESSAGE_BYTES: usize = 24;
const ADVERTISEMENT_BYTES: usize = MESSAGE_BYTES + 8;

/// An ARP packet or a message of neighbour discovery.
#[inline(always)]
pub fn answer(frame: &Frame<'_>, parsed: &Parsed, _: &Handed) -> Verdict {
    match parsed.what() {
        What::Icmp => ndp(frame, parsed),
        _ => arp(frame, parsed),
    }
}

/// An ARP packet: an answer if it asks for a VIP.
#[inline(always)]
fn arp(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    if !virtual_mac::take(frame) {
        return virtual_mac::NOT_OWNER;
    }
    let Some(at) = frame.packet.at::<Arp>(parsed.network_offset()) else {
        return Verdict::PASS;
    };
    let arp = at.read();
    // Ethernet, IPv4, their address lengths.
    if arp.hardware.get() != 1 || arp.protocol.get() != 0x0800 || arp.lengths != [6, 4] {
        return Verdict::PASS;
    }
    note_claim(frame, address(arp.sender), family::V4, arp.sender_mac);
    if arp.operation.get() != 1 {
        return Verdict::PASS;
    }
    let Some(own_mac) = own_mac(frame, address(arp.target), family::V4) else {
        return Verdict::PASS;
    };
    at.write(Arp {
        operation: Be16::new(2),
        sender_mac: own_mac,
        sender: arp.target,
        target_mac: arp.sender_mac,
        target: arp.sender,
        ..arp
    });
    frame.ethernet.set_destination(arp.sender_mac);
    frame.ethernet.set_source(own_mac);
    stats::event(NO_SERVICE, Event::ArpReply);
    Verdict::BOUNCE
}

/// An address that stands at an odd place in its packet.
#[inline(always)]
fn address(halves: [u16; 2]) -> Addr {
    let [a, b] = halves.map(u16::to_ne_bytes);
    Addr::v4(u32::from_ne_bytes([a[0], a[1], b[0], b[1]]))
}

/// The MAC address at which this node has an address; `None` if it doesn't
/// answer for it.
#[inline(always)]
fn own_mac(frame: &Frame<'_>, address: Addr, family: u8) -> Option<MacWords> {
    let owner = lookup::owner_of_answered(address, family)?;
    Some(virtual_mac::of_owner(frame, owner))
}

/// Whoever sent this says that an address is at `mac`. If that is an owned VIP,
/// and the MAC address not this node's, it is counted and noted who.
#[inline(always)]
fn note_claim(frame: &Frame<'_>, address: Addr, family: u8, mac: MacWords) {
    if mac == MacWords::new(frame.ingress.mac) {
        return;
    }
    // Two nodes with one virtual MAC hear of one another by their advertisements.
    match own_mac(frame, address, family) {
        Some(own) if own != mac => {}
        _ => return,
    }
    stats::event(NO_SERVICE, Event::DuplicateVip);
    let vip = VipKey {
        address,
        family,
        reserved: [0; 3],
    };
    let claim = Claim {
        mac: mac.bytes(),
        reserved: [0; 2],
        device: frame.ingress.device,
        ticks: clock::ticks(frame.config),
    };
    maps::note_claim(&vip, &claim);
}

/// An ICMPv6 message: an answer if it is a solicitation for a VIP.
#[inline(always)]
fn ndp(frame: &Frame<'_>, parsed: &Parsed) -> Verdict {
    match discovery(frame, parsed) {
        Some(verdict) => verdict,
        None if frame.is_for_us() => frame.hand_over(parsed, program::ICMP),
        None => Verdict::PASS,
    }
}

#[inline(always)]
fn discovery(frame: &Frame<'_>, parsed: &Parsed) -> Option<Verdict> {
    // A message behind an extension header stands elsewhere and is left alone.
    if parsed.offset() != parsed.network_offset() + 40 {
        return None;
    }
    let ip: Header<Ipv6> = parsed.ipv6(&frame.packet)?;
    let message: Header<Neighbour> = frame.packet.at(parsed.offset())?;
    let [kind, code] = message.type_code();
    // The frame may be longer than the packet that it carries.
    if usize::from(ip.payload_length().get()) < MESSAGE_BYTES {
        return None;
    }
    // §7.1.1: hop limit 255 proves that no router forwarded it.
    if !matches!(kind, SOLICITATION | ADVERTISEMENT) || code != 0 || ip.hop_limit() != 255 {
        return None;
    }
    let target = message.target();
    if kind == ADVERTISEMENT {
        note_claim(frame, target, family::V6, frame.ethernet.source());
        return Some(Verdict::PASS);
    }
    let Some(own_mac) = own_mac(frame, target, family::V6) else {
        return Some(Verdict::PASS);
    };
    let asker = Asker {
        mac: frame.ethernet.source(),
        address: ip.source(),
    };
    Some(advertise(frame, parsed, asker, (target, own_mac)).unwrap_or(Verdict::PASS))
}

struct Asker {
    mac: MacWords,
    address: Addr,
}

/// Turns the frame into the advertisement that answers it (§7.2.4).
#[inline(always)]
fn advertise(
    frame: &Frame<'_>,
    parsed: &Parsed,
    asker: Asker,
    (target, own_mac): (Addr, MacWords),
) -> Option<Verdict> {
    let network = parsed.network_offset();
    let frame_bytes = network + 40 + ADVERTISEMENT_BYTES;
    let packet = resize(frame.ctx, frame_bytes as i32 - parsed.frame_bytes() as i32)?;
    let ethernet: Header<Ethernet> = packet.at(0)?;
    let ip: Header<Ipv6> = packet.at(network)?;
    let message: Header<Neighbour> = packet.at(network + 40)?;
    let option: Header<LinkLayerOption> = packet.at(network + 40 + MESSAGE_BYTES)?;

    // The unspecified address checks for duplicates; it learns of one by an
    // unsolicited advertisement to all nodes.
    let checks_for_duplicates = asker.address == Addr::default();
    let all_nodes = Addr::from_bytes([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let (destination, mac, solicited) = if checks_for_duplicates {
        (all_nodes, MacWords::new([0x33, 0x33, 0, 0, 0, 1]), 0)
    } else {
        (asker.address, asker.mac, 0x4000_0000u32)
    };
    // Override: the VIP may have been another node's.
    let flags = (solicited | 0x2000_0000).to_be();
    let mut advertisement = Neighbour {
        type_code: [ADVERTISEMENT, 0],
        checksum: 0,
        flags,
        target,
    };
    // Target link-layer address.
    let link_layer = LinkLayerOption {
        kind_length: [2, 1],
        mac: own_mac,
    };
    advertisement.checksum = checksum(target, destination, &advertisement, &link_layer);

    ethernet.set_destination(mac);
    ethernet.set_source(own_mac);
    ip.write(Ipv6 {
        version: 0x60,
        flow: [0; 3],
        payload_length: Be16::new(ADVERTISEMENT_BYTES as u16),
        next_header: 58,
        hop_limit: 255,
        source: target,
        destination,
    });
    message.write(advertisement);
    option.write(link_layer);
    stats::event(NO_SERVICE, Event::NeighbourAdvertisement);
    Some(Verdict::BOUNCE)
}

/// ICMPv6's checksum over the pseudo-header and the message (RFC 4443 §2.3).
#[inline(always)]
fn checksum(source: Addr, destination: Addr, message: &Neighbour, option: &LinkLayerOption) -> u16 {
    let word = |w: u32| (w & 0xffff) + (w >> 16);
    let addr = |a: Addr| word(a.0[0]) + word(a.0[1]) + word(a.0[2]) + word(a.0[3]);
    let pair = |a: u8, b: u8| u32::from(u16::from_ne_bytes([a, b]));
    let [mac0, mac1, mac2] = option.mac.0.map(u32::from);
    let target = message.target;
    let sum = addr(source)
        + addr(destination)
        + pair(0, ADVERTISEMENT_BYTES as u8)
        + pair(0, 58)
        + pair(message.type_code[0], message.type_code[1])
        + word(message.flags)
        + addr(target)
        + pair(option.kind_length[0], option.kind_length[1])
        + mac0
        + mac1
        + mac2;
    !fold(sum)
}
