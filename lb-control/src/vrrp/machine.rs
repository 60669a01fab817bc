//! One virtual router (RFC 9568 §6), without a clock, a socket or a thread.
//!
//! The driver tells what happens, executes what [`Machine::next_action`] hands
//! out, in that order, and sleeps until [`Machine::poll_timeout`]. What waits in
//! the socket is to be handed over before the time is: a late driver would else
//! claim what somebody else has.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::codec::{Advertisement, LEAVING, OWNER, Version};

mod cooperation;

pub use cooperation::{Hold, Why};

/// Advertisements that may be missed (RFC 9568 §6.1, `Active_Down_Interval`).
const MISSED: u32 = 3;

/// Lower priorities make an active one announce again, not more often than so.
const HEALED_AGAIN: Duration = Duration::from_secs(1);

/// How one virtual router of this node behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Version that is spoken.
    pub version: Version,
    /// Number of the virtual router, 1 to 255.
    pub vrid: u8,
    /// 1 to 254, or 255 for who has the addresses itself.
    pub priority: u8,
    /// Between two advertisements of this node.
    pub interval: Duration,
    /// Takes over from an active one of lower priority.
    pub preempt: bool,
    /// But not before so long after it was able to.
    pub preempt_delay: Duration,
    /// After its start it doesn't claim for so long.
    pub startup_delay: Duration,
    /// The virtual addresses, of one family.
    pub addresses: Vec<IpAddr>,
    /// Primary address of this node, which breaks ties.
    pub source: IpAddr,
}

/// State of a virtual router on this node (RFC 9568 §6.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not started, or stopped.
    #[default]
    Initialize,
    /// Somebody else is active, or may be.
    Backup,
    /// This node forwards.
    Active,
    /// Something that this node needs to forward is broken.
    Fault,
}

/// Why a state was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The node was started.
    Started,
    /// The node was stopped.
    Stopped,
    /// This node has the addresses itself.
    OwnsAddresses,
    /// Nobody advertised for long enough.
    Silence,
    /// Who was active has left.
    PeerLeft,
    /// Another virtual router of its sync group went there.
    Group,
    /// Somebody else advertises a higher priority, or the same from a higher
    /// address.
    Better(IpAddr),
    /// This node slept for so long that somebody else may be active.
    Overslept(Duration),
    /// It can't forward, in words.
    Broken(String),
    /// It can forward again.
    Mended,
    /// This node handed it over to that peer.
    HandedOver(Arc<str>),
    /// That peer handed it over to this node.
    TookOver(Arc<str>),
    /// A hand-over that this node believed in came to nothing.
    Cancelled,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let the data path own the addresses, or not any more.
    Own(bool),
    /// Send an advertisement with this priority.
    Advertise(u8),
    /// Tell the segment who has the addresses (gratuitous ARP, unsolicited NA).
    Announce,
    /// Tell of a change.
    Changed {
        /// The state it was.
        from: State,
        /// The state it is.
        to: State,
        /// Why.
        reason: Reason,
    },
}

/// What is odd about an advertisement that was taken nevertheless, or wasn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// It is of the other version: thrown away.
    Version,
    /// Its interval is not this node's: in version 2 thrown away (RFC 3768 §7.1).
    Interval,
    /// Its addresses are not this node's.
    Addresses,
    /// This node has the addresses itself and another one does, too: thrown away
    /// (RFC 9568 §7.1).
    TwoOwners,
}

/// The machine of one virtual router.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    /// Present priority; trackers lower it.
    priority: u8,
    /// `Active_Adver_Interval`: that of who is active.
    active_interval: Duration,
    /// `Adver_Timer` when active, `Active_Down_Timer` as a backup.
    timer: Option<Instant>,
    last_sent: Option<Instant>,
    /// Not to claim before.
    hold_until: Option<Instant>,
    /// Not to preempt before.
    preempt_from: Option<Instant>,
    /// Whoever was last heard to be active.
    active: Option<(IpAddr, u8)>,
    /// The last thing heard was that somebody leaves.
    peer_left: bool,
    /// When an active one was last heard on the segment, whatever its priority; at
    /// first when it began to listen.
    heard: Option<Instant>,
    /// When an active one last announced for having heard a lower priority.
    healed: Option<Instant>,
    /// What is agreed with the other nodes by the peer link.
    agreed: cooperation::Agreed,
    actions: VecDeque<Action>,
}

