//! Random and mutated frames, each compared with what the [`oracle`] says.
//!
//! 250,000 frames; with LB_TEST_FULL=1 ten million. The numbers come from a
//! fixed seed, or from LB_TEST_SEED.
//!
//! [`oracle`]: crate::oracle

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    panic::AssertUnwindSafe,
};

use anyhow::{Context as _, Result};
use lb_common::abi::method;
use lb_tests::{
    packet::{
        Mac, Packet, Rng, arp_reply, arp_request, icmp_error, internet_checksum,
        neighbor_advertisement, neighbor_solicitation, protocol, verify,
    },
    program::{Outcome, Sizes, action},
};

use crate::{
    lab::{Lab, OWN_MAC, ROUTER_MAC, Spec, at, backend_mac, ip},
    oracle::{self, Fate, Fragments, Known, Place, Quote, Segment, fate, u16_at},
};

/// Frames between two comparisons of the counters.
pub const BATCH: u64 = 1000;

/// VIP and first port, leading bits of the port, protocol, method, owner word.
const SERVICES: [(&str, u32, u8, u8, u16); 10] = [
    ("192.0.2.10:80", 16, 6, method::L2_DSR, 0),
    ("192.0.2.10:5000", 13, 17, method::L2_DSR, 0),
    ("192.0.2.10:443", 16, 6, method::NAT, 0),
    ("192.0.2.20:0", 0, 17, method::NAT, 0),
    ("192.0.2.20:53", 16, 17, method::L2_DSR, 0),
    ("[2001:db8::10]:80", 16, 6, method::L2_DSR, 0),
    ("[2001:db8::10]:53", 16, 17, method::NAT, 0),
    ("[2001:db8::20]:8000", 12, 6, method::NAT, 0),
    ("192.0.2.30:80", 16, 6, method::NAT, 3),
    ("[2001:db8::30]:80", 16, 6, method::L2_DSR, 3),
];

pub fn sizes() -> Sizes {
    Sizes {
        buckets: 1 << 14,
        // Room for all of a batch, whatever the core.
        fragments: 1 << 16,
        ..Sizes::default()
    }
}

pub fn setup() -> Result<(Lab, Vec<Known>)> {
    setup_in(Lab::sized(sizes())?)
}

pub fn setup_in(mut lab: Lab) -> Result<(Lab, Vec<Known>)> {
    let mut known = vec![];
    let mut number = 0;
    for (vip, bits, protocol, method, owner) in SERVICES {
        let vip = at(vip);
        let mut spec = Spec::new(vip, protocol, method)
            .owner(owner)
            .port_bits(bits);
        let mut backends = vec![];
        for _ in 0..3 {
            number += 1;
            // Keeps the port where the service has many.
            let port = if bits == 16 {
                8000 + u16::from(number)
            } else {
                0
            };
            let address = if vip.is_ipv4() {
                at(&format!("10.1.0.{number}:{port}"))
            } else {
                at(&format!("[fd00:1::{number}]:{port}"))
            };
            spec = spec.backend(address, number);
            backends.push((number, address.ip(), port));
        }
        if method == method::NAT && bits < 16 {
            spec = spec.reply_flows();
        }
        let service = lab.service(&spec)?;
        known.push(Known {
            id: service.id,
            vip: vip.ip(),
            port: vip.port(),
            port_bits: bits,
            protocol,
            is_nat: method == method::NAT,
            is_owned: owner == 0,
            backends,
        });
    }
    lab.set_owner(3, 0)?;
    lab.program.configure(|c| {
        c.sample_mask = 7;
        // Flows of the batches before have expired.
        c.longest_idle_units = 20;
    })?;
    Ok((lab, known))
}

pub struct Source {
    rng: Rng,
    known: Vec<Known>,
    /// The last one that is a first fragment.
    fragmented: Option<Packet>,
}

