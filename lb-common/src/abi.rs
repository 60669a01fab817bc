//! Layout of the BPF maps.
//!
//! All structures are `repr(C)` without implicit padding; addresses and ports
//! stand in network byte order behind their types, everything else is native.
//! A change of any of it is a change of [`ABI_VERSION`].

use crate::net::{Addr, Be16, NextHop};

mod defence;
mod fragment;
mod link;
mod nat;
mod persist;
mod probe;
pub mod program;
mod service;
mod tunnel;
mod vip;
mod work;

pub use defence::{
    CORE_LIMIT_RESETS, LimitKey, RESETS_PER_SECOND, SOURCE_KEY_FIXED_BITS, SourceKey, source,
    source_set,
};
pub use fragment::{FragmentEntry, FragmentKey, direction};
pub use link::{LINK_PROBES, LINKS, LinkEntry, Tags, link_flag};
pub use nat::{Binding, LOCAL_KEY_FIXED_BITS, LocalKey, PoolEntry};
pub use persist::{PersistEntry, PersistKey, ServerKey};
pub use probe::{PROBE_PORTS, ProbeEntry};
pub use service::{ServiceEntry, service_flag, udp};
pub use tunnel::Tunnel;
pub use vip::{CLAIMS, Claim, VipEntry, VipKey, vip_flag};
pub use work::{Bound, QUOTE_BYTES, Scratch, Work};

/// Version of the maps' layout, held in the one-entry map `ABI`. Pinned maps
/// of another version are refused.
pub const ABI_VERSION: u32 = 6;

/// Names of the maps, which are also the names of their pins.
pub mod map {
    /// `[u32; 1]`: [`super::ABI_VERSION`].
    pub const ABI: &str = "ABI";
    /// `[Config; 1]`, mapped.
    pub const CONFIG: &str = "CONFIG";
    /// Hash: [`super::ServiceKey`] to [`super::ServiceEntry`], one port each.
    pub const SERVICES: &str = "SERVICES";
    /// Longest prefix: [`super::RangeKey`] to [`super::ServiceEntry`].
    pub const RANGES: &str = "RANGES";
    /// Array by service id: name of the service, padded with zeros.
    pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
    /// Hash: [`super::VipKey`] to [`super::VipEntry`].
    pub const VIPS: &str = "VIPS";
    /// Array of `u64` by owner index: see [`super::owner`].
    pub const OWNERS: &str = "OWNERS";
    /// Array of `u32` by owner index: index of the device on which the virtual
    /// router has [`mod@crate::virtual_mac`]'s address; zero: it has none.
    pub const VIRTUAL_MACS: &str = "VIRTUAL_MACS";
    /// Array of [`crate::slot::SlotWord`], all services' tables one after another, mapped.
    pub const SLOTS: &str = "SLOTS";
    /// Array by member id: [`super::MemberEntry`], mapped.
    pub const MEMBERS: &str = "MEMBERS";
    /// Array of buckets, mapped: flows in tracked slots.
    pub const FLOWS: &str = "FLOWS";
    /// Array of buckets, mapped: flows whose replies NAT has to recognise.
    pub const REPLY_FLOWS: &str = "REPLY_FLOWS";
    /// Hash: [`super::ReplyKey`] to [`super::ReplyEntry`].
    pub const REPLIES: &str = "REPLIES";
    /// Array of [`super::LinkEntry`], open addressing by [`super::LinkEntry::place`].
    pub const LINKS: &str = "LINKS";
    /// Array by member id: [`super::MemberLoad`], mapped.
    pub const LOADS: &str = "LOADS";
    /// LRU hash: [`super::PersistKey`] to [`super::PersistEntry`].
    pub const PERSISTENCE: &str = "PERSISTENCE";
    /// Hash: [`super::ServerKey`] to a member's id.
    pub const SERVERS: &str = "SERVERS";
    /// Array of `u64` by service id: turns taken under round robin.
    pub const TURNS: &str = "TURNS";
    /// Per-CPU array by member id: [`super::MemberStats`].
    pub const STATS: &str = "STATS";
    /// Per-CPU array of `u64`: [`crate::counter::DropReason::index`] by service id.
    pub const DROPS: &str = "DROPS";
    /// Per-CPU array of `u64`: [`crate::counter::Event::index`] by service id.
    pub const EVENTS: &str = "EVENTS";
    /// Array of [`super::SampleEntry`], mapped.
    pub const SAMPLE: &str = "SAMPLE";
    /// Ring buffer of [`super::NeighbourRequest`].
    pub const NEIGHBOUR_REQUESTS: &str = "NEIGH_REQUESTS";
    /// Hash: [`super::VipKey`] of a pool address to [`super::PoolEntry`].
    pub const NAT_POOL: &str = "NAT_POOL";
    /// Array of [`super::Binding`] by index, mapped; the first is nobody's.
    pub const BINDINGS: &str = "BINDINGS";
    /// Array of cache lines, mapped: two [`crate::binding::Ring`]s.
    pub const FREE_PORTS: &str = "FREE_PORTS";
    /// Array of buckets, mapped: flows under full NAT, with the index of their
    /// binding in place of a member.
    pub const NAT_FLOWS: &str = "NAT_FLOWS";
    /// Longest prefix: [`super::LocalKey`] to `u32`, which is 1.
    pub const LOCAL: &str = "LOCAL";
    /// `[ClockReading; 1]`, mapped, written by the program `lb_clock`.
    pub const CLOCK: &str = "CLOCK";
    /// Program array: what `lb` hands packets on to, see [`super::program::TAILS`].
    pub const PROGRAMS: &str = "PROGRAMS";
    /// Per-CPU `[Scratch; 1]`: what is handed over with the packet, and more.
    pub const WORK: &str = "WORK";
    /// Longest prefix: [`super::SourceKey`] to a value of [`super::source`].
    pub const SOURCES: &str = "SOURCES";
    /// Per-CPU array of [`crate::limit::Bucket`] by service id, see
    /// [`super::CORE_LIMIT_RESETS`].
    pub const CORE_LIMITS: &str = "CORE_LIMITS";
    /// LRU hash: [`super::LimitKey`] to [`crate::limit::Bucket`].
    pub const SOURCE_LIMITS: &str = "SOURCE_LIMITS";
    /// LRU hash: [`super::FragmentKey`] to [`super::FragmentEntry`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Per-CPU `[u64; 1]`: [`crate::limit::Bucket`] of generated ICMP errors.
    pub const ICMP_LIMIT: &str = "ICMP_LIMIT";
    /// LRU hash: [`super::VipKey`] to [`super::Claim`].
    pub const CLAIMS: &str = "CLAIMS";
    /// Array of [`super::ProbeEntry`] by source port, from
    /// [`super::Config::probe_port`] on; mapped.
    pub const PROBES: &str = "PROBES";
}

