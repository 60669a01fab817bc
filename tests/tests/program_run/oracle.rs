//! What has to become of a frame, told simply and slowly, from the bytes and
//! a list of services. Shares nothing with the data path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_tests::packet::{ethertype, protocol};

use crate::lab::OWN_MAC;

/// A service as the oracle knows it.
#[derive(Clone, Debug)]
pub struct Known {
    pub id: u32,
    pub vip: IpAddr,
    pub port: u16,
    pub port_bits: u32,
    pub protocol: u8,
    pub is_nat: bool,
    pub is_owned: bool,
    /// (last byte of the MAC address, address, port)
    pub backends: Vec<(u8, IpAddr, u16)>,
}

/// What has to become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// Passed, but counted as somebody's claim of a VIP.
    Claim,
    Drop(u32, &'static str),
    /// To a backend of the service with this id.
    Forward(u32, Segment),
    /// As [`Self::Forward`], and later fragments will follow.
    ForwardFirst(u32, Segment, Fragments),
    /// After the first fragment.
    Follow(Fragments, Place),
    /// An ICMP error, to a backend of the service with this id.
    Relay(u32, Quote),
    /// Dropped for want of a hop; the sender hears of it.
    Tell(u32, Place),
    Echo(Place),
    /// Answered; whether it was a claim as well.
    Arp(bool),
    Advertise,
}

/// Where the parts of a packet stand in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub is_v4: bool,
    pub layer4: usize,
    /// Behind the last byte of the IP packet.
    pub end: usize,
}

/// A TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub place: Place,
    pub protocol: u8,
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Of the message.
    pub place: Place,
    /// Where the quoted IP header starts.
    pub network: usize,
    /// Where its TCP or UDP header starts.
    pub layer4: usize,
    pub protocol: u8,
}

/// What the fragments of one packet have in common: addresses, identification,
/// and IPv4's protocol.
pub type Fragments = (IpAddr, IpAddr, u32, u8);

/// A fragment: its packet, the offset field, and the protocol behind its header.
struct Fragment {
    of: Fragments,
    offset: u16,
    next: u8,
    place: Place,
}

