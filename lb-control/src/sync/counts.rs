//! Why datagrams were thrown away, and how often; and how often is too often.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Why a datagram was thrown away. It has no effect then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A message of a handshake that was made with another key, or changed.
    WrongKey,
    /// Within a session, and not by whoever has its keys.
    NotAuthentic,
    /// It was seen already, or is too old to tell.
    Replayed,
    /// Too short.
    Truncated,
    /// Too long.
    Oversized,
    /// Nothing that a balancer sends.
    Foreign,
    /// Another version of the protocol.
    Version,
    /// Of a session that isn't there.
    UnknownSession,
    /// The peer has another name than the configuration says.
    WrongNode,
    /// Too many handshakes.
    HandshakeLimited,
    /// A message of the handshake that only this node sends.
    WrongRole,
    /// Authentic, and not understood.
    Unreadable,
}

impl Reason {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::WrongKey, "wrong_key"),
        (Self::NotAuthentic, "not_authentic"),
        (Self::Replayed, "replayed"),
        (Self::Truncated, "truncated"),
        (Self::Oversized, "oversized"),
        (Self::Foreign, "foreign"),
        (Self::Version, "version"),
        (Self::UnknownSession, "unknown_session"),
        (Self::WrongNode, "wrong_node"),
        (Self::HandshakeLimited, "handshake_limited"),
        (Self::WrongRole, "wrong_role"),
        (Self::Unreadable, "unreadable"),
    ];
}

/// How many, by reason.
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<Reason, u64>);

impl Counts {
    /// One more.
    pub fn count(&mut self, reason: Reason) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// By name, those that are 0 as well.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let of = |reason| self.0.get(&reason).copied().unwrap_or_default();
        let all = Reason::ALL.into_iter();
        all.map(|(reason, name)| (name.to_owned(), of(reason)))
            .collect()
    }

    /// Of one reason.
    #[cfg(test)]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(&reason).copied().unwrap_or_default()
    }
}

/// A token bucket.
#[derive(Clone, Debug)]
pub struct Limit {
    /// For one token.
    interval: Duration,
    burst: u32,
    /// When it will be full.
    full_at: Option<Instant>,
}

impl Limit {
    /// One each `interval`, and `burst` at once.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            burst,
            full_at: None,
        }
    }

    /// Whether one more is allowed, which is taken then.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        let is_allowed = full_at <= now + self.interval * self.burst;
        if is_allowed {
            self.full_at = Some(full_at);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: BTreeMap<_, _> = Reason::ALL.into_iter().map(|(r, n)| (n, r)).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        let mut counts = Counts::default();
        counts.count(Reason::Version);
        assert_eq!(counts.by_name()["version"], 1);
        assert_eq!(counts.by_name().len(), Reason::ALL.len());
    }

    #[test]
    fn a_limit_allows_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut limit = Limit::new(Duration::from_millis(100), 3);
        let allowed = (0..10).filter(|_| limit.take(start)).count();
        assert_eq!(allowed, 3);
        let later = start + Duration::from_millis(250);
        assert_eq!((0..10).filter(|_| limit.take(later)).count(), 2);
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| limit.take(much_later)).count(), 3);
    }
}
