//! Maps that are shared with the kernel as memory. All `unsafe` of the mapping
//! is here.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
};

use lb_common::flow::{BUCKET_WORDS, FlowTable};

use super::aya_maps::LOAD_WORDS;

/// A mapped array map, as the 64-bit words it consists of.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<AtomicU64>,
    words: usize,
    bytes: usize,
}

// SAFETY: the memory is only ever reached through atomics, and stays mapped
// until the value is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` (a multiple of 8) of a map that was made with `BPF_F_MMAPABLE`.
    pub(super) fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        // SAFETY: sysconf has no preconditions.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(|_| io::Error::last_os_error())?;
        let length = bytes.div_ceil(page).saturating_mul(page);
        // SAFETY: a new mapping at an address of the kernel's choice; the map
        // is at least as long (the kernel checks) and the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self {
            base,
            words: bytes / 8,
            bytes: length,
        })
    }

    /// The words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words * 8` bytes are mapped, page-aligned and so aligned
        // for u64, zeroed by the kernel at creation, and both sides write them
        // atomically, in units of 8 bytes or as parts of records that are only
        // read as such.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    /// `n` words from `first` on.
    pub(super) fn range(&self, first: usize, n: usize) -> Option<&[AtomicU64]> {
        self.words().get(first..first.checked_add(n)?)
    }

    /// Record `index`, which is `N` words long.
    pub(super) fn record<const N: usize>(&self, index: usize) -> Option<[u64; N]> {
        let words = self.range(index.checked_mul(N)?, N)?;
        let mut record = [0; N];
        for (to, from) in record.iter_mut().zip(words) {
            *to = from.load(Relaxed);
        }
        Some(record)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing borrows it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Plain data of `N` words as a value, and back.
pub(super) fn from_words<T: aya::Pod, const N: usize>(words: [u64; N]) -> T {
    const {
        assert!(size_of::<T>() == N * 8 && align_of::<T>() <= 8);
    }
    // SAFETY: same size and alignment, checked above; every bit pattern is a
    // value of a `Pod` type.
    unsafe { std::mem::transmute_copy(&words) }
}

/// The words of a value.
pub(super) fn to_words<T: aya::Pod, const N: usize>(value: &T) -> [u64; N] {
    const {
        assert!(size_of::<T>() == N * 8);
    }
    let mut words = [0u64; N];
    // SAFETY: same size, and `Pod` types have no uninitialised bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>(),
            words.as_mut_ptr().cast::<u8>(),
            N * 8,
        );
    }
    words
}

/// A flow table in a mapping.
#[derive(Clone, Copy, Debug)]
pub struct MappedTable<'a> {
    words: &'a [AtomicU64],
    loads: &'a [AtomicU64],
}

impl<'a> MappedTable<'a> {
    /// All of the mapping is the table. Its entries are counted in `loads`, the
    /// members' `MemberLoad`s; nowhere if that is empty.
    pub(super) fn new(mapping: &'a Mapping, loads: &'a [AtomicU64]) -> Self {
        Self {
            words: mapping.words(),
            loads,
        }
    }
}

impl<'a> FlowTable for MappedTable<'a> {
    type Bucket = &'a [AtomicU64];

    fn buckets(&self) -> u32 {
        (self.words.len() / BUCKET_WORDS) as u32
    }

    fn bucket(&self, index: u32) -> Option<Self::Bucket> {
        let first = index as usize * BUCKET_WORDS;
        self.words.get(first..first + BUCKET_WORDS)
    }

    fn load(&self, bucket: Self::Bucket, word: usize) -> u64 {
        bucket.get(word).map_or(0, |w| w.load(Relaxed))
    }

    fn replace(&self, bucket: Self::Bucket, word: usize, current: u64, new: u64) -> bool {
        bucket
            .get(word)
            .is_some_and(|w| w.compare_exchange(current, new, AcqRel, Relaxed).is_ok())
    }

    fn store(&self, bucket: Self::Bucket, word: usize, value: u64) {
        if let Some(w) = bucket.get(word) {
            w.store(value, Relaxed);
        }
    }

    fn count(&self, member: u32, by: u64) {
        if let Some(counts) = self.loads.get(member as usize * LOAD_WORDS) {
            counts.fetch_add(by, Relaxed);
        }
    }
}
