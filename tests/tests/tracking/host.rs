//! The rules as the host's compiler made them.

use std::{cell::RefCell, collections::BTreeMap};

use anyhow::Result;
use lb_common::{
    flow::{FlowKey, Idle, memory::MemoryTable},
    hash::{Tuple, flow_hash, scale, tag},
    member::MemberState,
    slot::SlotWord,
    track::{self, Entry, Kind, Times},
};

use crate::plant::{HALF_UNITS, IDLE_UNITS, KEY, MEMBERS, Plant, RESET, SIZE, SYN_WINDOW};

pub struct Host {
    flows: MemoryTable,
    buckets: u32,
    resets: bool,
    states: Vec<MemberState>,
    slots: RefCell<Vec<SlotWord>>,
    ticks: u32,
    inserted: u64,
    refused: u64,
}

impl Host {
    pub fn new(buckets: u32, resets: bool) -> Self {
        Self {
            resets,
            flows: MemoryTable::new(buckets),
            buckets,
            states: vec![MemberState::FREE; MEMBERS as usize],
            slots: RefCell::new(vec![SlotWord::default(); SIZE as usize]),
            ticks: 0,
            inserted: 0,
            refused: 0,
        }
    }
}

struct World<'a> {
    host: &'a Host,
    slot: usize,
}

impl track::World for World<'_> {
    type Flows = MemoryTable;

    fn flows(&self) -> &MemoryTable {
        &self.host.flows
    }

    fn state(&self, member: u32) -> MemberState {
        self.host
            .states
            .get(member as usize)
            .copied()
            .unwrap_or_default()
    }

    fn is_ours(&self, _member: u32) -> bool {
        true
    }

    fn resets(&self) -> bool {
        self.host.resets
    }

    fn replace_slot(&self, current: SlotWord, new: SlotWord) -> bool {
        let mut slots = self.host.slots.borrow_mut();
        let is_current = slots[self.slot] == current;
        if is_current {
            slots[self.slot] = new;
        }
        is_current
    }
}

impl Plant for Host {
    fn packet(&mut self, tuple: &Tuple, kind: Kind) -> Result<Option<u32>> {
        let hash = flow_hash(KEY, tuple);
        let index = scale(tag(hash), SIZE) as usize;
        let slot = self.slots.borrow()[index];
        let mut member = slot.current();
        if slot.is_tracked() {
            let times = Times {
                now_ticks: self.ticks,
                syn_window_ticks: SYN_WINDOW,
                idle: Idle {
                    open_units: IDLE_UNITS,
                    half_units: HALF_UNITS,
                },
                longest_idle: Idle {
                    open_units: IDLE_UNITS,
                    half_units: HALF_UNITS,
                },
            };
            let world = World {
                host: self,
                slot: index,
            };
            let key = FlowKey::new(hash, self.buckets);
            let decision = track::decide(&world, slot, key, kind, times);
            member = decision.member;
            self.inserted += u64::from(decision.entry == Entry::Inserted);
            self.refused += u64::from(decision.entry == Entry::Refused);
        }
        let serves = self.states.get(member as usize).is_some_and(|s| s.serves());
        let is_known = kind != Kind::Syn && kind != Kind::Rst;
        if member != 0 && !serves && self.resets && is_known {
            return Ok(Some(RESET));
        }
        Ok((member != 0 && serves).then_some(member))
    }

    fn set_ticks(&mut self, ticks: u32) -> Result<()> {
        self.ticks = ticks;
        Ok(())
    }

    fn set_state(&mut self, id: u32, state: MemberState) -> Result<()> {
        self.states[id as usize] = state;
        Ok(())
    }

    fn slots(&mut self) -> Result<Vec<SlotWord>> {
        Ok(self.slots.borrow().clone())
    }

    fn set_slots(&mut self, slots: &BTreeMap<u32, SlotWord>) -> Result<()> {
        for (index, word) in slots {
            self.slots.borrow_mut()[*index as usize] = *word;
        }
        Ok(())
    }

    fn with_flows(&mut self, sweep: &mut dyn FnMut(&MemoryTable)) -> Result<()> {
        sweep(&self.flows);
        Ok(())
    }

    fn events(&mut self) -> Result<(u64, u64)> {
        Ok((self.inserted, self.refused))
    }
}
