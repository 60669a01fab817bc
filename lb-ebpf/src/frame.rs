//! The packet at hand, and its way from one program of the data path to the next.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    abi::{Config, LinkEntry, Tags, link_flag, program},
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

/// What another program said of the packet it handed over: of `Work`'s fields
/// those that it set.
pub struct Handed {
    pub service: u32,
    pub member: u32,
    pub detail: u32,
    pub flow_hash: u64,
    pub fitting: u32,
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

/// Reads up to two VLAN tags (IEEE 802.1Q §9.6). One that has a priority only,
/// VLAN id zero, is none.
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
    let inner = tag(outer.ether_type, second);
    let has_outer = is_vlan(first);
    outer.tags = [outer.tags[0] + inner * (1 - has_outer), inner * has_outer];
    outer.ether_type = second.ether_type().get();
    outer.bytes = ETHERNET + 8;
    outer
}

#[inline(always)]
fn tag(tpid: u16, vlan: Header<Vlan>) -> u32 {
    (u32::from(tpid) << 16 | id_of(vlan)) * is_vlan(vlan)
}

#[inline(always)]
fn id_of(vlan: Header<Vlan>) -> u32 {
    u32::from(vlan.tci().get() & 0xfff)
}

/// 1, or 0 for VLAN id zero. No branch: the verifier would look at all that
/// follows once more.
#[inline(always)]
fn is_vlan(vlan: Header<Vlan>) -> u32 {
    (id_of(vlan) + 0xfff) >> 12
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
        self.ethernet
            .destination()
            .differs(MacWords::new(self.ingress.mac))
            == 0
    }

    /// Leaves the packet to the program at `place`.
    #[inline(always)]
    pub fn hand_over(&self, parsed: &Parsed, place: u32) -> Verdict {
        self.tell(parsed, place, 0)
    }

    /// Leaves the packet to the program at `place`, which is told `detail`.
    #[inline(always)]
    pub fn tell(&self, parsed: &Parsed, place: u32, detail: u32) -> Verdict {
        let Some(work) = maps::work() else {
            return INCONSISTENT;
        };
        parsed.leave(work);
        work.link = self.link;
        work.detail = detail;
        Verdict::hand_over(place)
    }

    /// Leaves a packet of the flow with this hash, on its way to `member`, to the
    /// program at `place`.
    #[inline(always)]
    pub fn pass_on(&self, parsed: &Parsed, member: u32, flow_hash: u64, place: u32) -> Verdict {
        self.pass_on_and_tell(parsed, (member, flow_hash), place, 0)
    }

    /// As [`Self::pass_on`]; the program is told `detail`.
    #[inline(always)]
    pub fn pass_on_and_tell(
        &self,
        parsed: &Parsed,
        (member, flow_hash): (u32, u64),
        place: u32,
        detail: u32,
    ) -> Verdict {
        if let Some(work) = maps::work() {
            work.member = member;
            work.flow_hash = flow_hash;
        }
        self.tell(parsed, place, detail)
    }

    /// Whether packets that are sent by `link` have the tags that this one has.
    /// What is left to a bridge gets its tags there.
    #[inline(always)]
    pub fn has_tags_of(&self, link: &LinkEntry) -> bool {
        let [outer, inner] = self.ingress.tags;
        (outer ^ link.tags[0]) | (inner ^ link.tags[1]) == 0 || link.flags & link_flag::BRIDGE != 0
    }

    /// Drops a packet of a service for `reason`. Where that is something that only
    /// its sender can change, and it has the ports, the sender is told. Of one that
    /// is too long [`too_big`] was told by how much.
    #[inline(always)]
    pub fn refuse(&self, parsed: &Parsed, service: u32, reason: DropReason) -> Verdict {
        let is_told = matches!(reason, DropReason::TooBig | DropReason::TtlExceeded);
        if !is_told || !parsed.is_segment() {
            return Verdict::drop(service, reason as u32);
        }
        if let Some(work) = maps::work() {
            work.service = service;
        }
        self.tell(parsed, program::ICMP_ERROR, reason as u32)
    }

    /// Whether a packet is no longer than `link` carries. One that is longer than
    /// its own link carries was put together by the kernel from several (GRO),
    /// which takes it apart again.
    #[inline(always)]
    pub fn fits(&self, parsed: &Parsed, link: &LinkEntry) -> Result<(), DropReason> {
        let bytes = u64::from(parsed.frame_bytes()).wrapping_sub(parsed.network_offset() as u64);
        // Negative where the one is longer than the other, and one branch: the
        // verifier would look at all that follows once more.
        let longer = u64::from(link.mtu).wrapping_sub(bytes);
        let of_one = bytes.wrapping_sub(u64::from(self.ingress.mtu) + 1);
        if (longer & of_one) >> 63 != 0 {
            return Err(too_big(link.mtu));
        }
        Ok(())
    }
}

/// Why a packet isn't sent by a way that carries `fitting` bytes.
#[inline(always)]
pub fn too_big(fitting: u32) -> DropReason {
    if let Some(work) = maps::work() {
        work.fitting = fitting;
    }
    DropReason::TooBig
}

const INCONSISTENT: Verdict = Verdict::drop(NO_SERVICE, DropReason::Inconsistent as u32);

/// Goes on with a packet that another program handed over.
#[inline(always)]
pub fn resumed(
    ctx: &XdpContext,
    go_on: impl FnOnce(&Frame<'_>, &Parsed, &Handed) -> Verdict,
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
    let handed = Handed {
        service: work.service,
        member: work.member,
        detail: work.detail,
        flow_hash: work.flow_hash,
        fitting: work.fitting,
    };
    go_on(&frame, &parsed, &handed)
}