enum Content {
    Fragment(Fragment),
    Bad(&'static str),
    Segment(Segment),
    Icmp(Place),
}

pub fn u16_at(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn v4_at(frame: &[u8], at: usize) -> IpAddr {
    let octets: [u8; 4] = frame[at..at + 4].try_into().expect("four bytes");
    Ipv4Addr::from(octets).into()
}

fn v6_at(frame: &[u8], at: usize) -> IpAddr {
    let octets: [u8; 16] = frame[at..at + 16].try_into().expect("sixteen bytes");
    Ipv6Addr::from(octets).into()
}

/// Whether the VIP is owned; none where it is no VIP.
fn vip(services: &[Known], address: IpAddr) -> Option<bool> {
    services
        .iter()
        .find(|s| s.vip == address)
        .map(|s| s.is_owned)
}

fn is_owned(services: &[Known], address: IpAddr) -> bool {
    vip(services, address) == Some(true)
}

/// Bytes of the frame's first VLAN tags, two at most, that have a priority only.
pub fn priority_tags(frame: &[u8]) -> usize {
    let is_tag = |at: usize| {
        frame.len() >= at + 4
            && matches!(u16_at(frame, at), 0x8100 | 0x88a8)
            && u16_at(frame, at + 2) & 0xfff == 0
    };
    match (is_tag(12), is_tag(16)) {
        (true, true) => 8,
        (true, false) => 4,
        (false, _) => 0,
    }
}

/// The fate of a frame that came in by the ingress link.
pub fn fate(services: &[Known], frame: &[u8]) -> Fate {
    let is_ours = frame[..6] == OWN_MAC.0;
    let is_v4 = match u16_at(frame, 12) {
        ethertype::ARP => return arp(services, frame),
        ethertype::IPV4 => true,
        ethertype::IPV6 => false,
        _ => return Fate::Pass,
    };
    let is_group = !is_v4 && frame[..2] == [0x33, 0x33];
    if !is_ours && !is_group || frame.len() < if is_v4 { 34 } else { 54 } {
        return Fate::Pass;
    }
    let (source, destination, content) = if is_v4 {
        (v4_at(frame, 26), v4_at(frame, 30), ipv4(frame))
    } else {
        (v6_at(frame, 22), v6_at(frame, 38), ipv6(frame))
    };
    if let Content::Icmp(place) = content
        && !is_v4
        && let Some(fate) = discovery(services, frame, place)
    {
        return fate;
    }
    if !is_ours {
        return Fate::Pass;
    }
    let (content, first) = match content {
        Content::Fragment(fragment) => match vip(services, destination) {
            None => return Fate::Pass,
            Some(false) => return Fate::Drop(0, "not_owner"),
            Some(true) if fragment.offset == 1 && fragment.next == protocol::TCP => {
                return Fate::Drop(0, "malformed");
            }
            Some(true) if fragment.offset > 0 => return Fate::Follow(fragment.of, fragment.place),
            Some(true) => {
                let content = first_fragment(frame, &fragment);
                if let Content::Icmp(_) = content {
                    return Fate::Drop(0, "fragment");
                }
                (content, Some(fragment.of))
            }
        },
        other => (other, None),
    };
    let segment = match content {
        Content::Segment(segment) => segment,
        Content::Fragment(_) => unreachable!("no fragment in a fragment"),
        Content::Bad(_) | Content::Icmp(_) => {
            return match (vip(services, destination), content) {
                (None, _) => Fate::Pass,
                (Some(false), _) => Fate::Drop(0, "not_owner"),
                (_, Content::Bad(reason)) => Fate::Drop(0, reason),
                (_, Content::Icmp(place)) => {
                    icmp_to_vip(services, frame, place, (source, destination))
                }
                _ => unreachable!("matched above"),
            };
        }
    };
    let port = u16_at(frame, segment.place.layer4 + 2);
    let Some(service) = service_of(services, destination, port, segment.protocol) else {
        return match vip(services, destination) {
            None => Fate::Pass,
            Some(false) => Fate::Drop(0, "not_owner"),
            Some(true) => Fate::Drop(0, "no_service"),
        };
    };
    if !service.is_owned {
        return Fate::Drop(service.id, "not_owner");
    }
    if !can_be_answered(source) || source == destination {
        return Fate::Drop(service.id, "bad_source");
    }
    if service.is_nat && frame[if is_v4 { 22 } else { 21 }] <= 1 {
        let place = segment.place;
        // The ports have to be among the 128 bytes that are quoted.
        let quoted = (place.end - 14).min(128) & !3;
        return if place.layer4 + 8 <= 14 + quoted {
            Fate::Tell(service.id, place)
        } else {
            Fate::Drop(service.id, "ttl_exceeded")
        };
    }
    match first {
        Some(of) => Fate::ForwardFirst(service.id, segment, of),
        None => Fate::Forward(service.id, segment),
    }
}

fn service_of(services: &[Known], vip: IpAddr, port: u16, protocol: u8) -> Option<&Known> {
    let port = u32::from(port);
    services
        .iter()
        .filter(|s| s.vip == vip && s.protocol == protocol)
        .filter(|s| port >> (16 - s.port_bits) == u32::from(s.port) >> (16 - s.port_bits))
        .max_by_key(|s| s.port_bits)
}

/// The headers of a first fragment, as far as they go.
fn first_fragment(frame: &[u8], fragment: &Fragment) -> Content {
    if fragment.place.is_v4 {
        layer4(frame, fragment.place, fragment.next, false)
    } else {
        extensions(frame, fragment.next, fragment.place, false)
    }
}

fn can_be_answered(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast()),
    }
}

