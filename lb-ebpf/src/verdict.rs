//! What becomes of a packet.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use aya_log_ebpf::debug;
use lb_common::counter::DropReason;

use crate::{maps, stats};

/// Row of counters for packets that belong to no service.
pub const NO_SERVICE: u32 = 0;

/// An action beside the kernel's: another program of the data path takes over.
const HAND_OVER: u32 = 0x80;

/// What becomes of a packet: pass, bounce, redirect, drop, or another program
/// decides.
///
/// One word instead of an enum: the unused payload of a variant would be an
/// undefined register to the verifier wherever the variants meet. The action
/// in the lowest byte, the drop's reason in the next, the drop's service, the
/// interface or the program's place in the upper half.
#[derive(Clone, Copy)]
pub struct Verdict(u64);

impl Verdict {
    /// The kernel gets it.
    pub const PASS: Self = Self(xdp_action::XDP_PASS as u64);
    /// Back out of the interface it came in by.
    pub const BOUNCE: Self = Self(xdp_action::XDP_TX as u64);

    /// Nobody gets it, and nobody is told: it is no traffic.
    pub const LOST: Self = Self(xdp_action::XDP_ABORTED as u64);

    /// Out of interface `ifindex`, for a packet that came in by `ingress`.
    #[inline(always)]
    pub const fn send(ifindex: u32, ingress: u32) -> Self {
        if ifindex == ingress {
            Self::BOUNCE
        } else {
            Self(xdp_action::XDP_REDIRECT as u64 | (ifindex as u64) << 32)
        }
    }

    /// Nobody gets it. `reason` is a `DropReason`'s number.
    #[inline(always)]
    pub const fn drop(service: u32, reason: u32) -> Self {
        Self(xdp_action::XDP_DROP as u64 | (reason as u64 & 0xff) << 8 | (service as u64) << 32)
    }

    /// The program at `place` in `PROGRAMS` goes on with what was left in
    /// `WORK`.
    #[inline(always)]
    pub const fn hand_over(place: u32) -> Self {
        Self(HAND_OVER as u64 | (place as u64) << 32)
    }

    /// Hands the packet over, or counts a drop, sets up a redirection, and
    /// gives the action.
    #[inline(always)]
    pub fn finish(self, ctx: &XdpContext) -> u32 {
        let mut this = self;
        if self.0 as u32 & 0xff == HAND_OVER {
            maps::hand_over(ctx, (self.0 >> 32) as u32);
            // Comes back only where there is no such program.
            this = Self::drop(NO_SERVICE, DropReason::Inconsistent as u32);
        }
        this.act(ctx)
    }

    #[inline(always)]
    fn act(self, ctx: &XdpContext) -> u32 {
        let action = self.0 as u32 & 0xff;
        let upper = (self.0 >> 32) as u32;
        if action == xdp_action::XDP_DROP {
            let reason = self.0 as u32 >> 8 & 0xff;
            stats::dropped(upper, reason);
            // Gone from what the kernel runs unless the log is switched on. The
            // controller gives the numbers their names.
            debug!(ctx, "drop {} {}", upper, reason);
        } else if action == xdp_action::XDP_REDIRECT {
            // SAFETY: no preconditions. Without flags the result is
            // XDP_REDIRECT, or XDP_ABORTED where it is refused.
            return unsafe { bpf_redirect(upper, 0) as u32 };
        }
        action
    }
}
