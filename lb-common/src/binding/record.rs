//! The words of a binding and what they say.

use super::{BindingState, Flow};
use crate::{
    flow::FlowTable,
    hash::Tuple,
    net::{Addr, Be16},
};

/// Words of a binding, as [`crate::abi::Binding`] has them.
pub mod word {
    /// [`super::super::BindingState`].
    pub const STATE: usize = 0;
    /// The client's address, two words.
    pub const CLIENT: usize = 1;
    /// The pool's address, two words.
    pub const POOL: usize = 3;
    /// The flow's hash.
    pub const HASH: usize = 5;
    /// Ports, protocol, family.
    pub const PORTS: usize = 6;
    /// Member and service.
    pub const MEMBER: usize = 7;
}

#[inline(always)]
pub(super) const fn pair(first: u32, second: u32) -> u64 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    let b = word.to_ne_bytes();
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    ]
}

/// All of [`word::PORTS`] but for the pool's port.
pub(super) const FLOW_PORTS: u64 = u64::from_ne_bytes([255, 255, 255, 255, 0, 0, 255, 255]);

#[inline(always)]
pub(super) const fn ports(tuple: &Tuple) -> u64 {
    let client = tuple.source_port.wire().to_ne_bytes();
    let vip = tuple.destination_port.wire().to_ne_bytes();
    u64::from_ne_bytes([
        client[0],
        client[1],
        vip[0],
        vip[1],
        0,
        0,
        tuple.protocol,
        tuple.family,
    ])
}

/// What never changes in the life of a pool address: written before the port
/// is given out for the first time.
pub fn dedicate<B: FlowTable>(bindings: &B, at: B::Bucket, pool: Addr, port: Be16, family: u8) {
    bindings.store(at, word::POOL, pair(pool.0[0], pool.0[1]));
    bindings.store(at, word::POOL + 1, pair(pool.0[2], pool.0[3]));
    let port = port.wire().to_ne_bytes();
    let ports = u64::from_ne_bytes([0, 0, 0, 0, port[0], port[1], 0, family]);
    bindings.store(at, word::PORTS, ports);
}

/// Writes all of a claimed binding but for its state and what never changes.
#[inline(always)]
pub(super) fn write<B: FlowTable>(bindings: &B, at: B::Bucket, flow: &Flow<'_>, member: u32) {
    let [a, b, c, d] = flow.tuple.source.0;
    bindings.store(at, word::CLIENT, pair(a, b));
    bindings.store(at, word::CLIENT + 1, pair(c, d));
    bindings.store(at, word::HASH, flow.hash);
    bindings.store(at, word::MEMBER, pair(member, flow.service));
    let kept = bindings.load(at, word::PORTS) & !FLOW_PORTS;
    bindings.store(at, word::PORTS, kept | ports(flow.tuple));
}

/// The first word of a binding.
#[inline(always)]
pub fn state<B: FlowTable>(bindings: &B, at: B::Bucket) -> BindingState {
    BindingState(bindings.load(at, word::STATE))
}

/// Changes the first word if it is still `current`.
#[inline(always)]
pub fn change<B: FlowTable>(
    bindings: &B,
    at: B::Bucket,
    current: BindingState,
    new: BindingState,
) -> bool {
    bindings.replace(at, word::STATE, current.0, new.0)
}

/// The member's id.
#[inline(always)]
pub fn member<B: FlowTable>(bindings: &B, at: B::Bucket) -> u32 {
    halves(bindings.load(at, word::MEMBER))[0]
}

/// The service's id.
#[inline(always)]
pub fn service<B: FlowTable>(bindings: &B, at: B::Bucket) -> u32 {
    halves(bindings.load(at, word::MEMBER))[1]
}

/// The flow's hash.
#[inline(always)]
pub fn flow_hash<B: FlowTable>(bindings: &B, at: B::Bucket) -> u64 {
    bindings.load(at, word::HASH)
}

/// IANA number of the flow's protocol.
#[inline(always)]
pub fn protocol<B: FlowTable>(bindings: &B, at: B::Bucket) -> u8 {
    bindings.load(at, word::PORTS).to_ne_bytes()[6]
}

/// Family of its addresses.
#[inline(always)]
pub fn family<B: FlowTable>(bindings: &B, at: B::Bucket) -> u8 {
    bindings.load(at, word::PORTS).to_ne_bytes()[7]
}

/// An end of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: Addr,
    /// The port.
    pub port: Be16,
    /// Zero.
    reserved: u16,
}

impl End {
    /// An address and a port.
    #[inline(always)]
    pub const fn new(address: Addr, port: Be16) -> Self {
        Self {
            address,
            port,
            reserved: 0,
        }
    }
}

#[inline(always)]
fn address<B: FlowTable>(bindings: &B, at: B::Bucket, first: usize) -> Addr {
    let [a, b] = halves(bindings.load(at, first));
    let [c, d] = halves(bindings.load(at, first + 1));
    Addr([a, b, c, d])
}

#[inline(always)]
fn port<B: FlowTable>(bindings: &B, at: B::Bucket, first: usize) -> Be16 {
    let bytes = bindings.load(at, word::PORTS).to_ne_bytes();
    Be16::from_wire(u16::from_ne_bytes([bytes[first], bytes[first + 1]]))
}

/// The client.
#[inline(always)]
pub fn client<B: FlowTable>(bindings: &B, at: B::Bucket) -> End {
    End::new(address(bindings, at, word::CLIENT), port(bindings, at, 0))
}

/// The pool address and port: the source towards the backend.
#[inline(always)]
pub fn pool<B: FlowTable>(bindings: &B, at: B::Bucket) -> End {
    End::new(address(bindings, at, word::POOL), port(bindings, at, 4))
}

/// The port the client's packets are addressed to.
#[inline(always)]
pub fn vip_port<B: FlowTable>(bindings: &B, at: B::Bucket) -> Be16 {
    port(bindings, at, 2)
}
