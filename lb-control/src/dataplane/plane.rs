//! The running data path, as the daemon sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lb_common::{abi::service_flag, member::MemberState};

use super::{
    apply::apply,
    attach,
    bindings::{Bookkeeper, BooksReport},
    clock,
    desired::{DesiredState, Given, Runtime, TableCache, desired},
    error::PlaneError,
    links,
    load::{self, Loaded},
    log::DebugLog,
    neighbours::NeighbourRequests,
    plan::{MapOp, plan},
    state::{Capacity, MapSnapshot},
    stats::{self, PlaneStats, SampledFlow},
    store::MapStore as _,
    sweep::{self, SweepReport},
};
use crate::{model::Model, replication::world::Catalogue};

mod persistence;
mod pools;
mod probes;
mod replication;
mod rows;
mod sweeping;

pub use persistence::PersistentSource;

/// The data path of this node: its maps, its program and where that is attached.
///
/// Dropping it leaves everything running; [`detach`] removes it.
pub struct Plane {
    loaded: Loaded,
    capacity: Capacity,
    drain_timeout: Duration,
    tables: TableCache,
    sweeper: sweep::Sweeper,
    bookkeeper: Bookkeeper,
    books: BooksReport,
    /// When members left the configuration.
    departed: BTreeMap<u32, Instant>,
    desired: DesiredState,
    swept: SweepReport,
    /// Sources with a server at the last sweep.
    persistent_sources: u64,
    /// Changes with the set of members.
    members_version: u64,
    /// What the ids of [`Self::desired`] stand for.
    catalogue: Catalogue,
    /// Services whose flows another node has, by id: its word counts.
    followed: BTreeSet<u32>,
}

/// What [`Plane::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplySummary {
    /// Slots of living services that went to another member.
    pub slots_moved: usize,
    /// Steps taken.
    pub ops: usize,
}

impl Plane {
    /// Loads and attaches the data path, or adopts the running one: the maps
    /// stay as they are and the program is replaced without a gap.
    ///
    /// # Errors
    /// With a remedy; nothing that this call made stays behind.
    pub fn open(model: &Model) -> Result<Self, PlaneError> {
        Ok(Self {
            loaded: load::open(model)?,
            capacity: Capacity::of(&model.dataplane),
            drain_timeout: model.dataplane.drain_timeout,
            tables: TableCache::default(),
            sweeper: sweep::Sweeper::default(),
            bookkeeper: Bookkeeper::default(),
            books: BooksReport::default(),
            departed: BTreeMap::new(),
            desired: DesiredState::default(),
            swept: SweepReport::default(),
            persistent_sources: 0,
            members_version: 0,
            catalogue: Catalogue::default(),
            followed: BTreeSet::new(),
        })
    }

    /// Whether a running data path was adopted.
    pub fn adopted(&self) -> bool {
        self.loaded.adopted
    }

    /// Brings the maps to what configuration and run-time knowledge ask for.
    /// Safe to repeat: after an error the next call completes what is missing.
    ///
    /// # Errors
    /// There is no room, the configuration contradicts what lives in the maps
    /// (in both cases nothing was changed), or a map can't be written.
    pub fn apply(&mut self, model: &Model, runtime: &Runtime) -> Result<ApplySummary, PlaneError> {
        self.drain_timeout = model.dataplane.drain_timeout;
        let (desired, snapshot) = self.desired(model, runtime)?;
        let ops = plan(&desired, &snapshot);
        let now = self.now_ticks()?;
        // New addresses first, with all their ports: the services need them.
        let is_pool = |op: &MapOp| matches!(op, MapOp::PutPool(..));
        let (pools, ops): (Vec<_>, Vec<_>) = ops.into_iter().partition(is_pool);
        if !pools.is_empty() || self.books.pools.len() != desired.pools.len() {
            apply(&mut self.loaded.maps, &pools, now)?;
            self.keep_books(&snapshot, &desired.pools, now);
        }
        let mut applied = apply(&mut self.loaded.maps, &ops, now)?;
        applied.ops += pools.len();
        self.note_departed(&desired);
        if !desired.members.keys().eq(self.desired.members.keys())
            || desired.departed != self.desired.departed
        {
            self.members_version += 1;
        }
        self.desired = desired;
        self.catalogue();
        Ok(ApplySummary {
            slots_moved: applied.slots_moved,
            ops: applied.ops,
        })
    }

