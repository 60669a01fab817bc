//! Keeping the tables of the running data path clean.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{abi::service_flag, clock::UNIT_SHIFT};

use super::Plane;
use crate::dataplane::{
    apply::execute,
    error::PlaneError,
    plan::MapOp,
    state::MapSnapshot,
    stats,
    store::MapStore as _,
    sweep::{self, SweepReport},
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
        let members = self.member_infos(&snapshot);
        let services: BTreeMap<u32, sweep::ServiceInfo> = snapshot
            .entries()
            .map(|s| {
                let info = sweep::ServiceInfo {
                    id: s.id,
                    offset: s.slot_offset,
                    size: s.slot_size,
                    idle_units: s.idle_units,
                    idle_ticks: (s.idle_units + 1) << UNIT_SHIFT,
                    resets: s.flags & service_flag::RESET != 0,
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
        self.sweep_persistence(&snapshot, now_ticks)?;
        self.adapt_sample(now_ticks)?;
        Ok(&self.swept)
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