fn ipv4(frame: &[u8]) -> Content {
    let header = usize::from(frame[14] & 15) * 4;
    let total = usize::from(u16_at(frame, 16));
    if frame[14] >> 4 != 4 || header < 20 || total < header {
        return Content::Bad("malformed");
    }
    if 14 + total > frame.len() {
        return Content::Bad("truncated");
    }
    let place = Place {
        is_v4: true,
        layer4: 14 + header,
        end: 14 + total,
    };
    // All but "don't fragment" and the reserved bit.
    if u16_at(frame, 20) & 0x3fff != 0 {
        let id = u16_at(frame, 18);
        return Content::Fragment(Fragment {
            of: (v4_at(frame, 26), v4_at(frame, 30), id.into(), frame[23]),
            offset: u16_at(frame, 20) & 0x1fff,
            next: frame[23],
            place,
        });
    }
    layer4(frame, place, frame[23], true)
}

fn ipv6(frame: &[u8]) -> Content {
    let end = 54 + usize::from(u16_at(frame, 18));
    if frame[14] >> 4 != 6 {
        return Content::Bad("malformed");
    }
    if end > frame.len() {
        return Content::Bad("truncated");
    }
    let place = Place {
        is_v4: false,
        layer4: 54,
        end,
    };
    extensions(frame, frame[20], place, true)
}

/// Walks the extension headers from the place's layer 4 on. In a whole packet
/// there may be a fragment header.
fn extensions(frame: &[u8], mut next: u8, place: Place, is_whole: bool) -> Content {
    let (mut at, end, mut walked) = (place.layer4, place.end, 0);
    while [0, 43, 60].contains(&next) || is_whole && next == 44 {
        if at + 8 > end {
            return Content::Bad("malformed");
        }
        let length = match next {
            44 => 8,
            _ => (usize::from(frame[at + 1]) + 1) * 8,
        };
        if at + length > end {
            return Content::Bad("malformed");
        }
        // An offset, or more to follow.
        if next == 44 && u16_at(frame, at + 2) & 0xfff9 != 0 {
            let id = u32::from(u16_at(frame, at + 4)) << 16 | u32::from(u16_at(frame, at + 6));
            return Content::Fragment(Fragment {
                of: (v6_at(frame, 22), v6_at(frame, 38), id, 0),
                offset: u16_at(frame, at + 2) >> 3,
                next: frame[at],
                place: Place {
                    layer4: at + 8,
                    ..place
                },
            });
        }
        if walked == 6 || next == 43 && frame[at + 3] > 0 {
            return Content::Bad("extension_headers");
        }
        next = frame[at];
        at += length;
        walked += 1;
    }
    let place = Place {
        layer4: at,
        ..place
    };
    layer4(frame, place, next, is_whole)
}

fn layer4(frame: &[u8], place: Place, number: u8, is_whole: bool) -> Content {
    let message = &frame[place.layer4..place.end];
    let segment = Content::Segment(Segment {
        place,
        protocol: number,
    });
    match number {
        protocol::TCP => {
            if message.len() < 20 {
                return Content::Bad("malformed");
            }
            let header = usize::from(message[12] >> 4) * 4;
            if header < 20 || header > message.len() {
                return Content::Bad("malformed");
            }
            segment
        }
        protocol::UDP => {
            if message.len() < 8 {
                return Content::Bad("malformed");
            }
            let length = usize::from(u16_at(message, 4));
            if length < 8 || is_whole && length > message.len() {
                return Content::Bad("malformed");
            }
            segment
        }
        protocol::ICMP if place.is_v4 => icmp(message, place),
        protocol::ICMPV6 if !place.is_v4 => icmp(message, place),
        _ => Content::Bad("unknown_protocol"),
    }
}

fn icmp(message: &[u8], place: Place) -> Content {
    if message.len() < 8 {
        return Content::Bad("malformed");
    }
    Content::Icmp(place)
}

