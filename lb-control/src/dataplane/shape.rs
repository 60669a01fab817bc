//! Whether pinned maps are what this program and this configuration need.

use std::{io, path::Path};

use lb_common::{
    abi::{
        self, Binding, Claim, Config, LinkEntry, MemberEntry, MemberLoad, MemberStats, NAME_BYTES,
        PoolEntry, ProbeEntry, ReplyEntry, SampleEntry, ServiceEntry, VipEntry, map, program,
    },
    binding::{self, Ring},
};

use super::{
    aya_maps,
    error::{Kind, PlaneError},
    state::Capacity,
};

const DETACH: &str = "run `lbctl detach` first, which ends the running data path and its flows";

/// A map's size.
struct Shape {
    name: &'static str,
    value_bytes: usize,
    /// `None`: as the object says.
    entries: Option<u32>,
}

fn shapes(capacity: Capacity) -> Vec<Shape> {
    let shape = |name, value_bytes, entries| Shape {
        name,
        value_bytes,
        entries,
    };
    let buckets = Some(capacity.flow_buckets);
    let services = capacity.services + 1;
    // A set of sources is replaced by writing the new one beside it.
    vec![
        shape(map::CONFIG, size_of::<Config>(), None),
        shape(map::SERVICES, size_of::<ServiceEntry>(), None),
        shape(map::RANGES, size_of::<ServiceEntry>(), None),
        shape(map::SERVICE_NAMES, NAME_BYTES, Some(services)),
        shape(map::VIPS, size_of::<VipEntry>(), None),
        shape(map::OWNERS, 8, Some(abi::OWNERS)),
        shape(map::VIRTUAL_MACS, 4, Some(abi::OWNERS)),
        shape(map::SLOTS, 8, Some(capacity.slots)),
        shape(
            map::MEMBERS,
            size_of::<MemberEntry>(),
            Some(capacity.members + 1),
        ),
        shape(
            map::LOADS,
            size_of::<MemberLoad>(),
            Some(capacity.members + 1),
        ),
        shape(map::PROBES, size_of::<ProbeEntry>(), Some(abi::PROBE_PORTS)),
        shape(map::TURNS, 8, Some(services)),
        shape(map::FLOWS, 64, buckets),
        shape(map::REPLY_FLOWS, 64, buckets),
        shape(map::REPLIES, size_of::<ReplyEntry>(), None),
        shape(
            map::SOURCES,
            4,
            Some(capacity.source_prefixes.saturating_mul(2)),
        ),
        shape(map::CORE_LIMITS, 8, Some(services)),
        shape(map::SOURCE_LIMITS, 8, Some(capacity.limited_sources)),
        shape(map::CLAIMS, size_of::<Claim>(), Some(abi::CLAIMS)),
        shape(map::NAT_POOL, size_of::<PoolEntry>(), None),
        shape(
            map::BINDINGS,
            size_of::<Binding>(),
            Some(capacity.bindings + 1),
        ),
        shape(
            map::FREE_PORTS,
            64,
            Some(Ring::lines(Ring::capacity_for(capacity.bindings))),
        ),
        shape(
            map::NAT_FLOWS,
            64,
            Some(binding::buckets_for(capacity.bindings)),
        ),
        shape(map::LINKS, size_of::<LinkEntry>(), Some(abi::LINKS)),
        shape(
            map::STATS,
            size_of::<MemberStats>(),
            Some(capacity.members + 1),
        ),
        shape(map::DROPS, 8, Some(services * lb_common::counter::DROP_ROW)),
        shape(
            map::EVENTS,
            8,
            Some(services * lb_common::counter::EVENT_ROW),
        ),
        shape(
            map::SAMPLE,
            size_of::<SampleEntry>(),
            Some(abi::SAMPLE_SIZE),
        ),
        shape(map::WORK, size_of::<abi::Scratch>(), None),
        shape(
            map::FRAGMENTS,
            size_of::<abi::FragmentEntry>(),
            Some(capacity.fragments),
        ),
        shape(map::ICMP_LIMIT, 8, None),
        shape(
            map::PERSISTENCE,
            size_of::<abi::PersistEntry>(),
            Some(capacity.persistent_sources),
        ),
        shape(map::SERVERS, 4, Some(capacity.members + 1)),
        shape(map::PROGRAMS, 4, Some(program::TAILS.len() as u32)),
    ]
}

/// Entries of `NAT_POOL` in the object.
const MOST_POOL_ADDRESSES: u32 = 256;

/// Keys of a service, at most so many ports on average.
const KEYS_PER_SERVICE: u32 = 32;

/// The sizes that the loader gives to maps in place of the object's.
pub(super) fn sizes(capacity: Capacity) -> Vec<(&'static str, u32)> {
    let mut sizes: Vec<_> = shapes(capacity)
        .into_iter()
        .filter_map(|shape| Some((shape.name, shape.entries?)))
        .collect();
    let keys = capacity.services.saturating_mul(KEYS_PER_SERVICE);
    sizes.extend([
        (map::SERVICES, keys),
        (map::RANGES, keys),
        (
            map::VIPS,
            capacity.services.saturating_add(MOST_POOL_ADDRESSES),
        ),
        (map::REPLIES, capacity.members.saturating_mul(2)),
    ]);
    sizes
}

/// Checks the maps pinned in `dir`.
///
/// # Errors
/// One has another shape; the remedy is `lbctl detach`.
pub(super) fn check(dir: &Path, capacity: Capacity) -> Result<(), PlaneError> {
    for shape in shapes(capacity) {
        let path = dir.join(shape.name);
        if !path.exists() {
            continue;
        }
        let info = aya_maps::pinned_size(&path).map_err(|error| Kind::File {
            what: "pinned map",
            path: path.clone(),
            source: io::Error::other(error),
        })?;
        let expected_value = shape.value_bytes as u32;
        let wrong = |what, found, expected| {
            Kind::OtherShape {
                dir: dir.to_owned(),
                map: shape.name.to_owned(),
                what,
                found,
                expected,
            }
            .remedy(DETACH)
        };
        if info.value_bytes != expected_value {
            return Err(wrong("values of bytes", info.value_bytes, expected_value));
        }
        if let Some(entries) = shape.entries
            && info.entries != entries
        {
            return Err(wrong("entries", info.entries, entries));
        }
    }
    Ok(())
}

/// Refuses another layout.
pub(super) fn check_version(dir: &Path, found: u32) -> Result<(), PlaneError> {
    if found == abi::ABI_VERSION {
        return Ok(());
    }
    Err(Kind::OtherAbi {
        dir: dir.to_owned(),
        found,
        expected: abi::ABI_VERSION,
    }
    .remedy(DETACH))
}
