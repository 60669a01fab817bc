//! Packets that lie about themselves or end too early: never forwarded, never
//! changed, dropped for the reason that is true.

use anyhow::Result;
use lb_tests::{
    packet::{Packet, protocol},
    program::action,
};

use crate::lab::{Case, Lab, OWN_MAC, ROUTER_MAC};

const ETHERNET: usize = 14;

/// Where the layer-4 header of a packet without options starts.
fn layer4(case: Case) -> usize {
    ETHERNET + if case.v4 { 20 } else { 40 }
}

/// Shortest header of the case's protocol.
fn header(case: Case) -> usize {
    if case.protocol == protocol::TCP {
        20
    } else {
        8
    }
}

fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn a_frame_cut_short_anywhere_is_never_forwarded() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, service) in services {
        let whole = case.packet().build();
        for length in ETHERNET..whole.len() {
            let frame = &whole[..length];
            let what = format!("{case:?}, {length} of {} bytes", whole.len());
            // Without a whole IP header nobody knows whose packet it is.
            if length < layer4(case) {
                lab.passes(&what, frame);
            } else {
                lab.drops(&what, frame, 0, "truncated");
            }
        }
        assert_eq!(lab.program.stats(service.members[0])?.packets, 0);
        lab.bounces("the whole frame", &whole, &case.forwarded(&case.packet()));
    }
    Ok(())
}

#[test]
fn a_frame_with_options_or_extensions_cut_short_is_never_forwarded() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let packet = if case.v4 {
            case.packet().ip_options(&[1; 40])
        } else {
            case.packet().hop_by_hop().hop_by_hop()
        };
        let whole = packet.build();
        for length in layer4(case)..whole.len() {
            let what = format!("{case:?}, {length} of {} bytes", whole.len());
            lab.drops(&what, &whole[..length], 0, "truncated");
        }
        lab.bounces("the whole frame", &whole, &case.forwarded(&packet));
    }
    Ok(())
}

/// The IP packet's length as the header tells it.
fn with_ip_length(case: Case, frame: &[u8], length: usize) -> Vec<u8> {
    let length = u16::try_from(length).expect("short").to_be_bytes();
    let at = if case.v4 { ETHERNET + 2 } else { ETHERNET + 4 };
    patched(frame, at, &length)
}

#[test]
fn an_ip_length_beyond_the_frame_is_truncated() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let frame = case.packet().build();
        let base = if case.v4 { ETHERNET } else { layer4(case) };
        for more in (1..=64).chain([1000, 60_000]) {
            let frame = with_ip_length(case, &frame, frame.len() - base + more);
            lab.drops(&format!("{case:?}, {more} more"), &frame, 0, "truncated");
        }
    }
    Ok(())
}

#[test]
fn an_ip_length_below_the_frames_is_padding_until_it_cuts_a_header() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let packet = case.packet();
        let frame = packet.build();
        let base = if case.v4 { ETHERNET } else { layer4(case) };
        let whole = frame.len() - base;
        for less in 1..=whole {
            let cut = with_ip_length(case, &frame, whole - less);
            let what = format!("{case:?}, {less} less");
            let left = (frame.len() - less).checked_sub(layer4(case));
            let fits = match (case.protocol, left) {
                // TCP's length is IP's: what is cut off is padding.
                (protocol::TCP, Some(left)) => left >= header(case),
                // UDP has a length of its own, which is no longer there.
                _ => false,
            };
            if !fits {
                lab.drops(&what, &cut, 0, "malformed");
                continue;
            }
            // The checksum covers the length, so it is wrong now; it stays so.
            let got = lab.run(&cut);
            assert_eq!((got.action, got.drops), (action::TX, vec![]), "{what}");
            let expected = case.forwarded(&packet);
            assert_eq!(got.frame.len(), cut.len(), "{what}: length");
            assert_eq!(got.frame[..12], expected[..12], "{what}: MAC addresses");
            let behind = layer4(case) + header(case);
            assert_eq!(got.frame[behind..], cut[behind..], "{what}: payload");
        }
    }
    Ok(())
}

#[test]
fn an_ipv4_header_length_that_cannot_be_is_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.v4)?;
    for (case, _) in services {
        let frame = case.packet().build();
        for words in 0..5u8 {
            let frame = patched(&frame, ETHERNET, &[0x40 | words]);
            lab.drops(&format!("{case:?}, {words}"), &frame, 0, "malformed");
        }
        // A short packet whose header length reaches beyond its end.
        let short = with_ip_length(case, &frame, 27);
        for words in 7..=15u8 {
            let frame = patched(&short, ETHERNET, &[0x40 | words]);
            lab.drops(&format!("{case:?}, {words}"), &frame, 0, "malformed");
        }
    }
    Ok(())
}

