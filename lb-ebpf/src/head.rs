//! Packets that leave with a head of another length than they came with: with
//! outer headers, with other VLAN tags, or both, in one step.

use lb_common::{
    abi::{LinkEntry, MemberEntry, Tags, link_flag},
    counter::DropReason,
    hash::bucket_bits,
    net::{Be16, family},
    tunnel,
};

use crate::{
    forward::{self, tunnel as outer},
    frame::{self, Frame, Handed},
    lookup, maps,
    packet::{ETHERNET, Ethernet, Header, MacWords, Packet, Vlan, grow},
    parse::Parsed,
    verdict::{NO_SERVICE, Verdict},
};

/// What is told with a packet that is a health check's, and no traffic.
pub const PROBE: u32 = 1;

const TAG: usize = 4;
const ETHER_IPV4: Be16 = Be16::new(0x0800);
const ETHER_IPV6: Be16 = Be16::new(0x86dd);

/// Sends a packet to the member that was chosen for it.
#[inline(always)]
pub fn to_member(frame: &Frame<'_>, parsed: &Parsed, handed: &Handed) -> Verdict {
    let Some(member) = maps::member(handed.member) else {
        return Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32);
    };
    match forward(frame, parsed, member, handed) {
        Ok(verdict) => verdict,
        // Only that one its sender can do something about.
        Err(reason) if handed.detail == PROBE && reason != DropReason::TooBig => Verdict::LOST,
        Err(reason) => frame.refuse(parsed, member.service, reason),
    }
}

#[inline(always)]
fn forward(
    frame: &Frame<'_>,
    parsed: &Parsed,
    member: &MemberEntry,
    handed: &Handed,
) -> Result<Verdict, DropReason> {
    let (id, flow_hash) = (handed.member, handed.flow_hash);
    let link = forward::reachable(frame, parsed, member)?;
    let hash = bucket_bits(flow_hash);
    let is_tunnel = tunnel::is_tunnel(member.method);
    let (mut room, mut inner, mut carrier) = (0, 0, parsed.family());
    if is_tunnel {
        if link.flags & link_flag::BRIDGE != 0 {
            return Err(DropReason::NoNeighbour);
        }
        room = tunnel::overhead(member.method, member.outer_family);
        inner = outer::inner(&frame.packet, parsed);
        carrier = member.outer_family;
        let fitting = tunnel::fitting(inner >> 8, room, member.mtu);
        if fitting != 0 {
            return Err(frame::too_big(fitting.into()));
        }
    } else if parsed.is_segment() {
        forward::rewrite(frame, parsed, link, member)?;
    } else {
        forward::readdress(frame, parsed, link, member)?;
    }
    let mac = MacWords::of(member.next_hop());
    let network = replace(frame, parsed, room, mac, link, carrier);
    if network == 0 {
        return Err(DropReason::NoHeadroom);
    }
    if is_tunnel {
        let packet = Packet::new(frame.ctx);
        outer::write(&packet, network, frame.config, member, inner, hash)
            .ok_or(DropReason::Inconsistent)?;
    }
    if handed.detail == PROBE {
        return Ok(Verdict::send(link.ifindex, frame.ingress.ifindex));
    }
    match lookup::service(frame.config, &parsed.tuple()) {
        Some(service) if parsed.is_segment() => {
            forward::note(frame, parsed, service, flow_hash, id, 0);
        }
        _ => forward::count(parsed, id, member),
    }
    Ok(Verdict::send(link.ifindex, frame.ingress.ifindex))
}

/// Gives the frame an Ethernet header and the tags of `link`, with `room` bytes
/// behind them for the headers of family `carrier`. The offset of what follows
/// the tags; zero if the driver left too little room before the frame, which
/// then is as it was.
///
/// All headers taken before are invalid afterwards.
#[inline(always)]
fn replace(
    frame: &Frame<'_>,
    parsed: &Parsed,
    room: usize,
    destination: MacWords,
    link: &LinkEntry,
    carrier: u8,
) -> usize {
    let tags = link.tags;
    let network = ETHERNET + TAG * (usize::from(tags[0] != 0) + usize::from(tags[1] != 0));
    let priorities = priorities(&frame.packet, parsed);
    let by = (network + room) as i32 - parsed.network_offset() as i32;
    let Some(packet) = grow(frame.ctx, by) else {
        return 0;
    };
    let ether_type = if carrier == family::V4 {
        ETHER_IPV4
    } else {
        ETHER_IPV6
    };
    match write(&packet, tags, priorities, destination, link, ether_type) {
        Some(()) => network,
        None => 0,
    }
}

/// Priority and drop eligibility (IEEE 802.1Q §9.6) for the tags of the new
/// head: those of the old tags, the outer one's also where there is one only.
#[inline(always)]
fn priorities(packet: &Packet, parsed: &Parsed) -> [u16; 2] {
    let of = |vlan: Header<Vlan>| vlan.tci().get() & 0xf000;
    let mut priorities = [0; 2];
    if parsed.network_offset() > ETHERNET
        && let Some(first) = packet.at::<Vlan>(ETHERNET)
    {
        priorities = [of(first); 2];
    }
    if parsed.network_offset() > ETHERNET + TAG
        && let Some(second) = packet.at::<Vlan>(ETHERNET + TAG)
    {
        priorities[1] = of(second);
    }
    priorities
}

#[inline(always)]
fn write(
    packet: &Packet,
    tags: Tags,
    priorities: [u16; 2],
    destination: MacWords,
    link: &LinkEntry,
    ether_type: Be16,
) -> Option<()> {
    let type_of = |tag: u32| match tag {
        0 => ether_type,
        tag => Be16::new((tag >> 16) as u16),
    };
    let ethernet: Header<Ethernet> = packet.at(0)?;
    ethernet.write(Ethernet {
        destination,
        source: MacWords::new(link.mac),
        ether_type: type_of(tags[0]),
    });
    if tags[0] != 0 {
        let first: Header<Vlan> = packet.at(ETHERNET)?;
        first.write(Vlan {
            tci: Be16::new(tags[0] as u16 & 0xfff | priorities[0]),
            ether_type: type_of(tags[1]),
        });
    }
    if tags[1] != 0 {
        let second: Header<Vlan> = packet.at(ETHERNET + TAG)?;
        second.write(Vlan {
            tci: Be16::new(tags[1] as u16 & 0xfff | priorities[1]),
            ether_type,
        });
    }
    Some(())
}

/// Addresses a packet to `destination` on `link`, with that link's tags. Zero if
/// there was no room.
#[inline(never)]
pub fn retag(
    frame: &Frame<'_>,
    parsed: &Parsed,
    destination: &MacWords,
    link: &LinkEntry,
) -> usize {
    replace(frame, parsed, 0, *destination, link, parsed.family())
}
