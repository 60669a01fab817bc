//! The maps of the running data path. This file and those below it alone name
//! aya's map types.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, ProgramArray,
        RingBuf,
    },
    programs::ProgramFd,
    util::nr_cpus,
};
use lb_common::{
    abi::{
        Claim, ClockReading, Config, LinkEntry, LocalKey, MemberEntry, MemberLoad, MemberStats,
        NAME_BYTES, PROBE_PORTS, PersistEntry, PersistKey, PoolEntry, ProbeEntry, RangeKey,
        ReplyEntry, ReplyKey, SAMPLE_SIZE, SampleEntry, ServerKey, ServiceEntry, ServiceKey,
        SourceKey, VipEntry, VipKey, map,
    },
    binding::{self, Ring},
    flow::BUCKET_WORDS,
};

use super::{error::chain, mapping::Mapping, state::Capacity, store::StoreError};

mod read;
mod store;

const MEMBER_WORDS: usize = size_of::<MemberEntry>() / 8;
pub(super) const LOAD_WORDS: usize = size_of::<MemberLoad>() / 8;
pub(super) const PROBE_WORDS: usize = size_of::<ProbeEntry>() / 8;
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
    loads: Mapping,
    flows: Mapping,
    reply_flows: Mapping,
    replies: HashMap<MapData, ReplyKey, ReplyEntry>,
    servers: HashMap<MapData, ServerKey, u32>,
    persistence: Persistence,
    sources: LpmTrie<MapData, SourceKey, u32>,
    claims: HashMap<MapData, VipKey, Claim>,
    links: Array<MapData, LinkEntry>,
    pools: HashMap<MapData, VipKey, PoolEntry>,
    local: LpmTrie<MapData, LocalKey, u32>,
    bindings: Mapping,
    free_ports: Mapping,
    nat_flows: Mapping,
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

/// As [`PerCpu`], of `PERSISTENCE`.
struct Persistence {
    map: HashMap<MapData, PersistKey, PersistEntry>,
    fd: OwnedFd,
}

impl Persistence {
    fn take(ebpf: &mut Ebpf) -> Result<Self, StoreError> {
        let name = map::PERSISTENCE;
        let Some(Map::LruHashMap(data)) = ebpf.map(name) else {
            return Err(failed(name, "open")(io::Error::other(
                "not an LRU hash in the object",
            )));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            fd: fd.map_err(failed(name, "open"))?,
            map: take(ebpf, name)?,
        })
    }
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
        other => io::Error::other(chain(&other)),
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
        let lines = |name, count: u32, ebpf: &mut Ebpf| {
            mapped(ebpf, name, count as usize * BUCKET_WORDS * 8)
        };
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
            loads: mapped(
                ebpf,
                map::LOADS,
                (capacity.members as usize + 1) * LOAD_WORDS * 8,
            )?,
            flows: mapped(ebpf, map::FLOWS, table)?,
            reply_flows: mapped(ebpf, map::REPLY_FLOWS, table)?,
            replies: take(ebpf, map::REPLIES)?,
            servers: take(ebpf, map::SERVERS)?,
            persistence: Persistence::take(ebpf)?,
            sources: take(ebpf, map::SOURCES)?,
            claims: take(ebpf, map::CLAIMS)?,
            links: take(ebpf, map::LINKS)?,
            pools: take(ebpf, map::NAT_POOL)?,
            local: take(ebpf, map::LOCAL)?,
            bindings: lines(map::BINDINGS, capacity.bindings + 1, ebpf)?,
            free_ports: lines(
                map::FREE_PORTS,
                Ring::lines(Ring::capacity_for(capacity.bindings)),
                ebpf,
            )?,
            nat_flows: lines(
                map::NAT_FLOWS,
                binding::buckets_for(capacity.bindings),
                ebpf,
            )?,
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
}