/// With a longer header the payload is taken for layer 4: whatever comes of
/// it, it isn't the service's.
#[test]
fn an_ipv4_header_length_that_covers_the_ports_reaches_no_backend() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.v4)?;
    for (case, service) in services {
        let frame = case.packet().payload([0x80; 64]).build();
        for words in 6..=15u8 {
            let got = lab.run(&patched(&frame, ETHERNET, &[0x40 | words]));
            let what = format!("{case:?}, {words} words");
            assert_eq!(got.action, action::DROP, "{what}");
            assert_eq!(got.drops.len(), 1, "{what}: {:?}", got.drops);
            let (_, reason) = got.drops[0];
            assert!(
                ["malformed", "no_service"].contains(&reason),
                "{what}: {reason}"
            );
        }
        assert_eq!(lab.program.stats(service.members[0])?.packets, 0);
    }
    Ok(())
}

#[test]
fn a_version_that_is_not_the_ethertypes_is_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let frame = case.packet().build();
        let right = if case.v4 { 4 } else { 6 };
        for version in (0..=15u8).filter(|v| *v != right) {
            let first = version << 4 | frame[ETHERNET] & 0x0f;
            let frame = patched(&frame, ETHERNET, &[first]);
            lab.drops(&format!("{case:?}, {version}"), &frame, 0, "malformed");
        }
    }
    Ok(())
}

#[test]
fn a_tcp_data_offset_that_cannot_be_is_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::TCP)?;
    for (case, _) in services {
        let packet = case.packet().payload([7; 23]);
        let frame = packet.build();
        let there = frame.len() - layer4(case);
        for words in 0..=15u8 {
            let changed = patched(&frame, layer4(case) + 12, &[words << 4]);
            let what = format!("{case:?}, data offset {words}");
            if (20..=there).contains(&(usize::from(words) * 4)) {
                assert_eq!(lab.run(&changed).action, action::TX, "{what}");
            } else {
                lab.drops(&what, &changed, 0, "malformed");
            }
        }
    }
    Ok(())
}

#[test]
fn a_udp_length_that_cannot_be_is_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::UDP)?;
    for (case, _) in services {
        let packet = case.packet();
        let frame = packet.build();
        let there = frame.len() - layer4(case);
        for length in (0..=there + 64).chain([0xffff]) {
            let bytes = u16::try_from(length)?.to_be_bytes();
            let changed = patched(&frame, layer4(case) + 4, &bytes);
            let what = format!("{case:?}, UDP length {length} of {there}");
            if (8..=there).contains(&length) {
                assert_eq!(lab.run(&changed).action, action::TX, "{what}");
            } else {
                lab.drops(&what, &changed, 0, "malformed");
            }
        }
    }
    Ok(())
}

#[test]
fn an_extension_header_longer_than_the_packet_is_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| !c.v4)?;
    for (case, _) in services {
        let frame = case.packet().hop_by_hop().build();
        let left = frame.len() - layer4(case);
        for units in 0..=255u8 {
            let bytes = (usize::from(units) + 1) * 8;
            if bytes <= left {
                continue;
            }
            let frame = patched(&frame, layer4(case) + 1, &[units]);
            lab.drops(&format!("{case:?}, {bytes}"), &frame, 0, "malformed");
        }
        // No extension header at all behind one that announces it.
        let chained = patched(&frame, layer4(case), &[60]);
        let end = with_ip_length(case, &chained, 8);
        lab.drops("an announced header is missing", &end[..62], 0, "malformed");
    }
    Ok(())
}

#[test]
fn icmp_without_a_whole_header_is_malformed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|c| c.protocol == protocol::UDP)?;
    for (case, _) in services {
        let whole = Packet::echo_request(case.client().ip(), case.vip().ip(), 1, 1)
            .macs(ROUTER_MAC, OWN_MAC)
            .build();
        let base = if case.v4 { ETHERNET } else { layer4(case) };
        for left in 0..8 {
            let frame = with_ip_length(case, &whole, layer4(case) - base + left);
            lab.drops(&format!("{case:?}, {left} bytes"), &frame, 0, "malformed");
        }
        for length in layer4(case)..whole.len() {
            let what = format!("{case:?}, cut to {length}");
            lab.drops(&what, &whole[..length], 0, "truncated");
        }
    }
    Ok(())
}

#[test]
fn what_is_malformed_but_not_for_a_vip_is_passed() -> Result<()> {
    let (mut lab, services) = Lab::with_cases(|_| true)?;
    for (case, _) in services {
        let mut elsewhere = case.vip();
        elsewhere.set_ip(case.client().ip());
        let frame = case.between(case.backend(), elsewhere).build();
        for length in ETHERNET..frame.len() {
            lab.passes(&format!("{case:?}, {length} bytes"), &frame[..length]);
        }
        lab.passes("wrong version", &patched(&frame, ETHERNET, &[0x15]));
    }
    Ok(())
}
