//! What the nodes decide together over the peer link, without a clock, a socket or
//! a thread.
//!
//! The driver tells how this node's virtual routers are ([`Peering::observe`]) and
//! what peers say, has [`Peering::tick`] decide, and does what
//! [`Peering::next_effect`] hands out, in that order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    machine::{Hold, State, Why},
    report::{Message, Report, RouterId},
};

mod choice;
mod handover;
mod view;

pub use handover::{DEAF, Moved, Outcome};
pub use view::{Order, View};

/// What a peer is called.
pub type PeerName = Arc<str>;

/// Reports are sent twice in the shortest advertisement interval, and at least so
/// often.
const REPORT_AT_LEAST: Duration = Duration::from_millis(100);

/// A report is believed for two advertisement intervals of whoever sent it, and not
/// for longer than this: at least four in a row have to be lost.
///
/// Whoever dies has reported before it. Its last advertisement is at most one
/// interval older than its death, and a backup claims three intervals and its skew
/// after that: two intervals after the death at the earliest. So what is believed
/// never delays that.
const BELIEVED_AT_MOST: Duration = Duration::from_millis(500);

/// What a lease is ended before a peer may claim: a jiffy at 100 Hz, which is the
/// coarsest clock that the data path can have.
const LEASE_MARGIN: Duration = Duration::from_millis(10);

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// With a virtual router.
    Order(RouterId, Order),
    /// Have a message sent to a peer, or to all.
    Tell(Option<PeerName>, Vec<u8>),
    /// A hand-over that somebody asked for has ended.
    Done(u64, Outcome),
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages of peers that make no sense.
    pub malformed: u64,
    /// Those of a hand-over that is over, or of an earlier daemon.
    pub stale: u64,
}

#[derive(Debug, Default)]
struct Peer {
    epoch: u64,
    sequence: u64,
    in_sync: bool,
    routers: BTreeMap<RouterId, (Report, Instant)>,
    took: Option<handover::Took>,
}

impl Peer {
    fn known(&self, id: RouterId) -> Option<&Report> {
        self.routers.get(&id).map(|(report, _)| report)
    }

