//! Integer shares from weights and what is made of them.

/// A part of a weight, in 1/1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(u32);

impl Factor {
    /// All of it.
    pub const ONE: Self = Self(1024);

    /// The nearest one to a fraction; at least 1/1024.
    pub fn of(fraction: f64) -> Self {
        // `as` saturates, and takes what is no number for zero.
        Self(((fraction * f64::from(Self::ONE.0)).round() as u32).max(1))
    }

    /// As a fraction of 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ONE.0)
    }

    /// Both at once.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let product = u64::from(self.0) * u64::from(other.0) / u64::from(Self::ONE.0);
        Self(u32::try_from(product).unwrap_or(u32::MAX).max(1))
    }
}

impl Default for Factor {
    fn default() -> Self {
        Self::ONE
    }
}

/// What is made of a backend's weight, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Factors {
    /// It came up lately.
    pub slow_start: Factor,
    /// Its own reports.
    pub load: Factor,
    /// How fast it answers, for services that go by that.
    pub response: Factor,
}

/// The shares of some members of these weights.
///
/// Weights alone are shares; as soon as one has a factor all shares are in
/// 1/1024 of a weight. A power of two, so that this alone moves no slot.
pub fn shares(weights: &[(u32, Factor)]) -> Vec<u32> {
    let is_plain = weights.iter().all(|(_, factor)| *factor == Factor::ONE);
    let share = |&(weight, factor): &(u32, Factor)| match weight {
        0 => 0,
        _ if is_plain => weight,
        _ => weight.saturating_mul(factor.0),
    };
    weights.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Member, maglev};

    #[test]
    fn weights_without_factors_are_shares() {
        let one = Factor::ONE;
        assert_eq!(shares(&[(3, one), (0, one), (100, one)]), [3, 0, 100]);
    }

    #[test]
    fn a_factor_is_a_part_of_the_weight_and_never_makes_nothing_of_something() {
        let shares = shares(&[
            (1, Factor::ONE),
            (1, Factor::of(0.4)),
            (1, Factor::of(0.0)),
            (0, Factor::of(0.5)),
        ]);
        assert_eq!(shares, [1024, 410, 1, 0]);
        assert_eq!(Factor::of(0.5).and(Factor::of(0.5)), Factor::of(0.25));
    }

    #[test]
    fn the_change_of_unit_moves_no_slot() {
        let table = |unit: u32| {
            let members = [3, 1, 2, 7]
                .into_iter()
                .zip(1..)
                .map(|(weight, id)| Member {
                    identity: u64::from(id) << 40,
                    share: weight * unit,
                    id,
                });
            maglev(&members.collect::<Vec<_>>(), 1009)
        };
        assert_eq!(table(1), table(1024));
    }
}
