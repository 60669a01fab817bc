//! Members: one (service, backend) pair each, named by a 20-bit id.

/// Bits of a member id. Zero is nobody.
pub const MEMBER_BITS: u32 = 20;

/// One more than the highest member id.
pub const MEMBER_LIMIT: u32 = 1 << MEMBER_BITS;

/// What a member may be given, one word in its record.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberState(pub u64);

impl MemberState {
    const SERVES: u64 = 1;
    const TAKES_NEW: u64 = 2;
    const DOWN: u64 = 4;

    /// The id is not in use.
    pub const FREE: Self = Self(0);
    /// Serves and takes new flows.
    pub const UP: Self = Self(Self::SERVES | Self::TAKES_NEW);
    /// Serves its flows, takes no new ones.
    pub const DRAINING: Self = Self(Self::SERVES);
    /// Fails its checks; its flows are left alone for a while, since the alarm
    /// may be false.
    pub const FAILING: Self = Self(Self::SERVES | Self::DOWN);
    /// Serves nobody any more.
    pub const DEAD: Self = Self(Self::DOWN);

    /// Whether flows it already has stay with it.
    #[inline(always)]
    pub const fn serves(self) -> bool {
        self.0 & Self::SERVES != 0
    }

    /// Whether it may be given new flows.
    #[inline(always)]
    pub const fn takes_new(self) -> bool {
        self.0 & Self::TAKES_NEW != 0
    }

    /// Whether it fails its checks.
    #[inline(always)]
    pub const fn is_down(self) -> bool {
        self.0 & Self::DOWN != 0
    }
}