impl Machine {
    /// Before its start.
    pub fn new(settings: Settings) -> Self {
        Self {
            state: State::Initialize,
            priority: settings.priority,
            active_interval: settings.interval,
            timer: None,
            last_sent: None,
            hold_until: None,
            preempt_from: None,
            active: None,
            peer_left: false,
            heard: None,
            healed: None,
            agreed: cooperation::Agreed::default(),
            actions: VecDeque::new(),
            settings,
        }
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Its present priority.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whoever was last heard to be active, with its priority.
    pub fn active_peer(&self) -> Option<(IpAddr, u8)> {
        self.active
    }

    /// When [`Self::timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timer
    }

    /// What to do next; `None` until something else happens.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Starts it (RFC 9568 §6.4.1).
    pub fn start(&mut self, now: Instant) {
        if self.state != State::Initialize {
            return;
        }
        self.hold_until = now.checked_add(self.settings.startup_delay);
        self.able(now, Reason::Started);
    }

    /// Stops it: an active one says that it leaves (§6.4.2, §6.4.3).
    pub fn stop(&mut self) {
        self.give_up(State::Initialize, Reason::Stopped);
    }

    /// The node can't forward any more, for this reason in words.
    pub fn broken(&mut self, why: &str) {
        if matches!(self.state, State::Backup | State::Active) {
            self.give_up(State::Fault, Reason::Broken(why.to_owned()));
        }
    }

    /// The node can forward again.
    pub fn mended(&mut self, now: Instant) {
        if self.state == State::Fault {
            self.able(now, Reason::Mended);
        }
    }

    /// Trackers ask for another priority. An active one tells of it at once.
    pub fn set_priority(&mut self, priority: u8) {
        let new = if self.settings.priority == OWNER {
            OWNER
        } else {
            priority.clamp(1, OWNER - 1)
        };
        if std::mem::replace(&mut self.priority, new) != new && self.state == State::Active {
            self.actions.push_back(Action::Advertise(new));
        }
    }

    /// An advertisement has come, from this primary address. What is odd about it
    /// is told; it may have been thrown away for that.
    pub fn received(
        &mut self,
        now: Instant,
        advertisement: &Advertisement,
        from: IpAddr,
    ) -> Vec<Oddity> {
        let mut odd = Vec::new();
        if advertisement.version != self.settings.version {
            return vec![Oddity::Version];
        }
        if self.settings.priority == OWNER && advertisement.priority == OWNER {
            return vec![Oddity::TwoOwners];
        }
        if advertisement.interval != self.settings.interval {
            odd.push(Oddity::Interval);
            if self.settings.version == Version::V2 {
                return odd;
            }
        }
        let is_known = |address| self.settings.addresses.contains(address);
        if advertisement.addresses.len() != self.settings.addresses.len()
            || !advertisement.addresses.iter().all(is_known)
        {
            odd.push(Oddity::Addresses);
        }
        self.wake(now);
        if self.is_deaf_to(now, from) {
            return odd;
        }
        match self.state {
            State::Initialize | State::Fault => {}
            State::Backup => self.heard_as_backup(now, advertisement, from),
            State::Active => self.heard_as_active(now, advertisement, from),
        }
        odd
    }

    /// The time is now `now`, and everything that came before it was handed over.
    pub fn timeout(&mut self, now: Instant) {
        let Some(due) = self.timer.filter(|due| *due <= now) else {
            return;
        };
        self.wake(now);
        let late = now.saturating_duration_since(due);
        match self.state {
            State::Initialize | State::Fault => self.timer = None,
            State::Backup if self.timer.is_some_and(|due| due > now) => {}
            State::Backup if late > self.down_interval() => {
                // Who was active may have spoken into a full socket meanwhile.
                self.listen(now, self.down_interval());
            }
            State::Backup => self.claim(now),
            State::Active => self.advertise(now),
        }
    }

    /// An active one that was silent for so long that a backup may have claimed
    /// lets go, before anything else.
    fn wake(&mut self, now: Instant) {
        let silent = self
            .last_sent
            .map(|sent| now.saturating_duration_since(sent))
            .filter(|_| self.state == State::Active);
        if let Some(silent) = silent.filter(|s| *s >= self.settings.interval * MISSED) {
            self.become_backup(now, Reason::Overslept(silent), false);
        }
    }

    /// As if started, or mended: §6.4.1.
    fn able(&mut self, now: Instant, reason: Reason) {
        if self.priority == OWNER && !self.agreed.restrained {
            self.become_active(now, Reason::OwnsAddresses);
            return;
        }
        self.heard = Some(now);
        self.active_interval = self.settings.interval;
        self.preempt_from = now.checked_add(self.settings.preempt_delay);
        self.change(State::Backup, reason);
        self.listen(now, self.down_interval());
    }

