//! Full NAT's addresses, its ports, and who needs them.

use crate::net::{Addr, Be16};

/// Which bindings an address of full NAT's pool has: that of port
/// `first_port + n` is number `base + n`, for `n` below `count`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolEntry {
    /// Index of the first port's binding; not zero.
    pub base: u32,
    /// Number of ports.
    pub count: u32,
    /// The first port, host byte order.
    pub first_port: u16,
    /// 1: no new flows; the address goes when the old ones are over.
    pub draining: u16,
}

impl PoolEntry {
    /// Index of a port's binding; zero where the port isn't the pool's.
    #[inline(always)]
    pub const fn index(&self, port: Be16) -> u32 {
        let n = (port.get() as u32).wrapping_sub(self.first_port as u32);
        if n < self.count { self.base + n } else { 0 }
    }
}

/// Key of `LOCAL`, behind the prefix length: addresses on the link of a
/// backend, who would answer them directly and not by way of the balancer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalKey {
    /// Address family.
    pub family: u32,
    /// The address; only its leading bits count.
    pub address: Addr,
}

/// Bits of [`LocalKey`] before the address.
pub const LOCAL_KEY_FIXED_BITS: u32 = 32;

/// One port of a pool address and the flow it stands for. One cache line; see
/// [`crate::binding`], which alone says how it changes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// [`crate::binding::BindingState`].
    pub state: u64,
    /// The client's address.
    pub client: Addr,
    /// The pool's address.
    pub pool: Addr,
    /// The flow's hash.
    pub hash: u64,
    /// The client's port.
    pub client_port: Be16,
    /// The VIP's port.
    pub vip_port: Be16,
    /// The pool's port.
    pub pool_port: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Address family.
    pub family: u8,
    /// Member that has the flow.
    pub member: u32,
    /// Its service's id.
    pub service: u32,
}
