//! Full NAT's maps.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
};
use lb_common::{
    abi::{Config, LOCAL_KEY_FIXED_BITS, LocalKey, PoolEntry, VipKey},
    net::Addr,
};

use super::{Bucket, Flows};

#[map]
static NAT_POOL: HashMap<VipKey, PoolEntry> = HashMap::pinned(256, 0);
#[map]
static BINDINGS: Array<Bucket> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static FREE_PORTS: Array<Bucket> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static NAT_FLOWS: Array<Bucket> = Array::pinned(64, BPF_F_MMAPABLE);
#[map]
static LOCAL: LpmTrie<LocalKey, u32> = LpmTrie::pinned(1024, 0);

/// The bindings an address of the pool has.
#[inline(always)]
pub fn pool(key: &VipKey) -> Option<&'static PoolEntry> {
    // SAFETY: as in `service`.
    unsafe { NAT_POOL.get(key) }
}

/// Whether a backend would answer this address directly.
#[inline(always)]
pub fn is_local(address: Addr, family: u8) -> bool {
    let key = LocalKey {
        family: family.into(),
        address,
    };
    LOCAL
        .get(Key::new(LOCAL_KEY_FIXED_BITS + 128, key))
        .is_some()
}

impl Flows {
    /// The bindings.
    #[inline(always)]
    pub fn bindings(config: &Config) -> Self {
        Self {
            map: &BINDINGS,
            buckets: 0,
            counts: false,
            noise: config.hash_key[0],
        }
    }

    /// The rings of free ports.
    #[inline(always)]
    pub fn free_ports(config: &Config) -> Self {
        Self {
            map: &FREE_PORTS,
            buckets: 0,
            counts: false,
            noise: config.hash_key[0],
        }
    }

    /// The way from clients to bindings.
    #[inline(always)]
    pub fn nat(config: &Config) -> Self {
        Self {
            map: &NAT_FLOWS,
            buckets: config.nat_buckets,
            counts: false,
            noise: config.hash_key[0],
        }
    }
}
