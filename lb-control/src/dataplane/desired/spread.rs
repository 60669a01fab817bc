//! Who gets a service's flows: its table, its lists and its members' limits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use lb_common::{
    abi::{ServiceEntry, service_flag, udp},
    schedule,
};

use super::{AdoptedShares, Builder, DesiredError, MemberLimits, Table, members::Members};
use crate::{
    dataplane::state::MapSnapshot,
    model::{Balance, ForwardingMethod, GROUPS, HashInput, Protocol, Scheduler, Service, UdpMode},
    scheduler::{self, Ranked, groups},
};

const _: () = assert!(GROUPS as usize == schedule::GROUPS);

/// Where lookup tables come from: a cache, since they change rarely.
pub trait Tables {
    /// The table of `service` with these members and `size` slots, and the
    /// slots of its cycle of turns.
    fn table(
        &mut self,
        service: &str,
        scheduler: Scheduler,
        members: &[scheduler::Member],
        size: u32,
    ) -> (Arc<[u32]>, u32);
}

/// A table and what it was made of.
#[derive(Debug)]
struct Cached {
    scheduler: Scheduler,
    members: Vec<scheduler::Member>,
    table: Arc<[u32]>,
    cycle: u32,
}

/// Remembers each service's last table.
#[derive(Debug, Default)]
pub struct TableCache(HashMap<String, Cached>);

impl Tables for TableCache {
    fn table(
        &mut self,
        service: &str,
        scheduler: Scheduler,
        members: &[scheduler::Member],
        size: u32,
    ) -> (Arc<[u32]>, u32) {
        if let Some(cached) = self.0.get(service)
            && (cached.scheduler, cached.table.len()) == (scheduler, size as usize)
            && cached.members == members
        {
            return (Arc::clone(&cached.table), cached.cycle);
        }
        let made = scheduler::table(scheduler, members, size);
        let table: Arc<[u32]> = made.slots.into();
        let cached = Cached {
            scheduler,
            members: members.to_vec(),
            table: Arc::clone(&table),
            cycle: made.cycle,
        };
        self.0.insert(service.to_owned(), cached);
        (table, made.cycle)
    }
}

