//! How the things are that virtual routers watch: interfaces, scripts, services.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::Notify;

use super::{conditions::Conditions, scripts::Scripts};
use crate::{
    dataplane::desired::{BackendKey, Condition},
    model::{Effect, Model, TrackedService, Vrrp},
    neighbours::NeighbourView,
    status::TrackerStatus,
    vrrp::trackers::Tracked,
};

/// What is watched, and what the virtual routers were told of it.
#[derive(Debug, Default)]
pub struct Trackers {
    scripts: Scripts,
    /// By VRID, kind and name: whether it is well, and since when.
    standing: BTreeMap<(u8, String, String), (bool, u64)>,
    told: Tracked,
}

/// What is known of this node.
pub struct Seen<'a> {
    /// The configuration.
    pub model: &'a Model,
    /// Of the backends.
    pub conditions: &'a Conditions,
    /// Of the links.
    pub links: &'a NeighbourView,
}

impl Trackers {
    /// Runs the scripts of this configuration.
    pub fn follow(&mut self, model: &Model) {
        let all = model.vrrp.iter().flat_map(|vrrp| &vrrp.track.scripts);
        self.scripts.follow(all.map(|tracked| &tracked.script));
    }

    /// Tells when a script has changed.
    pub fn changes(&self) -> Arc<Notify> {
        self.scripts.changes()
    }

    /// How everything is at `unix`, in seconds since the Unix epoch, if that is
    /// another than the last time.
    pub fn look(&mut self, seen: &Seen<'_>, unix: u64) -> Option<Tracked> {
        let mut tracked: Tracked = seen
            .model
            .vrrp
            .iter()
            .map(|vrrp| (vrrp.vrid, self.of(vrrp, seen)))
            .collect();
        self.date(&mut tracked, unix);
        share(seen.model, &mut tracked);
        if tracked == self.told {
            return None;
        }
        self.told.clone_from(&tracked);
        Some(tracked)
    }

    fn of(&self, vrrp: &Vrrp, seen: &Seen<'_>) -> Vec<TrackerStatus> {
        let status = |kind: &str, name: &str, effect: Effect, (ok, reason)| TrackerStatus {
            kind: kind.to_owned(),
            name: name.to_owned(),
            ok,
            weight: effect.weight(),
            reason,
            since: 0,
        };
        let interfaces = vrrp.track.interfaces.iter().map(|tracked| {
            let found = carries(seen.links, &tracked.name);
            status("interface", &tracked.name, tracked.effect, found)
        });
        let scripts = vrrp.track.scripts.iter().map(|tracked| {
            let found = self.scripts.standing(&tracked.script);
            status("script", &tracked.name, tracked.effect, found)
        });
        let services = vrrp.track.services.iter().map(|tracked| {
            let found = serves(seen, tracked);
            status("service", &tracked.service, tracked.effect, found)
        });
        interfaces.chain(scripts).chain(services).collect()
    }

    /// Notes since when each is as it is, and logs changes.
    fn date(&mut self, tracked: &mut Tracked, unix: u64) {
        let mut standing = BTreeMap::new();
        for (vrid, trackers) in tracked {
            for tracker in trackers {
                let key = (*vrid, tracker.kind.clone(), tracker.name.clone());
                // As with keepalived all is well before the first result.
                let (was, since) = self.standing.get(&key).copied().unwrap_or((true, unix));
                tracker.since = if was == tracker.ok { since } else { unix };
                if was != tracker.ok {
                    log(*vrid, tracker);
                }
                standing.insert(key, (tracker.ok, tracker.since));
            }
        }
        self.standing = standing;
    }
}

fn log(vrid: u8, tracker: &TrackerStatus) {
    let TrackerStatus { kind, name, .. } = tracker;
    let reason = &tracker.reason;
    if tracker.ok {
        tracing::info!(vrid, kind, name, reason, "a tracker is well again");
    } else {
        tracing::warn!(vrid, kind, name, reason, "a tracker fails");
    }
}

/// Has the members of each sync group have each other's weights: a group of which
/// one alone has a lower priority would be torn.
fn share(model: &Model, tracked: &mut Tracked) {
    let own = tracked.clone();
    for ((_, trackers), vrrp) in tracked.iter_mut().zip(&model.vrrp) {
        let Some(group) = &vrrp.sync_group else {
            continue;
        };
        let members = model.vrrp.iter().zip(&own);
        let others = members.filter(|(other, _)| other.sync_group.as_ref() == Some(group));
        for tracker in others.flat_map(|(_, (_, trackers))| trackers) {
            let is_known = trackers
                .iter()
                .any(|known| (&known.kind, &known.name) == (&tracker.kind, &tracker.name));
            if tracker.weight.is_some() && !is_known {
                trackers.push(tracker.clone());
            }
        }
    }
}

fn carries(view: &NeighbourView, name: &str) -> (bool, String) {
    let mut up = view.links.iter().filter(|link| link.up && link.forwards);
    match up.any(|link| link.name == name) {
        true => (true, "carries frames".into()),
        false => (false, "carries no frames".into()),
    }
}

/// Whether enough backends of the service's own pool take new flows.
fn serves(seen: &Seen<'_>, tracked: &TrackedService) -> (bool, String) {
    let mut services = seen.model.services.iter();
    let service = services.find(|service| service.name == tracked.service);
    let known = service.filter(|service| seen.conditions.pools.contains_key(&service.pool));
    let pool = known.and_then(|service| seen.model.pools.get_key_value(&service.pool));
    let Some((name, pool)) = pool else {
        return (true, "no result yet".into());
    };
    let is_usable = |backend: &str| {
        let key = BackendKey {
            pool: name.clone(),
            backend: backend.to_owned(),
        };
        let condition = seen.conditions.backends.get(&key);
        condition.is_some_and(|c| c.condition == Condition::Up && c.weight > 0)
    };
    let names = pool.backends.iter().map(|backend| backend.name.as_str());
    let usable = names.filter(|name| is_usable(name)).count();
    let words = format!(
        "{usable} of {} backends are usable, at least {} needed",
        pool.backends.len(),
        tracked.minimum_backends
    );
    (usable >= tracked.minimum_backends, words)
}

#[cfg(test)]
#[path = "trackers_tests.rs"]
mod tests;
