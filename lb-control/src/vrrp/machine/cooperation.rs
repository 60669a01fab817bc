//! What the RFC doesn't have: sync groups, a backup that waits although nobody
//! advertises, and hand-overs.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Action, HEALED_AGAIN, LEAVING, Machine, Reason, State};

/// Why a backup doesn't claim although nobody advertises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another one of its sync group could not become active.
    Group,
    /// This peer says by the peer link that it is active.
    PeerActive(Arc<str>),
    /// No reference host answers: its own cable may be the broken one.
    Isolated,
}

/// A backup is not to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Why.
    pub why: Why,
    /// To be decided anew then; `None`: after another down interval.
    pub until: Option<Instant>,
}

/// It is about to hand over.
#[derive(Debug)]
struct Handing {
    peer: Arc<str>,
    /// The peer's address.
    to: IpAddr,
    /// It preempts as before.
    may_return: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    held: Option<Hold>,
    /// It would have claimed, but for this.
    waits: Option<Why>,
    /// It doesn't preempt.
    pub(super) restrained: bool,
    /// It handed over to who has this address.
    handed_to: Option<IpAddr>,
    /// And doesn't preempt.
    yielded: Option<IpAddr>,
    handing: Option<Handing>,
    /// It was handed over to this node, which nobody preempts.
    taken: bool,
    /// Not to listen to this address until then.
    deaf: Option<(IpAddr, Instant)>,
}

impl Agreed {
    /// What is over with a change of state.
    pub(super) fn forget_for(&mut self, to: State) {
        self.handing = None;
        self.waits = None;
        if to != State::Backup {
            self.handed_to = None;
            self.yielded = None;
        }
        if to != State::Active {
            self.taken = false;
            self.deaf = None;
        }
    }
}

impl Machine {
    /// Its sync group is a backup: an active one leaves, and listens.
    pub fn yield_with_group(&mut self, now: Instant) {
        if self.state != State::Active {
            return;
        }
        self.actions.push_back(Action::Own(false));
        self.actions.push_back(Action::Advertise(LEAVING));
        self.change(State::Backup, Reason::Group);
        self.last_sent = None;
        self.active_interval = self.settings.interval;
        self.listen(now, self.down_interval());
    }

    /// Whether it keeps its sync group from becoming active.
    pub fn is_in_the_way(&self) -> bool {
        match self.state {
            State::Backup => self.active.is_some() || self.is_held_itself(),
            State::Initialize | State::Fault => true,
            State::Active => false,
        }
    }

    /// Its sync group is active: a backup claims.
    pub fn claim_with_group(&mut self, now: Instant) {
        if self.state == State::Backup {
            self.become_active(now, Reason::Group);
        }
    }

    /// A backup whose timer fires waits as long as it is held. One that has waited
    /// for a peer or a reference host claims when it need not any more.
    pub fn hold(&mut self, now: Instant, held: Option<Hold>) {
        if self.state == State::Backup && held.is_none() {
            match self.agreed.waits {
                Some(Why::Isolated) => {
                    self.agreed.waits = None;
                    self.not_later_than(now, Duration::ZERO);
                }
                // Whoever is active instead of it has reported by then; unless the
                // time is over for which the report was good.
                Some(Why::PeerActive(_)) => {
                    self.agreed.waits = None;
                    if self.timer.is_none_or(|due| due > now) {
                        self.listen(now, self.active_interval * 2);
                    }
                }
                Some(Why::Group) | None => {}
            }
        }
        self.agreed.held = held;
    }

    /// Why it doesn't claim; `None` if it has no reason to claim.
    pub fn waits(&self) -> Option<&Why> {
        self.agreed.waits.as_ref()
    }

    /// Whether it doesn't preempt for now, whatever the settings say.
    pub fn restrain(&mut self, restrained: bool) {
        self.agreed.restrained = restrained;
    }

    /// Whether it takes over from an active one of lower priority.
    pub fn preempts(&self) -> bool {
        self.settings.preempt && !self.agreed.restrained && self.agreed.yielded.is_none()
    }

    /// Whether it handed over, and doesn't preempt for that.
    pub fn has_handed_over(&self) -> bool {
        self.agreed.yielded.is_some()
    }

    /// Whether it is a backup because it handed over.
    pub fn is_handed_over(&self) -> bool {
        self.agreed.handed_to.is_some()
    }

    /// Whether it was handed over to this node.
    pub fn has_taken(&self) -> bool {
        self.agreed.taken
    }

    /// Whether the last thing heard was that somebody leaves.
    pub fn peer_left(&self) -> bool {
        self.peer_left
    }

