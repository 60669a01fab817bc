//! Layout of the maps that the benchmark and its BPF programs share.

/// Bytes of the frame that is driven through the programs: Ethernet, IPv4
/// without options, TCP or UDP, payload.
pub const FRAME: usize = 64;

/// What the driver writes into the frame before every run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// The frame. The lower half of the source address and the lower 12 bits
    /// of the source port are zero: the number of the flow goes there.
    pub frame: [u64; FRAME / 8],
    /// State of the generator of flow numbers.
    pub state: u64,
    /// Number of flows less one; the number is a power of two up to 2^24.
    pub mask: u64,
    /// Number of the first flow.
    pub first: u64,
}

/// Key of the comparison's services.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LruService {
    /// VIP, as it stands in the packet.
    pub address: u32,
    /// Destination port, as it stands in the packet.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u16,
}

/// A service of the comparison.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LruPool {
    /// Its first backend.
    pub offset: u32,
    /// Number of its backends.
    pub size: u32,
}

/// Key of the comparison's flow table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LruFlow {
    /// Source and destination, as they stand in the packet.
    pub addresses: [u32; 2],
    /// Source and destination, as they stand in the packet.
    pub ports: [u16; 2],
    /// IANA protocol number.
    pub protocol: u32,
}

/// A backend of the comparison.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LruBackend {
    /// Its MAC address, as words in memory order.
    pub mac: [u16; 3],
    /// The balancer's own.
    pub own_mac: [u16; 3],
}

/// Counters of a backend of the comparison.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LruStats {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Names of maps and programs.
pub mod name {
    /// `[Drive; 1]`.
    pub const DRIVE: &str = "DRIVE";
    /// Program array of one: what the driver calls.
    pub const TARGET: &str = "TARGET";
    /// Hash: [`super::LruService`] to [`super::LruPool`].
    pub const LRU_SERVICES: &str = "LRU_SERVICES";
    /// LRU hash: [`super::LruFlow`] to the index of its backend.
    pub const LRU_FLOWS: &str = "LRU_FLOWS";
    /// Array of [`super::LruBackend`].
    pub const LRU_BACKENDS: &str = "LRU_BACKENDS";
    /// Per-CPU array of [`super::LruStats`] by backend.
    pub const LRU_STATS: &str = "LRU_STATS";
    /// Per-CPU `[u64; 1]`: packets of which the flow wasn't in the table.
    pub const LRU_MISSES: &str = "LRU_MISSES";

    /// Writes the frame and calls what is in `TARGET`.
    pub const DRIVER: &str = "bench_driver";
    /// Does nothing.
    pub const EMPTY: &str = "bench_empty";
    /// Swaps the MAC addresses.
    pub const SWAP: &str = "bench_swap";
    /// The least that a balancer with an LRU hash does.
    pub const LRU: &str = "bench_lru";
}
