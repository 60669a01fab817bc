//! The packet at hand, and its way from one program of the data path to the next.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    abi::{Config, LinkEntry, Tags, Work, link_flag},
    counter::DropReason,
};

use crate::{
    maps,
    packet::{ETHERNET, Ethernet, Header, MacWords, Packet, Vlan},
    parse::Parsed,
    verdict::{NO_SERVICE, Verdict},
};

const TAG_8021Q: u16 = 0x8100;
const TAG_8021AD: u16 = 0x88a8;

/// What all steps need to know of the packet at hand.
pub struct Frame<'a> {
    pub ctx: &'a XdpContext,
    pub packet: Packet,
    pub ethernet: Header<Ethernet>,
    pub config: &'static Config,
    /// The device it came in by.
    pub ingress: &'static LinkEntry,
    /// Its index in `LINKS`.
    pub link: u32,
}

/// The headers before the network layer's.
#[derive(Clone, Copy)]
pub struct Outer {
    pub tags: Tags,
    /// Type of what follows.
    pub ether_type: u16,
    /// Offset of what follows.
    pub bytes: usize,
}

/// Reads up to two VLAN tags (IEEE 802.1Q §9.6).
#[inline(always)]
pub fn outer(packet: &Packet, ethernet: Header<Ethernet>) -> Outer {
    let mut outer = Outer {
        tags: [0; 2],
        ether_type: ethernet.ether_type().get(),
        bytes: ETHERNET,
    };
    if !matches!(outer.ether_type, TAG_8021Q | TAG_8021AD) {
        return outer;
    }
    let Some(first) = packet.at::<Vlan>(ETHERNET) else {
        return outer;
    };
    outer.tags[0] = tag(outer.ether_type, first);
    outer.ether_type = first.ether_type().get();
    outer.bytes = ETHERNET + 4;
    if !matches!(outer.ether_type, TAG_8021Q | TAG_8021AD) {
        return outer;
    }
    let Some(second) = packet.at::<Vlan>(ETHERNET + 4) else {
        return outer;
    };
    outer.tags[1] = tag(outer.ether_type, second);
    outer.ether_type = second.ether_type().get();
    outer.bytes = ETHERNET + 8;
    outer
}

#[inline(always)]
fn tag(tpid: u16, vlan: Header<Vlan>) -> u32 {
    u32::from(tpid) << 16 | u32::from(vlan.tci().get() & 0xfff)
}

impl Frame<'_> {
    /// Whether it came in by a port of a Linux bridge.
    #[inline(always)]
    pub fn is_bridged(&self) -> bool {
        self.ingress.flags & link_flag::BRIDGE != 0
    }

    /// Whether the frame is addressed to the device that it came in by.
    #[inline(always)]
    pub fn is_for_us(&self) -> bool {
        self.ethernet.destination() == MacWords::new(self.ingress.mac)
    }

    /// Leaves the packet to the program at `place`.
    #[inline(always)]
    pub fn hand_over(&self, parsed: &Parsed, place: u32) -> Verdict {
        let Some(work) = maps::work() else {
            return INCONSISTENT;
        };
        parsed.leave(work);
        work.link = self.link;
        Verdict::hand_over(place)
    }
}

const INCONSISTENT: Verdict = Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32);

/// Goes on with a packet that another program handed over.
#[inline(always)]
pub fn resumed(
    ctx: &XdpContext,
    go_on: impl FnOnce(&Frame<'_>, &Parsed, &mut Work) -> Verdict,
) -> Verdict {
    let packet = Packet::new(ctx);
    let (Some(ethernet), Some(config), Some(work)) =
        (packet.at::<Ethernet>(0), maps::config(), maps::work())
    else {
        return INCONSISTENT;
    };
    let link = work.link;
    let Some(ingress) = maps::link(link) else {
        return INCONSISTENT;
    };
    let frame = Frame {
        ctx,
        packet,
        ethernet,
        config,
        ingress,
        link,
    };
    let parsed = Parsed::resume(work);
    go_on(&frame, &parsed, work)
}
