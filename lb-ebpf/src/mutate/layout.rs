//! Layout of the maps that the mutating driver shares with the tests.

/// Longest frame, in words.
pub const WORDS: usize = 24;

/// Longest frame, in bytes.
pub const BYTES: usize = WORDS * 8;

/// Frames to start from; a power of two.
pub const SEEDS: u32 = 256;

/// Numbers of backends: the last byte of their MAC address.
pub const BACKENDS: u32 = 256;

/// A frame to start from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Its bytes, zeros behind them.
    pub frame: [u64; WORDS],
    /// How many there are, at most [`BYTES`].
    pub length: u64,
}

/// What the driver knows and has seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutator {
    /// State of the generator of random numbers.
    pub state: u64,
    /// Not zero: the last frame is judged and no other made.
    pub ends: u64,
    /// The last frame as the data path got it.
    pub before: [u64; WORDS],
    /// Its length; zero: there was none.
    pub length: u64,
    /// The same as the data path left it.
    pub after: [u64; WORDS],
    /// Its length then.
    pub length_after: u64,
    /// Where the first frame of a run of many starts in memory.
    pub start: u64,
    /// Where the data path has let the last one start.
    pub start_after: u64,
    /// Frames that the data path left as they were: passed or dropped.
    pub unchanged: u64,
    /// Frames sent back to where they came from, changed.
    pub answered: u64,
    /// Frames that went to a backend of the service they were for, as they had to.
    pub delivered: u64,
    /// All others. The first of them is kept here.
    pub wrong: u64,
    /// The first wrong one, as the data path got it.
    pub wrong_before: [u64; WORDS],
    /// As it left it.
    pub wrong_after: [u64; WORDS],
    /// Its length before and, in the upper half, after.
    pub wrong_lengths: u64,
}

/// What a backend may get.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// The VIP of its service, from the first byte on.
    pub vip: [u32; 4],
    /// The address that its packets are for.
    pub address: [u32; 4],
    /// Address family: 4 or 6; zero: there is no such backend.
    pub family: u32,
    /// Whether nothing but the MAC addresses may change.
    pub is_untouched: u32,
}

/// The balancer's MAC address.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The MAC addresses of backends, but for the last byte.
pub const BACKEND_MAC: [u8; 5] = [2, 0, 0, 1, 0];

/// Names of maps and programs.
pub mod name {
    /// Array of [`super::Seed`].
    pub const SEEDS: &str = "SEEDS";
    /// `[Mutator; 1]`.
    pub const MUTATOR: &str = "MUTATOR";
    /// Array of [`super::Delivery`] by number.
    pub const DELIVERIES: &str = "DELIVERIES";
    /// Program array of one: what the driver calls.
    pub const TARGET: &str = "TARGET";
    /// The driver.
    pub const DRIVER: &str = "mutate";
}
