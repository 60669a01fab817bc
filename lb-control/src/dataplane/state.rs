//! What the maps hold, as plain values.

use std::collections::BTreeMap;

use lb_common::{
    abi::{
        Config, LinkEntry, LocalKey, MemberEntry, PoolEntry, RangeKey, ReplyEntry, ReplyKey,
        ServerKey, ServiceEntry, ServiceKey, SourceKey, VipEntry, VipKey,
    },
    member::MemberState,
    net::{Addr, Be16},
    slot::SlotWord,
};

use super::desired::MemberLimits;

/// How many entries the maps have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Highest service id.
    pub services: u32,
    /// Highest member id.
    pub members: u32,
    /// Slots of all services.
    pub slots: u32,
    /// Buckets of each flow table.
    pub flow_buckets: u32,
    /// Prefixes of sources.
    pub source_prefixes: u32,
    /// Sources whose new flows are counted.
    pub limited_sources: u32,
    /// Highest index of full NAT's bindings.
    pub bindings: u32,
    /// Packets whose fragments are under way.
    pub fragments: u32,
    /// Sources whose server is known.
    pub persistent_sources: u32,
}

impl Capacity {
    /// What the configuration asks for.
    pub const fn of(dataplane: &crate::model::Dataplane) -> Self {
        Self {
            services: dataplane.max_services,
            members: dataplane.max_members,
            slots: dataplane.max_slots,
            fragments: dataplane.max_fragments,
            persistent_sources: dataplane.max_persistent_sources,
            flow_buckets: lb_common::flow::buckets_for(dataplane.max_flows),
            source_prefixes: dataplane.max_source_prefixes,
            limited_sources: dataplane.max_limited_sources,
            bindings: dataplane.max_bindings,
        }
    }
}

/// What names a member: everything of its record that never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    /// The service's id.
    pub service: u32,
    /// The backend's address.
    pub address: Addr,
    /// Port the packet is rewritten to; zero keeps it.
    pub port: Be16,
    /// The service's VIP.
    pub vip: Addr,
    /// Port a reply is rewritten to; zero keeps it.
    pub vip_port: Be16,
    /// See [`lb_common::abi::method`].
    pub method: u8,
    /// Address family of the VIP.
    pub family: u8,
    /// Address family of the backend.
    pub outer_family: u8,
    /// IANA protocol number.
    pub protocol: u8,
}

impl MemberKey {
    /// The key of a record.
    pub const fn of(entry: &MemberEntry) -> Self {
        Self {
            service: entry.service,
            address: entry.address,
            port: entry.port,
            vip: entry.vip,
            vip_port: entry.vip_port,
            method: entry.method,
            family: entry.family,
            outer_family: entry.outer_family,
            protocol: entry.protocol,
        }
    }

    /// The record of this member.
    pub const fn entry(&self, state: MemberState, next_hop: u64, mtu: u16) -> MemberEntry {
        MemberEntry {
            state: state.0,
            next_hop,
            address: self.address,
            vip: self.vip,
            service: self.service,
            port: self.port,
            vip_port: self.vip_port,
            method: self.method,
            family: self.family,
            protocol: self.protocol,
            outer_family: self.outer_family,
            mtu,
            reserved: [0; 2],
        }
    }
}

/// A key of `RANGES` with its prefix length, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortBlock {
    /// Bits of `key` that count.
    pub prefix_bits: u32,
    /// Address, protocol and first port.
    pub key: RangeKey,
}

/// A key of `SOURCES` with its prefix length, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourcePrefix {
    /// Set and first address.
    pub key: SourceKey,
    /// Bits of `key` that count.
    pub prefix_bits: u32,
}

impl SourcePrefix {
    /// The least of a set.
    pub fn first(set: u32) -> Self {
        Self {
            key: SourceKey {
                set,
                ..SourceKey::default()
            },
            prefix_bits: 0,
        }
    }
}

/// A key of `LOCAL` with its prefix length, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalPrefix {
    /// Bits of `key` that count.
    pub prefix_bits: u32,
    /// Family and address.
    pub key: LocalKey,
}

/// What the maps held when they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapSnapshot {
    /// The one entry of `CONFIG`.
    pub config: Config,
    /// Entry [`lb_common::abi::owner::ALWAYS_INDEX`] of `OWNERS`.
    pub always_owned: u64,
    /// Names by service id.
    pub service_names: BTreeMap<u32, String>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    /// `RANGES`.
    pub ranges: BTreeMap<PortBlock, ServiceEntry>,
    /// `VIPS`.
    pub vips: BTreeMap<VipKey, VipEntry>,
    /// Members that aren't free, by id.
    pub members: BTreeMap<u32, MemberEntry>,
    /// Slots by the id of the service that names them.
    pub slots: BTreeMap<u32, Vec<SlotWord>>,
    /// Ids in the services' lists, by service id.
    pub lists: BTreeMap<u32, Vec<u32>>,
    /// Limits of the members that aren't free, by id.
    pub limits: BTreeMap<u32, MemberLimits>,
    /// `SERVERS`.
    pub servers: BTreeMap<ServerKey, u32>,
    /// `REPLIES`.
    pub replies: BTreeMap<ReplyKey, ReplyEntry>,
    /// Entries of `LINKS` in use, by index.
    pub links: BTreeMap<u16, LinkEntry>,
    /// `SOURCES`.
    pub sources: BTreeMap<SourcePrefix, u32>,
    /// `NAT_POOL`.
    pub pools: BTreeMap<VipKey, PoolEntry>,
    /// `LOCAL`; the values are all 1.
    pub local: BTreeMap<LocalPrefix, u32>,
}

impl MapSnapshot {
    /// The services that packets can reach, once for each of their keys.
    pub fn entries(&self) -> impl Iterator<Item = &ServiceEntry> {
        self.services.values().chain(self.ranges.values())
    }

    /// Slot ranges (first slot, number) of the services that packets can
    /// reach, by service id.
    pub fn slot_ranges(&self) -> BTreeMap<u32, (u32, u32)> {
        self.entries()
            .map(|entry| (entry.id, (entry.slot_offset, entry.slot_size)))
            .collect()
    }

    /// State of a member; free where there is none.
    pub fn member_state(&self, id: u32) -> MemberState {
        self.members
            .get(&id)
            .map_or(MemberState::FREE, |m| MemberState(m.state))
    }
}

/// A name as it stands in `SERVICE_NAMES`.
pub(super) fn service_name_bytes(name: &str) -> [u8; lb_common::abi::NAME_BYTES] {
    let mut bytes = [0; lb_common::abi::NAME_BYTES];
    // The last byte stays zero.
    for (to, from) in bytes
        .iter_mut()
        .take(lb_common::abi::NAME_BYTES - 1)
        .zip(name.as_bytes())
    {
        *to = *from;
    }
    bytes
}

/// The reverse of [`service_name_bytes`]; `None` where no name stands.
pub(super) fn service_name(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let name = bytes.get(..end)?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}
