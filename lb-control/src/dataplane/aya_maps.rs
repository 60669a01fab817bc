//! The maps of the running data path. The only file that names aya's map types.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering::Relaxed,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, lpm_trie::Key},
    util::nr_cpus,
};
use lb_common::{
    abi::{
        ClockReading, Config, LINKS, LinkEntry, MemberEntry, MemberStats, NAME_BYTES, RangeKey,
        ReplyEntry, ReplyKey, SAMPLE_SIZE, SampleEntry, ServiceEntry, ServiceKey, VipEntry, VipKey,
        map, owner,
    },
    counter::{DROP_ROW, EVENT_ROW},
    flow::BUCKET_WORDS,
    member::MemberState,
    slot::SlotWord,
};

use super::{
    bpf,
    mapping::{MappedTable, Mapping, from_words, to_words},
    state::{Capacity, MapSnapshot, PortBlock, service_name, service_name_bytes},
    store::{MapStore, StoreError},
};

const MEMBER_WORDS: usize = size_of::<MemberEntry>() / 8;
const CONFIG_WORDS: usize = size_of::<Config>() / 8;
const SAMPLE_WORDS: usize = size_of::<SampleEntry>() / 8;
const STATS_WORDS: usize = size_of::<MemberStats>() / 8;

/// All maps, opened and, where they can be, mapped.
pub(super) struct AyaMaps {
    abi: Array<MapData, u32>,
    config: Mapping,
    services: HashMap<MapData, ServiceKey, ServiceEntry>,
    ranges: LpmTrie<MapData, RangeKey, ServiceEntry>,
    service_names: Array<MapData, [u8; NAME_BYTES]>,
    vips: HashMap<MapData, VipKey, VipEntry>,
    owners: Array<MapData, u64>,
    slots: Mapping,
    members: Mapping,
    flows: Mapping,
    reply_flows: Mapping,
    replies: HashMap<MapData, ReplyKey, ReplyEntry>,
    links: Array<MapData, LinkEntry>,
    stats: PerCpu<MemberStats>,
    drops: PerCpu<u64>,
    events: PerCpu<u64>,
    sample: Mapping,
    clock: Mapping,
    capacity: Capacity,
    cpus: usize,
}

/// A per-CPU array with its descriptor, which aya keeps to itself.
struct PerCpu<V: Pod> {
    array: PerCpuArray<MapData, V>,
    fd: OwnedFd,
}

impl<V: Pod> PerCpu<V> {
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, StoreError> {
        let Some(Map::PerCpuArray(data)) = ebpf.map(name) else {
            return Err(failed(name, "open")(io::Error::other(
                "not a per-CPU array in the object",
            )));
        };
        let fd = data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(failed(name, "open"))?;
        Ok(Self {
            array: take(ebpf, name)?,
            fd,
        })
    }
}

fn io_of(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        other => io::Error::other(super::error::chain(&other)),
    }
}

/// An error of a map.
fn failed(map: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> StoreError {
    let what = what.into();
    move |source| StoreError { map, what, source }
}

fn beyond(map: &'static str, index: u32) -> StoreError {
    failed(map, format!("entry {index}"))(io::Error::other("beyond the map's end"))
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, StoreError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| failed(name, "open")(io::Error::other("not in the object")))?;
    T::try_from(map).map_err(|e| failed(name, "open")(io_of(e)))
}

/// Maps an array map of `bytes` of values.
fn mapped(ebpf: &mut Ebpf, name: &'static str, bytes: usize) -> Result<Mapping, StoreError> {
    let Some(Map::Array(data)) = ebpf.take_map(name) else {
        return Err(failed(name, "open")(io::Error::other(
            "not an array in the object",
        )));
    };
    Mapping::new(data.fd().as_fd(), bytes).map_err(failed(name, "map into memory"))
}

