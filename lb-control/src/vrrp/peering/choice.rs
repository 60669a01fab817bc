//! Who is to be active instead of this node.

use std::{sync::Arc, time::Instant};

use super::{PeerName, Peering, View};
use crate::vrrp::{
    machine::State,
    report::{Report, RouterId},
};

impl Peering {
    /// A virtual router with its sync group.
    pub(super) fn unit(&self, id: RouterId) -> Vec<RouterId> {
        let group = self.view(id).and_then(|view| view.group.as_ref());
        let is_in_it = |view: &&View| {
            view.report.id == id || (group.is_some() && view.group.as_ref() == group)
        };
        let all = self.views.iter().filter(is_in_it);
        all.map(|view| view.report.id).collect()
    }

    pub(super) fn view(&self, id: RouterId) -> Option<&View> {
        self.views.iter().find(|view| view.report.id == id)
    }

    /// The best of those that could take all of them over, or why there is none.
    pub(super) fn successor(
        &self,
        now: Instant,
        unit: &[RouterId],
        to: Option<&str>,
        with_proof: bool,
    ) -> Result<PeerName, String> {
        if self.peers.is_empty() {
            return Err("no peer is heard by the peer link".into());
        }
        if let Some(to) = to
            && !self.peers.contains_key(to)
        {
            let known: Vec<&str> = self.peers.keys().map(|name| &**name).collect();
            return Err(format!(
                "no peer is called {to}; there are: {}",
                known.join(", ")
            ));
        }
        let mut reasons = Vec::new();
        let mut best = None;
        for (name, peer) in self
            .peers
            .iter()
            .filter(|(n, _)| to.is_none_or(|to| ***n == *to))
        {
            let reports: Result<Vec<Report>, String> = unit
                .iter()
                .map(|id| match peer.fresh(*id, now) {
                    None => Err(format!("{name} has said nothing of {} lately", named(*id))),
                    Some((report, _)) => could_take(name, report, with_proof),
                })
                .collect();
            match reports {
                Err(why) => reasons.push(why),
                Ok(reports) => {
                    let sum =
                        |of: fn(&Report) -> u8| reports.iter().map(|r| u32::from(of(r))).sum();
                    let answered: u32 = sum(|report| report.answered);
                    let priority: u32 = sum(|report| report.priority);
                    let rank = (peer.in_sync, answered, priority);
                    if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                        best = Some((rank, Arc::clone(name)));
                    }
                }
            }
        }
        best.map(|(_, name)| name).ok_or_else(|| reasons.join("; "))
    }
}

/// Whether the backup `one` should be active rather than `other`. Only what has
/// proof that it reaches its segment can say so: priority alone is no reason on a
/// segment that is silent.
pub(super) fn is_better(one: &Report, other: &Report, preempts: bool) -> bool {
    if one.hosts == 0 || other.hosts == 0 || !one.proof {
        return false;
    }
    let score = |report: &Report| (report.able, report.proof, report.answered);
    match score(one).cmp(&score(other)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => preempts && one.priority > other.priority,
        std::cmp::Ordering::Less => false,
    }
}

fn could_take(name: &PeerName, report: &Report, with_proof: bool) -> Result<Report, String> {
    let id = named(report.id);
    if report.state != State::Backup || !report.able {
        return Err(format!("{id} is no backup on {name}"));
    }
    if (report.hosts > 0 || with_proof) && !report.proof {
        return Err(format!("no reference host of {id} answers {name}"));
    }
    Ok(*report)
}

/// How an operator knows it.
pub(super) fn named(id: RouterId) -> String {
    let family = if id.is_v4 { "IPv4" } else { "IPv6" };
    format!("virtual router {} ({family})", id.vrid)
}
