//! Hand-overs: the next one becomes active before this one lets go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Effect, Order, PeerName, Peering, choice::named};
use crate::vrrp::{
    machine::State,
    report::{HandOverId, Message, Refusal, RouterId},
};

mod improve;

/// Whoever is asked has to answer within this time.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// It is asked again: in the beginning after half of this.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// For so long whoever took over doesn't listen to advertisements of the other one:
/// by then that has let go, or given up.
pub const DEAF: Duration = Duration::from_millis(150);

/// An active one without proof waits for so long before it hands over: by then a
/// peer on the same quiet segment has found out that it has none either.
const PEER_PROVES_WITHIN: Duration = Duration::from_millis(40);

/// What happens by itself is not tried more often than so.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A virtual router and the peer that has it now.
pub type Moved = (RouterId, PeerName);

/// What became of what was asked for: what has moved, and what has not, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What has moved.
    pub moved: Vec<Moved>,
    /// Why something has not.
    pub errors: Vec<String>,
}

/// What this node last took from a peer.
#[derive(Clone, Debug)]
pub(super) struct Took {
    number: u64,
    answer: Option<Message>,
    routers: Vec<RouterId>,
}

#[derive(Debug, Default)]
pub(super) struct HandOvers {
    number: u64,
    giving: Vec<Giving>,
    /// Hand-overs of one request, by its token.
    requests: BTreeMap<u64, Outcome>,
    tried: BTreeMap<RouterId, Instant>,
    /// Better than who is active though both have proof, since when.
    better: BTreeMap<RouterId, Instant>,
    /// Active without proof, since when.
    isolated: BTreeMap<RouterId, Instant>,
}

#[derive(Debug)]
struct Giving {
    id: HandOverId,
    peer: PeerName,
    routers: Vec<RouterId>,
    token: Option<u64>,
    message: Vec<u8>,
    again: Option<Instant>,
    deadline: Option<Instant>,
}

impl HandOvers {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let timers = self.giving.iter().flat_map(|g| [g.again, g.deadline]);
        let isolated = self.isolated.iter().map(|(id, since)| {
            let tried = self.tried.get(id).and_then(|t| t.checked_add(TRY_AGAIN));
            tried.max(since.checked_add(PEER_PROVES_WITHIN))
        });
        timers.chain(isolated).flatten().min()
    }

    fn is_giving(&self, id: RouterId) -> bool {
        self.giving
            .iter()
            .any(|giving| giving.routers.contains(&id))
    }
}

impl Peering {
    /// Hands over what is active here and has one of these VRIDs, all of it without
    /// any, with its sync groups; to this peer, or to the best. [`Effect::Done`] has
    /// the outcome with this token. `leaving`: this node ends.
    pub fn hand_over(
        &mut self,
        now: Instant,
        vrids: &[u8],
        to: Option<&str>,
        leaving: bool,
        token: u64,
    ) {
        let mut outcome = Outcome::default();
        let active = self
            .views
            .iter()
            .filter(|v| v.report.state == State::Active);
        let active: Vec<RouterId> = active.map(|view| view.report.id).collect();
        for vrid in vrids {
            if !active.iter().any(|id| id.vrid == *vrid) {
                let words = format!("virtual router {vrid} is not active on this node");
                outcome.errors.push(words);
            }
        }
        if active.is_empty() && vrids.is_empty() {
            let words = "no virtual router is active on this node";
            outcome.errors.push(words.into());
        }
        let mut by_peer = BTreeMap::<PeerName, BTreeSet<RouterId>>::new();
        let wanted = active
            .iter()
            .filter(|id| vrids.is_empty() || vrids.contains(&id.vrid));
        for id in wanted {
            if self.handovers.is_giving(*id) {
                let words = format!("{} is being handed over already", named(*id));
                outcome.errors.push(words);
                continue;
            }
            let unit = self.unit(*id);
            match self.successor(now, &unit, to, false) {
                Ok(peer) => by_peer.entry(peer).or_default().extend(unit),
                Err(why) => outcome.errors.push(format!("{}: {why}", named(*id))),
            }
        }
        if vrids
            .iter()
            .any(|vrid| !active.iter().any(|id| id.vrid == *vrid))
        {
            // All of it or nothing.
            by_peer.clear();
        }
        self.handovers.requests.insert(token, outcome);
        for (peer, routers) in by_peer {
            let routers = routers.into_iter().collect();
            self.give(now, peer, routers, leaving, Some(token));
        }
        self.answer_requests();
    }

