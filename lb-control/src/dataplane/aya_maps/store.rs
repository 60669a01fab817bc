//! The maps as what plans are applied to.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

use aya::maps::{MapError, PerCpuValues, lpm_trie::Key};
use lb_common::{
    abi::{
        Config, LinkEntry, MemberEntry, MemberLoad, MemberStats, PersistEntry, PersistKey,
        PoolEntry, ReplyEntry, ReplyKey, ServerKey, ServiceEntry, ServiceKey, VipEntry, VipKey,
        map, owner,
    },
    counter::{DROP_ROW, EVENT_ROW},
    member::MemberState,
    slot::SlotWord,
};

use super::{AyaMaps, CONFIG_WORDS, LOAD_WORDS, MEMBER_WORDS, beyond, failed, io_of};
use crate::dataplane::{
    desired::MemberLimits,
    mapping::to_words,
    state::{LocalPrefix, MapSnapshot, PortBlock, SourcePrefix, service_name_bytes},
    store::{MapStore, StoreError},
};

impl AyaMaps {
    fn clear_rows(&mut self, service: u32) -> Result<(), StoreError> {
        let zeros =
            |cpus| PerCpuValues::try_from(vec![0u64; cpus]).map_err(failed(map::DROPS, "clear"));
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

    fn load_word(&self, id: u32, word: usize) -> Result<&AtomicU64, StoreError> {
        self.loads
            .words()
            .get(id as usize * LOAD_WORDS + word)
            .ok_or_else(|| beyond(map::LOADS, id))
    }

    fn member_word(&self, id: u32, word: usize) -> Result<&AtomicU64, StoreError> {
        self.members
            .words()
            .get(id as usize * MEMBER_WORDS + word)
            .ok_or_else(|| beyond(map::MEMBERS, id))
    }
}

impl AyaMaps {
    /// Forgets a source and its server.
    pub(in crate::dataplane) fn forget(&mut self, key: &PersistKey) -> Result<(), StoreError> {
        removed(map::PERSISTENCE, self.persistence.map.remove(key))
    }

    /// Notes a source and its server.
    pub(in crate::dataplane) fn remember(
        &mut self,
        key: &PersistKey,
        entry: &PersistEntry,
    ) -> Result<(), StoreError> {
        self.persistence
            .map
            .insert(key, entry, 0)
            .map_err(|e| failed(map::PERSISTENCE, "write")(io_of(e)))
    }

