//! What trackers do to a virtual router: keepalived's arithmetic of weights.

use super::codec::OWNER;
use crate::status::{PriorityPart, TrackerStatus};

/// What a virtual router watches, by VRID.
pub type Tracked = Vec<(u8, Vec<TrackerStatus>)>;

/// Consecutive results that speak against the state change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streak {
    ok: bool,
    against: u32,
}

impl Default for Streak {
    /// As it should be, until enough results speak against it.
    fn default() -> Self {
        Self {
            ok: true,
            against: 0,
        }
    }
}

impl Streak {
    /// Whether all is well.
    pub fn is_ok(self) -> bool {
        self.ok
    }

    /// Another result; whether it has changed the state. `rise` successes end a
    /// failure, `fall` failures are one.
    pub fn observe(&mut self, passed: bool, rise: u32, fall: u32) -> bool {
        if passed == self.ok {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if passed { rise } else { fall };
        if self.against < needed {
            return false;
        }
        *self = Self {
            ok: passed,
            against: 0,
        };
        true
    }
}

/// What a priority is the sum of: the configured one, then every tracker that
/// changes it, then what keeps it between 1 and 254. Who has the addresses itself
/// has its priority always.
pub fn parts(configured: u8, trackers: &[TrackerStatus]) -> Vec<PriorityPart> {
    let mut all = vec![PriorityPart {
        what: "configured".into(),
        change: configured.into(),
    }];
    if configured == OWNER {
        return all;
    }
    let changes = trackers.iter().filter_map(|tracker| {
        let weight = i32::from(tracker.weight?);
        (weight != 0 && tracker.ok == (weight > 0)).then(|| PriorityPart {
            what: format!("{} {}", tracker.kind, tracker.name),
            change: weight,
        })
    });
    all.extend(changes);
    let sum = sum(&all);
    let limited = sum.clamp(1, i32::from(OWNER) - 1);
    if limited != sum {
        all.push(PriorityPart {
            what: "limit".into(),
            change: limited - sum,
        });
    }
    all
}

fn sum(parts: &[PriorityPart]) -> i32 {
    let changes = parts.iter().map(|part| part.change);
    changes.fold(0, i32::saturating_add)
}

/// The priority that the parts make.
pub fn priority(parts: &[PriorityPart]) -> u8 {
    u8::try_from(sum(parts)).unwrap_or(1)
}

/// The first tracker without a weight that fails, in words.
pub fn fault(trackers: &[TrackerStatus]) -> Option<String> {
    let failing = |tracker: &&TrackerStatus| !tracker.ok && tracker.weight.is_none();
    trackers
        .iter()
        .find(failing)
        .map(|tracker| format!("{} {}: {}", tracker.kind, tracker.name, tracker.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(name: &str, ok: bool, weight: Option<i16>) -> TrackerStatus {
        TrackerStatus {
            kind: "script".into(),
            name: name.into(),
            ok,
            weight,
            reason: "exit status 1".into(),
            since: 0,
        }
    }

    #[test]
    fn the_priority_follows_the_weights_as_in_keepalived() {
        for (configured, trackers, expected) in [
            (150, vec![], 150),
            // Negative: subtracted while it fails.
            (150, vec![(true, -20)], 150),
            (150, vec![(false, -20)], 130),
            // Positive: added while it doesn't.
            (100, vec![(true, 20)], 120),
            (100, vec![(false, 20)], 100),
            (100, vec![(true, 20), (false, -30), (false, 7)], 90),
            // Between 1 and 254.
            (20, vec![(false, -20)], 1),
            (20, vec![(false, -254), (false, -254)], 1),
            (250, vec![(true, 5)], 254),
            (250, vec![(true, 254), (true, 254)], 254),
            (1, vec![(false, -254), (true, 254)], 1),
            // The sum is limited, not each step.
            (10, vec![(false, -20), (true, 30)], 20),
            // The owner of the addresses stays that.
            (255, vec![(false, -20)], 255),
            (255, vec![(true, 20)], 255),
        ] {
            let all: Vec<_> = trackers
                .iter()
                .map(|(ok, weight)| tracker("x", *ok, Some(*weight)))
                .collect();
            let parts = parts(configured, &all);
            assert_eq!(priority(&parts), expected, "{configured} {trackers:?}");
            assert_eq!(sum(&parts), i32::from(expected), "{parts:?}");
        }
    }

    #[test]
    fn every_part_is_named() {
        let trackers = [
            tracker("uplink", false, Some(-20)),
            tracker("idle", true, Some(-20)),
            tracker("disk", false, None),
        ];
        let named = |configured| -> Vec<(String, i32)> {
            let parts = parts(configured, &trackers).into_iter();
            parts.map(|part| (part.what, part.change)).collect()
        };
        assert_eq!(
            named(150),
            [("configured".into(), 150), ("script uplink".into(), -20)]
        );
        assert_eq!(named(5)[2], ("limit".into(), 16));
    }

    #[test]
    fn only_what_has_no_weight_is_a_fault() {
        let with_weight = tracker("uplink", false, Some(-20));
        assert_eq!(fault(std::slice::from_ref(&with_weight)), None);
        assert_eq!(fault(&[tracker("disk", true, None)]), None);
        assert_eq!(
            fault(&[with_weight, tracker("disk", false, None)]).unwrap(),
            "script disk: exit status 1"
        );
    }

    #[test]
    fn it_is_well_at_first_and_changes_after_enough_results_in_a_row() {
        let mut streak = Streak::default();
        let results = [
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ];
        for (number, (passed, expected)) in results.into_iter().enumerate() {
            let was = streak.is_ok();
            let changed = streak.observe(passed, 2, 3);
            assert_eq!(streak.is_ok(), expected, "result {number}");
            assert_eq!(changed, was != expected, "result {number}");
        }
    }
}
