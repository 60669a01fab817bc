//! What the balancer answers for its VIPs: ARP, neighbour discovery, echo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use lb_common::{
    abi::{Claim, VipKey, map, method},
    net::Addr,
};
use lb_tests::packet::{
    Mac, Packet, arp_reply, arp_request, assert_same_frame, neighbor_advertisement,
    neighbor_solicitation, protocol, solicited_node, verify,
};
use lb_tests::program::INGRESS;

use crate::lab::{Lab, OWN_MAC, ROUTER_MAC, Spec, at};

const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const ASKER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES: (Mac, Ipv6Addr) = (
    Mac([0x33, 0x33, 0, 0, 0, 1]),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
);

/// VIPs of both families that owner word 3 governs.
fn lab() -> Result<Lab> {
    let mut lab = Lab::new()?;
    for vip in ["192.0.2.10:80", "[2001:db8::10]:80"] {
        lab.service(&Spec::new(at(vip), protocol::TCP, method::L2_DSR).owner(3))?;
    }
    lab.set_owner(3, u64::MAX)?;
    Ok(lab)
}

fn patched(mut frame: Vec<u8>, place: usize, bytes: &[u8]) -> Vec<u8> {
    frame[place..place + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn an_arp_request_for_a_vip_is_answered() -> Result<()> {
    let mut lab = lab()?;
    let request = arp_request(ROUTER_MAC, ASKER4, VIP4);
    let reply = arp_reply(OWN_MAC, VIP4, ROUTER_MAC, ASKER4);
    lab.answers("broadcast", &request, &reply, "arp_reply");
    let unicast = patched(request, 0, &OWN_MAC.0);
    lab.answers("unicast", &unicast, &reply, "arp_reply");
    Ok(())
}

#[test]
fn padding_of_an_arp_request_stays() -> Result<()> {
    let mut lab = lab()?;
    let mut request = arp_request(ROUTER_MAC, ASKER4, VIP4);
    let mut reply = arp_reply(OWN_MAC, VIP4, ROUTER_MAC, ASKER4);
    request.resize(60, 0xa5);
    reply.resize(60, 0xa5);
    lab.answers("padded", &request, &reply, "arp_reply");
    Ok(())
}

#[test]
fn an_arp_probe_is_answered() -> Result<()> {
    let mut lab = lab()?;
    let request = arp_request(ROUTER_MAC, Ipv4Addr::UNSPECIFIED, VIP4);
    let reply = arp_reply(OWN_MAC, VIP4, ROUTER_MAC, Ipv4Addr::UNSPECIFIED);
    lab.answers("probe", &request, &reply, "arp_reply");
    Ok(())
}

#[test]
fn somebody_elses_claim_of_a_vip_by_arp_is_counted() -> Result<()> {
    let mut lab = lab()?;
    let announcement = patched(arp_request(ROUTER_MAC, VIP4, VIP4), 20, &[0, 2]);
    lab.passes_counting("reply form", &announcement, &[(0, "duplicate_vip")]);
    let claim = arp_reply(ROUTER_MAC, VIP4, Mac([2, 0, 0, 0, 0, 9]), ASKER4);
    lab.passes_counting("reply to a third", &claim, &[(0, "duplicate_vip")]);
    // Asking for something else is a claim as well.
    let question = arp_request(ROUTER_MAC, VIP4, ASKER4);
    lab.passes_counting("question", &question, &[(0, "duplicate_vip")]);
    // RFC 5227 §2.4: the announcement is also asked, and the VIP defended.
    let gratuitous = arp_request(ROUTER_MAC, VIP4, VIP4);
    let got = lab.run(&gratuitous);
    assert_eq!(got.events, [(0, "arp_reply"), (0, "duplicate_vip")]);
    assert_eq!(got.frame, arp_reply(OWN_MAC, VIP4, ROUTER_MAC, VIP4));
    Ok(())
}

#[test]
fn our_own_announcement_is_no_duplicate() -> Result<()> {
    let mut lab = lab()?;
    let announcement = patched(arp_request(OWN_MAC, VIP4, VIP4), 20, &[0, 2]);
    lab.passes("reply form", &announcement);
    Ok(())
}

#[test]
fn arp_that_asks_nothing_of_us_is_passed() -> Result<()> {
    let mut lab = lab()?;
    lab.passes(
        "another address",
        &arp_request(ROUTER_MAC, ASKER4, Ipv4Addr::new(192, 0, 2, 11)),
    );
    lab.passes(
        "a reply to the VIP",
        &arp_reply(ROUTER_MAC, ASKER4, OWN_MAC, VIP4),
    );
    let request = arp_request(ROUTER_MAC, ASKER4, VIP4);
    for operation in [0u16, 3, 4, 8, 0x0100, 0xffff] {
        let frame = patched(request.clone(), 20, &operation.to_be_bytes());
        lab.passes(&format!("operation {operation}"), &frame);
    }
    Ok(())
}

#[test]
fn malformed_arp_is_passed() -> Result<()> {
    let mut lab = lab()?;
    let request = arp_request(ROUTER_MAC, ASKER4, VIP4);
    for length in 14..42 {
        lab.passes(&format!("{length} bytes"), &request[..length]);
    }
    // Hardware type, protocol, their address lengths.
    for (place, byte) in [
        (14, 1),
        (15, 0),
        (15, 6),
        (16, 0x86),
        (17, 1),
        (18, 0),
        (18, 8),
        (18, 255),
        (19, 0),
        (19, 16),
        (19, 255),
    ] {
        let frame = patched(request.clone(), place, &[byte]);
        lab.passes(&format!("byte {place} = {byte}"), &frame);
    }
    Ok(())
}

#[test]
fn a_vip_that_another_node_owns_is_not_answered_for() -> Result<()> {
    let mut lab = lab()?;
    // Not owned; a lease that ended.
    for word in [0, 1] {
        lab.set_owner(3, word)?;
        lab.passes("ARP", &arp_request(ROUTER_MAC, ASKER4, VIP4));
        lab.passes("a claim by ARP", &arp_request(ROUTER_MAC, VIP4, VIP4));
        lab.passes("NS", &neighbor_solicitation(ROUTER_MAC, ASKER6, VIP6));
        lab.passes("NA", &advertisement(ROUTER_MAC));
        for (source, vip) in addresses() {
            let echo = Packet::echo_request(source, vip, 1, 1).macs(ROUTER_MAC, OWN_MAC);
            lab.drops("echo", &echo.build(), 0, "not_owner");
        }
    }
    Ok(())
}

#[test]
fn a_vip_is_answered_for_while_the_lease_lasts() -> Result<()> {
    let mut lab = lab()?;
    // Jiffies of the far future.
    lab.set_owner(3, u64::MAX - 1)?;
    let request = arp_request(ROUTER_MAC, ASKER4, VIP4);
    let reply = arp_reply(OWN_MAC, VIP4, ROUTER_MAC, ASKER4);
    lab.answers("ARP", &request, &reply, "arp_reply");
    Ok(())
}

fn advertisement(mac: Mac) -> Vec<u8> {
    neighbor_advertisement(mac, VIP6, ALL_NODES, VIP6, 0x20)
}

/// The answer of an owner to an asker: solicited, override.
fn answer() -> Vec<u8> {
    neighbor_advertisement(OWN_MAC, VIP6, (ROUTER_MAC, ASKER6), VIP6, 0x60)
}

/// A solicitation with these options behind the target.
fn solicitation(to: (Mac, Ipv6Addr), options: &[u8]) -> Packet {
    let body = [&VIP6.octets()[..], options].concat();
    Packet::icmp(IpAddr::V6(ASKER6), IpAddr::V6(to.1), 135, 0, [0; 4])
        .macs(ROUTER_MAC, to.0)
        .ttl(255)
        .payload(body)
}

#[test]
fn a_solicitation_for_a_vip_is_answered() -> Result<()> {
    let mut lab = lab()?;
    let frame = neighbor_solicitation(ROUTER_MAC, ASKER6, VIP6);
    lab.answers("to the group", &frame, &answer(), "neighbour_advertisement");
    let (group, mac) = solicited_node(VIP6);
    let mac_option = [1, 1, 2, 0, 0, 0, 0, 1];
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    for (name, options) in [
        ("no option", vec![]),
        ("source link-layer address", mac_option.to_vec()),
        ("nonce", nonce.to_vec()),
        ("both", [mac_option, nonce].concat()),
        ("many", vec![0xa5; 400]),
    ] {
        for to in [(mac, group), (OWN_MAC, VIP6)] {
            let frame = solicitation(to, &options).tos(0x40).build();
            lab.answers(name, &frame, &answer(), "neighbour_advertisement");
        }
    }
    Ok(())
}

#[test]
fn a_padded_solicitation_is_answered_without_the_padding() -> Result<()> {
    let mut lab = lab()?;
    for padding in [1, 8, 9, 100] {
        let frame = solicitation((OWN_MAC, VIP6), &[]).padding(padding).build();
        lab.answers("padded", &frame, &answer(), "neighbour_advertisement");
    }
    Ok(())
}

#[test]
fn a_duplicate_address_detection_probe_is_answered_to_all_nodes() -> Result<()> {
    let mut lab = lab()?;
    let probe = neighbor_solicitation(ROUTER_MAC, Ipv6Addr::UNSPECIFIED, VIP6);
    let answer = advertisement(OWN_MAC);
    lab.answers("probe", &probe, &answer, "neighbour_advertisement");
    Ok(())
}

#[test]
fn a_solicitation_that_was_routed_is_not_answered() -> Result<()> {
    let mut lab = lab()?;
    let (group, mac) = solicited_node(VIP6);
    for hops in [0, 1, 64, 254] {
        let to_group = solicitation((mac, group), &[]).ttl(hops).build();
        lab.passes("to the group", &to_group);
        let to_vip = solicitation((OWN_MAC, VIP6), &[]).ttl(hops).build();
        lab.drops("to the VIP", &to_vip, 0, "icmp");
    }
    Ok(())
}

#[test]
fn malformed_neighbour_discovery_is_not_answered() -> Result<()> {
    let mut lab = lab()?;
    let (group, mac) = solicited_node(VIP6);
    let to_group = solicitation((mac, group), &[]).build();
    for length in 14..to_group.len() {
        lab.passes(&format!("{length} bytes"), &to_group[..length]);
    }
    for code in 1..=255 {
        lab.passes("code", &patched(to_group.clone(), 55, &[code]));
    }
    // A packet that ends before its target, in a frame that is long enough.
    for length in 0..24u16 {
        let frame = patched(to_group.clone(), 18, &length.to_be_bytes());
        lab.passes(&format!("payload length {length}"), &frame);
        let to_vip = solicitation((OWN_MAC, VIP6), &[]).build();
        let frame = patched(to_vip, 18, &length.to_be_bytes());
        let reason = if length < 8 { "malformed" } else { "icmp" };
        lab.drops(&format!("payload length {length}"), &frame, 0, reason);
    }
    // RFC 4861 §7.1: neither message may stand behind an extension header that
    // hides it.
    let hidden = solicitation((mac, group), &[]).hop_by_hop().build();
    lab.passes("behind options", &hidden);
    Ok(())
}

#[test]
fn a_solicitation_for_another_address_is_passed() -> Result<()> {
    let mut lab = lab()?;
    let other = "2001:db8:1::10".parse()?;
    lab.passes("group", &neighbor_solicitation(ROUTER_MAC, ASKER6, other));
    Ok(())
}

#[test]
fn somebody_elses_advertisement_of_a_vip_is_counted() -> Result<()> {
    let mut lab = lab()?;
    lab.passes_counting("NA", &advertisement(ROUTER_MAC), &[(0, "duplicate_vip")]);
    lab.passes("our own", &advertisement(OWN_MAC));
    let other = "2001:db8::11".parse()?;
    lab.passes(
        "another address",
        &neighbor_advertisement(ROUTER_MAC, other, ALL_NODES, other, 0x20),
    );
    Ok(())
}

/// Says that a VIP is at this MAC address.
type Claimant = fn(Mac) -> Vec<u8>;

#[test]
fn who_claims_a_vip_is_noted_once_a_tick() -> Result<()> {
    let mut lab = lab()?;
    let other = Mac([2, 0, 0, 0, 0, 9]);
    let noted = |lab: &mut Lab, vip: IpAddr| -> Option<(Mac, u32, u32)> {
        let (address, family) = Addr::from_ip(vip);
        let key = VipKey {
            address,
            family,
            reserved: [0; 3],
        };
        let claims = lab.program.hash::<VipKey, Claim>(map::CLAIMS).ok()?;
        let claim = claims.get(&key, 0).ok()?;
        Some((Mac(claim.mac), claim.device, claim.ticks))
    };
    let claims: [(IpAddr, Claimant); 2] = [
        (VIP4.into(), |mac| arp_reply(mac, VIP4, ROUTER_MAC, ASKER4)),
        (VIP6.into(), advertisement),
    ];
    for (vip, claim) in claims {
        lab.program.set_ticks(100)?;
        lab.run(&claim(OWN_MAC));
        assert_eq!(noted(&mut lab, vip), None, "our own");
        lab.run(&claim(ROUTER_MAC));
        let first = Some((ROUTER_MAC, INGRESS, 100));
        assert_eq!(noted(&mut lab, vip), first, "{vip}: the first");
        lab.run(&claim(other));
        assert_eq!(noted(&mut lab, vip), first, "{vip}: in the same tick");
        lab.program.set_ticks(101)?;
        lab.run(&claim(other));
        let second = Some((other, INGRESS, 101));
        assert_eq!(noted(&mut lab, vip), second, "{vip}: in the next tick");
    }
    Ok(())
}

/// (asker, VIP) of both families.
fn addresses() -> [(IpAddr, IpAddr); 2] {
    [
        (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), VIP4.into()),
        ("2001:db8:c::7".parse().expect("an address"), VIP6.into()),
    ]
}

#[test]
fn an_echo_request_to_a_vip_is_answered() -> Result<()> {
    let mut lab = lab()?;
    for (source, vip) in addresses() {
        for length in [0, 1, 2, 7, 56, 57, 1000, 1400] {
            for ttl in [1, 2, 64, 65, 255] {
                let payload: Vec<u8> = (0..length).map(|i| (i * 31 % 253) as u8).collect();
                let request = Packet::echo_request(source, vip, 0xbeef, 0xffff)
                    .macs(ROUTER_MAC, OWN_MAC)
                    .payload(payload.clone())
                    .tos(8)
                    .ttl(ttl);
                let reply = Packet::echo_reply(vip, source, 0xbeef, 0xffff)
                    .macs(OWN_MAC, ROUTER_MAC)
                    .payload(payload)
                    .tos(8)
                    .ttl(64);
                let what = format!("{length} bytes from {source}, TTL {ttl}");
                lab.answers(&what, &request.build(), &reply.build(), "echo_reply");
            }
        }
    }
    Ok(())
}

#[test]
fn echo_with_options_or_extension_headers_is_answered() -> Result<()> {
    let mut lab = lab()?;
    for (source, vip) in addresses() {
        let with = |packet: Packet| {
            if source.is_ipv4() {
                packet.ip_options(&[1; 8])
            } else {
                packet.hop_by_hop()
            }
        };
        let request = Packet::echo_request(source, vip, 1, 2).macs(ROUTER_MAC, OWN_MAC);
        let reply = Packet::echo_reply(vip, source, 1, 2).macs(OWN_MAC, ROUTER_MAC);
        let (request, reply) = (with(request).build(), with(reply).build());
        lab.answers("options", &request, &reply, "echo_reply");
    }
    Ok(())
}

/// Checksums that become 0 or 0xffff by the change of the type. Zero is sent
/// as all ones, the same number: only that is right for a reply of zeroes
/// (identifier and sequence 0, no payload).
#[test]
fn echo_of_every_checksum_is_answered() -> Result<()> {
    let lab = lab()?;
    for (source, vip) in addresses() {
        for sequence in 0..=u16::MAX {
            let request = Packet::echo_request(source, vip, 0, sequence).macs(ROUTER_MAC, OWN_MAC);
            let frame = request.build();
            let place = frame.len() - 6;
            let sum = u16::from_be_bytes([frame[place], frame[place + 1]]);
            let is_near_an_end = !(0x0900..=0xf6ff).contains(&sum);
            if !is_near_an_end && !sequence.is_multiple_of(97) {
                continue;
            }
            let reply = Packet::echo_reply(vip, source, 0, sequence).macs(OWN_MAC, ROUTER_MAC);
            let mut expected = reply.build();
            if expected[place..place + 2] == [0, 0] {
                expected[place..place + 2].fill(0xff);
            }
            let got = lab.program.run(&frame)?;
            assert_same_frame("echo", &expected, &got.frame);
            verify(&got.frame)?;
        }
    }
    Ok(())
}
