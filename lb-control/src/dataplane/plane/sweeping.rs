//! Keeping the tables of the running data path clean.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{PoolEntry, VipEntry, VipKey, service_flag, vip_flag},
    binding::{self, Limits, Ring},
    clock::UNIT_SHIFT,
};

use super::{Plane, member_infos};
use crate::dataplane::{
    apply::execute,
    bindings::Books,
    error::PlaneError,
    plan::MapOp,
    state::MapSnapshot,
    stats,
    store::MapStore as _,
    sweep::{self, Bits, SweepReport},
};

impl Plane {
    /// Cleans the tables and gives back ids that nothing names any more. Takes
    /// tens of milliseconds for a million flows; once in ten seconds is right.
    ///
    /// # Errors
    /// A map can't be read or written.
    pub fn sweep(&mut self) -> Result<&SweepReport, PlaneError> {
        let now_ticks = self.now_ticks()?;
        let snapshot = self.loaded.maps.snapshot_without_slots()?;
        let members = member_infos(&snapshot);
        let services: BTreeMap<u32, sweep::ServiceInfo> = snapshot
            .entries()
            .map(|s| {
                let info = sweep::ServiceInfo {
                    id: s.id,
                    offset: s.slot_offset,
                    size: s.slot_size,
                    idle_units: s.idle_units,
                    idle_ticks: (s.idle_units + 1) << UNIT_SHIFT,
                    full: s.flags & service_flag::FULL_TRACKING != 0,
                    by_source: s.flags & service_flag::BY_SOURCE != 0,
                };
                (s.id, info)
            })
            .collect();
        let services: Vec<_> = services.into_values().collect();
        let named = self.keep_books(&snapshot, &snapshot.pools, now_ticks);
        let maps = &self.loaded.maps;
        let world = sweep::World {
            flows: &maps.flows(),
            reply_flows: &maps.reply_flows(),
            slots: maps.slots(),
            members: &members,
            services: &services,
            loads: maps.loads(),
            half_units: snapshot.config.half_units,
            now_ticks,
        };
        self.swept = self.sweeper.sweep_with(world, named);
        self.free(&snapshot, now_ticks)?;
        self.free_pools(now_ticks)?;
        self.adapt_sample(now_ticks)?;
        Ok(&self.swept)
    }

    /// Looks after full NAT's ports; the members that flows have through them.
    pub(super) fn keep_books(
        &mut self,
        snapshot: &MapSnapshot,
        pools: &BTreeMap<VipKey, PoolEntry>,
        now_ticks: u32,
    ) -> Bits {
        let maps = &self.loaded.maps;
        let config = &snapshot.config;
        let hz = self.loaded.hz;
        let ticks = |ms| lb_common::clock::ticks(ms, hz) as u32;
        let members = member_infos(snapshot);
        let idle_ticks = snapshot
            .entries()
            .map(|s| (s.id, (s.idle_units + 1) << UNIT_SHIFT))
            .collect();
        let mut named = Bits::new(members.len());
        let books = Books {
            bindings: &maps.bindings(),
            flows: &maps.nat_flows(),
            free: &maps.free_ports(),
            ring_capacity: Ring::capacity_for(self.capacity.bindings),
            pools,
            members: &members,
            idle_ticks: &idle_ticks,
            limits: Limits {
                open_ticks: 0,
                half_ticks: config.half_units << UNIT_SHIFT,
                closing_ticks: ticks(binding::CLOSING_MS),
            },
            rest_ticks: ticks(binding::REST_MS),
            now_ticks,
        };
        self.books = self.bookkeeper.keep(&books, &mut named);
        named
    }

    /// Full NAT's addresses, those that are being removed included.
    pub fn pool_addresses(&self) -> Vec<IpAddr> {
        let pools = self.desired.pools.keys();
        pools.map(|key| key.address.to_ip(key.family)).collect()
    }

    /// Removes full NAT's addresses whose last flow is over.
    fn free_pools(&mut self, now_ticks: u32) -> Result<(), PlaneError> {
        for key in std::mem::take(&mut self.books.over) {
            if self.desired.pools.get(&key).is_none_or(|p| p.draining == 0) {
                continue;
            }
            let is_pool = |vip: &VipEntry| vip.flags & vip_flag::POOL != 0;
            let mut ops = vec![MapOp::RemovePool(key)];
            if self.desired.vips.get(&key).is_some_and(is_pool) {
                ops.insert(0, MapOp::RemoveVip(key));
                self.desired.vips.remove(&key);
            }
            for op in &ops {
                execute(&mut self.loaded.maps, op, now_ticks)?;
            }
            self.desired.pools.remove(&key);
        }
        Ok(())
    }

    /// Gives back members and names that nothing refers to.
    fn free(&mut self, snapshot: &MapSnapshot, now_ticks: u32) -> Result<(), PlaneError> {
        let freed: BTreeSet<u32> = self
            .swept
            .unnamed_members
            .iter()
            .copied()
            .filter(|id| self.desired.departed.contains(id))
            .collect();
        let mut ops: Vec<MapOp> = freed.iter().map(|id| MapOp::FreeMember(*id)).collect();
        let referred: BTreeSet<u32> = snapshot
            .members
            .iter()
            .filter(|(id, _)| !freed.contains(id))
            .map(|(_, m)| m.service)
            .chain(snapshot.slot_ranges().into_keys())
            .chain(self.desired.tables.keys().copied())
            .collect();
        // Before the first apply it isn't known which names are in use.
        if !self.desired.service_names.is_empty() {
            ops.extend(
                snapshot
                    .service_names
                    .keys()
                    .filter(|id| !referred.contains(id))
                    .map(|id| MapOp::SetServiceName(*id, None)),
            );
        }
        for op in &ops {
            execute(&mut self.loaded.maps, op, now_ticks)?;
        }
        for id in &freed {
            self.desired.members.remove(id);
            self.desired.departed.remove(id);
            self.departed.remove(id);
        }
        Ok(())
    }

    pub(super) fn longest_idle_ticks(&self) -> u32 {
        (self.loaded.maps.config().longest_idle_units + 1) << UNIT_SHIFT
    }

    fn adapt_sample(&mut self, now_ticks: u32) -> Result<(), PlaneError> {
        let idle = self.longest_idle_ticks();
        let occupied = self
            .loaded
            .maps
            .sample()
            .filter(|s| now_ticks.wrapping_sub(s.last_ticks) <= idle)
            .count() as u64;
        let mut config = self.loaded.maps.config();
        let mask = stats::next_sample_mask(config.sample_mask, occupied);
        if mask != config.sample_mask {
            config.sample_mask = mask;
            self.loaded.maps.set_config(&config)?;
        }
        Ok(())
    }
}