    /// What it says, and how long that is believed.
    fn fresh(&self, id: RouterId, now: Instant) -> Option<(&Report, Instant)> {
        let (report, at) = self.routers.get(&id)?;
        let until = at.checked_add((report.interval * 2).min(BELIEVED_AT_MOST))?;
        (until > now).then_some((report, until))
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Peering {
    epoch: u64,
    sequence: u64,
    has_link: bool,
    in_sync: bool,
    /// Not to preempt before, unless in sync.
    wait_for_sync: Option<Instant>,
    views: Vec<View>,
    told: Vec<Report>,
    told_in_sync: bool,
    next_report: Option<Instant>,
    peers: BTreeMap<PeerName, Peer>,
    handovers: handover::HandOvers,
    effects: VecDeque<Effect>,
    counts: Counts,
}

impl Peering {
    /// `epoch` is a random number of this start of the daemon.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            sequence: 0,
            has_link: false,
            in_sync: false,
            wait_for_sync: None,
            views: Vec::new(),
            told: Vec::new(),
            told_in_sync: false,
            next_report: None,
            peers: BTreeMap::new(),
            handovers: handover::HandOvers::default(),
            effects: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Whether there is a peer link.
    pub fn link(&mut self, has_link: bool) {
        self.has_link = has_link;
        if !has_link {
            self.peers.clear();
        }
    }

    /// Until then this node doesn't preempt while it isn't in sync; `None`: it needs
    /// no sync.
    pub fn wait_for_sync(&mut self, until: Option<Instant>) {
        self.wait_for_sync = until;
    }

    /// Whether this node's tables are in sync.
    pub fn in_sync(&mut self, in_sync: bool) {
        self.in_sync = in_sync;
    }

    /// Counted since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Peers that say that they are active, and are believed.
    pub fn active_peers(&self, id: RouterId, now: Instant) -> usize {
        let reports = self.peers.values().filter_map(|peer| peer.fresh(id, now));
        reports.filter(|(r, _)| r.state == State::Active).count()
    }

    /// Whether this virtual router doesn't preempt for want of sync.
    pub fn waits_for_sync(&self, now: Instant) -> bool {
        !self.in_sync && self.wait_for_sync.is_some_and(|until| until > now)
    }

    /// These are the virtual routers of this node, as they are now.
    pub fn observe(&mut self, views: Vec<View>) {
        self.views = views;
    }

    /// A message of a peer has come.
    pub fn heard(&mut self, now: Instant, peer: &PeerName, bytes: &[u8]) {
        match Message::decode(bytes) {
            Some(Message::Reports {
                epoch,
                sequence,
                in_sync,
                routers,
            }) => {
                let known = self.peers.entry(Arc::clone(peer)).or_default();
                if known.epoch != epoch {
                    *known = Peer {
                        epoch,
                        ..Peer::default()
                    };
                } else if sequence < known.sequence {
                    self.counts.stale += 1;
                    return;
                }
                known.sequence = sequence;
                known.in_sync = in_sync;
                for report in routers {
                    let earlier = known.routers.insert(report.id, (report, now));
                    if earlier.is_some_and(|earlier| was_active_meanwhile(&report, earlier, now)) {
                        self.effects
                            .push_back(Effect::Order(report.id, Order::Healed));
                    }
                    let was_active = earlier.filter(|(was, _)| was.state == State::Active);
                    let has_ended = matches!(report.state, State::Fault | State::Initialize);
                    if let Some((was, _)) = was_active.filter(|_| has_ended) {
                        let order = Order::Left(was.source);
                        self.effects.push_back(Effect::Order(report.id, order));
                    }
                }
            }
            Some(message) => self.heard_of_hand_over(now, peer, message),
            None => self.counts.malformed += 1,
        }
    }

    /// Decides.
    pub fn tick(&mut self, now: Instant) {
        if self.wait_for_sync.is_some_and(|until| until <= now) {
            self.wait_for_sync = None;
        }
        self.report(now);
        self.follow_hand_overs(now);
        let mut orders = Vec::new();
        for view in &self.views {
            let hold = self.hold(view, now);
            let mut order = |order| orders.push(Effect::Order(view.report.id, order));
            order(Order::Restrain(self.is_restrained(view, now)));
            order(Order::Doubt(self.doubts(view, now)));
            order(Order::Hold(hold));
            order(Order::Lease(self.lease(view, now)));
        }
        self.effects.extend(orders);
    }

    /// When [`Self::tick`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let wait = self.wait_for_sync.filter(|_| !self.in_sync);
        let timers = [self.next_report, wait, self.handovers.poll_timeout()];
        timers.into_iter().flatten().min()
    }

    /// What to do next; `None` until something else happens.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn report(&mut self, now: Instant) {
        if !self.has_link || self.views.is_empty() && self.told.is_empty() {
            self.next_report = None;
            return;
        }
        // How long a state lasts is no news.
        let timeless = |report: &Report| Report {
            in_state: Duration::ZERO,
            ..*report
        };
        let reports: Vec<Report> = self
            .views
            .iter()
            .map(|view| timeless(&view.report))
            .collect();
        let has_changed = reports != self.told || self.in_sync != self.told_in_sync;
        if !has_changed && self.next_report.is_some_and(|next| next > now) {
            return;
        }
        let mut routers: Vec<Report> = self.views.iter().map(|view| view.report).collect();
        // Those that are gone are told once more.
        let ids: BTreeSet<RouterId> = routers.iter().map(|report| report.id).collect();
        let gone = self.told.iter().filter(|report| !ids.contains(&report.id));
        routers.extend(gone.map(|report| Report {
            state: State::Initialize,
            able: false,
            ..*report
        }));
        self.sequence += 1;
        for message in Message::reports(self.epoch, self.sequence, self.in_sync, &routers) {
            self.effects.push_back(Effect::Tell(None, message.encode()));
        }
        self.told = reports;
        self.told_in_sync = self.in_sync;
        let intervals = self.views.iter().map(|view| view.report.interval / 2);
        let period = intervals.chain([REPORT_AT_LEAST]).min();
        self.next_report = now.checked_add(period.unwrap_or(REPORT_AT_LEAST));
    }

