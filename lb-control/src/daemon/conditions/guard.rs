//! What a pool does when many of its backends are out: the limit of how many
//! checks may eject, and who serves when nobody is up. Pure.

use std::time::Duration;

use crate::{
    dataplane::desired::Condition,
    health::Verdict,
    model::{PoolPolicy, WhenAllDown},
};

/// A backend as its checks see it, of those that an operator lets take part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its condition by its checks.
    pub(super) condition: Condition,
    /// The verdict that decided, where one speaks against it.
    pub(super) verdict: Option<Verdict>,
    /// How long it has been so.
    pub(super) for_time: Duration,
}

/// What is in force in a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Backends that an operator lets take part.
    pub backends: usize,
    /// Of these, up by their checks.
    pub up: usize,
    /// Overloaded.
    pub overloaded: usize,
    /// Down.
    pub down: usize,
    /// Those that `max_ejected` keeps in although checks speak against them.
    pub kept_in: Vec<String>,
    /// Nobody is up, so the overloaded ones share the load.
    pub overloaded_share: bool,
    /// Every backend is down, and `when_all_down` says what happens.
    pub all_down: bool,
}

impl InForce {
    /// Whether a backend gets flows that its checks alone would keep from it.
    pub(super) fn lets_in(&self, name: &str, condition: Condition) -> bool {
        self.kept_in.iter().any(|kept| kept == name)
            || (self.overloaded_share && condition == Condition::Overloaded)
    }
}

/// What is in force with these backends.
pub(super) fn guard(seen: &[Seen<'_>], policy: &PoolPolicy) -> InForce {
    let count = |is: fn(Condition) -> bool| seen.iter().filter(|s| is(s.condition)).count();
    let up = count(|c| c == Condition::Up);
    let overloaded = count(|c| c == Condition::Overloaded);
    let down = count(|c| matches!(c, Condition::Failing | Condition::Dead));
    let mut found = InForce {
        backends: seen.len(),
        up,
        overloaded,
        down,
        ..InForce::default()
    };
    if up == 0 {
        found.overloaded_share = overloaded > 0;
        found.all_down = down > 0 && down == seen.len();
        return found;
    }
    let ejected = overloaded + down;
    let excess = ejected.saturating_sub(most_ejected(seen.len(), policy.max_ejected));
    let mut order: Vec<(u8, Duration, &str)> = seen
        .iter()
        .filter_map(|s| Some((rank(s)?, s.for_time, s.name)))
        .collect();
    // Of one rank those first that went last: they were good the longest.
    order.sort_unstable();
    let kept = order.into_iter().take(excess);
    found.kept_in = kept.map(|(.., name)| name.to_owned()).collect();
    found
}

/// A positive limit lets at least one be ejected.
fn most_ejected(backends: usize, percent: u8) -> usize {
    match percent {
        0 => 0,
        percent => (backends * usize::from(percent) / 100).max(1),
    }
}

/// In which order backends are kept in beyond the limit. Those that refuse,
/// don't answer at all any more or asked to be drained are not: whoever is sent
/// there is lost, which no limit makes better.
fn rank(seen: &Seen<'_>) -> Option<u8> {
    match (seen.condition, seen.verdict) {
        (Condition::Overloaded, Some(Verdict::Drain)) => None,
        (Condition::Overloaded, Some(Verdict::Timeout)) => Some(1),
        (Condition::Overloaded, _) => Some(0),
        (Condition::Failing | Condition::Dead, Some(Verdict::WrongAnswer)) => Some(2),
        _ => None,
    }
}

/// What `when_all_down` does, in words.
pub fn all_down_words(policy: &PoolPolicy) -> String {
    match &policy.when_all_down {
        WhenAllDown::Fail => "new flows are dropped (when_all_down: fail)".into(),
        WhenAllDown::All => "all of them get flows (when_all_down: all)".into(),
        WhenAllDown::FallbackPool(name) => {
            format!("flows go to pool {name} (when_all_down: fallback-pool)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Seen<'_> = Seen {
        name: "",
        condition: Condition::Up,
        verdict: None,
        for_time: Duration::ZERO,
    };

    fn out(condition: Condition, verdict: Verdict, seconds: u64) -> Seen<'static> {
        Seen {
            condition,
            verdict: Some(verdict),
            for_time: Duration::from_secs(seconds),
            ..UP
        }
    }

    fn slow(seconds: u64) -> Seen<'static> {
        out(Condition::Overloaded, Verdict::Slow, seconds)
    }

    fn refused() -> Seen<'static> {
        out(Condition::Dead, Verdict::Refused, 1)
    }

    const NAMES: [&str; 5] = ["0", "1", "2", "3", "4"];

    /// Each with its place as its name.
    fn named<'a>(seen: &[Seen<'a>]) -> Vec<Seen<'a>> {
        let named = NAMES.iter().zip(seen);
        named.map(|(name, seen)| Seen { name, ..*seen }).collect()
    }

    /// Places of those that are kept in, the first choice first.
    fn kept(seen: &[Seen<'_>], max_ejected: u8) -> Vec<usize> {
        let policy = PoolPolicy {
            max_ejected,
            ..PoolPolicy::default()
        };
        let kept = guard(&named(seen), &policy).kept_in;
        kept.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn up_to_the_limit_nobody_is_kept_in() {
        assert!(kept(&[UP, UP, slow(1), refused()], 50).is_empty());
        assert!(
            kept(&[UP, slow(1)], 10).is_empty(),
            "one may always be ejected"
        );
        assert!(kept(&[UP, UP, slow(1), refused(), refused()], 100).is_empty());
    }

    #[test]
    fn beyond_the_limit_the_latest_overloaded_ones_are_kept_in() {
        assert_eq!(kept(&[UP, slow(9), slow(3), slow(5)], 50), [2]);
        assert_eq!(kept(&[UP, slow(9), slow(3), slow(5)], 25), [2, 3]);
        assert_eq!(kept(&[UP, slow(9)], 0), [1]);
    }

    #[test]
    fn dead_ones_count_towards_the_limit_and_are_never_kept_in() {
        assert!(kept(&[UP, refused(), refused(), refused()], 50).is_empty());
        assert_eq!(kept(&[UP, refused(), refused(), slow(1)], 50), [3]);
    }

    #[test]
    fn who_answers_comes_before_who_is_silent_and_who_answers_wrongly_last() {
        let silent = out(Condition::Overloaded, Verdict::Timeout, 1);
        let wrong = out(Condition::Failing, Verdict::WrongAnswer, 1);
        let drained = out(Condition::Overloaded, Verdict::Drain, 1);
        let seen = [UP, wrong, silent, drained, slow(9)];
        assert_eq!(kept(&seen, 60), [4]);
        assert_eq!(kept(&seen, 40), [4, 2]);
        assert_eq!(kept(&seen, 0), [4, 2, 1]);
    }

    #[test]
    fn when_nobody_is_up_the_overloaded_ones_share_the_load() {
        let found = guard(&[slow(1), refused(), slow(2)], &PoolPolicy::default());
        assert!(found.overloaded_share && !found.all_down);
        assert!(found.lets_in("0", Condition::Overloaded));
        assert!(!found.lets_in("1", Condition::Dead));
    }

    #[test]
    fn all_are_down_when_each_is_and_there_is_one() {
        let policy = PoolPolicy::default();
        assert!(guard(&[refused(), refused()], &policy).all_down);
        assert!(!guard(&[refused(), UP], &policy).all_down);
        assert!(!guard(&[], &policy).all_down);
    }
}
