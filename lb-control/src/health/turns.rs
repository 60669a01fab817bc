//! When a check's turns are: on a grid of its own, so that checks spread over
//! time and their lengths don't add up to a drift.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use super::{CheckKey, Timing};

/// A new check runs for the first time within this time, however long its
/// interval is.
const FIRST_RESULT_WITHIN: Duration = Duration::from_secs(1);

/// Guards the arithmetic; the configuration doesn't allow shorter ones.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// Jitter to either side, as a part of the interval: 1/10.
const JITTER_DIVISOR: u32 = 10;

fn hash(seed: u64, key: &CheckKey, turn: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, key, turn).hash(&mut hasher);
    hasher.finish()
}

/// The part of `whole` that a hash picks, evenly spread.
fn part(whole: Duration, hash: u64) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    let picked = (u128::from(nanos) * u128::from(hash)) >> 64;
    Duration::from_nanos(u64::try_from(picked).unwrap_or(u64::MAX))
}

/// Start of a check's grid: its phase is a hash of its identity.
pub(super) fn grid(seed: u64, epoch: Instant, key: &CheckKey, timing: Timing) -> Instant {
    epoch + part(timing.interval, hash(seed, key, 0))
}

/// The first turn of a check.
pub(super) fn first(seed: u64, key: &CheckKey, timing: Timing, now: Instant) -> Instant {
    now + part(timing.interval.min(FIRST_RESULT_WITHIN), hash(seed, key, 0))
}

/// The number of the last turn whose nominal time is not after `at`.
pub(super) fn at(origin: Instant, interval: Duration, at: Instant) -> u64 {
    let interval = interval.max(SHORTEST_INTERVAL);
    let passed = at.saturating_duration_since(origin);
    u64::try_from(passed.as_nanos() / interval.as_nanos()).unwrap_or(u64::MAX)
}

/// The turn after the last one, and when. Turns stand on a fixed grid, so that
/// the length of probes doesn't add up to a drift; the jitter moves each by at
/// most a tenth of the interval. A probe that outlasted its interval is
/// followed by the next at once; turns it outlasted altogether are left out.
pub(super) fn next(
    seed: u64,
    key: &CheckKey,
    timing: Timing,
    (origin, last): (Instant, u64),
    now: Instant,
) -> (u64, Instant) {
    let interval = timing.interval.max(SHORTEST_INTERVAL);
    let turn = (last + 1).max(at(origin, interval, now));
    let offset = interval.as_nanos().saturating_mul(u128::from(turn));
    let nominal = origin + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX));
    let jitter = interval / JITTER_DIVISOR;
    let due = nominal - jitter + part(jitter * 2, hash(seed, key, turn));
    (turn, due.max(now))
}