    /// Whoever is believed to be active.
    fn active(&self, id: RouterId, now: Instant) -> Option<(&PeerName, &Report, Instant)> {
        let all = self.peers.iter();
        let all = all.filter_map(|(name, peer)| {
            let (report, until) = peer.fresh(id, now)?;
            Some((name, report, until))
        });
        all.filter(|(_, report, _)| report.state == State::Active)
            .max_by_key(|(_, _, until)| *until)
    }

    /// Silence on the segment alone is no reason to claim, and neither is any on a
    /// segment that this node doesn't reach.
    fn hold(&self, view: &View, now: Instant) -> Option<Hold> {
        if view.report.state != State::Backup {
            return None;
        }
        if view.is_silent
            && let Some((peer, _, until)) = self.active(view.report.id, now)
        {
            return Some(Hold {
                why: Why::PeerActive(Arc::clone(peer)),
                until: Some(until),
            });
        }
        let has_no_path = view.is_silent && !view.peer_left && !view.has_answered_since;
        let is_isolated = view.is_isolated() || (view.report.hosts > 0 && has_no_path);
        is_isolated.then_some(Hold {
            why: Why::Isolated,
            until: None,
        })
    }

    fn is_restrained(&self, view: &View, now: Instant) -> bool {
        let active = self.active(view.report.id, now);
        self.waits_for_sync(now) || active.is_some_and(|(_, report, _)| report.taken)
    }

    /// An advertisement is overdue, a backup doesn't hear this node, or whoever is
    /// active has no proof.
    fn doubts(&self, view: &View, now: Instant) -> bool {
        match view.report.state {
            State::Backup => {
                let active = self.active(view.report.id, now);
                view.doubts || active.is_some_and(|(_, r, _)| r.hosts > 0 && !r.proof)
            }
            State::Active => {
                let mut reports = self.peers.values().map(|p| p.fresh(view.report.id, now));
                reports.any(|report| report.is_some_and(|(report, _)| report.deaf))
            }
            State::Initialize | State::Fault => false,
        }
    }

    /// How much longer than three intervals a lease may be: until just before the
    /// best backup's skew is over, where all backups are known. A node that listens
    /// to the group may be there without ever having said a word, and have any
    /// priority; only those of `unicast_peers` can't be others.
    fn lease(&self, view: &View, now: Instant) -> Duration {
        let known: Vec<Report> = self
            .peers
            .values()
            .filter_map(|peer| peer.fresh(view.report.id, now))
            .map(|(report, _)| *report)
            .collect();
        let is_known = |address: &IpAddr| known.iter().any(|report| report.source == *address);
        if view.unicast.is_empty() || !view.unicast.iter().all(is_known) {
            return Duration::ZERO;
        }
        let best = known.iter().map(|report| report.priority).max();
        let skew = view.report.interval * (256 - u32::from(best.unwrap_or(u8::MAX))) / 256;
        skew.saturating_sub(LEASE_MARGIN)
    }
}

/// Whether a backup has been active since its earlier report, as far as that can be
/// told: a state that is younger than that report has another one before it.
fn was_active_meanwhile(report: &Report, (earlier, at): (Report, Instant), now: Instant) -> bool {
    /// What messages and clocks may differ by.
    const SLACK: Duration = Duration::from_millis(20);
    let is_younger = now.saturating_duration_since(at) > report.in_state + SLACK;
    report.state == State::Backup && (earlier.state == State::Active || is_younger)
}

#[cfg(test)]
mod tests;
