//! Sources and the servers they have.

use std::{collections::HashMap, net::IpAddr};

use lb_common::{abi::PersistKey, persist};

use super::Plane;
use crate::dataplane::{error::PlaneError, state::MapSnapshot};

/// A source that has a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistentSource {
    key: PersistKey,
    /// Number of the group, see [`persist::group`].
    pub group: u32,
    /// First address of the source's prefix.
    pub source: IpAddr,
    /// Number of the server, see [`persist::backend`].
    pub backend: u64,
    /// Seconds since a packet was noted, to about 16.
    pub idle_seconds: u32,
}

impl Plane {
    /// Sources whose server is known and that weren't idle for too long.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn persistent_sources(&mut self) -> Result<Vec<PersistentSource>, PlaneError> {
        let now_ticks = self.now_ticks()?;
        let snapshot = self.loaded.maps.snapshot_without_slots()?;
        let times = times(&snapshot);
        let mut found = Vec::new();
        for (key, entry) in self.loaded.maps.persistence()? {
            let idle = times.get(&key.group).copied().unwrap_or(0);
            if persist::is_live(&entry, now_ticks, idle) {
                found.push(PersistentSource {
                    key,
                    group: key.group,
                    source: key.source.to_ip(key.family as u8),
                    backend: entry.backend,
                    idle_seconds: self.seconds(now_ticks.wrapping_sub(entry.last_ticks)),
                });
            }
        }
        Ok(found)
    }

    /// Has sources lose their servers.
    ///
    /// # Errors
    /// The map can't be written.
    pub fn forget<'a>(
        &mut self,
        sources: impl Iterator<Item = &'a PersistentSource>,
    ) -> Result<(), PlaneError> {
        for source in sources {
            self.loaded.maps.forget(&source.key)?;
        }
        Ok(())
    }

    /// Forgets the sources that were idle for too long, and those of groups that
    /// are gone; counts the others.
    pub(super) fn sweep_persistence(
        &mut self,
        snapshot: &MapSnapshot,
        now_ticks: u32,
    ) -> Result<(), PlaneError> {
        let times = times(snapshot);
        if times.is_empty() && self.persistent_sources == 0 {
            return Ok(());
        }
        self.persistent_sources = 0;
        for (key, entry) in self.loaded.maps.persistence()? {
            let idle = times.get(&key.group);
            if idle.is_some_and(|idle| persist::is_live(&entry, now_ticks, *idle)) {
                self.persistent_sources += 1;
            } else {
                self.loaded.maps.forget(&key)?;
            }
        }
        Ok(())
    }
}

/// Ticks after which a source of the group has no server any more.
fn times(snapshot: &MapSnapshot) -> HashMap<u32, u32> {
    snapshot
        .entries()
        .filter(|entry| entry.group != 0)
        .map(|entry| (entry.group, entry.persist_ticks))
        .collect()
}
