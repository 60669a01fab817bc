//! A virtual router's part in what the nodes decide together, and its reference
//! hosts.

use std::time::{Duration, Instant};

use super::{Hold, Link, Ownership, Reason, Router, State, Why, waits};
use crate::vrrp::{
    peering::{Order, View},
    report::RouterId,
};

/// See the module's description.
#[derive(Default)]
pub(super) struct Agreed {
    held: Option<Hold>,
    held_by_group: bool,
    pub(super) restrained: bool,
    waits_for_sync: bool,
    /// Its lease is so much longer than three intervals.
    pub(super) lease: Duration,
    waits: Option<Why>,
}

impl Router {
    /// Which it is.
    pub fn id(&self) -> RouterId {
        RouterId {
            vrid: self.config.settings.vrid,
            is_v4: self.config.is_v4,
        }
    }

    /// How it is now.
    pub fn view(&self, now: Instant) -> View {
        let (machine, references) = (&self.machine, &self.references);
        let able = self.link.is_some();
        let view = View::new(
            now,
            machine,
            references,
            self.config.is_v4,
            able,
            self.changed,
        );
        View {
            group: self.config.group.clone(),
            unicast: self.config.peers.clone(),
            ..view
        }
    }

    /// Does what was decided together. Whether that changes what it is.
    pub fn obey(&mut self, now: Instant, order: &Order, ownership: &mut dyn Ownership) -> bool {
        match order {
            Order::Hold(held) => {
                self.agreed.held.clone_from(held);
                self.hold(now);
                self.tell_of_waiting();
                return false;
            }
            Order::Restrain(restrained) => {
                self.restrain(*restrained);
                return false;
            }
            Order::Lease(longer) => {
                self.agreed.lease = *longer;
                return false;
            }
            Order::Own => {
                self.own(ownership);
                return false;
            }
            Order::Doubt(doubts) => {
                self.references.doubt(now, *doubts);
                self.probe(now);
                return false;
            }
            _ => order.apply(now, &mut self.machine, &mut self.references),
        }
        self.act(ownership);
        true
    }

    /// Whether another member of its group is in the way.
    pub fn hold_with_group(&mut self, now: Instant, held: bool) {
        self.agreed.held_by_group = held;
        self.hold(now);
    }

    fn hold(&mut self, now: Instant) {
        let group = Hold {
            why: Why::Group,
            until: None,
        };
        let group = self.agreed.held_by_group.then_some(group);
        self.machine.hold(now, self.agreed.held.clone().or(group));
    }

    /// Whether it doesn't preempt for now.
    pub fn restrain(&mut self, restrained: bool) {
        self.agreed.restrained = restrained;
        self.machine.restrain(restrained);
    }

    /// Whether it doesn't preempt for want of sync, which is shown.
    pub fn wait_for_sync(&mut self, waits: bool) {
        self.agreed.waits_for_sync = waits;
    }

    fn tell_of_waiting(&mut self) {
        let waits_for = self.machine.waits().cloned();
        if waits_for == self.agreed.waits {
            return;
        }
        if let Some(why) = &waits_for {
            tracing::warn!(
                vrid = self.config.settings.vrid,
                interface = self.config.interface,
                reason = waits(why),
                "VRRP: doesn't claim"
            );
        }
        self.agreed.waits = waits_for;
    }

    /// Why it is what it is now.
    pub(super) fn why_now(&self) -> String {
        if let Some(why) = self.machine.waits() {
            return waits(why);
        }
        let settings = self.machine.settings();
        let peer = self.machine.active_peer();
        let would_preempt =
            settings.preempt && peer.is_some_and(|(_, theirs)| theirs < self.machine.priority());
        if self.agreed.waits_for_sync && would_preempt {
            return "not in sync yet: it doesn't preempt".into();
        }
        self.reason.clone()
    }

    pub(super) fn is_isolated(&self) -> bool {
        !self.references.is_empty() && self.link.is_some() && !self.references.has_proof()
    }

    pub(super) fn note_hand_over(&mut self, reason: &Reason) {
        self.counts.handed_over_total += u64::from(matches!(reason, Reason::HandedOver(_)));
        self.counts.taken_over_total += u64::from(matches!(reason, Reason::TookOver(_)));
    }

    /// Somebody else has too little processor time left for this thread.
    pub(super) fn count_late(&mut self, now: Instant) {
        let due = self.machine.poll_timeout();
        let late = due.map(|due| now.saturating_duration_since(due));
        let is_late = late.is_some_and(|late| late >= self.config.settings.interval);
        self.counts.late += u64::from(is_late && self.machine.state() == State::Active);
    }

    /// When a reference host is to be asked, or what it said is to be doubted.
    pub(super) fn references_due(&self) -> Option<Instant> {
        if self.references.is_empty() || self.link.is_none() {
            return None;
        }
        let doubts = self.machine.doubts_from();
        // What is past has had its effect.
        let doubts = doubts.filter(|from| *from > super::now());
        self.references.due().into_iter().chain(doubts).min()
    }

    pub(super) fn probe(&mut self, now: Instant) {
        let Some(link) = &self.link else {
            return;
        };
        let hosts = self.references.probes(now);
        let mut sent = Ok(());
        for host in hosts {
            // One that can't be sent is no reason to keep the others.
            sent = sent.and(link.ask(host));
        }
        if let Err(error) = sent {
            let words = format!("reference hosts can't be asked: {error}");
            self.odd("reference_hosts", &words);
        }
    }

    /// Closes its sockets. Closing one of packets waits for every core, which takes
    /// some ten milliseconds: somebody else does that.
    pub(super) fn close(&mut self) {
        if let Some(link) = self.link.take() {
            let thread = std::thread::Builder::new().name("vrrp-close".into());
            // Without a thread it is closed here.
            let _ = thread.spawn(move || drop(link));
        }
    }

    pub(super) fn read_answers(&mut self) {
        while let Some(prober) = self.link.as_ref().and_then(Link::prober) {
            match prober.receive() {
                Ok(Some(Some(from))) => self.references.answered(super::now(), from),
                Ok(Some(None)) => {}
                Ok(None) => return,
                Err(error) => {
                    let words = format!("reference hosts can't be heard: {error}");
                    self.odd("reference_hosts", &words);
                    return;
                }
            }
        }
    }
}
