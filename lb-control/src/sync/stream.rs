//! The reliable stream: packets with numbers, each with whole messages.

pub mod receive;
pub mod send;

/// Packets that may be on their way or wait at the receiver's: with the longest
/// messages, 600 KB a direction and peer.
pub const RING: usize = 512;