    /// Whether something is being handed over.
    pub fn is_handing_over(&self) -> bool {
        !self.handovers.giving.is_empty()
    }

    fn give(
        &mut self,
        now: Instant,
        peer: PeerName,
        routers: Vec<RouterId>,
        may_return: bool,
        token: Option<u64>,
    ) {
        self.handovers.number += 1;
        let id = HandOverId {
            epoch: self.epoch,
            number: self.handovers.number,
        };
        for router in &routers {
            let known = self.peers.get(&peer).and_then(|peer| peer.known(*router));
            if let Some(to) = known.map(|report| report.source) {
                let order = Order::BeginHandOver {
                    peer: Arc::clone(&peer),
                    to,
                    may_return,
                };
                self.effects.push_back(Effect::Order(*router, order));
            }
        }
        let message = Message::Take {
            id,
            may_return,
            routers: routers.clone(),
        };
        let message = message.encode();
        self.tell(&peer, message.clone());
        self.handovers.giving.push(Giving {
            id,
            peer,
            routers,
            token,
            message,
            again: now.checked_add(ASK_AGAIN / 2),
            deadline: now.checked_add(ANSWER_WITHIN),
        });
    }

    fn tell(&mut self, peer: &PeerName, message: Vec<u8>) {
        let to = Some(Arc::clone(peer));
        self.effects.push_back(Effect::Tell(to, message));
    }

    pub(super) fn heard_of_hand_over(&mut self, now: Instant, peer: &PeerName, message: Message) {
        match message {
            Message::Reports { .. } => {}
            Message::Take {
                id,
                may_return,
                routers,
            } => self.take(peer, id, may_return, routers),
            Message::Taken(id) => match self.given(peer, id) {
                Some(giving) => {
                    for router in &giving.routers {
                        self.effects
                            .push_back(Effect::Order(*router, Order::HandedOver));
                    }
                    self.has_moved(giving);
                }
                None => self.too_late(peer, id),
            },
            Message::Refused(id, why) => match self.given(peer, id) {
                Some(giving) => {
                    let words = match why {
                        Refusal::NotBackup => "it is no backup there any more",
                        Refusal::Isolated => "no reference host answers there",
                    };
                    let words = format!("{peer} did not take over: {words}");
                    self.has_failed(giving, &words);
                }
                None => self.counts.stale += 1,
            },
            Message::Cancel(id) => self.cancelled(peer, id),
            Message::Give(routers) => self.asked(now, peer, &routers),
        }
    }

    fn given(&mut self, peer: &PeerName, id: HandOverId) -> Option<Giving> {
        let all = &mut self.handovers.giving;
        let place = all.iter().position(|g| g.id == id && g.peer == *peer)?;
        Some(all.remove(place))
    }

    /// It has taken over after this node gave up: what it took is this node's still,
    /// unless it had let go for having heard it on the segment.
    fn too_late(&mut self, peer: &PeerName, id: HandOverId) {
        self.counts.stale += 1;
        let is_last = id.epoch == self.epoch && id.number == self.handovers.number;
        let is_active_here = self.views.iter().any(|v| v.report.state == State::Active);
        if is_last && is_active_here {
            self.tell(peer, Message::Cancel(id).encode());
        }
    }

    fn take(&mut self, peer: &PeerName, id: HandOverId, may_return: bool, routers: Vec<RouterId>) {
        let Some(known) = self.peers.get(peer).filter(|known| known.epoch == id.epoch) else {
            self.counts.stale += 1;
            return;
        };
        if let Some(took) = known.took.as_ref().filter(|took| took.number >= id.number) {
            match took.answer.clone().filter(|_| took.number == id.number) {
                Some(answer) => self.tell(peer, answer.encode()),
                None => self.counts.stale += 1,
            }
            return;
        }
        let mut sources = Vec::new();
        let mut refused = None;
        for router in &routers {
            let theirs = known.known(*router).filter(|r| r.state == State::Active);
            let (Some(theirs), Some(mine)) = (theirs, self.view(*router)) else {
                refused = Some(Refusal::NotBackup);
                break;
            };
            if mine.report.state != State::Backup || !mine.report.able {
                refused = Some(Refusal::NotBackup);
            } else if mine.is_isolated() {
                refused = Some(Refusal::Isolated);
            }
            sources.push((*router, theirs.source));
        }
        let answer = match refused {
            Some(why) => Message::Refused(id, why),
            None => {
                // All of a group are owned before one of them is told of.
                for (router, _) in &sources {
                    self.effects.push_back(Effect::Order(*router, Order::Own));
                }
                for (router, from) in sources {
                    let order = Order::TakeOver {
                        peer: Arc::clone(peer),
                        from,
                        may_return,
                    };
                    self.effects.push_back(Effect::Order(router, order));
                }
                Message::Taken(id)
            }
        };
        self.tell(peer, answer.encode());
        self.remember(peer, id, Some(answer), routers);
    }

