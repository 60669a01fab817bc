//! What a backend says of its own load, through an agent or SNMP.

use serde::{Deserialize, Serialize};

/// A report of a backend about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// How busy it is, in percent: 0 idle, 100 (or more) all in use. Smoothed;
    /// the share follows what is free.
    Busy(u8),
    /// The part of its weight that it wants, in percent, as in HAProxy's
    /// agent-check ("75%"). Taken as it is: at most 100, and at least 1, since
    /// who wants nothing says "drain".
    Weight(u8),
}

/// Weight of one report of [`Load::Busy`]: 1/4.
const SMOOTHING: f64 = 0.25;

/// The share of its weight that a backend is given however busy it is: with
/// less, the report "all in use" of all backends at once would mean nothing.
const LEAST_FREE: f64 = 0.1;

/// What is left of a backend's weight by its own reports: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Free(f64);

impl Free {
    /// The weight that is left after one more report.
    #[must_use]
    pub fn after(before: Option<Self>, report: Load) -> Self {
        match report {
            Load::Weight(percent) => Self(f64::from(percent.clamp(1, 100)) / 100.0),
            Load::Busy(percent) => {
                let free = (1.0 - f64::from(percent) / 100.0).max(LEAST_FREE);
                Self(before.map_or(free, |Self(old)| old + SMOOTHING * (free - old)))
            }
        }
    }

    /// As a fraction of 1.
    pub const fn fraction(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_taken_at_once_and_never_becomes_nothing() {
        let of = |percent| Free::after(Some(Free(0.5)), Load::Weight(percent)).fraction();
        assert_eq!([of(75), of(0), of(255)], [0.75, 0.01, 1.0]);
    }

    #[test]
    fn a_load_is_smoothed_and_leaves_a_tenth_to_whoever_is_full() {
        let first = Free::after(None, Load::Busy(20));
        assert_eq!(first.fraction(), 0.8);
        let second = Free::after(Some(first), Load::Busy(60));
        assert!((second.fraction() - 0.7).abs() < 1e-9);
        let full = (0..50).fold(first, |free, _| Free::after(Some(free), Load::Busy(200)));
        assert!((full.fraction() - 0.1).abs() < 1e-3);
    }
}
