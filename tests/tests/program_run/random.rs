//! Random and mutated frames, each compared with what the [`oracle`] says.
//!
//! 250,000 frames; with LB_TEST_FULL=1 ten million. The numbers come from a
//! fixed seed, or from LB_TEST_SEED.
//!
//! [`oracle`]: crate::oracle

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use lb_common::abi::method;
use lb_tests::{
    packet::{
        Mac, Packet, Rng, arp_reply, arp_request, internet_checksum, neighbor_advertisement,
        neighbor_solicitation, protocol, verify,
    },
    program::{Outcome, Sizes, action},
};

use crate::{
    lab::{Lab, OWN_MAC, ROUTER_MAC, Spec, at, backend_mac, ip},
    oracle::{self, Fate, Known, Place, Segment, fate, u16_at},
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

pub fn setup() -> Result<(Lab, Vec<Known>)> {
    let mut lab = Lab::sized(Sizes {
        buckets: 1 << 14,
        ..Sizes::default()
    })?;
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
    pub rng: Rng,
    pub known: Vec<Known>,
}

impl Source {
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

/// The outcome of a packet that goes to a backend is what the method says.
fn check_forwarded(service: &Known, frame: &[u8], segment: Segment, got: &Outcome) {
    let place = segment.place;
    assert_eq!(got.action, action::TX);
    let member = service
        .backends
        .iter()
        .find(|b| got.frame[..6] == backend_mac(b.0).0)
        .expect("delivered to a backend of the service");
    let mut expected = frame.to_vec();
    expected[..6].copy_from_slice(&backend_mac(member.0).0);
    expected[6..12].copy_from_slice(&OWN_MAC.0);
    if !service.is_nat {
        assert_eq!(got.frame, expected);
        return;
    }
    expected[if place.is_v4 { 22 } else { 21 }] -= 1;
    match member.1 {
        IpAddr::V4(ip) => expected[30..34].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => expected[38..54].copy_from_slice(&ip.octets()),
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
pub fn check(known: &[Known], frame: &[u8], got: &Outcome) -> Vec<(u32, &'static str)> {
    let tags = oracle::priority_tags(frame);
    assert_eq!(got.frame[12..12 + tags], frame[12..12 + tags], "tags");
    let without = |frame: &[u8]| [&frame[..12], &frame[12 + tags..]].concat();
    let got = Outcome {
        action: got.action,
        frame: without(&got.frame),
    };
    check_untagged(known, &without(frame), &got)
}

fn check_untagged(known: &[Known], frame: &[u8], got: &Outcome) -> Vec<(u32, &'static str)> {
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
            let service = known.iter().find(|s| s.id == id).expect("known");
            check_forwarded(service, frame, segment, got);
            vec![]
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
    let mut source = Source {
        rng: Rng::new(seed),
        known: known.clone(),
    };
    let mut actions = [0u64; 5];
    let mut reasons = BTreeMap::new();
    let mut expected = vec![];
    for number in 1..=frames {
        let frame = source.frame();
        let got = lab.program.run(&frame)?;
        actions[got.action as usize] += 1;
        let counted = std::panic::catch_unwind(|| check(&known, &frame, &got));
        let Ok(counted) = counted else {
            panic!("frame {number} of seed {seed}: {frame:02x?} became {got:02x?}");
        };
        for (service, name) in counted {
            *reasons.entry(name).or_insert(0u64) += 1;
            expected.push((service, name));
        }
        if number.is_multiple_of(BATCH) {
            let seen = lab.observe(got);
            let mut seen = [seen.drops, seen.events].concat();
            seen.sort_unstable();
            expected.sort_unstable();
            assert_eq!(
                expected, seen,
                "counted up to frame {number} of seed {seed}"
            );
            expected.clear();
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
    ] {
        assert!(reasons.get(name).is_some_and(|n| *n > 5), "too few {name}");
    }
    assert!(actions[action::TX as usize] > frames / 5, "{actions:?}");
    assert!(actions[action::PASS as usize] > frames / 50, "{actions:?}");
    Ok(())
}