impl AyaMaps {
    /// Takes the maps out of a loaded object. Their shapes were checked.
    pub(super) fn open(ebpf: &mut Ebpf, capacity: Capacity) -> Result<Self, StoreError> {
        let table = capacity.flow_buckets as usize * BUCKET_WORDS * 8;
        Ok(Self {
            abi: take(ebpf, map::ABI)?,
            config: mapped(ebpf, map::CONFIG, CONFIG_WORDS * 8)?,
            services: take(ebpf, map::SERVICES)?,
            ranges: take(ebpf, map::RANGES)?,
            service_names: take(ebpf, map::SERVICE_NAMES)?,
            vips: take(ebpf, map::VIPS)?,
            owners: take(ebpf, map::OWNERS)?,
            slots: mapped(ebpf, map::SLOTS, capacity.slots as usize * 8)?,
            members: mapped(
                ebpf,
                map::MEMBERS,
                (capacity.members as usize + 1) * MEMBER_WORDS * 8,
            )?,
            flows: mapped(ebpf, map::FLOWS, table)?,
            reply_flows: mapped(ebpf, map::REPLY_FLOWS, table)?,
            replies: take(ebpf, map::REPLIES)?,
            links: take(ebpf, map::LINKS)?,
            stats: PerCpu::take(ebpf, map::STATS)?,
            drops: PerCpu::take(ebpf, map::DROPS)?,
            events: PerCpu::take(ebpf, map::EVENTS)?,
            sample: mapped(ebpf, map::SAMPLE, SAMPLE_SIZE as usize * SAMPLE_WORDS * 8)?,
            clock: mapped(ebpf, map::CLOCK, size_of::<ClockReading>())?,
            capacity,
            cpus: nr_cpus().map_err(|(path, source)| StoreError {
                map: map::STATS,
                what: format!("number of CPUs ({path})"),
                source,
            })?,
        })
    }

    /// Says that the maps are of this program's layout.
    pub(super) fn set_abi_version(&mut self, version: u32) -> Result<(), StoreError> {
        self.abi
            .set(0, version, 0)
            .map_err(|e| failed(map::ABI, "write")(io_of(e)))
    }