    /// §6.4.2, steps (420) to (480): what a backup hears.
    fn heard_as_backup(&mut self, now: Instant, advertisement: &Advertisement, from: IpAddr) {
        self.heard = Some(now);
        if advertisement.priority == LEAVING {
            self.active = None;
            self.peer_left = true;
            self.listen(now, self.skew());
            return;
        }
        let is_time = self.preempt_from.is_none_or(|from| from <= now);
        let may_preempt = self.preempts() && is_time;
        if may_preempt && advertisement.priority < self.priority {
            // Thrown away: the timer goes on, and then this node claims.
            return;
        }
        self.follow(now, advertisement, from);
    }

    /// §6.4.3, steps (700) to (770): what an active one hears.
    fn heard_as_active(&mut self, now: Instant, advertisement: &Advertisement, from: IpAddr) {
        if self.is_handing_over_to(from) {
            // It has taken over: that says as much as its answer.
            self.handed_over(now);
            self.follow(now, advertisement, from);
            return;
        }
        if advertisement.priority == LEAVING {
            self.advertise(now);
            return;
        }
        let is_better = advertisement.priority > self.priority
            || (advertisement.priority == self.priority && from > self.settings.source);
        if is_better {
            self.become_backup(now, Reason::Better(from), true);
            self.follow(now, advertisement, from);
        } else {
            // New in RFC 9568: at once, so that bridges learn where the address is.
            self.advertise(now);
            self.healed(now);
        }
    }

    /// Waits for the next advertisement of whoever sent this one.
    fn follow(&mut self, now: Instant, advertisement: &Advertisement, from: IpAddr) {
        self.active = Some((from, advertisement.priority));
        self.peer_left = false;
        self.follows(from);
        self.active_interval = advertisement.interval;
        self.listen(now, self.down_interval());
    }

    fn listen(&mut self, now: Instant, time: Duration) {
        self.timer = now.checked_add(time);
    }

    /// `Skew_Time` (§6.1; RFC 3768 §6.1).
    pub fn skew(&self) -> Duration {
        let interval = match self.settings.version {
            Version::V2 => Duration::from_secs(1),
            Version::V3 => self.active_interval,
        };
        interval * (256 - u32::from(self.priority)) / 256
    }

    /// `Active_Down_Interval` (§6.1).
    pub fn down_interval(&self) -> Duration {
        self.active_interval * MISSED + self.skew()
    }

    fn claim(&mut self, now: Instant) {
        if let Some(until) = self.hold_until.filter(|until| *until > now) {
            self.timer = Some(until);
            return;
        }
        if self.is_kept_from_claiming(now) {
            return;
        }
        let reason = if self.peer_left {
            Reason::PeerLeft
        } else {
            Reason::Silence
        };
        self.become_active(now, reason);
    }

    /// §6.4.2, steps (375) to (405). The data path owns the addresses before
    /// anybody is told so.
    fn become_active(&mut self, now: Instant, reason: Reason) {
        self.active = None;
        self.peer_left = false;
        self.hold_until = None;
        self.change(State::Active, reason);
        self.actions.push_back(Action::Own(true));
        self.advertise(now);
        self.actions.push_back(Action::Announce);
    }

    /// What this node sent last is superseded, or too long ago.
    fn become_backup(&mut self, now: Instant, reason: Reason, heard: bool) {
        self.actions.push_back(Action::Own(false));
        self.change(State::Backup, reason);
        self.last_sent = None;
        if !heard {
            self.active_interval = self.settings.interval;
        }
        self.listen(now, self.down_interval());
    }

    /// The data path has let go before anybody is told so.
    fn give_up(&mut self, state: State, reason: Reason) {
        if self.state == State::Active {
            self.actions.push_back(Action::Own(false));
            self.actions.push_back(Action::Advertise(LEAVING));
        }
        self.timer = None;
        self.last_sent = None;
        self.active = None;
        if self.state != state {
            self.change(state, reason);
        }
    }

    fn advertise(&mut self, now: Instant) {
        self.actions.push_back(Action::Advertise(self.priority));
        self.last_sent = Some(now);
        self.listen(now, self.settings.interval);
    }

    fn change(&mut self, to: State, reason: Reason) {
        let from = std::mem::replace(&mut self.state, to);
        self.agreed.forget_for(to);
        self.actions.push_back(Action::Changed { from, to, reason });
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "simulation_tests.rs"]
mod simulation;
