//! The first word of a binding: what it is used for.

use crate::track::Kind;

/// What a binding is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Belongs to no pool address, or to one that is being removed.
    Absent,
    /// In the ring of free ports, or just taken out of it.
    Free,
    /// Being written. Becomes used or rests.
    Claimed,
    /// Stands for a flow.
    Used,
    /// Stood for a flow a short while ago.
    Resting,
}

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// The backend's.
    Backend,
}

/// The first word of a binding: ticks when it was last seen (32 bits), a count
/// of its uses (16), flags (8), what it is used for (8), from the highest bit
/// down. Zero is absent.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindingState(pub u64);

impl BindingState {
    const FREE: u64 = 1;
    const CLAIMED: u64 = 2;
    const USED: u64 = 3;
    const RESTING: u64 = 4;
    const USE_MASK: u64 = 0xff;

    const OPEN: u64 = 1 << 8;
    const CLIENT_FIN: u64 = 1 << 9;
    const BACKEND_FIN: u64 = 1 << 10;
    const RST: u64 = 1 << 11;
    const FLAGS: u64 = 0xff00;

    const USES_SHIFT: u32 = 16;
    const USES_MASK: u64 = 0xffff << Self::USES_SHIFT;
    const TICKS_SHIFT: u32 = 32;

    /// What it is used for.
    pub const fn usage(self) -> Use {
        match self.0 & Self::USE_MASK {
            Self::FREE => Use::Free,
            Self::CLAIMED => Use::Claimed,
            Self::USED => Use::Used,
            Self::RESTING => Use::Resting,
            _ => Use::Absent,
        }
    }

    /// Whether a flow has it.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.0 & Self::USE_MASK == Self::USED
    }

    /// Whether it is free.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 & Self::USE_MASK == Self::FREE
    }

    /// Whether it is being written.
    #[inline(always)]
    pub const fn is_claimed(self) -> bool {
        self.0 & Self::USE_MASK == Self::CLAIMED
    }

    /// Whether both sides are done, or the connection was broken off.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        let fins = Self::CLIENT_FIN | Self::BACKEND_FIN;
        self.0 & Self::RST != 0 || self.0 & fins == fins
    }

    /// Whether the client sent more than a SYN.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    /// Ticks since it was last seen; for a resting one, since it ended.
    #[inline(always)]
    pub const fn age(self, now_ticks: u32) -> u32 {
        now_ticks.wrapping_sub((self.0 >> Self::TICKS_SHIFT) as u32)
    }

    /// The count of its uses, in place.
    #[inline(always)]
    pub(super) const fn uses(self) -> u64 {
        self.0 & Self::USES_MASK
    }

    /// Whether both are of one flow's use.
    #[inline(always)]
    pub const fn is_same_use(self, other: Self) -> bool {
        (self.0 ^ other.0) & (Self::USES_MASK | Self::USE_MASK) == 0
    }

    #[inline(always)]
    const fn stamped(self, now_ticks: u32) -> u64 {
        self.0 & 0xffff_ffff | (now_ticks as u64) << Self::TICKS_SHIFT
    }

    /// The same binding put to another use, without flags.
    #[inline(always)]
    const fn put_to(self, usage: u64, now_ticks: u32) -> Self {
        Self(self.0 & Self::USES_MASK | (now_ticks as u64) << Self::TICKS_SHIFT | usage)
    }

    /// Free from `now_ticks` on.
    #[must_use]
    pub const fn freed(self, now_ticks: u32) -> Self {
        self.put_to(Self::FREE, now_ticks)
    }

    /// Without a pool address.
    #[must_use]
    pub const fn removed(self) -> Self {
        self.put_to(0, 0)
    }

    /// Claimed for a flow whose first packet is of this kind.
    #[inline(always)]
    #[must_use]
    pub const fn claimed(self, now_ticks: u32, kind: Kind) -> Self {
        let uses = self.0.wrapping_add(1 << Self::USES_SHIFT) & Self::USES_MASK;
        let flags = match kind {
            Kind::Syn => 0,
            Kind::Data | Kind::Datagram => Self::OPEN,
            Kind::Fin => Self::OPEN | Self::CLIENT_FIN,
            Kind::Rst => Self::OPEN | Self::RST,
        };
        Self(uses | (now_ticks as u64) << Self::TICKS_SHIFT | flags | Self::CLAIMED)
    }

    /// A claimed one whose flow has it.
    #[inline(always)]
    #[must_use]
    pub const fn used(self) -> Self {
        Self(self.0 & !Self::USE_MASK | Self::USED)
    }

    /// What was seen of its flow: bits for another node's
    /// [`Self::imported`].
    pub const fn flags(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// A flow's, of which another node saw that, then.
    #[must_use]
    pub const fn imported(self, flags: u8, seen_ticks: u32) -> Self {
        let flags =
            (flags as u64) << 8 & (Self::OPEN | Self::CLIENT_FIN | Self::BACKEND_FIN | Self::RST);
        Self(
            self.0 & Self::USES_MASK
                | (seen_ticks as u64) << Self::TICKS_SHIFT
                | flags
                | Self::USED,
        )
    }

    /// At rest from `now_ticks` on.
    #[inline(always)]
    #[must_use]
    pub const fn ended(self, now_ticks: u32) -> Self {
        self.put_to(Self::RESTING, now_ticks)
    }

    /// After another packet. A SYN opens a closing one anew; data after an RST
    /// takes that back: whoever did break off answers with another.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self, now_ticks: u32, side: Side, kind: Kind) -> Self {
        let word = self.stamped(now_ticks);
        let is_client = matches!(side, Side::Client);
        Self(match kind {
            Kind::Syn if is_client && self.is_closing() => word & !Self::FLAGS,
            Kind::Syn => word,
            Kind::Data | Kind::Datagram if is_client => word & !Self::RST | Self::OPEN,
            Kind::Data | Kind::Datagram => word & !Self::RST,
            Kind::Fin if is_client => word | Self::OPEN | Self::CLIENT_FIN,
            Kind::Fin => word | Self::BACKEND_FIN,
            Kind::Rst => word | Self::RST,
        })
    }

    /// Whether its flow is over for want of packets. A claimed one that nobody
    /// went on with is, too.
    pub const fn has_expired(self, now_ticks: u32, limits: Limits) -> bool {
        let limit = if self.is_claimed() {
            limits.half_ticks
        } else if self.is_closing() {
            limits.closing_ticks
        } else if self.is_open() {
            limits.open_ticks
        } else {
            limits.half_ticks
        };
        // A packet may have come since the time was read.
        let age = self.age(now_ticks);
        age > limit && age < 1 << 31
    }
}

/// After how many ticks without a packet a binding ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// An open one.
    pub open_ticks: u32,
    /// One of which only a SYN was seen.
    pub half_ticks: u32,
    /// One that both sides closed.
    pub closing_ticks: u32,
}
