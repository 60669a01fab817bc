//! What the programs of the data path hand over to one another.

use super::PersistKey;
use crate::{
    binding::End,
    net::{Addr, Be16},
};

/// What one program of the data path hands over to the next, together with the
/// packet. Written and read on one core within one packet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// What the packet is, as the data path packs it.
    pub meta: u64,
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source and destination port.
    pub ports: [Be16; 2],
    /// Bytes of the frame.
    pub frame_bytes: u32,
    /// Entry of `LINKS` it came in by.
    pub link: u32,
    /// The service's id.
    pub service: u32,
    /// The member's id.
    pub member: u32,
    /// What else the next program has to know.
    pub detail: u32,
    /// The flow's hash.
    pub flow_hash: u64,
    /// Identification of a fragment's packet, see [`super::FragmentKey`].
    pub fragment: u32,
    /// Of a packet that is too long for its way: the length that isn't.
    pub fitting: u32,
}

/// Most that is quoted of a packet, in bytes.
pub const QUOTE_BYTES: usize = 128;

/// What one core has at hand with a packet: what is handed over, and what has no
/// place on the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// What is handed over.
    pub work: Work,
    /// The binding at hand.
    pub bound: Bound,
    /// A question to the kernel's routing: its `struct bpf_fib_lookup`.
    pub route: [u64; 8],
    /// What is quoted of the packet.
    pub quote: [u32; QUOTE_BYTES / 4],
    /// The packet's source.
    pub persist: PersistKey,
}

/// A binding of full NAT in use: the two ends as the client sees them, and the
/// two as the backend does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The client's end.
    pub client: End,
    /// The service's.
    pub vip: End,
    /// The pool's.
    pub pool: End,
    /// The backend's.
    pub backend: End,
    /// IANA protocol number.
    pub protocol: u32,
    /// The member's id.
    pub member: u32,
    /// Its service's id.
    pub service: u32,
    /// The binding's index.
    pub index: u32,
}
