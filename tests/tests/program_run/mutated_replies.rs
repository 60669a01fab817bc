//! Mutated frames of backends, under NAT by port and by flow, and under full
//! NAT: each is left as it was, or translated as the one flow that it may belong
//! to, with nothing else in it changed; and it was counted once.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail, ensure};
use lb_tests::{
    packet::{Packet, Rng, protocol, tcp_flags},
    program::{Outcome, action},
};

use crate::{
    full_nat::{self, World},
    lab::Case,
    oracle::{priority_tags, u16_at},
    reply_route::{Behind, CLIENTS, NEXT_HOP, Router, both_ways, reply_to},
};

/// Frames of each family, protocol and way of NAT.
const FRAMES: u32 = 12_000;

/// Bytes in which there are headers.
const NEAR: u64 = 80;

/// What a frame may become.
struct Translation {
    /// Whose reply it is.
    member: u32,
    protocol: u8,
    backend: SocketAddr,
    vip: SocketAddr,
    /// Under full NAT the pool's end, and the client's in its place.
    ends: Option<(SocketAddr, SocketAddr)>,
}

/// Three changes at most, and now and then fewer bytes.
fn mutated(rng: &mut Rng, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for _ in 0..rng.next_u64() % 4 {
        let random = rng.next_u64();
        let at = (random % NEAR.min(frame.len() as u64)) as usize;
        let old = frame[at];
        frame[at] = match random >> 60 & 3 {
            0 => (random >> 32) as u8,
            1 => old ^ 1 << (random >> 32 & 7),
            2 => old.wrapping_add((random >> 32 & 15) as u8).wrapping_sub(8),
            _ => [0, 1, 0x7f, 0x80, 0xff, 0x40, 6, 17][(random >> 32 & 7) as usize],
        };
    }
    if rng.next_u64().is_multiple_of(32) {
        frame.truncate(14 + (rng.next_u64() as usize) % frame.len());
    }
    frame
}

/// Where things stand in a frame without tags.
struct Places {
    source: std::ops::Range<usize>,
    destination: std::ops::Range<usize>,
    hops: usize,
    protocol: u8,
    /// `None`: a later fragment.
    ports: Option<usize>,
}

