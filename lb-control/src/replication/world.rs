//! The tables of this node, as both directions of replication see them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicU64},
};

use lb_common::{
    abi::{PoolEntry, VipKey},
    clock::UNIT_SHIFT,
    flow::{FlowTable, Idle},
};

use super::record::MemberEnd;

/// A service of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// Its word in `OWNERS`.
    pub owner: u16,
    /// First slot.
    pub offset: u32,
    /// Every flow has an entry.
    pub full: bool,
    /// The slot doesn't follow from an entry's tag.
    pub by_source: bool,
    /// Nobody is up: slots stay as they are.
    pub keep: bool,
    /// Units after which its entries expire.
    pub idle_units: u32,
    /// Identities and shares that its table was made of.
    pub shares: Arc<[(u64, u32)]>,
    /// Member for each slot.
    pub table: Arc<[u32]>,
}

impl Service {
    /// Number of its slots.
    pub fn size(&self) -> u32 {
        self.table.len() as u32
    }
}

/// Whatever the ids of this node stand for.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// Changes whenever anything in it does.
    pub version: u64,
    /// Services that packets can reach, by id.
    pub services: BTreeMap<u32, Service>,
    /// Ids by name.
    pub names: HashMap<Arc<str>, u32>,
    /// Service and end of each member, by id.
    pub members: Vec<Option<(u32, MemberEnd)>>,
    /// Ids by service and end.
    pub ids: HashMap<(u32, MemberEnd), u32>,
    /// Full NAT's addresses.
    pub pools: BTreeMap<VipKey, PoolEntry>,
}

impl Catalogue {
    /// The service of a member.
    pub fn service_of(&self, member: u32) -> Option<(u32, &Service)> {
        let (id, _) = self.members.get(member as usize)?.as_ref()?;
        Some((*id, self.services.get(id)?))
    }
}

/// The tables, and what is needed to read them.
#[derive(Clone, Copy, Debug)]
pub struct World<'a, T> {
    /// What ids stand for.
    pub catalogue: &'a Catalogue,
    /// `FLOWS`.
    pub flows: &'a T,
    /// `REPLY_FLOWS`.
    pub replies: &'a T,
    /// `SLOTS`.
    pub slots: &'a [AtomicU64],
    /// `BINDINGS`.
    pub bindings: &'a T,
    /// `NAT_FLOWS`.
    pub nat_flows: &'a T,
    /// Now.
    pub now_ticks: u32,
    /// Milliseconds of a tick.
    pub tick_ms: u32,
    /// Units after which entries of any service have expired.
    pub longest_idle: Idle,
}

impl<T: FlowTable> World<'_, T> {
    /// Ticks in milliseconds.
    pub fn milliseconds(&self, ticks: u32) -> u32 {
        ticks.saturating_mul(self.tick_ms)
    }

    /// The tick so long ago.
    pub fn ticks_ago(&self, milliseconds: u32) -> u32 {
        let ticks = milliseconds.checked_div(self.tick_ms).unwrap_or(0);
        self.now_ticks.wrapping_sub(ticks)
    }

    /// Units of an entry's age in milliseconds.
    pub fn unit_milliseconds(&self, units: u32) -> u32 {
        self.milliseconds(units << UNIT_SHIFT)
    }
}