    /// Flows in tracked slots.
    pub(super) fn flows(&self) -> MappedTable<'_> {
        MappedTable::new(&self.flows)
    }

    /// Flows of NAT replies.
    pub(super) fn reply_flows(&self) -> MappedTable<'_> {
        MappedTable::new(&self.reply_flows)
    }

    /// All slots.
    pub(super) fn slots(&self) -> &[std::sync::atomic::AtomicU64] {
        self.slots.words()
    }

    /// The configuration.
    pub(super) fn config(&self) -> Config {
        self.config
            .record::<CONFIG_WORDS>(0)
            .map(from_words)
            .unwrap_or_default()
    }

    /// A member's record.
    pub(super) fn member(&self, id: u32) -> Option<MemberEntry> {
        self.members
            .record::<MEMBER_WORDS>(id as usize)
            .map(from_words)
    }

    /// The last reading of the program `lb_clock`.
    pub(super) fn clock(&self) -> ClockReading {
        self.clock
            .record::<2>(0)
            .map(from_words)
            .unwrap_or_default()
    }

    /// The sample's records that aren't being written.
    pub(super) fn sample(&self) -> impl Iterator<Item = SampleEntry> + '_ {
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
    pub(super) fn member_stats(&self, highest: u32) -> Result<Vec<MemberStats>, StoreError> {
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
    pub(super) fn drops(&self, highest: u32) -> Result<Vec<u64>, StoreError> {
        let rows = highest.min(self.capacity.services) + 1;
        self.per_cpu(map::DROPS, self.drops.fd.as_fd(), rows * DROP_ROW, 1, |i| {
            Ok(self.drops.array.get(&i, 0).map_err(io_of)?.to_vec())
        })
    }

    /// `EVENTS` up to service `highest`, over all cores, [`EVENT_ROW`] a service.
    pub(super) fn events(&self, highest: u32) -> Result<Vec<u64>, StoreError> {
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
        fd: std::os::fd::BorrowedFd<'_>,
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

    fn clear_rows(&mut self, service: u32) -> Result<(), StoreError> {
        let zeros = |cpus| {
            aya::maps::PerCpuValues::try_from(vec![0u64; cpus]).map_err(failed(map::DROPS, "clear"))
        };
        for i in service * DROP_ROW..(service + 1) * DROP_ROW {
            self.drops
                .array
                .set(i, zeros(self.cpus)?, 0)
                .map_err(|e| failed(map::DROPS, "clear")(io_of(e)))?;
        }
        for i in service * EVENT_ROW..(service + 1) * EVENT_ROW {
            self.events
                .array
                .set(i, zeros(self.cpus)?, 0)
                .map_err(|e| failed(map::EVENTS, "clear")(io_of(e)))?;
        }
        Ok(())
    }

    fn member_word(
        &self,
        id: u32,
        word: usize,
    ) -> Result<&std::sync::atomic::AtomicU64, StoreError> {
        self.members
            .words()
            .get(id as usize * MEMBER_WORDS + word)
            .ok_or_else(|| beyond(map::MEMBERS, id))
    }
}

/// Entries of a map that can be iterated; a pair that vanishes meanwhile is
/// skipped.
fn entries<K: Pod + Ord, V: Pod>(
    name: &'static str,
    iter: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<std::collections::BTreeMap<K, V>, StoreError> {
    iter.collect::<Result<_, _>>()
        .map_err(|e| failed(name, "read")(io_of(e)))
}

fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), StoreError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(e) => {
            let error = io_of(e);
            if error.raw_os_error() == Some(libc::ENOENT) {
                Ok(())
            } else {
                Err(failed(map, "remove an entry")(error))
            }
        }
    }
}

fn written(map: &'static str, result: Result<(), MapError>) -> Result<(), StoreError> {
    result.map_err(|e| failed(map, "write an entry")(io_of(e)))
}