    fn remember(
        &mut self,
        peer: &PeerName,
        id: HandOverId,
        answer: Option<Message>,
        routers: Vec<RouterId>,
    ) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.took = Some(Took {
                number: id.number,
                answer,
                routers,
            });
        }
    }

    fn cancelled(&mut self, peer: &PeerName, id: HandOverId) {
        let known = self.peers.get(peer).filter(|known| known.epoch == id.epoch);
        let Some(took) = known.map(|known| known.took.clone()) else {
            self.counts.stale += 1;
            return;
        };
        match took {
            Some(took) if took.number > id.number => self.counts.stale += 1,
            Some(took) if took.number == id.number => {
                if matches!(took.answer, Some(Message::Taken(_))) {
                    for router in took.routers {
                        self.effects.push_back(Effect::Order(router, Order::LetGo));
                    }
                }
                self.remember(peer, id, None, Vec::new());
            }
            // It may overtake what it cancels.
            _ => self.remember(peer, id, None, Vec::new()),
        }
    }

    /// Resends, gives up, and begins what is better for all.
    pub(super) fn follow_hand_overs(&mut self, now: Instant) {
        for giving in std::mem::take(&mut self.handovers.giving) {
            self.follow_hand_over(now, giving);
        }
        self.answer_requests();
        let ids: Vec<RouterId> = self.views.iter().map(|view| view.report.id).collect();
        for id in ids {
            self.improve(now, id);
        }
    }

    fn follow_hand_over(&mut self, now: Instant, mut giving: Giving) {
        let mut orders = Vec::new();
        let is_active = |id: &RouterId| {
            let view = self.view(*id);
            view.is_some_and(|view| view.report.state == State::Active)
        };
        let begun = giving.routers.iter().filter(|id| is_active(id)).count();
        if begun < giving.routers.len() {
            let has_taken = |id: &RouterId| {
                let view = self.view(*id);
                view.is_some_and(|view| view.is_handed_over)
            };
            if !giving.routers.iter().any(has_taken) {
                let words = "something else happened on this node meanwhile";
                self.has_failed(giving, words);
                return;
            }
            // The other one was heard on the segment, and takes all or none.
            for id in giving.routers.iter().filter(|id| is_active(id)) {
                orders.push(Effect::Order(*id, Order::HandedOver));
            }
            self.effects.extend(orders);
            self.has_moved(giving);
            return;
        }
        if giving.deadline.is_none_or(|deadline| deadline <= now) {
            let words = format!(
                "{} did not answer within {} ms; nothing has changed",
                giving.peer,
                ANSWER_WITHIN.as_millis()
            );
            self.has_failed(giving, &words);
            return;
        }
        if giving.again.is_some_and(|again| again <= now) {
            self.tell(&giving.peer, giving.message.clone());
            giving.again = now.checked_add(ASK_AGAIN);
        }
        self.handovers.giving.push(giving);
    }

    fn has_moved(&mut self, giving: Giving) {
        if let Some(outcome) = self.outcome(&giving) {
            let moved = giving
                .routers
                .iter()
                .map(|id| (*id, Arc::clone(&giving.peer)));
            outcome.moved.extend(moved);
        }
        self.answer_requests();
    }

    fn has_failed(&mut self, giving: Giving, words: &str) {
        for id in &giving.routers {
            self.effects.push_back(Effect::Order(*id, Order::Keep));
        }
        self.tell(&giving.peer, Message::Cancel(giving.id).encode());
        if let Some(outcome) = self.outcome(&giving) {
            outcome.errors.push(words.to_owned());
        }
        self.answer_requests();
    }

    fn outcome(&mut self, giving: &Giving) -> Option<&mut Outcome> {
        self.handovers.requests.get_mut(&giving.token?)
    }

    fn answer_requests(&mut self) {
        let waiting: BTreeSet<u64> = self
            .handovers
            .giving
            .iter()
            .filter_map(|g| g.token)
            .collect();
        let tokens: Vec<u64> = self.handovers.requests.keys().copied().collect();
        for token in tokens.into_iter().filter(|token| !waiting.contains(token)) {
            if let Some(outcome) = self.handovers.requests.remove(&token) {
                self.effects.push_back(Effect::Done(token, outcome));
            }
        }
    }
}
