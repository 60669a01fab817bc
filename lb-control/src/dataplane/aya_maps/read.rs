//! What is read from the maps.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::{Pod, maps::MapError};
use lb_common::{
    abi::{
        Claim, ClockReading, Config, LINKS, MemberEntry, MemberLoad, MemberStats, PersistEntry,
        PersistKey, SampleEntry, VipKey, map, owner,
    },
    counter::{DROP_ROW, EVENT_ROW},
    slot::SlotWord,
};

use super::{
    AyaMaps, CONFIG_WORDS, LOAD_WORDS, MEMBER_WORDS, SAMPLE_WORDS, STATS_WORDS, beyond, failed,
    io_of,
};
use crate::dataplane::{
    bpf,
    desired::MemberLimits,
    mapping::{MappedTable, from_words, to_words},
    state::{LocalPrefix, MapSnapshot, PortBlock, SourcePrefix, service_name},
    store::StoreError,
};

impl AyaMaps {
    /// Flows in tracked slots.
    pub(in crate::dataplane) fn flows(&self) -> MappedTable<'_> {
        MappedTable::new(&self.flows, self.loads.words())
    }

    /// Flows of NAT replies.
    pub(in crate::dataplane) fn reply_flows(&self) -> MappedTable<'_> {
        MappedTable::new(&self.reply_flows, &[])
    }

    /// Full NAT's bindings.
    pub(in crate::dataplane) fn bindings(&self) -> MappedTable<'_> {
        MappedTable::new(&self.bindings, &[])
    }

    /// The ways from clients to bindings.
    pub(in crate::dataplane) fn nat_flows(&self) -> MappedTable<'_> {
        MappedTable::new(&self.nat_flows, &[])
    }

    /// The rings of free ports.
    pub(in crate::dataplane) fn free_ports(&self) -> MappedTable<'_> {
        MappedTable::new(&self.free_ports, &[])
    }

    /// All slots.
    pub(in crate::dataplane) fn slots(&self) -> &[AtomicU64] {
        self.slots.words()
    }

    /// All members' connections and limits, [`MemberLoad`] after [`MemberLoad`].
    pub(in crate::dataplane) fn loads(&self) -> &[AtomicU64] {
        self.loads.words()
    }

    /// A member's connections and limits.
    pub(in crate::dataplane) fn load(&self, id: u32) -> MemberLoad {
        self.loads
            .record::<LOAD_WORDS>(id as usize)
            .map(from_words)
            .unwrap_or_default()
    }

    /// The configuration.
    pub(in crate::dataplane) fn config(&self) -> Config {
        self.config
            .record::<CONFIG_WORDS>(0)
            .map(from_words)
            .unwrap_or_default()
    }

    /// A member's record.
    pub(in crate::dataplane) fn member(&self, id: u32) -> Option<MemberEntry> {
        self.members
            .record::<MEMBER_WORDS>(id as usize)
            .map(from_words)
    }

    /// The last reading of the program `lb_clock`.
    pub(in crate::dataplane) fn clock(&self) -> ClockReading {
        self.clock
            .record::<2>(0)
            .map(from_words)
            .unwrap_or_default()
    }

    /// The sample's records that aren't being written.
    pub(in crate::dataplane) fn sample(&self) -> impl Iterator<Item = SampleEntry> + '_ {
        self.sample
            .words()
            .chunks_exact(SAMPLE_WORDS)
            .filter_map(|words| {
                let check = words.first()?;
                let before = check.load(Relaxed);
                if before == 0 {
                    return None;
                }
                let mut record = [0u64; SAMPLE_WORDS];
                for (to, from) in record.iter_mut().zip(words) {
                    *to = from.load(Relaxed);
                }
                (check.load(Relaxed) == before)
                    .then(|| from_words::<SampleEntry, SAMPLE_WORDS>(record))
            })
    }

    /// What each member id up to `highest` was sent, over all cores.
    pub(in crate::dataplane) fn member_stats(
        &self,
        highest: u32,
    ) -> Result<Vec<MemberStats>, StoreError> {
        let rows = self.per_cpu(
            map::STATS,
            self.stats.fd.as_fd(),
            highest.min(self.capacity.members) + 1,
            STATS_WORDS,
            |i| {
                let values = self.stats.array.get(&i, 0).map_err(io_of)?;
                Ok(values.iter().flat_map(to_words::<_, STATS_WORDS>).collect())
            },
        )?;
        Ok(rows
            .chunks_exact(STATS_WORDS)
            .filter_map(|row| <[u64; STATS_WORDS]>::try_from(row).ok())
            .map(from_words)
            .collect())
    }

    /// `DROPS` up to service `highest`, over all cores, [`DROP_ROW`] a service.
    pub(in crate::dataplane) fn drops(&self, highest: u32) -> Result<Vec<u64>, StoreError> {
        let rows = highest.min(self.capacity.services) + 1;
        self.per_cpu(map::DROPS, self.drops.fd.as_fd(), rows * DROP_ROW, 1, |i| {
            Ok(self.drops.array.get(&i, 0).map_err(io_of)?.to_vec())
        })
    }

    /// `EVENTS` up to service `highest`, over all cores, [`EVENT_ROW`] a service.
    pub(in crate::dataplane) fn events(&self, highest: u32) -> Result<Vec<u64>, StoreError> {
        let rows = highest.min(self.capacity.services) + 1;
        self.per_cpu(
            map::EVENTS,
            self.events.fd.as_fd(),
            rows * EVENT_ROW,
            1,
            |i| Ok(self.events.array.get(&i, 0).map_err(io_of)?.to_vec()),
        )
    }

    /// Sums of the first `count` entries over all cores, `words` each; in one
    /// call where the kernel can.
    fn per_cpu(
        &self,
        name: &'static str,
        fd: BorrowedFd<'_>,
        count: u32,
        words: usize,
        one: impl Fn(u32) -> io::Result<Vec<u64>>,
    ) -> Result<Vec<u64>, StoreError> {
        let per_entry = words * self.cpus;
        let values = match bpf::read_array(fd, count, per_entry) {
            Ok(values) => values,
            Err(_) => {
                let mut values = Vec::with_capacity(count as usize * per_entry);
                for i in 0..count {
                    values.extend(one(i).map_err(failed(name, "read"))?);
                }
                values
            }
        };
        let mut sums = vec![0u64; count as usize * words];
        for (sum, entry) in sums
            .chunks_exact_mut(words)
            .zip(values.chunks_exact(per_entry))
        {
            for cpu in entry.chunks_exact(words) {
                for (to, from) in sum.iter_mut().zip(cpu) {
                    *to = to.wrapping_add(*from);
                }
            }
        }
        Ok(sums)
    }

    /// Who else claimed VIPs.
    pub(in crate::dataplane) fn claims(&self) -> Result<BTreeMap<VipKey, Claim>, StoreError> {
        entries(map::CLAIMS, self.claims.iter())
    }

    /// Sources and their servers, which may be many.
    pub(in crate::dataplane) fn persistence(
        &self,
    ) -> Result<Vec<(PersistKey, PersistEntry)>, StoreError> {
        bpf::read_hash(
            self.persistence.fd.as_fd(),
            self.capacity.persistent_sources,
        )
        .map_err(failed(map::PERSISTENCE, "read"))
    }

    /// Prefixes of sources, which may be many.
    pub(in crate::dataplane) fn sources(&self) -> Result<BTreeMap<SourcePrefix, u32>, StoreError> {
        let mut sources = BTreeMap::new();
        for entry in self.sources.iter() {
            let (key, value) = entry.map_err(|e| failed(map::SOURCES, "read")(io_of(e)))?;
            let prefix = SourcePrefix {
                key: key.data(),
                prefix_bits: key.prefix_len(),
            };
            sources.insert(prefix, value);
        }
        Ok(sources)
    }

    /// [`snapshot`](crate::dataplane::store::MapStore::snapshot) but for the sources.
    pub(in crate::dataplane) fn snapshot_without_sources(&self) -> Result<MapSnapshot, StoreError> {
        let mut snapshot = self.snapshot_without_slots()?;
        for (id, (offset, size)) in snapshot.slot_ranges() {
            let words = self
                .slots
                .range(offset as usize, size as usize)
                .ok_or_else(|| beyond(map::SLOTS, offset))?;
            let words = words.iter().map(|w| SlotWord(w.load(Relaxed))).collect();
            snapshot.slots.insert(id, words);
        }
        Ok(snapshot)
    }

    /// [`snapshot`](crate::dataplane::store::MapStore::snapshot) but for the slots and the sources.
    pub(in crate::dataplane) fn snapshot_without_slots(&self) -> Result<MapSnapshot, StoreError> {
        let mut snapshot = MapSnapshot {
            config: self.config(),
            always_owned: self
                .owners
                .get(&u32::from(owner::ALWAYS_INDEX), 0)
                .map_err(|e| failed(map::OWNERS, "read")(io_of(e)))?,
            services: entries(map::SERVICES, self.services.iter())?,
            vips: entries(map::VIPS, self.vips.iter())?,
            servers: entries(map::SERVERS, self.servers.iter())?,
            replies: entries(map::REPLIES, self.replies.iter())?,
            pools: entries(map::NAT_POOL, self.pools.iter())?,
            ..MapSnapshot::default()
        };
        for entry in self.ranges.iter() {
            let (key, value) = entry.map_err(|e| failed(map::RANGES, "read")(io_of(e)))?;
            let block = PortBlock {
                prefix_bits: key.prefix_len(),
                key: key.data(),
            };
            snapshot.ranges.insert(block, value);
        }
        for entry in self.local.iter() {
            let (key, value) = entry.map_err(|e| failed(map::LOCAL, "read")(io_of(e)))?;
            let prefix = LocalPrefix {
                prefix_bits: key.prefix_len(),
                key: key.data(),
            };
            snapshot.local.insert(prefix, value);
        }
        for id in 1..=self.capacity.services {
            let name = self
                .service_names
                .get(&id, 0)
                .map_err(|e| failed(map::SERVICE_NAMES, "read")(io_of(e)))?;
            if let Some(name) = service_name(&name) {
                snapshot.service_names.insert(id, name);
            }
        }
        for (id, words) in (0u32..).zip(self.members.words().chunks_exact(MEMBER_WORDS)) {
            if words.first().is_some_and(|s| s.load(Relaxed) != 0)
                && let Some(member) = self.member(id)
            {
                snapshot.members.insert(id, member);
                let load = self.load(id);
                let limits = MemberLimits {
                    max: load.max,
                    weight: load.weight,
                    next: load.next,
                    backend: load.backend,
                };
                snapshot.limits.insert(id, limits);
            }
        }
        for index in 0..LINKS {
            let link = self
                .links
                .get(&index, 0)
                .map_err(|e| failed(map::LINKS, "read")(io_of(e)))?;
            if link.ifindex != 0 {
                snapshot.links.insert(index as u16, link);
            }
        }
        Ok(snapshot)
    }
}

/// Entries of a map that can be iterated; a pair that vanishes meanwhile is
/// skipped.
fn entries<K: Pod + Ord, V: Pod>(
    name: &'static str,
    iter: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<BTreeMap<K, V>, StoreError> {
    iter.collect::<Result<_, _>>()
        .map_err(|e| failed(name, "read")(io_of(e)))
}