impl Source {
    pub fn new(seed: u64, known: &[Known]) -> Self {
        Self {
            rng: Rng::new(seed),
            known: known.to_vec(),
            fragmented: None,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.rng.next_u64() % n as u64).expect("less than n")
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.rng.next_u64().to_le_bytes()[3]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn client(&mut self, v4: bool) -> IpAddr {
        let n = self.byte();
        if self.one_in(30) {
            let bad = if v4 {
                ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
            } else {
                ["::", "::1", "ff02::1", "ff0e::1"]
            };
            return ip(bad[self.below(4)]);
        }
        if v4 {
            IpAddr::from([198, 51, 100, n])
        } else {
            IpAddr::from([0x2001, 0xdb8, 0xc, 0, 0, 0, 0, u16::from(n)])
        }
    }

    /// One packet of a kind that somebody may send.
    pub fn whole(&mut self) -> Vec<u8> {
        let service = self.below(self.known.len());
        let service = self.known[service].clone();
        let v4 = service.vip.is_ipv4();
        let client = self.client(v4);
        if let Some(packet) = self.fragmented.clone()
            && self.one_in(20)
        {
            let offset = 16 + 8 * u16::from(self.byte());
            return packet.fragment(offset, self.one_in(2)).build();
        }
        match (self.below(16), service.vip, client) {
            (0, IpAddr::V4(vip), IpAddr::V4(client)) => {
                let (sender, target) = match self.below(3) {
                    0 => (vip, vip),
                    1 => (client, client),
                    _ => (client, vip),
                };
                if self.one_in(3) {
                    arp_reply(ROUTER_MAC, sender, OWN_MAC, target)
                } else {
                    arp_request(ROUTER_MAC, sender, target)
                }
            }
            (0, IpAddr::V6(vip), IpAddr::V6(client)) => {
                if self.one_in(3) {
                    let to = (Mac([0x33, 0x33, 0, 0, 0, 1]), client);
                    neighbor_advertisement(ROUTER_MAC, vip, to, vip, 0x20)
                } else {
                    neighbor_solicitation(ROUTER_MAC, client, vip)
                }
            }
            (1, vip, client) => {
                let payload = self.below(64);
                Packet::echo_request(client, vip, 7, 9)
                    .macs(ROUTER_MAC, OWN_MAC)
                    .payload(self.bytes(payload))
                    .build()
            }
            (2, vip, client) => {
                // About what a backend may have sent, mostly.
                let about = self.segment(&service, vip, client);
                let port = |frame: &[u8]| u16_at(frame, 2);
                let from = port(&self.bytes(4));
                let turned = about.clone().source((vip, service.port).into());
                let about = match self.below(8) {
                    0 => about,
                    1 => turned.source((vip, from).into()),
                    _ => turned,
                };
                let about = about.destination((client, 40_000).into());
                let kind = if v4 { [3, 11, 12, 5] } else { [1, 2, 3, 4] };
                let (kind, code) = (kind[self.below(4)], self.byte() & 7);
                let inner = about.ip_packet();
                let length = if self.one_in(2) {
                    inner.len()
                } else {
                    self.below(inner.len() + 1)
                };
                icmp_error(client, vip, kind, code, [0, 0, 5, 0], &inner[..length])
                    .ttl(self.byte())
                    .macs(ROUTER_MAC, OWN_MAC)
                    .build()
            }
            (_, vip, client) => self.segment(&service, vip, client).build(),
        }
    }

    fn segment(&mut self, service: &Known, vip: IpAddr, client: IpAddr) -> Packet {
        let block = 1usize << (16 - service.port_bits);
        let port = usize::from(service.port) + self.below(block);
        let mut port = u16::try_from(port).expect("a port");
        if self.one_in(10) {
            port = u16_at(&self.bytes(2), 0);
        }
        let from = 40_000 + u16::from(self.byte() & 15);
        let is_tcp = (service.protocol == protocol::TCP) != self.one_in(20);
        let length = self.below(100);
        let (source, destination) = ((client, from).into(), (vip, port).into());
        let mut packet = if is_tcp {
            let flags = self.byte();
            Packet::tcp(source, destination).flags(flags)
        } else {
            Packet::udp(source, destination)
        };
        packet = packet
            .macs(ROUTER_MAC, OWN_MAC)
            .ttl(self.byte().max(1))
            .tos(self.byte())
            .payload(self.bytes(length));
        if self.one_in(4) {
            packet = if client.is_ipv4() {
                let words = self.below(11);
                packet.ip_options(&vec![1; words * 4])
            } else {
                let count = self.below(9);
                (0..count).fold(packet, |packet, n| match n % 2 {
                    0 => packet.hop_by_hop(),
                    _ => packet.extension(43, &[0, 4, 0, 0, 0, 0, 0]),
                })
            };
        }
        if self.one_in(20) {
            packet = packet.fragment(8 * u16::from(self.byte()), self.one_in(2));
        } else if self.one_in(20) {
            packet = packet.id(u32::from(self.byte())).fragment(0, true);
            self.fragmented = Some(packet.clone());
        }
        if self.one_in(30) {
            packet = packet.vlan(7);
        }
        if self.one_in(5) {
            packet = packet.padding(self.below(20));
        }
        packet
    }

    /// A frame of at least 14 bytes, as it may come.
    fn frame(&mut self) -> Vec<u8> {
        if self.one_in(50) {
            let length = 14 + self.below(100);
            let mut frame = self.bytes(length);
            frame[..6].copy_from_slice(&OWN_MAC.0);
            let kinds = [[8, 0], [0x86, 0xdd], [8, 6]];
            frame[12..14].copy_from_slice(&kinds[self.below(3)]);
            return frame;
        }
        let mut frame = self.whole();
        for _ in 0..self.below(4) {
            let near = frame.len().min(80);
            let place = 12 + self.below(near - 12);
            match self.below(8) {
                0 => frame[place] = self.byte(),
                1 => frame[place] ^= 1 << self.below(8),
                2 => frame[place] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => {
                    let place = self.below(12);
                    frame[place] ^= 1 << self.below(8);
                }
                4 => frame.truncate(14 + self.below(frame.len() - 13)),
                5 => {
                    let more = self.below(40);
                    frame.extend(self.bytes(more));
                }
                // The length of either family, a little off.
                6 if frame.len() > 20 => {
                    let at = if frame[12] == 8 { 17 } else { 19 };
                    let by = self.byte() % 33;
                    frame[at] = frame[at].wrapping_add(by).wrapping_sub(16);
                }
                _ => {}
            }
            if frame.len() < 15 {
                break;
            }
        }
        frame
    }
}

/// A sum with both of its zeroes the same.
fn sum(parts: &[&[u8]]) -> u16 {
    match internet_checksum(parts) {
        0xffff => 0,
        sum => sum,
    }
}

/// The parts that a layer-4 checksum covers and that may change.
fn layer4_sum(frame: &[u8], place: Place) -> u16 {
    let addresses = if place.is_v4 { 26..34 } else { 22..54 };
    sum(&[&frame[addresses], &frame[place.layer4..place.end]])
}

fn ip_sum(frame: &[u8], place: Place) -> u16 {
    if place.is_v4 {
        sum(&[&frame[14..place.layer4]])
    } else {
        0
    }
}

/// Copies the checksums of `from`, whose rightness is compared elsewhere.
fn with_checksums_of(mut frame: Vec<u8>, from: &[u8], place: Place, layer4: usize) -> Vec<u8> {
    let at = place.layer4 + layer4;
    frame[at..at + 2].copy_from_slice(&from[at..at + 2]);
    if place.is_v4 {
        frame[24..26].copy_from_slice(&from[24..26]);
    }
    frame
}

/// The number of the backend that got a packet of the service.
fn receiver(service: &Known, got: &Outcome) -> usize {
    assert_eq!(got.action, action::TX);
    service
        .backends
        .iter()
        .position(|b| got.frame[..6] == backend_mac(b.0).0)
        .expect("delivered to a backend of the service")
}

/// The frame to a backend, but for ports and checksums.
fn addressed(service: &Known, frame: &[u8], place: Place, backend: usize) -> Vec<u8> {
    let member = &service.backends[backend];
    let mut expected = frame.to_vec();
    expected[..6].copy_from_slice(&backend_mac(member.0).0);
    expected[6..12].copy_from_slice(&OWN_MAC.0);
    if !service.is_nat {
        return expected;
    }
    expected[if place.is_v4 { 22 } else { 21 }] -= 1;
    match member.1 {
        IpAddr::V4(ip) => expected[30..34].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => expected[38..54].copy_from_slice(&ip.octets()),
    }
    expected
}

/// A later fragment has no ports and no layer-4 checksum.
fn check_followed(service: &Known, frame: &[u8], place: Place, backend: usize, got: &Outcome) {
    assert_eq!(receiver(service, got), backend, "another backend");
    let mut expected = addressed(service, frame, place, backend);
    if service.is_nat && place.is_v4 {
        assert_eq!(ip_sum(frame, place), ip_sum(&got.frame, place));
        expected[24..26].copy_from_slice(&got.frame[24..26]);
    }
    assert_eq!(got.frame, expected);
}

/// The error that a client whose packet has no hop left gets from the VIP.
fn check_told(frame: &[u8], place: Place, got: &Outcome) {
    let quoted = (place.end - 14).min(128) & !3;
    let (client, vip, kind) = if place.is_v4 {
        let address =
            |at: usize| IpAddr::from([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        (address(26), address(30), 11)
    } else {
        let address = |at: usize| {
            let octets: [u8; 16] = frame[at..at + 16].try_into().expect("sixteen");
            IpAddr::from(octets)
        };
        (address(22), address(38), 3)
    };
    let expected = Packet::icmp(vip, client, kind, 0, [0; 4])
        .payload(&frame[14..14 + quoted])
        .macs(OWN_MAC, Mac(frame[6..12].try_into().expect("six")))
        .tos(0xc0)
        .id(0)
        .build();
    assert_eq!((got.action, &got.frame), (action::TX, &expected));
}

/// An ICMP error under NAT: what is quoted is what the backend sent.
fn check_relayed(service: &Known, frame: &[u8], quote: Quote, got: &Outcome) {
    let place = quote.place;
    let backend = receiver(service, got);
    let mut expected = addressed(service, frame, place, backend);
    if !service.is_nat {
        assert_eq!(got.frame, expected);
        return;
    }
    let member = &service.backends[backend];
    let (network, layer4) = (quote.network, quote.layer4);
    match member.1 {
        IpAddr::V4(ip) => expected[network + 12..network + 16].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => expected[network + 8..network + 24].copy_from_slice(&ip.octets()),
    }
    if member.2 != 0 {
        expected[layer4..layer4 + 2].copy_from_slice(&member.2.to_be_bytes());
    }
    // What a checksum lacks stays the same; the checksums themselves are taken
    // from what came out.
    let addresses = if place.is_v4 {
        network + 12..network + 20
    } else {
        network + 8..network + 40
    };
    let ports = layer4..layer4 + 4;
    let mut compared = vec![(place.layer4 + 2, None)];
    let at = if quote.protocol == protocol::TCP {
        16
    } else {
        6
    };
    let is_there = layer4 + at + 2 <= place.end;
    if is_there && (quote.protocol == protocol::TCP || u16_at(frame, layer4 + at) != 0) {
        compared.push((layer4 + at, Some([addresses, ports])));
    }
    if place.is_v4 {
        assert_eq!(ip_sum(frame, place), ip_sum(&got.frame, place));
        let header = |frame: &[u8]| sum(&[&frame[network..network + 20]]);
        assert_eq!(header(frame), header(&got.frame), "the quoted header");
        expected[24..26].copy_from_slice(&got.frame[24..26]);
        expected[network + 10..network + 12]
            .copy_from_slice(&got.frame[network + 10..network + 12]);
    }
    for (at, covered) in compared {
        let lacks = |frame: &[u8]| match &covered {
            Some([addresses, ports]) => sum(&[
                &frame[addresses.clone()],
                &frame[ports.clone()],
                &frame[at..at + 2],
            ]),
            None if place.is_v4 => sum(&[&frame[place.layer4..place.end]]),
            None => layer4_sum(frame, place),
        };
        assert_eq!(lacks(frame), lacks(&got.frame), "the checksum at {at}");
        expected[at..at + 2].copy_from_slice(&got.frame[at..at + 2]);
    }
    assert_eq!(got.frame, expected);
}

/// The outcome of a packet that goes to a backend is what the method says.
fn check_forwarded(service: &Known, frame: &[u8], segment: Segment, got: &Outcome) {
    let place = segment.place;
    let backend = receiver(service, got);
    let member = &service.backends[backend];
    let mut expected = addressed(service, frame, place, backend);
    if !service.is_nat {
        assert_eq!(got.frame, expected);
        return;
    }
    if member.2 != 0 {
        let at = place.layer4 + 2;
        expected[at..at + 2].copy_from_slice(&member.2.to_be_bytes());
    }
    let checksum = if segment.protocol == protocol::TCP {
        16
    } else {
        6
    };
    let old = u16_at(frame, place.layer4 + checksum);
    let new = u16_at(&got.frame, place.layer4 + checksum);
    if segment.protocol == protocol::UDP && old == 0 {
        assert_eq!(new, 0, "UDP had no checksum");
    } else {
        assert!(new != 0 || segment.protocol == protocol::TCP);
        // A TCP checksum behind the packet's end covers nothing.
        let (before, after) = (layer4_sum(frame, place), layer4_sum(&got.frame, place));
        assert_eq!(before, after, "what the layer-4 checksum lacks");
    }
    assert_eq!(ip_sum(frame, place), ip_sum(&got.frame, place));
    let expected = with_checksums_of(expected, &got.frame, place, checksum);
    assert_eq!(got.frame, expected);
}

fn check_echo(frame: &[u8], place: Place, got: &Outcome) {
    assert_eq!(got.action, action::TX);
    let mut expected = frame.to_vec();
    expected.copy_within(6..12, 0);
    expected[6..12].copy_from_slice(&OWN_MAC.0);
    let (from, size, ttl) = if place.is_v4 {
        (26, 4, 22)
    } else {
        (22, 16, 21)
    };
    expected[from..from + size].copy_from_slice(&frame[from + size..from + 2 * size]);
    expected[from + size..from + 2 * size].copy_from_slice(&frame[from..from + size]);
    expected[ttl] = 64;
    expected[place.layer4] = if place.is_v4 { 0 } else { 129 };
    assert_eq!(ip_sum(frame, place), ip_sum(&got.frame, place));
    assert_eq!(
        layer4_sum(frame, place),
        layer4_sum(&got.frame, place),
        "what the ICMP checksum lacks"
    );
    assert_eq!(got.frame, with_checksums_of(expected, &got.frame, place, 2));
}

/// The frame became what it had to; what has to be counted for it. A VLAN tag
/// with a priority only changes nothing, and stays (IEEE 802.1Q §9.6).
pub fn check(
    known: &[Known],
    seen: &Seen,
    frame: &[u8],
    got: &Outcome,
) -> Vec<(u32, &'static str)> {
    let tags = oracle::priority_tags(frame);
    assert_eq!(got.frame[12..12 + tags], frame[12..12 + tags], "tags");
    let without = |frame: &[u8]| [&frame[..12], &frame[12 + tags..]].concat();
    let got = Outcome {
        action: got.action,
        frame: without(&got.frame),
    };
    check_untagged(known, seen, &without(frame), &got)
}

fn check_untagged(
    known: &[Known],
    seen: &Seen,
    frame: &[u8],
    got: &Outcome,
) -> Vec<(u32, &'static str)> {
    let by_id = |id| known.iter().find(|s| s.id == id).expect("known");
    match fate(known, frame) {
        Fate::Pass | Fate::Claim if got.action != action::PASS => {
            panic!("action {} instead of passing", got.action)
        }
        Fate::Pass => {
            assert_eq!(got.frame, frame, "passed, but changed");
            vec![]
        }
        Fate::Claim => {
            assert_eq!(got.frame, frame, "passed, but changed");
            vec![(0, "duplicate_vip")]
        }
        Fate::Drop(service, reason) => {
            assert_eq!(got.action, action::DROP, "should be dropped: {reason}");
            assert_eq!(got.frame, frame, "dropped, but changed");
            vec![(service, reason)]
        }
        Fate::Forward(id, segment) => {
            check_forwarded(by_id(id), frame, segment, got);
            vec![]
        }
        Fate::ForwardFirst(id, segment, of) => {
            check_forwarded(by_id(id), frame, segment, got);
            let to = (id, receiver(by_id(id), got));
            seen.borrow_mut().insert(of, to);
            vec![]
        }
        Fate::Follow(of, place) => {
            let to = seen.borrow().get(&of).copied();
            let Some((id, backend)) = to else {
                assert_eq!((got.action, &got.frame[..]), (action::DROP, frame));
                return vec![(0, "fragment")];
            };
            let service = by_id(id);
            if service.is_nat && frame[if place.is_v4 { 22 } else { 21 }] <= 1 {
                assert_eq!((got.action, &got.frame[..]), (action::DROP, frame));
                return vec![(id, "ttl_exceeded")];
            }
            check_followed(service, frame, place, backend, got);
            vec![(id, FOLLOWED)]
        }
        Fate::Relay(id, quote) => {
            check_relayed(by_id(id), frame, quote, got);
            vec![(id, "icmp_forwarded")]
        }
        Fate::Tell(id, place) => {
            check_told(frame, place, got);
            vec![(id, "ttl_exceeded"), (id, "icmp_error_sent")]
        }
        Fate::Echo(place) => {
            check_echo(frame, place, got);
            vec![(0, "echo_reply")]
        }
        Fate::Arp(is_claim) => {
            let mut expected = frame.to_vec();
            expected.copy_within(22..28, 0);
            expected[6..12].copy_from_slice(&OWN_MAC.0);
            expected[21] = 2;
            expected[22..28].copy_from_slice(&OWN_MAC.0);
            expected[28..32].copy_from_slice(&frame[38..42]);
            expected[32..42].copy_from_slice(&frame[22..32]);
            assert_eq!((got.action, &got.frame), (action::TX, &expected));
            let mut events = vec![(0, "arp_reply")];
            events.extend(is_claim.then_some((0, "duplicate_vip")));
            events
        }
        Fate::Advertise => {
            assert_eq!(got.action, action::TX);
            verify(&got.frame).expect("a right advertisement");
            let address = |at: usize| {
                let octets: [u8; 16] = frame[at..at + 16].try_into().expect("sixteen");
                std::net::Ipv6Addr::from(octets)
            };
            let (asker, target) = (address(22), address(62));
            let mac = Mac(frame[6..12].try_into().expect("six"));
            let expected = if asker.is_unspecified() {
                let all = "ff02::1".parse().expect("an address");
                let to = (Mac([0x33, 0x33, 0, 0, 0, 1]), all);
                neighbor_advertisement(OWN_MAC, target, to, target, 0x20)
            } else {
                neighbor_advertisement(OWN_MAC, target, (mac, asker), target, 0x60)
            };
            assert_eq!(got.frame, expected);
            vec![(0, "neighbour_advertisement")]
        }
    }
}

/// Not counted by the data path, but by this test.
pub const FOLLOWED: &str = "a later fragment followed";

/// By packet, where its first fragment went: service and number of the backend.
pub type Seen = RefCell<HashMap<Fragments, (u32, usize)>>;

#[test]
fn random_frames_fare_as_a_simple_oracle_says() -> Result<()> {
    let frames: u64 = match std::env::var("LB_TEST_FULL") {
        Ok(value) if value == "1" => 10_000_000,
        _ => 250_000,
    };
    let seed = match std::env::var("LB_TEST_SEED") {
        Ok(seed) => seed.parse().context("LB_TEST_SEED is not a number")?,
        Err(_) => 20_261_122,
    };
    let (mut lab, known) = setup()?;
    let mut source = Source::new(seed, &known);
    let mut actions = [0u64; 5];
    let mut reasons = BTreeMap::new();
    let mut expected = vec![];
    let seen: AssertUnwindSafe<Seen> = AssertUnwindSafe(Seen::default());
    for number in 1..=frames {
        let frame = source.frame();
        let got = lab.program.run(&frame)?;
        actions[got.action as usize] += 1;
        let counted = std::panic::catch_unwind(|| check(&known, &seen, &frame, &got));
        let Ok(counted) = counted else {
            panic!("frame {number} of seed {seed}: {frame:02x?} became {got:02x?}");
        };
        for (service, name) in counted {
            *reasons.entry(name).or_insert(0u64) += 1;
            if name != FOLLOWED {
                expected.push((service, name));
            }
        }
        if number.is_multiple_of(BATCH) {
            let counted = lab.observe(got);
            let mut counted = [counted.drops, counted.events].concat();
            counted.sort_unstable();
            expected.sort_unstable();
            let lacks = |all: &[_], of: &[_]| {
                let mut rest = of.to_vec();
                for one in all {
                    if let Some(at) = rest.iter().position(|other| other == one) {
                        rest.swap_remove(at);
                    }
                }
                rest
            };
            assert_eq!(
                lacks(&counted, &expected),
                lacks(&expected, &counted),
                "counted up to frame {number} of seed {seed}"
            );
            expected.clear();
            // The time that follows is longer than fragments are remembered.
            seen.borrow_mut().clear();
            let ticks = u32::try_from(number / BATCH)? * 8 * 25;
            lab.program.set_ticks(ticks)?;
        }
    }
    println!("{frames} frames of seed {seed}: actions {actions:?}, counted {reasons:?}");
    // A run that reaches none of these proves little.
    for name in [
        "no_service",
        "not_owner",
        "malformed",
        "truncated",
        "fragment",
        "extension_headers",
        "unknown_protocol",
        "icmp",
        "bad_source",
        "arp_reply",
        "neighbour_advertisement",
        "echo_reply",
        "duplicate_vip",
        "ttl_exceeded",
        "icmp_unmatched",
        "icmp_error_sent",
        "icmp_forwarded",
        FOLLOWED,
    ] {
        assert!(reasons.get(name).is_some_and(|n| *n > 5), "too few {name}");
    }
    assert!(actions[action::TX as usize] > frames / 5, "{actions:?}");
    assert!(actions[action::PASS as usize] > frames / 50, "{actions:?}");
    Ok(())
}
