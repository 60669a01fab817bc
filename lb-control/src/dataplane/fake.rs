//! Maps in memory, which fail when told to.

use lb_common::{
    abi::{
        Config, LinkEntry, MemberEntry, PoolEntry, ReplyEntry, ReplyKey, ServerKey, ServiceEntry,
        ServiceKey, VipEntry, VipKey, owner,
    },
    member::MemberState,
    slot::SlotWord,
};

use super::{
    desired::MemberLimits,
    state::{LocalPrefix, MapSnapshot, PortBlock, SourcePrefix},
    store::{MapStore, StoreError},
};

/// The maps.
#[derive(Clone, Debug)]
pub(super) struct FakeMaps {
    state: MapSnapshot,
    slots: Vec<SlotWord>,
    /// Writes that still succeed; `None`: all.
    pub(super) writes_left: Option<usize>,
    /// Ticks at which the data path presses a slot just before each exchange.
    pub(super) press_at: Option<u32>,
}

impl FakeMaps {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            state: MapSnapshot::default(),
            slots: vec![SlotWord::default(); slots as usize],
            writes_left: None,
            press_at: None,
        }
    }

    pub(super) fn all_slots(&self) -> &[SlotWord] {
        &self.slots
    }

    fn write(&mut self, map: &'static str) -> Result<&mut MapSnapshot, StoreError> {
        match &mut self.writes_left {
            Some(0) => Err(StoreError {
                map,
                what: "write".into(),
                source: std::io::Error::from_raw_os_error(libc::ENOMEM),
            }),
            left => {
                if let Some(n) = left {
                    *n -= 1;
                }
                Ok(&mut self.state)
            }
        }
    }
}

impl MapStore for FakeMaps {
    fn snapshot(&self) -> Result<MapSnapshot, StoreError> {
        let mut snapshot = self.state.clone();
        for (id, (offset, size)) in snapshot.slot_ranges() {
            let words = self.slots[offset as usize..(offset + size) as usize].to_vec();
            snapshot.slots.insert(id, words);
        }
        for entry in self.state.entries().filter(|entry| entry.listed() > 0) {
            let first = entry.list_offset as usize;
            let words = &self.slots[first..first + entry.listed() as usize];
            let ids = words.iter().map(|word| word.0 as u32).collect();
            snapshot.lists.insert(entry.id, ids);
        }
        Ok(snapshot)
    }

    fn set_config(&mut self, config: &Config) -> Result<(), StoreError> {
        self.write("CONFIG")?.config = *config;
        Ok(())
    }

    fn own_always(&mut self) -> Result<(), StoreError> {
        self.write("OWNERS")?.always_owned = owner::FOREVER;
        Ok(())
    }

    fn set_link(&mut self, index: u16, link: Option<&LinkEntry>) -> Result<(), StoreError> {
        let links = &mut self.write("LINKS")?.links;
        match link {
            Some(link) => links.insert(index, *link),
            None => links.remove(&index),
        };
        Ok(())
    }

    fn set_service_name(&mut self, id: u32, name: Option<&str>) -> Result<(), StoreError> {
        let names = &mut self.write("SERVICE_NAMES")?.service_names;
        match name {
            Some(name) => names.insert(id, name.into()),
            None => names.remove(&id),
        };
        Ok(())
    }

    fn write_member(&mut self, id: u32, member: &MemberEntry) -> Result<(), StoreError> {
        let members = &mut self.write("MEMBERS")?.members;
        if MemberState(member.state) == MemberState::FREE {
            members.remove(&id);
        } else {
            members.insert(id, *member);
        }
        Ok(())
    }

    fn set_member_state(&mut self, id: u32, state: MemberState) -> Result<(), StoreError> {
        let member = self.write("MEMBERS")?.members.get_mut(&id);
        member.expect("only members that exist change").state = state.0;
        Ok(())
    }

    fn set_next_hop(&mut self, id: u32, next_hop: u64) -> Result<(), StoreError> {
        let member = self.write("MEMBERS")?.members.get_mut(&id);
        member.expect("only members that exist change").next_hop = next_hop;
        Ok(())
    }