    /// When an active one was last heard on the segment.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether nobody was heard on the segment for a down interval.
    pub fn is_silent(&self, now: Instant) -> bool {
        let silence = self.heard.map(|at| now.saturating_duration_since(at));
        silence.is_none_or(|silence| silence >= self.down_interval())
    }

    /// When an advertisement that a backup waits for is overdue: there is a doubt.
    pub fn doubts_from(&self) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.state == State::Backup)?;
        heard.checked_add(self.active_interval * 2)
    }

    /// Who was active at `from` said by the peer link that it isn't any more: as if
    /// it had advertised priority 0, unless another one is active.
    pub fn left(&mut self, now: Instant, from: IpAddr) {
        let is_it = self.active.is_none_or(|(active, _)| active == from);
        if self.state == State::Backup && is_it {
            self.active = None;
            self.peer_left = true;
            self.agreed.waits = None;
            self.agreed.held = None;
            self.not_later_than(now, self.skew());
        }
    }

    /// A hand-over to this peer begins. It changes nothing yet, but that the first
    /// advertisement of that address ends it.
    pub fn begin_hand_over(&mut self, peer: &Arc<str>, to: IpAddr, may_return: bool) {
        if self.state == State::Active {
            self.agreed.handing = Some(Handing {
                peer: Arc::clone(peer),
                to,
                may_return,
            });
        }
    }

    /// The peer has become active: lets go without a word, and listens.
    pub fn handed_over(&mut self, now: Instant) {
        if self.state != State::Active {
            return;
        }
        if let Some(handing) = self.agreed.handing.take() {
            self.become_backup(now, Reason::HandedOver(handing.peer), false);
            self.heard = Some(now);
            self.agreed.handed_to = Some(handing.to);
            self.agreed.yielded = (!handing.may_return).then_some(handing.to);
        }
    }

    /// The hand-over came to nothing.
    pub fn keep(&mut self, now: Instant) {
        if self.state == State::Active && self.agreed.handing.take().is_some() {
            // Whoever believes to have taken over hears that it hasn't.
            self.advertise(now);
        }
    }

    /// It is handed over by this peer, whose advertisements may still be under way
    /// for `deaf`. With `may_return` it may preempt later.
    pub fn take_over(
        &mut self,
        now: Instant,
        peer: &Arc<str>,
        from: IpAddr,
        deaf: Duration,
        may_return: bool,
    ) {
        if self.state == State::Backup {
            self.become_active(now, Reason::TookOver(Arc::clone(peer)));
            self.agreed.taken = !may_return;
            self.agreed.deaf = now.checked_add(deaf).map(|until| (from, until));
        }
    }

    /// The hand-over that it believed in came to nothing: the other one is active.
    pub fn let_go(&mut self, now: Instant) {
        if self.state == State::Active {
            self.become_backup(now, Reason::Cancelled, false);
            self.heard = Some(now);
        }
    }

    pub(super) fn is_handing_over_to(&self, from: IpAddr) -> bool {
        let to = self.agreed.handing.as_ref().map(|handing| handing.to);
        to == Some(from)
    }

    pub(super) fn is_deaf_to(&self, now: Instant, from: IpAddr) -> bool {
        let deaf = self.agreed.deaf;
        deaf.is_some_and(|(to, until)| to == from && until > now)
    }

    /// Whether it is held by something else than its sync group.
    pub(super) fn is_held_itself(&self) -> bool {
        let held = self.agreed.held.as_ref();
        held.is_some_and(|held| held.why != Why::Group)
    }

    /// A timer that fired while it is held is set anew.
    pub(super) fn is_kept_from_claiming(&mut self, now: Instant) -> bool {
        let Some(held) = &self.agreed.held else {
            return false;
        };
        self.agreed.waits = Some(held.why.clone());
        match held.until.filter(|until| *until > now) {
            Some(until) => self.timer = Some(until),
            None => self.listen(now, self.down_interval()),
        }
        true
    }

    /// Somebody is heard to be active. A third one ends what was handed over.
    pub(super) fn follows(&mut self, from: IpAddr) {
        self.agreed.waits = None;
        if self.agreed.yielded.is_some_and(|to| to != from) {
            self.agreed.yielded = None;
        }
    }

    /// Another node was active as well: hosts may believe that one.
    pub fn healed(&mut self, now: Instant) {
        let again = self.healed.and_then(|last| last.checked_add(HEALED_AGAIN));
        if self.state == State::Active && again.is_none_or(|again| again <= now) {
            self.healed = Some(now);
            self.actions.push_back(Action::Announce);
        }
    }

    fn not_later_than(&mut self, now: Instant, time: Duration) {
        let due = now.checked_add(time);
        self.timer = self.timer.into_iter().chain(due).min();
    }
}

#[cfg(test)]
#[path = "cooperation_tests.rs"]
mod tests;
