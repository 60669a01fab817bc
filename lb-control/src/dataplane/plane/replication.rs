//! The running data path's tables for replication.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use lb_common::{
    abi::{MemberEntry, PersistEntry, PersistKey, ServiceEntry, service_flag},
    clock,
    flow::Idle,
    persist,
};

use super::Plane;
use crate::{
    dataplane::{desired::DesiredState, error::PlaneError, mapping::MappedTable},
    replication::{
        import::key_mark,
        record::{Hello, MemberEnd, Source, VERSION},
        world::{Catalogue, Service, World},
    },
};

impl Plane {
    /// Sees to it that [`Self::catalogue`] is what was applied last.
    pub(super) fn catalogue(&mut self) {
        let mut new = catalogue(&self.desired);
        let old = &self.catalogue;
        new.version = old.version;
        let same =
            new.services == old.services && new.members == old.members && new.pools == old.pools;
        if !same {
            new.version += 1;
            self.catalogue = new;
        }
    }

    /// Whether anything was applied yet.
    pub fn is_known(&self) -> bool {
        self.catalogue.version > 0
    }

    /// What ids stand for, as of the last [`Self::apply`].
    pub fn ids(&self) -> &Catalogue {
        &self.catalogue
    }

    /// These services (by id) are another node's, whose word on their flows counts.
    pub fn follow(&mut self, services: BTreeSet<u32>) {
        self.followed = services;
    }

    /// What another node's tables must have in common with these.
    pub fn hello(&self) -> Hello {
        Hello {
            version: VERSION,
            buckets: self.capacity.flow_buckets,
            key_mark: key_mark(self.loaded.maps.config().hash_key),
        }
    }

    /// Gives the tables to `use_them`.
    ///
    /// # Errors
    /// The clock can't be read.
    pub fn with_tables<R>(
        &mut self,
        use_them: impl FnOnce(&World<'_, MappedTable<'_>>) -> R,
    ) -> Result<R, PlaneError> {
        let now_ticks = self.now_ticks()?;
        let maps = &self.loaded.maps;
        let config = maps.config();
        let (flows, replies) = (maps.flows(), maps.reply_flows());
        let (bindings, nat_flows) = (maps.bindings(), maps.nat_flows());
        let jiffies = 1_000u64 << clock::shift_for_hz(self.loaded.hz);
        let world = World {
            catalogue: &self.catalogue,
            flows: &flows,
            replies: &replies,
            slots: maps.slots(),
            bindings: &bindings,
            nat_flows: &nat_flows,
            now_ticks,
            tick_ms: (jiffies / u64::from(self.loaded.hz.max(1))) as u32,
            longest_idle: Idle {
                open_units: config.longest_idle_units,
                half_units: config.half_units,
            },
        };
        Ok(use_them(&world))
    }

    /// Idle time in ticks of the groups of sources of these services, by number.
    pub fn groups(&self, services: &BTreeSet<u32>) -> HashMap<u32, u32> {
        entries(&self.desired)
            .filter(|entry| entry.group != 0 && services.contains(&entry.id))
            .map(|entry| (entry.group, entry.persist_ticks))
            .collect()
    }

    /// All sources whose server is known.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn sources(&self) -> Result<Vec<(PersistKey, PersistEntry)>, PlaneError> {
        Ok(self.loaded.maps.persistence()?)
    }

    /// Takes over what another node says of sources, where nothing newer is known.
    ///
    /// # Errors
    /// The map can't be written.
    pub fn take_sources(&mut self, sources: &[Source]) -> Result<(), PlaneError> {
        let groups: BTreeSet<u32> = entries(&self.desired).map(|entry| entry.group).collect();
        let (now_ticks, tick_ms) = self.with_tables(|world| (world.now_ticks, world.tick_ms))?;
        for source in sources {
            if source.group == 0 || !groups.contains(&source.group) {
                continue;
            }
            let key = PersistKey {
                group: source.group,
                family: source.family.into(),
                source: source.address,
            };
            let age = source.age_ms.checked_div(tick_ms).unwrap_or(0);
            if source.backend == 0 {
                self.loaded.maps.forget(&key)?;
                continue;
            }
            let entry = PersistEntry {
                backend: source.backend,
                last_ticks: now_ticks.wrapping_sub(age),
                ..PersistEntry::default()
            };
            let newer =
                self.loaded.maps.remembered(&key).is_some_and(|known| {
                    persist::is_live(&known, now_ticks, age.saturating_sub(1))
                });
            if !newer {
                self.loaded.maps.remember(&key, &entry)?;
            }
        }
        Ok(())
    }
}

fn entries(desired: &DesiredState) -> impl Iterator<Item = &ServiceEntry> {
    desired.services.values().chain(desired.ranges.values())
}

fn catalogue(desired: &DesiredState) -> Catalogue {
    let mut catalogue = Catalogue {
        pools: desired.pools.clone(),
        ..Catalogue::default()
    };
    for entry in entries(desired) {
        let (Some(name), Some(table)) = (
            desired.service_names.get(&entry.id),
            desired.tables.get(&entry.id),
        ) else {
            continue;
        };
        let name: Arc<str> = name.as_str().into();
        let service = Service {
            name: Arc::clone(&name),
            owner: entry.owner,
            offset: entry.slot_offset,
            full: table.full,
            by_source: entry.flags & service_flag::BY_SOURCE != 0,
            keep: table.keep,
            idle_units: entry.idle_units,
            shares: Arc::clone(&table.made_of),
            table: Arc::clone(&table.members),
        };
        catalogue.names.insert(name, entry.id);
        catalogue.services.insert(entry.id, service);
    }
    let highest = desired.members.keys().next_back().copied().unwrap_or(0);
    catalogue.members = vec![None; highest as usize + 1];
    for (id, member) in &desired.members {
        let end = end_of(member);
        if let Some(place) = catalogue.members.get_mut(*id as usize) {
            *place = Some((member.service, end));
        }
        catalogue.ids.insert((member.service, end), *id);
    }
    catalogue
}

fn end_of(member: &MemberEntry) -> MemberEnd {
    MemberEnd {
        address: member.address,
        family: member.outer_family,
        port: member.port,
        method: member.method,
    }
}
