//! What a map holds, whatever its types of keys and values: read whole and
//! taken back to what a new map holds.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::{Map, MapData, RingBuf},
    util::nr_cpus,
};

use crate::bpf;

// Commands of enum bpf_cmd, uapi/linux/bpf.h.
const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const DELETE: libc::c_int = 3;
const GET_NEXT_KEY: libc::c_int = 4;
const UPDATE_BATCH: libc::c_int = 26;

/// `BPF_F_RDONLY_PROG`: programs can't write, and user space has lost the
/// right to, so it is as it was loaded.
const READ_ONLY: u32 = 1 << 7;

/// What the kernel says where a hash or an LPM trie is full.
const FULL: [Option<i32>; 2] = [Some(libc::E2BIG), Some(libc::ENOSPC)];

/// Bytes of a prefix's length, with which an LPM trie's key begins.
const PREFIX_LENGTH: usize = 4;

/// Elements of an array that are set by one call.
const BATCH: u32 = 8192;

/// Keys and values as bytes; those of an array's elements that are zero on
/// every core are left out, and each item of a ring buffer has an empty value.
pub(super) type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// All that a map holds. Takes away what a ring buffer holds.
pub(super) fn read(map: &mut Map) -> Result<Contents> {
    if let Map::RingBuf(_) = map {
        return Ok(drain(map)?.into_iter().map(|item| (item, vec![])).collect());
    }
    let raw = Raw::new(map)?;
    let mut contents = Contents::new();
    let mut key = None;
    while let Some(next) = raw.next_key(key.as_deref())? {
        let value = raw.value(&next)?;
        if !raw.is_array || value.iter().any(|byte| *byte != 0) {
            contents.insert(next.clone(), value);
        }
        key = Some(next);
    }
    Ok(contents)
}

/// Makes it hold what a new one does: nothing, an array zeros. Nobody else
/// must use it meanwhile.
pub(super) fn clear(map: &mut Map) -> Result<()> {
    if let Map::RingBuf(_) = map {
        return drain(map).map(drop);
    }
    let raw = Raw::new(map)?;
    if raw.read_only {
        return Ok(());
    }
    if raw.is_array {
        return raw.set_all(0);
    }
    let mut keys: Vec<Vec<u8>> = vec![];
    while let Some(next) = raw.next_key(keys.last().map(Vec::as_slice))? {
        keys.push(next);
    }
    keys.iter().try_for_each(|key| raw.delete(key))
}

/// Makes every byte of an array `byte`, and puts as many keys into another map
/// as it has room for, with values of such bytes. Not for ring buffers.
pub(super) fn fill(map: &Map, byte: u8) -> Result<()> {
    let raw = Raw::new(map)?;
    if raw.read_only {
        return Ok(());
    }
    if raw.is_array {
        return raw.set_all(byte);
    }
    let value = vec![byte; raw.value_size];
    for number in 0..raw.entries {
        let mut key = vec![byte; raw.key_size];
        if matches!(map, Map::LpmTrie(_)) {
            // As long as can be: `struct bpf_lpm_trie_key_u8`.
            let bits = u32::try_from(8 * (raw.key_size - PREFIX_LENGTH))?;
            key[..PREFIX_LENGTH].copy_from_slice(&bits.to_ne_bytes());
        }
        let end = raw.key_size - size_of_val(&number);
        key[end..].copy_from_slice(&number.to_ne_bytes());
        match raw.element(UPDATE, key.as_ptr() as u64, value.as_ptr() as u64) {
            Err(error) if FULL.contains(&error.raw_os_error()) => return Ok(()),
            result => result.with_context(|| format!("adding {key:02x?}"))?,
        }
    }
    Ok(())
}

fn drain(map: &mut Map) -> Result<Vec<Vec<u8>>> {
    let mut ring = RingBuf::try_from(map)?;
    let mut items = vec![];
    while let Some(item) = ring.next() {
        items.push(item.to_vec());
    }
    Ok(items)
}

/// A map of any types.
struct Raw<'a> {
    data: &'a MapData,
    key_size: usize,
    /// Bytes of an element's values on all cores.
    value_size: usize,
    entries: u32,
    is_array: bool,
    read_only: bool,
}

/// The kernel's `union bpf_attr` for commands on one element.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// The same for commands on many elements.
#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl<'a> Raw<'a> {
    fn new(map: &'a Map) -> Result<Self> {
        let (data, is_array, is_per_core) = match map {
            Map::Array(data) => (data, true, false),
            Map::PerCpuArray(data) => (data, true, true),
            Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) => (data, false, false),
            _ => bail!("a kind of map that nobody knows how to read: {map:?}"),
        };
        let info = data.info()?;
        let value_size = info.value_size() as usize;
        let value_size = if is_per_core {
            let cores =
                nr_cpus().map_err(|(file, error)| anyhow::Error::new(error).context(file))?;
            value_size.next_multiple_of(8) * cores
        } else {
            value_size
        };
        Ok(Self {
            data,
            key_size: info.key_size() as usize,
            value_size,
            entries: info.max_entries(),
            is_array,
            read_only: info.map_flags() & READ_ONLY != 0,
        })
    }

    fn fd(&self) -> u32 {
        self.data.fd().as_fd().as_raw_fd().cast_unsigned()
    }

    fn element(&self, command: libc::c_int, key: u64, value: u64) -> io::Result<()> {
        let mut element = Element {
            map: self.fd(),
            padding: 0,
            key,
            value,
            flags: 0,
        };
        bpf::call(command, &mut element).map(drop)
    }

    fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_size];
        let key = key.map_or(0, |key| key.as_ptr() as u64);
        match self.element(GET_NEXT_KEY, key, next.as_mut_ptr() as u64) {
            Ok(()) => Ok(Some(next)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error).context("the next key"),
        }
    }

    fn value(&self, key: &[u8]) -> Result<Vec<u8>> {
        let mut value = vec![0; self.value_size];
        self.element(LOOKUP, key.as_ptr() as u64, value.as_mut_ptr() as u64)
            .with_context(|| format!("the value of {key:02x?}"))?;
        Ok(value)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.element(DELETE, key.as_ptr() as u64, 0)
            .with_context(|| format!("deleting {key:02x?}"))
    }

    fn set_all(&self, byte: u8) -> Result<()> {
        let mut first = 0;
        let values = vec![byte; self.value_size * BATCH.min(self.entries) as usize];
        while first < self.entries {
            let end = self.entries.min(first + BATCH);
            let keys: Vec<u32> = (first..end).collect();
            let mut batch = Batch {
                from: 0,
                to: 0,
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: end - first,
                map: self.fd(),
                element_flags: 0,
                flags: 0,
            };
            bpf::call(UPDATE_BATCH, &mut batch)
                .with_context(|| format!("setting elements {first} to {end}"))?;
            first = end;
        }
        Ok(())
    }
}
