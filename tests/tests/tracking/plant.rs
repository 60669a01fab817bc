//! What a history is driven through.

use std::collections::BTreeMap;

use anyhow::Result;
use lb_common::{
    flow::memory::MemoryTable, hash::Tuple, member::MemberState, slot::SlotWord, track::Kind,
};

/// Slots of the service; a prime.
pub const SIZE: u32 = 101;

/// Id of the service.
pub const SERVICE: u32 = 1;

/// Members that a plant has room for, id 0 included.
pub const MEMBERS: u32 = 512;

/// Units after which an entry expires; a tick is a second here, so a flow that
/// is idle for [`IDLE_TICKS`] is sure to be known.
pub const IDLE_UNITS: u32 = 990;

/// Ticks for which a flow is promised its member.
pub const IDLE_TICKS: u32 = 7900;

/// Units after which an unconfirmed entry expires.
pub const HALF_UNITS: u32 = 9;

/// Ticks after a change in which a SYN goes to the base.
pub const SYN_WINDOW: u32 = 4;

/// Key of the flow hash.
pub const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

/// In place of a member: the client was told that its connection is no more.
pub const RESET: u32 = u32::MAX;

/// A data path with one TCP service.
pub trait Plant {
    /// Sends a packet; the member it reached, if any, or [`RESET`].
    fn packet(&mut self, tuple: &Tuple, kind: Kind) -> Result<Option<u32>>;

    /// Moves the clock.
    fn set_ticks(&mut self, ticks: u32) -> Result<()>;

    /// Writes a member's state.
    fn set_state(&mut self, id: u32, state: MemberState) -> Result<()>;

    /// All slots.
    fn slots(&mut self) -> Result<Vec<SlotWord>>;

    /// Writes slots.
    fn set_slots(&mut self, slots: &BTreeMap<u32, SlotWord>) -> Result<()>;

    /// Lets `sweep` work on the flow table.
    fn with_flows(&mut self, sweep: &mut dyn FnMut(&MemoryTable)) -> Result<()>;

    /// Entries made and refused so far.
    fn events(&mut self) -> Result<(u64, u64)>;
}