impl Builder<'_> {
    /// Lays out the service's table and lists; completes its entry.
    pub(super) fn spread(
        &mut self,
        service: &Service,
        entry: ServiceEntry,
        members: &Members,
        tables: &mut impl super::Tables,
    ) -> Result<ServiceEntry, DesiredError> {
        let Balance {
            scheduler,
            hash,
            ref tracking,
            udp,
            ..
        } = service.balance;
        let ranked = members.ranked.as_slice();
        let adopted = self.runtime.adopted.get(&service.name);
        let adopted = adopted.and_then(|theirs| Some((adopt(theirs, ranked)?, theirs.keep)));
        let follows = adopted.is_some();
        let (group, keep) =
            adopted.unwrap_or_else(|| (groups::open(ranked, members.min_available), members.keep));
        let made_of = group.iter().map(|m| (m.identity, m.share)).collect();
        let (members, cycle) = tables.table(&service.name, scheduler, &group, entry.slot_size);
        let table = Table {
            offset: entry.slot_offset,
            // Under full NAT a flow's binding has its member.
            stateless: service.protocol == Protocol::Udp && udp == UdpMode::Stateless
                || service.forwarding == ForwardingMethod::FullNat,
            keep,
            resets: entry.flags & service_flag::RESET != 0,
            full: tracking.full,
            follows,
            made_of,
            members,
        };
        self.state.tables.insert(entry.id, table);
        for r in ranked {
            let limits = MemberLimits {
                max: r.max,
                weight: r.member.share.max(1),
                next: 0,
                backend: self.servers.get(&r.member.id).copied().unwrap_or(0),
            };
            // One of both pools counts as what it is in the one in force.
            if r.member.share > 0 || !self.state.limits.contains_key(&r.member.id) {
                self.state.limits.insert(r.member.id, limits);
            }
        }
        let (list_offset, list_sizes) = self.lists(service, entry.id, ranked)?;
        let (prefix_v4, prefix_v6) = match hash {
            HashInput::Flow => (0, 0),
            HashInput::Source {
                prefix_v4,
                prefix_v6,
            } => (prefix_v4, prefix_v6),
        };
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        Ok(ServiceEntry {
            flags: entry.flags
                | flag(tracking.full, service_flag::FULL_TRACKING)
                | flag(hash != HashInput::Flow, service_flag::BY_SOURCE),
            scheduler: match scheduler {
                Scheduler::Maglev | Scheduler::ResponseTime => schedule::scheduler::MAGLEV,
                Scheduler::RoundRobin => schedule::scheduler::ROUND_ROBIN,
                Scheduler::LeastConnections => schedule::scheduler::LEAST_CONNECTIONS,
            },
            udp: match udp {
                UdpMode::Stateless => udp::STATELESS,
                UdpMode::Tracked => udp::TRACKED,
                UdpMode::Quic => udp::QUIC,
            },
            prefix_v4,
            prefix_v6,
            cycle,
            list_offset,
            list_sizes,
            ..entry
        })
    }

    /// Where the list of members stands, and how many are in each group.
    fn lists(
        &mut self,
        service: &Service,
        id: u32,
        ranked: &[Ranked],
    ) -> Result<(u32, [u16; schedule::GROUPS]), DesiredError> {
        let size = scheduler::list_slots(self.model.listed(service));
        let mut sizes = [0u16; schedule::GROUPS];
        if size == 0 {
            return Ok((0, sizes));
        }
        let known = list_ranges(self.given.snapshot)
            .get(&id)
            .copied()
            .filter(|(_, known)| *known == size);
        let no_room = |free| DesiredError::TooManySlots {
            service: service.name.clone(),
            size,
            free,
        };
        let offset = match known {
            Some((offset, _)) => offset,
            None => match self.slot_ranges.take(size) {
                Some(offset) => offset,
                None => return Err(no_room(self.slot_ranges.free())),
            },
        };
        let mut words = Vec::new();
        for (priority, size) in (1u8..).zip(&mut sizes) {
            for r in ranked.iter().filter(|r| r.priority == priority) {
                words.push(r.member.id);
                *size = size.saturating_add(1);
            }
        }
        self.state.lists.insert(id, (offset, words));
        Ok((offset, sizes))
    }
}

/// The members that another node's shares name; `None` where one of them isn't
/// this node's: their configurations differ.
fn adopt(theirs: &AdoptedShares, ranked: &[Ranked]) -> Option<Vec<scheduler::Member>> {
    let member = |&(identity, share): &(u64, u32)| {
        let known = ranked.iter().map(|r| r.member);
        let known = known.rev().find(|m| m.identity == identity)?;
        Some(scheduler::Member { share, ..known })
    };
    theirs.shares.iter().map(member).collect()
}

/// Makes rings of the members that are one backend's, whose limit is one for all
/// of them. A server that is in a pool and in its fallback is two backends with
/// members in common: they are in one ring.
pub(super) fn join<'a>(
    limits: &mut BTreeMap<u32, MemberLimits>,
    sharers: impl Iterator<Item = &'a Vec<u32>>,
) {
    let mut rings: Vec<BTreeSet<u32>> = Vec::new();
    let mut ring_of: HashMap<u32, usize> = HashMap::new();
    for members in sharers {
        let mut ring: BTreeSet<u32> = members.iter().copied().collect();
        for known in members.iter().filter_map(|member| ring_of.get(member)) {
            if let Some(known) = rings.get_mut(*known) {
                ring.append(known);
            }
        }
        ring_of.extend(ring.iter().map(|member| (*member, rings.len())));
        rings.push(ring);
    }
    for ring in rings.iter().filter(|ring| ring.len() > 1) {
        let next = ring.iter().cycle().skip(1);
        for (member, next) in ring.iter().zip(next) {
            if let Some(limits) = limits.get_mut(member) {
                limits.next = *next;
            }
        }
    }
}

/// Ranges of slots (first, number) that hold lists, by service id.
pub(super) fn list_ranges(snapshot: &MapSnapshot) -> BTreeMap<u32, (u32, u32)> {
    snapshot
        .entries()
        .filter(|entry| entry.listed() > 0)
        .map(|entry| {
            let size = scheduler::list_slots(entry.listed());
            (entry.id, (entry.list_offset, size))
        })
        .collect()
}