/// Entries of the `OWNERS` map: by VRID, and 256 more by that of IPv6.
pub const OWNERS: u32 = 512;

/// Entries of the `SAMPLE` map.
pub const SAMPLE_SIZE: u32 = 65_536;

/// Bytes of a service's name in `SERVICE_NAMES`, the ending zero included.
pub const NAME_BYTES: usize = 64;

/// Words of the `OWNERS` map.
pub mod owner {
    /// Index for VIPs that no VRRP instance governs.
    pub const ALWAYS_INDEX: u16 = 0;
    /// Somebody else owns the VIP.
    pub const NOT_OWNED: u64 = 0;
    /// Owned, without end. Other values are the end of a lease, in jiffies.
    pub const FOREVER: u64 = u64::MAX;
}

/// What the data path reads on every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Key of the flow hash.
    pub hash_key: [u64; 2],
    /// See [`feature`].
    pub features: u32,
    /// Jiffies per tick, as a power of two ([`crate::clock`]).
    pub clock_shift: u32,
    /// Ticks added to the kernel's clock: zero, or what a simulation wants.
    pub clock_offset: u32,
    /// Ticks after a change in which a SYN may be a retransmission.
    pub syn_window_ticks: u32,
    /// Units after which an unconfirmed entry has expired.
    pub half_units: u32,
    /// Units after which a confirmed entry of any service has expired.
    pub longest_idle_units: u32,
    /// Buckets of `FLOWS`.
    pub flow_buckets: u32,
    /// Buckets of `REPLY_FLOWS`.
    pub reply_buckets: u32,
    /// Flows are sampled where these bits of the hash's lower half are zero.
    pub sample_mask: u32,
    /// Buckets of `NAT_FLOWS`.
    pub nat_buckets: u32,
    /// Places in each ring of `FREE_PORTS`: a power of two.
    pub free_ports: u32,
    /// [`crate::limit::second`].
    pub second_steps: u32,
    /// [`crate::limit::cost`] of a generated ICMP error on one core; zero: none
    /// is sent.
    pub icmp_cost: u32,
    /// First source port of probes that go the clients' way; zero: there are
    /// none.
    pub probe_port: u32,
    /// Index of the device that such probes come in by.
    pub probe_ifindex: u32,
    /// Zero.
    pub reserved: u32,
    /// Where tunnels' outer packets come from.
    pub tunnel: Tunnel,
}

