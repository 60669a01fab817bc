//! Hand-overs that nobody asked for: to a node that reaches its segment better.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{PEER_PROVES_WITHIN, TRY_AGAIN};
use crate::vrrp::{
    machine::{State, Why},
    peering::{PeerName, Peering, choice::is_better},
    report::{Message, RouterId},
};

/// Reference hosts are asked so often at most.
const NOT_URGENT: Duration = Duration::from_millis(100);

impl Peering {
    /// A backup that is better, and doesn't hear this node on its segment.
    pub(super) fn asked(&mut self, now: Instant, peer: &PeerName, routers: &[RouterId]) {
        for id in routers {
            let Some(mine) = self.view(*id).filter(|v| v.report.state == State::Active) else {
                continue;
            };
            let theirs = self.peers.get(peer).and_then(|known| known.fresh(*id, now));
            let is_better = theirs.is_some_and(|(theirs, _)| is_better(theirs, &mine.report, true));
            let unit = self.unit(*id);
            let is_free = !unit.iter().any(|id| self.handovers.is_giving(*id));
            if is_better && is_free && self.successor(now, &unit, Some(peer), false).is_ok() {
                self.give(now, Arc::clone(peer), unit, true, None);
            }
        }
    }

    /// An active one without proof hands over to who has it; a backup that hears of
    /// the active one by the peer link alone asks for it if it is the better one.
    pub(super) fn improve(&mut self, now: Instant, id: RouterId) {
        let view = self.view(id);
        let is_isolated = view.is_some_and(|v| v.report.state == State::Active && v.is_isolated());
        let since = if is_isolated {
            *self.handovers.isolated.entry(id).or_insert(now)
        } else {
            self.handovers.isolated.remove(&id);
            now
        };
        let is_certain = now.saturating_duration_since(since) >= PEER_PROVES_WITHIN;
        let tried = self.handovers.tried.get(&id);
        let is_early = tried.is_some_and(|t| now.saturating_duration_since(*t) < TRY_AGAIN);
        let Some(view) = self.view(id).filter(|_| !is_early) else {
            return;
        };
        match (view.report.state, &view.waits) {
            (State::Active, _) if is_certain && !self.handovers.is_giving(id) => {
                // Whoever has no peer with proof looks again later.
                self.handovers.tried.insert(id, now);
                let unit = self.unit(id);
                let is_active = |id: &RouterId| {
                    let view = self.view(*id);
                    view.is_some_and(|view| view.report.state == State::Active)
                };
                if unit.iter().all(is_active)
                    && let Ok(peer) = self.successor(now, &unit, None, true)
                {
                    self.give(now, peer, unit, true, None);
                }
            }
            (State::Backup, Some(Why::PeerActive(peer))) => {
                let theirs = self.peers.get(peer).and_then(|p| p.fresh(id, now));
                let preempts = view.preempts && !self.is_restrained(view, now);
                let is_better =
                    theirs.is_some_and(|(theirs, _)| is_better(&view.report, theirs, preempts));
                if !is_better || !view.report.able {
                    self.handovers.better.remove(&id);
                } else {
                    // With proof on both sides it isn't urgent; after a cut has
                    // healed the one is answered a moment before the other.
                    let is_urgent = theirs.is_some_and(|(theirs, _)| !theirs.proof);
                    let lasting = view.report.interval.max(NOT_URGENT) * 4;
                    let peer = Arc::clone(peer);
                    let since = *self.handovers.better.entry(id).or_insert(now);
                    if !is_urgent && now.saturating_duration_since(since) < lasting {
                        return;
                    }
                    let message = Message::Give(self.unit(id)).encode();
                    self.handovers.tried.insert(id, now);
                    self.tell(&peer, message);
                }
            }
            _ => {
                self.handovers.better.remove(&id);
            }
        }
    }
}