    /// What [`Self::apply`] would do, without doing it.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn dry_run(&mut self, model: &Model, runtime: &Runtime) -> Result<Vec<MapOp>, PlaneError> {
        let (desired, snapshot) = self.desired(model, runtime)?;
        Ok(plan(&desired, &snapshot))
    }

    fn desired(
        &mut self,
        model: &Model,
        runtime: &Runtime,
    ) -> Result<(DesiredState, MapSnapshot), PlaneError> {
        let snapshot = self.loaded.maps.snapshot()?;
        let expired: BTreeSet<u32> = self
            .departed
            .iter()
            .filter(|(_, since)| since.elapsed() >= self.drain_timeout)
            .map(|(id, _)| *id)
            .collect();
        let given = Given {
            snapshot: &snapshot,
            capacity: self.capacity,
            hz: self.loaded.hz,
            expired: &expired,
        };
        let desired = desired(model, runtime, given, &mut self.tables)?;
        Ok((desired, snapshot))
    }

    fn note_departed(&mut self, desired: &DesiredState) {
        #[allow(clippy::disallowed_methods, reason = "this is the shell")]
        let now = Instant::now();
        self.departed.retain(|id, _| desired.departed.contains(id));
        for id in &desired.departed {
            self.departed.entry(*id).or_insert(now);
        }
    }

    /// First slot and number of slots of each service, by name, as of the last
    /// [`Self::apply`].
    pub fn slot_ranges(&self) -> BTreeMap<String, (u32, u32)> {
        self.desired
            .tables
            .iter()
            .filter_map(|(id, table)| {
                let name = self.desired.service_names.get(id)?;
                Some((name.clone(), (table.offset, table.members.len() as u32)))
            })
            .collect()
    }

    /// When [`Self::apply`] has to be called again though nothing changed: the
    /// drain of a member that left the configuration ends.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.departed
            .iter()
            .filter(|(id, _)| {
                self.desired
                    .members
                    .get(id)
                    .is_some_and(|m| MemberState(m.state).serves())
            })
            .map(|(_, since)| *since + self.drain_timeout)
            .min()
    }

    /// Backends whose next hops are needed though they left the configuration.
    pub fn departed_backends(&self) -> BTreeSet<IpAddr> {
        self.desired
            .departed
            .iter()
            .filter_map(|id| self.desired.members.get(id))
            .filter(|m| MemberState(m.state).serves())
            .map(|m| m.address.to_ip(m.outer_family))
            .collect()
    }

    /// All counters.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn stats(&mut self) -> Result<PlaneStats, PlaneError> {
        let now = self.now_ticks()?;
        let maps = &self.loaded.maps;
        let snapshot = maps.snapshot_without_sources()?;
        let highest_member = snapshot.members.keys().next_back().copied().unwrap_or(0);
        let highest_service = snapshot
            .service_names
            .keys()
            .next_back()
            .copied()
            .unwrap_or(0);
        let name = |id: u32| snapshot.service_names.get(&id).cloned();
        let counters = maps.member_stats(highest_member)?;
        let full: BTreeSet<u32> = snapshot
            .entries()
            .filter(|entry| entry.flags & service_flag::FULL_TRACKING != 0)
            .map(|entry| entry.id)
            .collect();
        let mut rows: BTreeMap<u32, stats::MemberRow> = snapshot
            .members
            .iter()
            .map(|(id, member)| {
                let counters = counters.get(*id as usize).copied().unwrap_or_default();
                let service = name(member.service).unwrap_or_default();
                let mut row = stats::MemberRow::new(*id, service, member, counters);
                row.departed = self.desired.departed.contains(id);
                if full.contains(&member.service) {
                    row.count(maps.load(*id));
                }
                (*id, row)
            })
            .collect();
        for word in snapshot.slots.values().flatten() {
            if let Some(row) = rows.get_mut(&word.current()) {
                row.slots += 1;
            }
        }
        let mask = snapshot.config.sample_mask;
        let sample_occupancy = self.estimate(&snapshot, now, &mut rows);
        Ok(PlaneStats {
            members: rows.into_values().collect(),
            drops: stats::drop_rows(&maps.drops(highest_service)?, name),
            events: stats::event_rows(&maps.events(highest_service)?, name),
            services: self.service_rows(&snapshot),
            flow_table: stats::FlowTableStats {
                entries: self.swept.flows,
                reply_entries: self.swept.reply_flows,
                max_flows: u64::from(self.capacity.flow_buckets) * 4,
            },
            persistence: (
                self.persistent_sources,
                self.capacity.persistent_sources.into(),
            ),
            pools: self.pool_rows(),
            claims: self.claim_rows(&snapshot, now)?,
            sample_mask: mask,
            sample_occupancy,
            interfaces: self.interface_rows(),
            verified_instructions: self.loaded.verified_instructions,
        })
    }

    /// Flows of the sample that `filter` wants, at most `limit`.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn sample(
        &mut self,
        limit: usize,
        filter: impl Fn(&SampledFlow) -> bool,
    ) -> Result<Vec<SampledFlow>, PlaneError> {
        let now = self.now_ticks()?;
        let snapshot = self.loaded.maps.snapshot_without_slots()?;
        let longest = self.longest_idle_ticks();
        Ok(self
            .loaded
            .maps
            .sample()
            .filter(|s| now.wrapping_sub(s.last_ticks) <= longest)
            .filter_map(|s| {
                let member = snapshot.members.get(&s.member)?;
                let seconds = |ticks: u32| self.seconds(now.wrapping_sub(ticks));
                Some(SampledFlow {
                    source: s.source.to_ip(s.family),
                    source_port: s.source_port.get(),
                    destination: s.destination.to_ip(s.family),
                    destination_port: s.destination_port.get(),
                    protocol: s.protocol,
                    service: snapshot.service_names.get(&member.service)?.clone(),
                    backend: member.address.to_ip(member.outer_family),
                    age_seconds: seconds(s.first_ticks),
                    idle_seconds: seconds(s.last_ticks),
                    closing: s.flags & lb_common::abi::sample_flag::CLOSING != 0,
                })
            })
            .filter(filter)
            .take(limit)
            .collect())
    }

    fn seconds(&self, ticks: u32) -> u32 {
        let shift = lb_common::clock::shift_for_hz(self.loaded.hz);
        ((u64::from(ticks) << shift) / u64::from(self.loaded.hz)) as u32
    }

    /// The data path's time.
    ///
    /// # Errors
    /// The program that reads it can't be run.
    pub fn now_ticks(&mut self) -> Result<u32, PlaneError> {
        let reading = load::read_clock(&mut self.loaded.ebpf, &self.loaded.maps)?;
        let offset = self.loaded.maps.config().clock_offset;
        Ok(clock::ticks_at(reading, self.loaded.hz, offset))
    }

    /// Requests of the data path to resolve next hops towards clients; once.
    /// Has to be called within a tokio runtime.
    pub fn neighbour_requests(&mut self) -> Option<NeighbourRequests> {
        NeighbourRequests::new(self.loaded.neighbour_requests.take()?)
            .inspect_err(|e| tracing::warn!("neighbour requests: {e}"))
            .ok()
    }

    /// The data path's debug log, where the configuration asks for it; once.
    /// Has to be called within a tokio runtime.
    pub fn debug_log(&mut self) -> Option<DebugLog> {
        DebugLog::new(&mut self.loaded.ebpf)
    }

    /// The last sweep's report.
    pub fn last_sweep(&self) -> &SweepReport {
        &self.swept
    }
}

/// What [`detach`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Interfaces the program was taken off.
    pub interfaces: Vec<String>,
    /// Pins and directories removed.
    pub removed: Vec<PathBuf>,
}

/// Ends the data path whose pins are in `dir` and removes them. Nothing there
/// is no error.
pub fn detach(dir: &Path) -> Detached {
    let interfaces = attach::pinned_links(dir)
        .into_iter()
        .map(|(index, _)| links::ifname(index).unwrap_or_else(|| format!("index {index}")))
        .collect();
    Detached {
        interfaces,
        removed: load::remove_pins(dir),
    }
}