fn icmp_to_vip(
    services: &[Known],
    frame: &[u8],
    place: Place,
    (source, destination): (IpAddr, IpAddr),
) -> Fate {
    if !can_be_answered(source) || source == destination {
        return Fate::Drop(0, "bad_source");
    }
    let request = if place.is_v4 { [8, 0] } else { [128, 0] };
    if frame[place.layer4..place.layer4 + 2] == request {
        return Fate::Echo(place);
    }
    let errors: &[u8] = if place.is_v4 {
        &[3, 11, 12]
    } else {
        &[1, 2, 3, 4]
    };
    if !errors.contains(&frame[place.layer4]) {
        return Fate::Drop(0, "icmp");
    }
    let quote = match quoted(frame, place) {
        Ok(quote) => quote,
        Err(reason) => return Fate::Drop(0, reason),
    };
    let from = if place.is_v4 {
        v4_at(frame, quote.network + 12)
    } else {
        v6_at(frame, quote.network + 8)
    };
    let port = u16_at(frame, quote.layer4);
    match service_of(services, destination, port, quote.protocol) {
        Some(service) if from == destination => {
            if service.is_nat && frame[if place.is_v4 { 22 } else { 21 }] <= 1 {
                return Fate::Drop(service.id, "ttl_exceeded");
            }
            Fate::Relay(service.id, quote)
        }
        _ => Fate::Drop(0, "icmp_unmatched"),
    }
}

/// The headers of the packet that an error is about.
fn quoted(frame: &[u8], place: Place) -> Result<Quote, &'static str> {
    let (network, end) = (place.layer4 + 8, place.end);
    let header = if place.is_v4 { 20 } else { 40 };
    if network + header > end {
        return Err("malformed");
    }
    let version = frame[network] >> 4;
    let (layer4, next) = if place.is_v4 {
        let header = usize::from(frame[network] & 15) * 4;
        if version != 4 || header < 20 || network + header > end {
            return Err("malformed");
        }
        if u16_at(frame, network + 6) & 0x1fff != 0 {
            return Err("icmp");
        }
        (network + header, frame[network + 9])
    } else {
        if version != 6 {
            return Err("malformed");
        }
        let (mut at, mut next, mut walked) = (network + 40, frame[network + 6], 0);
        while [0, 43, 44, 60].contains(&next) {
            if walked == 6 {
                return Err("extension_headers");
            }
            if at + 8 > end {
                return Err("malformed");
            }
            if next == 44 && u16_at(frame, at + 2) >> 3 != 0 {
                return Err("icmp");
            }
            let length = match next {
                44 => 8,
                _ => (usize::from(frame[at + 1]) + 1) * 8,
            };
            next = frame[at];
            at += length;
            walked += 1;
        }
        (at, next)
    };
    if ![protocol::TCP, protocol::UDP].contains(&next) {
        return Err("icmp");
    }
    if layer4 + 8 > end {
        return Err("malformed");
    }
    Ok(Quote {
        place,
        network,
        layer4,
        protocol: next,
    })
}

/// RFC 4861 §7.1, of a message right behind the IPv6 header.
fn discovery(services: &[Known], frame: &[u8], place: Place) -> Option<Fate> {
    let message = &frame[place.layer4..place.end];
    let is_ours = place.layer4 == 54
        && message.len() >= 24
        && matches!(message[0], 135 | 136)
        && message[1] == 0
        && frame[21] == 255;
    if !is_ours {
        return None;
    }
    if !is_owned(services, v6_at(message, 8)) {
        return Some(Fate::Pass);
    }
    Some(match message[0] {
        135 => Fate::Advertise,
        _ if frame[6..12] == OWN_MAC.0 => Fate::Pass,
        _ => Fate::Claim,
    })
}

/// RFC 826, of Ethernet and IPv4.
fn arp(services: &[Known], frame: &[u8]) -> Fate {
    if frame.len() < 42 || frame[14..20] != [0, 1, 8, 0, 6, 4] {
        return Fate::Pass;
    }
    let is_claim = frame[22..28] != OWN_MAC.0 && is_owned(services, v4_at(frame, 28));
    let is_question = frame[20..22] == [0, 1] && is_owned(services, v4_at(frame, 38));
    match (is_question, is_claim) {
        (true, claim) => Fate::Arp(claim),
        (false, true) => Fate::Claim,
        (false, false) => Fate::Pass,
    }
}
