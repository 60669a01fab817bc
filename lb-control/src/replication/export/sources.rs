//! Sources with servers of their own.

use std::collections::HashMap;

use lb_common::{
    abi::{PersistEntry, PersistKey},
    flow::FlowTable,
};

use super::{Exporter, REFRESHED};
use crate::replication::{
    record::{Record, Source},
    world::World,
};

impl Exporter {
    /// Tells of the sources whose servers are known, of groups in `groups` (by
    /// number, with their idle times in ticks). To be called once in a while,
    /// with all that there are.
    pub fn sources<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        groups: &HashMap<u32, u32>,
        all: impl Iterator<Item = (PersistKey, PersistEntry)>,
        send: &mut dyn FnMut(&[u8]) -> bool,
    ) {
        if !self.is_live() || !self.out.drain(send) {
            return;
        }
        let mut before = std::mem::take(&mut self.sources);
        for (key, entry) in all {
            let Some(idle) = groups.get(&key.group) else {
                continue;
            };
            let known = before.remove(&key);
            let is_fresh = known.is_some_and(|known| {
                let newer = entry.last_ticks.wrapping_sub(known.last_ticks);
                known.backend == entry.backend && newer < (idle / REFRESHED).max(1)
            });
            // What the link has no room for is told the next time.
            if !is_fresh && !self.out.drain(send) {
                self.sources.extend(known.map(|known| (key, known)));
                continue;
            }
            if is_fresh {
                self.sources.extend(known.map(|known| (key, known)));
                continue;
            }
            self.sources.insert(key, entry);
            self.source(world, &key, &entry);
        }
        for (key, entry) in before {
            if self.out.drain(send) {
                self.source(
                    world,
                    &key,
                    &PersistEntry {
                        backend: 0,
                        ..entry
                    },
                );
            } else {
                self.sources.insert(key, entry);
            }
        }
        self.out.close();
        let _ = self.out.drain(send);
    }

    fn source<T: FlowTable>(
        &mut self,
        world: &World<'_, T>,
        key: &PersistKey,
        entry: &PersistEntry,
    ) {
        self.counts.sources += 1;
        self.out.put(&Record::Source(Source {
            group: key.group,
            address: key.source,
            family: key.family as u8,
            backend: entry.backend,
            age_ms: world.milliseconds(world.now_ticks.wrapping_sub(entry.last_ticks)),
        }));
    }
}
