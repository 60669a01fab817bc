//! The state of one check, and what each verdict makes of it. No clock: the
//! time comes in.
//!
//! Three kinds of verdict speak against a backend, and lead to different
//! states. *Broken* (refused, wrong answer) leads down. *Busy* (slow,
//! overloaded, drain) is an answer of a living server that asks for no more
//! work. *Silence* (a time-out) may be either: of a server that was answering
//! it counts as overload first, which takes it out of the rotation at the same
//! moment as a refusal would and leaves its connections alone; it is down when
//! nothing but silence came for the longer `overloaded_limit`.

use std::time::{Duration, Instant};

use super::{HealthState, Verdict};

/// What the results of a check mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Consecutive passes that bring a check up; at least 1.
    pub rise: u32,
    /// Consecutive results against it that take it out of the rotation; at
    /// least 1.
    pub fall: u32,
    /// An overloaded check without any sign of life for so long is down.
    pub overloaded_limit: Duration,
    /// What a flapping check waits for at first: doubled each time.
    pub hold_down: Duration,
    /// What it waits for at most, and how long a check has to stay up not to
    /// be flapping. Zero: nobody waits.
    pub hold_down_limit: Duration,
}

/// What kind of thing a verdict says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Well,
    Busy,
    Silent,
    Broken,
}

/// The state of a check and what counts towards another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: HealthState,
    /// The last verdict that was one.
    pub last: Option<Verdict>,
    /// Consecutive passes.
    passes: u32,
    /// Consecutive results that aren't a pass.
    bad: u32,
    /// Consecutive answers of any kind that show life.
    alive: u32,
    /// Refusals and wrong answers since the last sign of life.
    broken: u32,
    /// First result without life since the last with it.
    lifeless_since: Option<Instant>,
    /// When it left the state up.
    left: Option<Instant>,
    /// When it came back to it.
    returned: Option<Instant>,
    /// Times in a row that it left soon after it had come back.
    flaps: u32,
}

/// Beyond this the doubled hold-down has reached any limit.
const MOST_FLAPS: u32 = 20;

impl Standing {
    /// The standing that an earlier daemon left behind.
    pub fn restored(state: HealthState) -> Self {
        Self {
            state,
            ..Self::default()
        }
    }

    /// The standing after one more result at `now`. The first result decides
    /// at once: after a start nobody wants to wait for `rise` intervals before
    /// traffic flows, nor to send clients to a server that has just refused.
    #[must_use]
    pub fn after(self, verdict: Verdict, rules: &Rules, now: Instant) -> Self {
        let kind = match verdict {
            Verdict::NotMade => return self,
            Verdict::Pass => Kind::Well,
            Verdict::Slow | Verdict::Overloaded | Verdict::Drain => Kind::Busy,
            Verdict::Timeout => Kind::Silent,
            Verdict::Refused | Verdict::WrongAnswer => Kind::Broken,
        };
        let mut next = self.counted(kind, now);
        next.last = Some(verdict);
        let state = next.decide(verdict, kind, rules, now);
        next.enter(state, rules, now)
    }

    /// Whether the results at hand speak for another state, so that the next
    /// ones matter soon.
    pub fn is_changing(&self, rules: &Rules) -> bool {
        match self.state {
            HealthState::Unknown => false,
            HealthState::Up => self.bad > 0,
            HealthState::Overloaded => {
                (self.passes > 0 && self.passes < rules.rise)
                    || (self.broken > 0 && self.broken < rules.fall)
            }
            HealthState::Down => self.alive > 0 && self.alive < rules.rise,
        }
    }

    /// Time that a check which passes has yet to wait, since it was flapping.
    pub fn held_for(&self, rules: &Rules, now: Instant) -> Duration {
        if self.flaps == 0 {
            return Duration::ZERO;
        }
        let factor = 1_u32 << self.flaps.min(MOST_FLAPS);
        let hold = rules
            .hold_down
            .saturating_mul(factor)
            .min(rules.hold_down_limit);
        self.left.map_or(Duration::ZERO, |left| {
            hold.saturating_sub(now.saturating_duration_since(left))
        })
    }

    fn counted(mut self, kind: Kind, now: Instant) -> Self {
        let well = kind == Kind::Well;
        let lives = well || kind == Kind::Busy;
        let count = |number: u32, more: bool| if more { number.saturating_add(1) } else { 0 };
        self.passes = count(self.passes, well);
        self.bad = count(self.bad, !well);
        self.alive = count(self.alive, lives);
        self.broken = match kind {
            Kind::Well | Kind::Busy => 0,
            // A gone host on the segment is silent or unreachable, by turns.
            Kind::Silent => self.broken,
            Kind::Broken => self.broken.saturating_add(1),
        };
        self.lifeless_since = match self.lifeless_since {
            _ if lives => None,
            None => Some(now),
            since => since,
        };
        self
    }

    fn decide(&self, verdict: Verdict, kind: Kind, rules: &Rules, now: Instant) -> HealthState {
        let is_broken = self.broken >= rules.fall;
        let may_rise = self.passes >= rules.rise && self.held_for(rules, now).is_zero();
        match self.state {
            HealthState::Unknown => match kind {
                Kind::Well => HealthState::Up,
                Kind::Busy => HealthState::Overloaded,
                // It was not answering before.
                Kind::Silent | Kind::Broken => HealthState::Down,
            },
            HealthState::Up if is_broken => HealthState::Down,
            // Whoever asks to be left alone is not asked again.
            HealthState::Up if verdict == Verdict::Drain || self.bad >= rules.fall => {
                HealthState::Overloaded
            }
            HealthState::Up => HealthState::Up,
            HealthState::Overloaded if is_broken || self.is_lifeless(rules, now) => {
                HealthState::Down
            }
            HealthState::Overloaded | HealthState::Down if may_rise => HealthState::Up,
            HealthState::Overloaded => HealthState::Overloaded,
            // It lives again; a flapping one that passes waits where it is.
            HealthState::Down if kind == Kind::Busy && self.alive >= rules.rise => {
                HealthState::Overloaded
            }
            HealthState::Down => HealthState::Down,
        }
    }

    fn is_lifeless(&self, rules: &Rules, now: Instant) -> bool {
        self.lifeless_since
            .is_some_and(|since| now.saturating_duration_since(since) >= rules.overloaded_limit)
    }

    fn enter(mut self, state: HealthState, rules: &Rules, now: Instant) -> Self {
        let was = std::mem::replace(&mut self.state, state);
        if was == state {
            return self;
        }
        if was == HealthState::Up {
            let is_flapping = self.returned.is_some_and(|returned| {
                now.saturating_duration_since(returned) < rules.hold_down_limit
            });
            self.flaps = if is_flapping {
                self.flaps.saturating_add(1).min(MOST_FLAPS)
            } else {
                0
            };
            self.left = Some(now);
        }
        if state == HealthState::Up && was != HealthState::Unknown {
            self.returned = Some(now);
        }
        self
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
