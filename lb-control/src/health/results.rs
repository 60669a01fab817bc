//! What probes found, counted.

use serde::{Serialize, Serializer};

use super::Verdict;

/// Probes by their verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Results([u64; Verdict::ALL.len()]);

impl Results {
    /// Counts one.
    pub fn count(&mut self, verdict: Verdict) {
        if let Some(count) = self.0.get_mut(verdict as usize) {
            *count += 1;
        }
    }

    /// How many found this.
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.0.get(verdict as usize).copied().unwrap_or_default()
    }

    /// How many speak against the backend.
    pub fn failures(&self) -> u64 {
        let counted = self
            .iter()
            .filter(|(verdict, _)| !matches!(verdict, Verdict::Pass | Verdict::NotMade));
        counted.map(|(_, count)| count).sum()
    }

    /// Every verdict and how many found it.
    pub fn iter(&self) -> impl Iterator<Item = (Verdict, u64)> + '_ {
        Verdict::ALL
            .into_iter()
            .map(|verdict| (verdict, self.of(verdict)))
    }

    /// These and others.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
        self
    }
}

impl Serialize for Results {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(verdict, count)| (verdict.name(), count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_a_count_of_its_own() {
        let mut results = Results::default();
        for (number, verdict) in (1..).zip(Verdict::ALL) {
            (0..number).for_each(|_| results.count(verdict));
        }
        let sum = results.with(&results);
        let counted: Vec<u64> = sum.iter().map(|(_, count)| count).collect();
        assert_eq!(counted, [2, 4, 6, 8, 10, 12, 14, 16]);
        // Neither the passes nor those that could not be made.
        assert_eq!(results.failures(), 2 + 3 + 4 + 5 + 6 + 7);
    }
}
