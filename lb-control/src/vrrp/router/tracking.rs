//! A virtual router's priority and faults by what it watches, and the changes of
//! its state that others are told of.

use super::Router;
use crate::{
    status::TrackerStatus,
    vrrp::{
        machine::State,
        notify::{StateChange, Who},
        router::Ownership,
        trackers,
    },
};

impl Router {
    /// This is what it watches now. Its priority follows at once, its faults with
    /// [`Router::follow_links`].
    pub fn track(&mut self, trackers: &[TrackerStatus], ownership: &mut dyn Ownership) {
        if self.trackers != trackers {
            self.trackers = trackers.to_vec();
            self.weigh();
            self.act(ownership);
        }
    }

    /// Has the machine have the priority that follows from what is watched.
    pub(super) fn weigh(&mut self) {
        let parts = trackers::parts(self.config.settings.priority, &self.trackers);
        self.machine.set_priority(trackers::priority(&parts));
    }

    /// What it watches and can't do without, and fails; in words.
    pub fn fault(&self) -> Option<String> {
        trackers::fault(&self.trackers)
    }

    /// Its sync group and its state.
    pub fn group_state(&self) -> Option<(String, State)> {
        let group = self.config.group.clone()?;
        Some((group, self.machine.state()))
    }

    /// What others have to be told, once, in order.
    pub fn take_changes(&mut self) -> Vec<StateChange> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn note_change(&mut self, to: State) {
        self.changes.push(StateChange {
            who: Who::Instance {
                vrid: self.config.settings.vrid,
                is_v4: self.config.is_v4,
            },
            to,
            priority: self.machine.priority(),
            reason: self.reason.clone(),
        });
    }
}
