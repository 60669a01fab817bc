//! One way to the peer: whether it is alive, and how long a round trip takes.

use std::time::{Duration, Instant};

use super::frame::Keepalive;

/// What is known of a path.
#[derive(Clone, Debug, Default)]
pub struct Path {
    heard: Option<Instant>,
    /// The peer says that it hears this node by it.
    heard_by_peer: bool,
    /// The peer's clock, and when it came.
    clock: Option<(u64, Instant)>,
    round_trip: Option<Duration>,
    /// Datagrams that were sent.
    pub sent: u64,
    /// Datagrams that were authentic.
    pub received: u64,
}

impl Path {
    /// Something authentic came.
    pub fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
        self.received += 1;
    }

    /// When something authentic came last.
    pub const fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Something authentic came within `time_out`.
    pub fn is_alive(&self, now: Instant, time_out: Duration) -> bool {
        self.heard
            .is_some_and(|heard| now.saturating_duration_since(heard) < time_out)
    }

    /// The peer says that it hears this node.
    pub const fn heard_by_peer(&self) -> bool {
        self.heard_by_peer
    }

    /// Smoothed; `None` until it was measured.
    pub const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The peer's keepalive; `clock` is this node's, as in its own keepalives.
    pub fn take(&mut self, now: Instant, clock: u64, keepalive: &Keepalive) {
        self.heard_by_peer = keepalive.hears;
        // One that was overtaken says nothing new.
        if self.clock.is_none_or(|(last, _)| last < keepalive.clock) {
            self.clock = Some((keepalive.clock, now));
        }
        let away = clock.checked_sub(keepalive.echo);
        if keepalive.echo == 0 {
            return;
        }
        if let Some(trip) = away.and_then(|away| away.checked_sub(keepalive.held.into())) {
            let trip = Duration::from_micros(trip);
            // RFC 6298 §2 smooths in the same way.
            let smoothed = |old: Duration| old.saturating_mul(7).saturating_add(trip) / 8;
            self.round_trip = Some(self.round_trip.map_or(trip, smoothed));
        }
    }

    /// What to tell the peer.
    pub fn keepalive(&self, now: Instant, clock: u64, time_out: Duration) -> Keepalive {
        let held = |since: Instant| {
            u32::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(u32::MAX)
        };
        Keepalive {
            clock,
            echo: self.clock.map_or(0, |(clock, _)| clock),
            held: self.clock.map_or(0, |(_, since)| held(since)),
            hears: self.is_alive(now, time_out),
        }
    }

    /// A new start of the peer has a new clock.
    pub fn forget_peer(&mut self) {
        self.clock = None;
        self.heard_by_peer = false;
        self.round_trip = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_OUT: Duration = Duration::from_millis(500);

    #[test]
    fn a_path_is_alive_while_something_comes() {
        let start = Instant::now();
        let mut path = Path::default();
        assert!(!path.is_alive(start, TIME_OUT));
        path.hear(start);
        assert!(path.is_alive(start + Duration::from_millis(499), TIME_OUT));
        assert!(!path.is_alive(start + TIME_OUT, TIME_OUT));
    }

    #[test]
    fn the_round_trip_leaves_out_what_the_peer_held() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (mut here, mut there) = (Path::default(), Path::default());
        // The two clocks have nothing in common.
        let said = here.keepalive(at(0), 1_000_000, TIME_OUT);
        assert_eq!((said.echo, said.hears), (0, false));
        there.hear(at(3));
        there.take(at(3), 77, &said);
        let answer = there.keepalive(at(43), 40_077, TIME_OUT);
        assert_eq!(
            (answer.echo, answer.held, answer.hears),
            (1_000_000, 40_000, true)
        );
        here.take(at(50), 1_050_000, &answer);
        assert_eq!(here.round_trip(), Some(Duration::from_millis(10)));
        assert!(here.heard_by_peer());
    }

    #[test]
    fn an_echo_from_the_future_measures_nothing() {
        let mut path = Path::default();
        let keepalive = Keepalive {
            clock: 1,
            echo: 100,
            held: 5,
            hears: true,
        };
        path.take(Instant::now(), 99, &keepalive);
        path.take(Instant::now(), 104, &keepalive);
        assert_eq!(path.round_trip(), None);
    }
}
