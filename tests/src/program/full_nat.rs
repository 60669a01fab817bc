//! Full NAT's maps, filled by hand.

use std::{cell::RefCell, net::IpAddr};

use anyhow::{Result, ensure};
use aya::maps::{
    Array, MapData,
    lpm_trie::{Key, LpmTrie},
};
use lb_common::{
    abi::{self, Binding, LOCAL_KEY_FIXED_BITS, LocalKey, PoolEntry, map, vip_flag},
    binding::{self, BindingState, Ring},
    flow::{BUCKET_WORDS, FlowTable},
    net::{Addr, Be16},
};

use super::Program;

type Line = [u64; BUCKET_WORDS];

/// A map of cache lines, while no packet is about.
struct Lines<'a>(RefCell<Array<&'a mut MapData, Line>>, u32);

impl FlowTable for Lines<'_> {
    type Bucket = u32;

    fn buckets(&self) -> u32 {
        self.1
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        (index < self.1).then_some(index)
    }

    fn load(&self, bucket: u32, word: usize) -> u64 {
        self.0.borrow().get(&bucket, 0).expect("it is there")[word]
    }

    fn replace(&self, bucket: u32, word: usize, current: u64, new: u64) -> bool {
        let mut map = self.0.borrow_mut();
        let mut line = map.get(&bucket, 0).expect("it is there");
        let same = line[word] == current;
        if same {
            line[word] = new;
            map.set(bucket, line, 0).expect("it is there");
        }
        same
    }
}

impl Program {
    fn lines(&mut self, name: &str) -> Result<Lines<'_>> {
        let map = self.array::<Line>(name)?;
        let count = map.len();
        Ok(Lines(RefCell::new(map), count))
    }

    /// Makes `count` ports of an address, from `first_port` on, the bindings
    /// from `base` on, all free.
    pub fn add_pool(
        &mut self,
        address: IpAddr,
        base: u32,
        first_port: u16,
        count: u16,
    ) -> Result<()> {
        let (addr, family) = Addr::from_ip(address);
        let key = abi::VipKey {
            address: addr,
            family,
            reserved: [0; 3],
        };
        let entry = PoolEntry {
            base,
            count: count.into(),
            first_port,
            draining: 0,
        };
        self.hash(map::NAT_POOL)?.insert(key, entry, 0)?;
        let vip = abi::VipEntry {
            owner: 0,
            flags: vip_flag::POOL,
        };
        self.hash(map::VIPS)?.insert(key, vip, 0)?;
        let bindings = self.lines(map::BINDINGS)?;
        let indices = base..base + u32::from(count);
        for (index, port) in indices.clone().zip(first_port..) {
            binding::dedicate(&bindings, index, addr, Be16::new(port), family);
            let old = binding::state(&bindings, index);
            let new = BindingState::default().freed(0);
            ensure!(binding::change(&bindings, index, old, new));
        }
        drop(bindings);
        let ring = Ring::new(family, self.config()?.free_ports);
        let free = self.lines(map::FREE_PORTS)?;
        for index in indices {
            ensure!(ring.put(&free, index));
        }
        Ok(())
    }

    /// Makes clients of a prefix ones that a backend would answer directly.
    pub fn add_local(&mut self, address: IpAddr, bits: u32) -> Result<()> {
        let (address, family) = Addr::from_ip(address);
        let key = LocalKey {
            family: family.into(),
            address,
        };
        let key = Key::new(LOCAL_KEY_FIXED_BITS + bits, key);
        let mut local: LpmTrie<_, LocalKey, u32> = self.map(map::LOCAL)?.try_into()?;
        Ok(local.insert(&key, 1, 0)?)
    }

    /// A binding.
    pub fn binding(&mut self, index: u32) -> Result<Binding> {
        Ok(self.array::<Binding>(map::BINDINGS)?.get(&index, 0)?)
    }

    /// States of the bindings from index 1 on.
    pub fn binding_states(&mut self) -> Result<Vec<BindingState>> {
        let bindings = self.array::<Binding>(map::BINDINGS)?;
        (1..bindings.len())
            .map(|i| Ok(BindingState(bindings.get(&i, 0)?.state)))
            .collect()
    }
}