    fn set_mtu(&mut self, id: u32, mtu: u16) -> Result<(), StoreError> {
        let member = self.write("MEMBERS")?.members.get_mut(&id);
        member.expect("only members that exist change").mtu = mtu;
        Ok(())
    }

    fn set_limits(&mut self, id: u32, limits: MemberLimits) -> Result<(), StoreError> {
        self.write("LOADS")?.limits.insert(id, limits);
        Ok(())
    }

    fn set_listed(&mut self, index: u32, member: u32) -> Result<(), StoreError> {
        self.write("SLOTS")?;
        self.slots[index as usize] = SlotWord(u64::from(member));
        Ok(())
    }

    fn slot(&self, index: u32) -> Result<SlotWord, StoreError> {
        Ok(self.slots[index as usize])
    }

    fn replace_slot(
        &mut self,
        index: u32,
        current: SlotWord,
        new: SlotWord,
    ) -> Result<Result<(), SlotWord>, StoreError> {
        self.write("SLOTS")?;
        let press_at = self.press_at;
        let slot = &mut self.slots[index as usize];
        if let Some(ticks) = press_at.filter(|_| slot.is_tracked()) {
            *slot = slot.pressed(ticks);
        }
        Ok(if *slot == current {
            *slot = new;
            Ok(())
        } else {
            Err(*slot)
        })
    }

    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<(), StoreError> {
        self.write("SERVICES")?.services.insert(*key, *entry);
        Ok(())
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<(), StoreError> {
        self.write("SERVICES")?.services.remove(key);
        Ok(())
    }

    fn put_range(&mut self, block: &PortBlock, entry: &ServiceEntry) -> Result<(), StoreError> {
        self.write("RANGES")?.ranges.insert(*block, *entry);
        Ok(())
    }

    fn remove_range(&mut self, block: &PortBlock) -> Result<(), StoreError> {
        self.write("RANGES")?.ranges.remove(block);
        Ok(())
    }

    fn put_vip(&mut self, key: &VipKey, entry: &VipEntry) -> Result<(), StoreError> {
        self.write("VIPS")?.vips.insert(*key, *entry);
        Ok(())
    }

    fn remove_vip(&mut self, key: &VipKey) -> Result<(), StoreError> {
        self.write("VIPS")?.vips.remove(key);
        Ok(())
    }

    fn put_source(&mut self, prefix: &SourcePrefix, value: u32) -> Result<(), StoreError> {
        self.write("SOURCES")?.sources.insert(*prefix, value);
        Ok(())
    }

    fn remove_source(&mut self, prefix: &SourcePrefix) -> Result<(), StoreError> {
        self.write("SOURCES")?.sources.remove(prefix);
        Ok(())
    }

    fn put_server(&mut self, key: &ServerKey, member: u32) -> Result<(), StoreError> {
        self.write("SERVERS")?.servers.insert(*key, member);
        Ok(())
    }

    fn remove_server(&mut self, key: &ServerKey) -> Result<(), StoreError> {
        self.write("SERVERS")?.servers.remove(key);
        Ok(())
    }

    fn put_reply(&mut self, key: &ReplyKey, entry: &ReplyEntry) -> Result<(), StoreError> {
        self.write("REPLIES")?.replies.insert(*key, *entry);
        Ok(())
    }

    fn remove_reply(&mut self, key: &ReplyKey) -> Result<(), StoreError> {
        self.write("REPLIES")?.replies.remove(key);
        Ok(())
    }

    fn put_pool(&mut self, key: &VipKey, entry: &PoolEntry) -> Result<(), StoreError> {
        self.write("NAT_POOL")?.pools.insert(*key, *entry);
        Ok(())
    }

    fn remove_pool(&mut self, key: &VipKey) -> Result<(), StoreError> {
        self.write("NAT_POOL")?.pools.remove(key);
        Ok(())
    }

    fn put_local(&mut self, prefix: &LocalPrefix, value: u32) -> Result<(), StoreError> {
        self.write("LOCAL")?.local.insert(*prefix, value);
        Ok(())
    }

    fn remove_local(&mut self, prefix: &LocalPrefix) -> Result<(), StoreError> {
        self.write("LOCAL")?.local.remove(prefix);
        Ok(())
    }
}