/// Bits of [`Config::features`].
pub mod feature {
    /// Some service is NAT: look for replies.
    pub const REPLIES: u32 = 1;
    /// Some service has a port range, or any port.
    pub const RANGES: u32 = 2;
    /// Full NAT has an IPv4 address, be it one that is being removed.
    pub const POOL_V4: u32 = 4;
    /// Full NAT has an IPv6 address, be it one that is being removed.
    pub const POOL_V6: u32 = 8;
    /// Full NAT has an IPv4 address for new flows.
    pub const OPEN_POOL_V4: u32 = 16;
    /// Full NAT has an IPv6 address for new flows.
    pub const OPEN_POOL_V6: u32 = 32;
}

/// What names a service of one port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The VIP.
    pub address: Addr,
    /// Destination port.
    pub port: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Address family.
    pub family: u8,
}

/// Key of `RANGES`, behind the prefix length: a service of a block of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeKey {
    /// The VIP.
    pub address: Addr,
    /// Address family.
    pub family: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// First port of the block; only its leading bits count.
    pub port: Be16,
}

/// Bits of [`RangeKey`] before the port.
pub const RANGE_KEY_FIXED_BITS: u32 = 144;

/// A backend's address, as the source of replies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyKey {
    /// The backend's address.
    pub address: Addr,
    /// Its port; zero for services that keep the port.
    pub port: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Address family.
    pub family: u8,
}

/// Whose replies they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyEntry {
    /// The member; zero: the one that the reply's flow names.
    pub member: u32,
}

/// One (service, backend) pair. One cache line.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberEntry {
    /// [`crate::member::MemberState`], changed by one atomic write.
    pub state: u64,
    /// [`NextHop`], changed by one atomic write.
    pub next_hop: u64,
    /// The backend's address. This and all below never change in the life of
    /// the id.
    pub address: Addr,
    /// The service's VIP.
    pub vip: Addr,
    /// The service's id.
    pub service: u32,
    /// Port the packet is rewritten to; zero keeps it.
    pub port: Be16,
    /// Port a reply is rewritten to; zero keeps it.
    pub vip_port: Be16,
    /// See [`method`].
    pub method: u8,
    /// Address family of the VIP.
    pub family: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// Address family of `address`. Another than the VIP's in tunnels alone.
    pub outer_family: u8,
    /// Tunnels: longest outer packet in bytes, its IP header included; zero: not
    /// known. May change.
    pub mtu: u16,
    /// Zero.
    pub reserved: [u8; 2],
}

impl MemberEntry {
    /// The next hop.
    #[inline(always)]
    pub const fn next_hop(&self) -> NextHop {
        NextHop(self.next_hop)
    }
}

/// Values of [`MemberEntry::method`].
pub mod method {
    /// The MAC addresses are rewritten.
    pub const L2_DSR: u8 = 1;
    /// Destination address and port are rewritten, and the source of replies.
    pub const NAT: u8 = 2;
    /// The source, too, becomes a pool's address and port.
    pub const FULL_NAT: u8 = 3;
    /// The packet is put into an IP packet to the backend. This and all above
    /// are tunnels.
    pub const IPIP: u8 = 4;
    /// The packet is put into a UDP datagram to the backend.
    pub const GUE: u8 = 5;
}