impl AyaMaps {
    /// [`MapStore::snapshot`] but for the slots.
    pub(super) fn snapshot_without_slots(&self) -> Result<MapSnapshot, StoreError> {
        let mut snapshot = MapSnapshot {
            config: self.config(),
            always_owned: self
                .owners
                .get(&u32::from(owner::ALWAYS_INDEX), 0)
                .map_err(|e| failed(map::OWNERS, "read")(io_of(e)))?,
            services: entries(map::SERVICES, self.services.iter())?,
            vips: entries(map::VIPS, self.vips.iter())?,
            replies: entries(map::REPLIES, self.replies.iter())?,
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

impl MapStore for AyaMaps {
    fn snapshot(&self) -> Result<MapSnapshot, StoreError> {
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

    fn set_config(&mut self, config: &Config) -> Result<(), StoreError> {
        // Two 32-bit fields share a word; nobody else writes any of them.
        let new: [u64; CONFIG_WORDS] = to_words(config);
        for (word, new) in self.config.words().iter().zip(new) {
            if word.load(Relaxed) != new {
                word.store(new, Relaxed);
            }
        }
        Ok(())
    }

    fn own_always(&mut self) -> Result<(), StoreError> {
        let index = u32::from(owner::ALWAYS_INDEX);
        written(map::OWNERS, self.owners.set(index, owner::FOREVER, 0))
    }

    fn set_link(&mut self, index: u16, link: Option<&LinkEntry>) -> Result<(), StoreError> {
        let link = link.copied().unwrap_or_default();
        written(map::LINKS, self.links.set(u32::from(index), link, 0))
    }

    fn set_service_name(&mut self, id: u32, name: Option<&str>) -> Result<(), StoreError> {
        if name.is_some() {
            self.clear_rows(id)?;
        }
        let bytes = service_name_bytes(name.unwrap_or(""));
        written(map::SERVICE_NAMES, self.service_names.set(id, bytes, 0))
    }

    fn write_member(&mut self, id: u32, member: &MemberEntry) -> Result<(), StoreError> {
        let zeros = aya::maps::PerCpuValues::try_from(vec![MemberStats::default(); self.cpus])
            .map_err(failed(map::STATS, "clear"))?;
        written(map::STATS, self.stats.array.set(id, zeros, 0))?;
        let words: [u64; MEMBER_WORDS] = to_words(member);
        // The state comes last: until then the id is free.
        for (i, word) in words.iter().enumerate().skip(1) {
            self.member_word(id, i)?.store(*word, Relaxed);
        }
        self.set_member_state(id, MemberState(member.state))
    }

    fn set_member_state(&mut self, id: u32, state: MemberState) -> Result<(), StoreError> {
        self.member_word(id, 0)?
            .store(state.0, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    fn set_next_hop(&mut self, id: u32, next_hop: u64) -> Result<(), StoreError> {
        self.member_word(id, 1)?.store(next_hop, Relaxed);
        Ok(())
    }

    fn slot(&self, index: u32) -> Result<SlotWord, StoreError> {
        self.slots
            .words()
            .get(index as usize)
            .map(|w| SlotWord(w.load(Relaxed)))
            .ok_or_else(|| beyond(map::SLOTS, index))
    }

    fn replace_slot(
        &mut self,
        index: u32,
        current: SlotWord,
        new: SlotWord,
    ) -> Result<Result<(), SlotWord>, StoreError> {
        let word = self
            .slots
            .words()
            .get(index as usize)
            .ok_or_else(|| beyond(map::SLOTS, index))?;
        Ok(word
            .compare_exchange(
                current.0,
                new.0,
                std::sync::atomic::Ordering::Release,
                Relaxed,
            )
            .map(|_| ())
            .map_err(SlotWord))
    }

    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<(), StoreError> {
        written(map::SERVICES, self.services.insert(key, entry, 0))
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<(), StoreError> {
        removed(map::SERVICES, self.services.remove(key))
    }

    fn put_range(&mut self, block: &PortBlock, entry: &ServiceEntry) -> Result<(), StoreError> {
        let key = Key::new(block.prefix_bits, block.key);
        written(map::RANGES, self.ranges.insert(&key, entry, 0))
    }

    fn remove_range(&mut self, block: &PortBlock) -> Result<(), StoreError> {
        let key = Key::new(block.prefix_bits, block.key);
        removed(map::RANGES, self.ranges.remove(&key))
    }

    fn put_vip(&mut self, key: &VipKey, entry: &VipEntry) -> Result<(), StoreError> {
        written(map::VIPS, self.vips.insert(key, entry, 0))
    }

    fn remove_vip(&mut self, key: &VipKey) -> Result<(), StoreError> {
        removed(map::VIPS, self.vips.remove(key))
    }

    fn put_reply(&mut self, key: &ReplyKey, entry: &ReplyEntry) -> Result<(), StoreError> {
        written(map::REPLIES, self.replies.insert(key, entry, 0))
    }

    fn remove_reply(&mut self, key: &ReplyKey) -> Result<(), StoreError> {
        removed(map::REPLIES, self.replies.remove(key))
    }
}

/// Requests of the data path to resolve next hops towards clients.
pub(super) fn neighbour_ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, StoreError> {
    take(ebpf, map::NEIGHBOUR_REQUESTS)
}

/// The version of pinned maps, before anything else of them is trusted.
pub(super) fn pinned_abi_version(path: &std::path::Path) -> Result<u32, String> {
    let data = MapData::from_pin(path).map_err(|e| super::error::chain(&e))?;
    let abi: Array<MapData, u32> = Map::Array(data)
        .try_into()
        .map_err(|e: MapError| super::error::chain(&e))?;
    abi.get(&0, 0).map_err(|e| super::error::chain(&e))
}
