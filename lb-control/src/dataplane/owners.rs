//! What this node owns, as the data path reads it, written from outside the
//! daemon's loop.

use std::{path::Path, time::Instant};

use lb_common::abi::{self, map, owner};
use nix::time::{ClockId, clock_gettime};

use super::{
    aya_maps::{self, OwnerArrays},
    error::PlaneError,
    mapping::Mapping,
};

/// The owner words, and the clock that their leases count in.
pub struct OwnerWords {
    words: OwnerArrays,
    clock: Mapping,
    hz: u32,
}

impl OwnerWords {
    /// Those of the data path pinned in `dir`.
    pub(super) fn open(dir: &Path, hz: u32) -> Result<Self, PlaneError> {
        Ok(Self {
            words: OwnerArrays::open(dir)?,
            clock: aya_maps::pinned_clock(&dir.join(map::CLOCK))?,
            hz,
        })
    }

    /// This word is owned until `until`, or without end.
    ///
    /// # Errors
    /// It can't be written.
    pub fn own(&mut self, word: u16, until: Option<Instant>) -> Result<(), PlaneError> {
        let value = match until {
            None => owner::FOREVER,
            Some(until) => self.jiffies_at(until),
        };
        Ok(self.words.set(word, value)?)
    }

    /// This word is not owned.
    ///
    /// # Errors
    /// It can't be written.
    pub fn disown(&mut self, word: u16) -> Result<(), PlaneError> {
        Ok(self.words.set(word, owner::NOT_OWNED)?)
    }

    /// The virtual router of this word has its virtual MAC address on the device
    /// with this index, or nowhere.
    ///
    /// # Errors
    /// It can't be written.
    pub fn place_mac(&mut self, word: u16, device: Option<u32>) -> Result<(), PlaneError> {
        Ok(self.words.set_device(word, device.unwrap_or(0))?)
    }

    /// No virtual router has a virtual MAC address but those of `kept`: of the rest a
    /// former daemon may have left some.
    ///
    /// # Errors
    /// It can't be written.
    pub fn forget_macs_but(&mut self, kept: &[u16]) -> Result<(), PlaneError> {
        let words = (0..abi::OWNERS).filter_map(|word| u16::try_from(word).ok());
        for word in words.filter(|word| !kept.contains(word)) {
            self.place_mac(word, None)?;
        }
        Ok(())
    }

    /// The last jiffy that has begun by then: a lease is rather too short.
    #[allow(clippy::disallowed_methods, reason = "leases are times")]
    fn jiffies_at(&self, until: Instant) -> u64 {
        let [jiffies, read_at] = self.reading();
        let left = until.saturating_duration_since(Instant::now());
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(read_at, |now| {
            let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
            let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or_default();
            seconds * 1_000_000_000 + nanoseconds
        });
        let since = u128::from(now.saturating_sub(read_at)) + left.as_nanos();
        let more = since * u128::from(self.hz) / 1_000_000_000;
        jiffies.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
    }

    /// Jiffies, and the monotonic clock in nanoseconds at that moment. The program
    /// that writes them may do so just now.
    fn reading(&self) -> [u64; 2] {
        let read = || -> [u64; 2] { self.clock.record(0).unwrap_or_default() };
        let mut last = read();
        loop {
            std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
            let again = read();
            if again == last {
                return last;
            }
            last = again;
        }
    }
}