/// `None`: no IP packet that can be read so far (RFC 791, RFC 8200).
fn places(frame: &[u8]) -> Option<Places> {
    let byte = |at: usize| frame.get(at).copied();
    if u16_at(frame, 12) == 0x800 {
        let length = usize::from(byte(14)? & 15) * 4;
        let is_later = u16::from_be_bytes([byte(20)?, byte(21)?]) & 0x1fff != 0;
        return Some(Places {
            source: 26..30,
            destination: 30..34,
            hops: 22,
            protocol: byte(23)?,
            ports: (!is_later).then_some(14 + length),
        });
    }
    let (mut at, mut next, mut is_later) = (54, byte(20)?, false);
    loop {
        match next {
            0 | 43 | 60 => {
                next = byte(at)?;
                at += (usize::from(byte(at + 1)?) + 1) * 8;
            }
            44 => {
                is_later |= u16::from_be_bytes([byte(at + 2)?, byte(at + 3)?]) & 0xfff8 != 0;
                next = byte(at)?;
                at += 8;
            }
            51 => {
                next = byte(at)?;
                at += (usize::from(byte(at + 1)?) + 2) * 4;
            }
            _ => break,
        }
    }
    Some(Places {
        source: 22..38,
        destination: 38..54,
        hops: 21,
        protocol: next,
        ports: (!is_later).then_some(at),
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The one's complement sum of all but what a translation leaves out of it: an
/// IPv4 header adds up to the same before and after, a segment together with its
/// addresses, too (RFC 1071, RFC 3022 §4.1).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Both are zero.
    if sum == 0xffff { 0 } else { sum as u16 }
}

impl Translation {
    /// Fails unless `after` is the frame `before` as it has to be translated.
    fn check(&self, before: &[u8], after: &[u8]) -> Result<()> {
        let plain = |frame: &[u8]| [&frame[..12], &frame[12 + priority_tags(frame)..]].concat();
        let (before, after) = (plain(before), plain(after));
        ensure!(before.len() == after.len(), "another length");
        let Some(p) = places(&before) else {
            bail!("changed what is no packet")
        };
        ensure!(p.protocol == self.protocol, "changed another protocol's");
        let ends =
            |backend: SocketAddr| [octets(backend.ip()), backend.port().to_be_bytes().into()];
        let mut changes = vec![(p.source.clone(), 0, ends(self.backend), ends(self.vip))];
        if let Some((pool, client)) = self.ends {
            changes.push((p.destination.clone(), 2, ends(pool), ends(client)));
        }
        // What may differ: addresses, ports, the hop, checksums, MAC addresses.
        let mut masked = [before.clone(), after.clone()];
        let mut hide = |range: std::ops::Range<usize>| {
            for frame in &mut masked {
                if let Some(bytes) = frame.get_mut(range.clone()) {
                    bytes.fill(0);
                }
            }
        };
        hide(0..12);
        for (address, offset, [was, was_port], [is, is_port]) in changes {
            ensure!(before[address.clone()] == was, "changed somebody else's");
            ensure!(after[address.clone()] == is, "not to whom it should be");
            hide(address);
            if let Some(ports) = p.ports {
                let port = ports + offset..ports + offset + 2;
                ensure!(before[port.clone()] == was_port, "changed another port's");
                ensure!(after[port.clone()] == is_port, "not the port it should be");
                hide(port);
            }
        }
        let hops = (before[p.hops], after[p.hops]);
        ensure!(hops.0 == hops.1 || hops.0 == hops.1 + 1, "hops {hops:?}");
        hide(p.hops..p.hops + 1);
        let is_v4 = p.source.len() == 4;
        if is_v4 {
            let header = 14..14 + usize::from(before[14] & 15) * 4;
            ensure!(
                sum(&before[header.clone()]) == sum(&after[header]),
                "the IPv4 header's checksum"
            );
            hide(24..26);
        }
        if let Some(ports) = p.ports {
            let at = if self.protocol == protocol::TCP {
                16
            } else {
                6
            };
            let field = ports + at..ports + at + 2;
            let is_none = self.protocol == protocol::UDP && before[field.clone()] == [0, 0];
            let whole = |frame: &[u8]| {
                let addresses = [&frame[p.source.clone()], &frame[p.destination.clone()]].concat();
                sum(&[&addresses[..], &frame[ports..]].concat())
            };
            ensure!(
                if is_none {
                    after[field.clone()] == [0, 0]
                } else {
                    whole(&before) == whole(&after)
                },
                "the segment's checksum"
            );
            hide(field);
        }
        ensure!(masked[0] == masked[1], "something else was changed");
        Ok(())
    }
}

/// What replies of the router's NAT services become.
fn of_services(router: &Router) -> Vec<Translation> {
    let services = router.services.iter();
    services
        .map(|(case, service)| Translation {
            member: service.members[0],
            protocol: case.protocol,
            backend: case.backend(),
            vip: case.vip(),
            ends: None,
        })
        .collect()
}

/// Packets and bytes of replies that were counted for each of them.
fn counted(router: &mut Router, all: &[Translation]) -> Result<Vec<(u64, u64)>> {
    all.iter()
        .map(|one| {
            let stats = router.lab.program.stats(one.member)?;
            Ok((stats.reply_packets, stats.reply_bytes))
        })
        .collect()
}

/// Sends mutated frames of these, judges each, and compares the counters.
fn drive(router: &mut Router, seed: u64, all: &[Translation], frames: &[Vec<u8>]) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut expected = counted(router, all)?;
    let (program, servers) = (&router.lab.program, router.servers);
    let has_pool = all.iter().any(|one| one.ends.is_some());
    let run = || -> Result<(u64, u64)> {
        let (mut translated, mut told) = (0, 0);
        for n in 0..FRAMES {
            let frame = mutated(&mut rng, &frames[n as usize % frames.len()]);
            let got: Outcome = program.run_on(servers, &frame)?;
            if got.frame == frame {
                ensure!(
                    matches!(got.action, action::PASS | action::DROP),
                    "sent as it was: {frame:02x?}"
                );
                continue;
            }
            let judged: Vec<_> = all
                .iter()
                .map(|one| one.check(&frame, &got.frame))
                .collect();
            let Some(right) = judged.iter().position(Result::is_ok) else {
                // The pool tells a backend what can't go on.
                if has_pool && got.frame[..6] == frame[6..12] {
                    told += 1;
                    continue;
                }
                bail!("{judged:?}: {frame:02x?}\nbecame {:02x?}", got.frame);
            };
            if got.action == action::REDIRECT {
                let macs = [NEXT_HOP.0, CLIENTS.1.0].concat();
                ensure!(got.frame[..12] == macs, "to {:02x?}", &got.frame[..12]);
            }
            expected[right].0 += 1;
            expected[right].1 += frame.len() as u64;
            translated += 1;
        }
        Ok((translated, told))
    };
    let (translated, told) = router.ns.run(run)??;
    let counted = counted(router, all)?;
    ensure!(counted == expected, "{expected:?}; counted {counted:?}");
    ensure!(
        translated > u64::from(FRAMES) / 4,
        "only {translated} were translated"
    );
    println!("seed {seed}: {FRAMES} frames, {translated} translated, {told} told");
    Ok(())
}

/// A reply in several shapes.
fn shapes(case: Case, plain: &Packet) -> Vec<Vec<u8>> {
    let mut all = vec![
        plain
            .clone()
            .payload(*b"an answer of some length, and then some more of it"),
        plain.clone().payload(vec![]).padding(9),
        if case.v4 {
            plain.clone().ip_options(&[1; 8])
        } else {
            plain.clone().hop_by_hop()
        },
    ];
    all.push(match case.protocol {
        protocol::TCP => plain.clone().flags(tcp_flags::SYN | tcp_flags::ACK),
        _ => plain.clone().no_udp_checksum(),
    });
    all.iter().map(Packet::build).collect()
}

#[test]
fn mutated_replies_are_translated_rightly_or_not_at_all() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, _, client| {
        let all = of_services(router);
        let frames = shapes(case, &reply_to(case, client));
        drive(router, 20_261_127, &all, &frames)
    })
}

#[test]
fn mutated_answers_to_the_pool_reach_their_client_or_nobody() -> Result<()> {
    for case in full_nat::cases() {
        let mut world = World::new(case, 64)?;
        let client = world.client;
        let request = world.request(client);
        world.forwards(&request, 0x11, full_nat::FIRST, full_nat::OPENED);
        let mut all = of_services(&world.router);
        all.push(Translation {
            member: world.service.members[0],
            protocol: case.protocol,
            backend: full_nat::backend(case.v4, 0x11).address,
            vip: full_nat::vip(case.v4),
            ends: Some((full_nat::pool(case.v4, full_nat::FIRST), client)),
        });
        let frames = shapes(case, &world.answer(0x11, full_nat::FIRST));
        drive(&mut world.router, 7, &all, &frames)?;
    }
    Ok(())
}