/// Puts the programs that packets are handed over to in their places, each in
/// that of its predecessor where there is one.
pub(super) fn set_programs(ebpf: &mut Ebpf, programs: &[ProgramFd]) -> Result<(), StoreError> {
    let mut array: ProgramArray<MapData> = take(ebpf, map::PROGRAMS)?;
    for (place, program) in (0u32..).zip(programs) {
        array
            .set(place, program, 0)
            .map_err(|e| failed(map::PROGRAMS, format!("entry {place}"))(io_of(e)))?;
    }
    Ok(())
}

/// `OWNERS` and `VIRTUAL_MACS` once more, for who writes nothing else.
pub(super) struct OwnerArrays {
    words: Array<MapData, u64>,
    devices: Array<MapData, u32>,
}

impl OwnerArrays {
    /// Those pinned in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            words: pinned_array(dir, map::OWNERS)?,
            devices: pinned_array(dir, map::VIRTUAL_MACS)?,
        })
    }

    /// Sets a word.
    pub(super) fn set(&mut self, word: u16, value: u64) -> Result<(), StoreError> {
        self.words
            .set(u32::from(word), value, 0)
            .map_err(|e| failed(map::OWNERS, format!("entry {word}"))(io_of(e)))
    }

    /// Sets the device on which the word's virtual router has its virtual MAC
    /// address; zero: on none.
    pub(super) fn set_device(&mut self, word: u16, device: u32) -> Result<(), StoreError> {
        self.devices
            .set(u32::from(word), device, 0)
            .map_err(|e| failed(map::VIRTUAL_MACS, format!("entry {word}"))(io_of(e)))
    }
}

fn pinned_array<V: Pod>(dir: &Path, name: &'static str) -> Result<Array<MapData, V>, StoreError> {
    let data = pinned(&dir.join(name), name)?;
    Array::try_from(Map::Array(data)).map_err(|e| failed(name, "open")(io_of(e)))
}

fn pinned(path: &Path, name: &'static str) -> Result<MapData, StoreError> {
    MapData::from_pin(path).map_err(|e| failed(name, "open")(io_of(e)))
}

/// `CLOCK` once more, mapped.
pub(super) fn pinned_clock(path: &Path) -> Result<Mapping, StoreError> {
    let data = pinned(path, map::CLOCK)?;
    Mapping::new(data.fd().as_fd(), size_of::<ClockReading>())
        .map_err(failed(map::CLOCK, "map into memory"))
}

/// `PROBES`, mapped.
pub(super) fn probes(ebpf: &mut Ebpf) -> Result<Mapping, StoreError> {
    mapped(ebpf, map::PROBES, PROBE_PORTS as usize * PROBE_WORDS * 8)
}

/// Requests of the data path to resolve next hops towards clients, as bytes.
pub(super) struct NeighbourRing(RingBuf<MapData>);

impl NeighbourRing {
    /// Takes it out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, StoreError> {
        take(ebpf, map::NEIGHBOUR_REQUESTS).map(Self)
    }

    /// Gives the oldest record to `read`; `None` if there is none.
    pub(super) fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| read(&record))
    }
}

impl AsRawFd for NeighbourRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The sizes of a pinned map.
pub(super) struct PinnedSize {
    pub(super) value_bytes: u32,
    pub(super) entries: u32,
}

/// The sizes of the map pinned at `path`.
pub(super) fn pinned_size(path: &Path) -> Result<PinnedSize, String> {
    let info = MapInfo::from_pin(path).map_err(|e| chain(&e))?;
    Ok(PinnedSize {
        value_bytes: info.value_size(),
        entries: info.max_entries(),
    })
}

/// The version of pinned maps, before anything else of them is trusted.
pub(super) fn pinned_abi_version(path: &Path) -> Result<u32, String> {
    let data = MapData::from_pin(path).map_err(|e| chain(&e))?;
    let abi: Array<MapData, u32> = Map::Array(data)
        .try_into()
        .map_err(|e: MapError| chain(&e))?;
    abi.get(&0, 0).map_err(|e| chain(&e))
}