/// A member's connections and what they are held against.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberLoad {
    /// [`crate::load::Counts`]: the data path and the sweeper add to it.
    pub counts: u64,
    /// Connections its backend may have; zero: any number.
    pub max: u32,
    /// Its weight among the service's members; as one word with `max`.
    pub weight: u32,
    /// The next member of the same backend, in a ring of at most
    /// [`crate::load::SHARERS`]; zero: it is the only one, or has no limit.
    pub next: u32,
    /// Zero.
    pub reserved: u32,
    /// The server it is on, see [`crate::persist::backend`].
    pub backend: u64,
}

/// What was sent to and came back from a member on one core.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberStats {
    /// Packets from clients.
    pub packets: u64,
    /// Their bytes, Ethernet header included, check sequence not.
    pub bytes: u64,
    /// TCP: SYNs. UDP: flows seen in the sample times its rate.
    pub connections: u64,
    /// Replies translated (NAT).
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// One sampled flow. The record is direct-mapped by the flow's tag; `check` is
/// zero while it is being written and else the flow's hash.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleEntry {
    /// The flow's hash; zero: none, or being written.
    pub check: u64,
    /// Client.
    pub source: Addr,
    /// VIP.
    pub destination: Addr,
    /// Client's port.
    pub source_port: Be16,
    /// VIP's port.
    pub destination_port: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Address family.
    pub family: u8,
    /// See [`sample_flag`].
    pub flags: u16,
    /// Member that got its last packet.
    pub member: u32,
    /// Tick of the first packet seen.
    pub first_ticks: u32,
    /// Tick of the last packet seen.
    pub last_ticks: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`SampleEntry::flags`].
pub mod sample_flag {
    /// More than a SYN was seen.
    pub const CONFIRMED: u16 = 1;
    /// FIN or RST was seen.
    pub const CLOSING: u16 = 2;
}

/// A next hop towards a client that the kernel should resolve.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourRequest {
    /// Its address.
    pub address: Addr,
    /// Interface it is reached by.
    pub ifindex: u32,
    /// Address family.
    pub family: u32,
}

/// The kernel's clocks at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReading {
    /// `jiffies_64`.
    pub jiffies: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic_ns: u64,
}

macro_rules! layout {
    ($($t:ty = $size:literal),+ $(,)?) => {
        $(const _: () = assert!(core::mem::size_of::<$t>() == $size);)+
        $(
            // SAFETY: `repr(C)` or transparent over integers only, no padding
            // (the sizes above are the sums of the fields), so every bit
            // pattern is a value and every byte is initialised.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $t {}
        )+
    };
}

layout! {
    Config = 120,
    ProbeEntry = 24,
    Tunnel = 40,
    ServiceKey = 20,
    RangeKey = 20,
    ServiceEntry = 72,
    VipKey = 20,
    VipEntry = 4,
    PoolEntry = 12,
    LocalKey = 20,
    Binding = 64,
    ReplyKey = 20,
    ReplyEntry = 4,
    MemberEntry = 64,
    LinkEntry = 40,
    Work = 80,
    Bound = 96,
    Scratch = 392,
    SourceKey = 20,
    LimitKey = 20,
    PersistKey = 24,
    PersistEntry = 16,
    ServerKey = 16,
    FragmentKey = 40,
    FragmentEntry = 24,
    Claim = 16,
    MemberLoad = 32,
    MemberStats = 40,
    SampleEntry = 64,
    NeighbourRequest = 24,
    ClockReading = 16,
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn the_words_of_a_member_that_change_are_aligned() {
        assert_eq!(offset_of!(MemberEntry, state), 0);
        assert_eq!(offset_of!(MemberEntry, next_hop), 8);
        assert_eq!(offset_of!(MemberEntry, service), 48);
        assert_eq!(offset_of!(MemberEntry, mtu), 60);
    }

    #[test]
    fn keys_have_their_fields_where_the_prefix_length_counts_them() {
        assert_eq!(offset_of!(RangeKey, port) as u32 * 8, RANGE_KEY_FIXED_BITS);
        assert_eq!(offset_of!(ServiceKey, port), 16);
        assert_eq!(
            offset_of!(SourceKey, address) as u32 * 8,
            SOURCE_KEY_FIXED_BITS
        );
        assert_eq!(offset_of!(SampleEntry, member), 48);
        assert_eq!(
            offset_of!(LocalKey, address) as u32 * 8,
            LOCAL_KEY_FIXED_BITS
        );
    }
}