    /// A source's server.
    pub(in crate::dataplane) fn remembered(&self, key: &PersistKey) -> Option<PersistEntry> {
        self.persistence.map.get(key, 0).ok()
    }
}

impl MapStore for AyaMaps {
    fn snapshot(&self) -> Result<MapSnapshot, StoreError> {
        let mut snapshot = self.snapshot_without_sources()?;
        snapshot.sources = self.sources()?;
        let lists: Vec<(u32, u32, u32)> = snapshot
            .entries()
            .map(|entry| (entry.id, entry.list_offset, entry.listed()))
            .filter(|(_, _, n)| *n > 0)
            .collect();
        for (id, offset, n) in lists {
            let words = self
                .slots
                .range(offset as usize, n as usize)
                .ok_or_else(|| beyond(map::SLOTS, offset))?;
            let ids = words.iter().map(|w| w.load(Relaxed) as u32).collect();
            snapshot.lists.insert(id, ids);
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
        let zeros = PerCpuValues::try_from(vec![MemberStats::default(); self.cpus])
            .map_err(failed(map::STATS, "clear"))?;
        written(map::STATS, self.stats.array.set(id, zeros, 0))?;
        self.load_word(id, 0)?.store(0, Relaxed);
        let words: [u64; MEMBER_WORDS] = to_words(member);
        // The state comes last: until then the id is free.
        for (i, word) in words.iter().enumerate().skip(1) {
            self.member_word(id, i)?.store(*word, Relaxed);
        }
        self.set_member_state(id, MemberState(member.state))
    }

    fn set_member_state(&mut self, id: u32, state: MemberState) -> Result<(), StoreError> {
        self.member_word(id, 0)?.store(state.0, Release);
        Ok(())
    }

    fn set_next_hop(&mut self, id: u32, next_hop: u64) -> Result<(), StoreError> {
        self.member_word(id, 1)?.store(next_hop, Relaxed);
        Ok(())
    }

    fn set_mtu(&mut self, id: u32, mtu: u16) -> Result<(), StoreError> {
        const WORD: usize = std::mem::offset_of!(MemberEntry, mtu) / 8;
        let word = self.member_word(id, WORD)?;
        // Nobody else writes it.
        let mut bytes = word.load(Relaxed).to_ne_bytes();
        let at = std::mem::offset_of!(MemberEntry, mtu) % 8;
        for (to, from) in bytes.iter_mut().skip(at).zip(mtu.to_ne_bytes()) {
            *to = from;
        }
        word.store(u64::from_ne_bytes(bytes), Relaxed);
        Ok(())
    }

    fn set_limits(&mut self, id: u32, limits: MemberLimits) -> Result<(), StoreError> {
        let load = MemberLoad {
            counts: 0,
            max: limits.max,
            weight: limits.weight,
            next: limits.next,
            reserved: 0,
            backend: limits.backend,
        };
        let words: [u64; LOAD_WORDS] = to_words(&load);
        // The first is the counts.
        for (i, word) in words.iter().enumerate().skip(1) {
            self.load_word(id, i)?.store(*word, Relaxed);
        }
        Ok(())
    }

    fn set_listed(&mut self, index: u32, member: u32) -> Result<(), StoreError> {
        self.slots
            .words()
            .get(index as usize)
            .ok_or_else(|| beyond(map::SLOTS, index))?
            .store(u64::from(member), Relaxed);
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
            .compare_exchange(current.0, new.0, Release, Relaxed)
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

    fn put_source(&mut self, prefix: &SourcePrefix, value: u32) -> Result<(), StoreError> {
        let key = Key::new(prefix.prefix_bits, prefix.key);
        written(map::SOURCES, self.sources.insert(&key, value, 0))
    }

    fn remove_source(&mut self, prefix: &SourcePrefix) -> Result<(), StoreError> {
        let key = Key::new(prefix.prefix_bits, prefix.key);
        removed(map::SOURCES, self.sources.remove(&key))
    }

    fn put_server(&mut self, key: &ServerKey, member: u32) -> Result<(), StoreError> {
        written(map::SERVERS, self.servers.insert(key, member, 0))
    }

    fn remove_server(&mut self, key: &ServerKey) -> Result<(), StoreError> {
        removed(map::SERVERS, self.servers.remove(key))
    }

    fn put_reply(&mut self, key: &ReplyKey, entry: &ReplyEntry) -> Result<(), StoreError> {
        written(map::REPLIES, self.replies.insert(key, entry, 0))
    }

    fn remove_reply(&mut self, key: &ReplyKey) -> Result<(), StoreError> {
        removed(map::REPLIES, self.replies.remove(key))
    }

    fn put_pool(&mut self, key: &VipKey, entry: &PoolEntry) -> Result<(), StoreError> {
        written(map::NAT_POOL, self.pools.insert(key, entry, 0))
    }

    fn remove_pool(&mut self, key: &VipKey) -> Result<(), StoreError> {
        removed(map::NAT_POOL, self.pools.remove(key))
    }

    fn put_local(&mut self, prefix: &LocalPrefix, value: u32) -> Result<(), StoreError> {
        let key = Key::new(prefix.prefix_bits, prefix.key);
        written(map::LOCAL, self.local.insert(&key, value, 0))
    }

    fn remove_local(&mut self, prefix: &LocalPrefix) -> Result<(), StoreError> {
        let key = Key::new(prefix.prefix_bits, prefix.key);
        removed(map::LOCAL, self.local.remove(&key))
    }
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
