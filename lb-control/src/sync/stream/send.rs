//! The sending end: a ring of packets, when to send one again, and how many at once.
//!
//! Time-outs as in RFC 6298, losses by three later packets that came and the window
//! in the manner of NewReno (RFC 6582), by the order of transmission as QUIC does it
//! (RFC 9002), so that a retransmission that is lost is noticed as well.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::RING;
use crate::sync::frame::{Acknowledgement, MAX_PACKET};

const SHORTEST_TIME_OUT: Duration = Duration::from_millis(10);
const LONGEST_TIME_OUT: Duration = Duration::from_secs(1);
/// Before the first measurement (RFC 6298 says a second, for the Internet).
const FIRST_TIME_OUT: Duration = Duration::from_millis(200);
/// Later packets that came before one counts as lost (RFC 9002 §6.1.1).
const REORDERING: u64 = 3;
const FIRST_WINDOW: f64 = 32.0;
const SMALLEST_WINDOW: f64 = 16.0;

#[derive(Debug)]
struct Packet {
    messages: Vec<u8>,
    count: u64,
    queued: Instant,
    /// When it was sent last, and as which transmission of all.
    sent: Option<(Instant, u64)>,
    was_resent: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    InFlight,
    Lost,
    /// The receiver has it.
    Held,
}

/// What is to be sent, or sent and not acknowledged.
#[derive(Debug)]
pub struct Outgoing {
    /// Packets from number `base` on.
    ring: VecDeque<Packet>,
    base: u64,
    /// The first that was never sent.
    unsent: u64,
    lost: BTreeSet<u64>,
    in_flight: usize,
    transmissions: u64,
    /// The latest transmission that is known to have arrived.
    arrived: Option<u64>,
    /// Losses of earlier transmissions were reacted to.
    reacted: u64,
    window: f64,
    slow_start_until: f64,
    smoothed: Option<Duration>,
    variation: Duration,
    backoff: u32,
    acknowledged: u64,
    waiting: u64,
}

/// A packet to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission<'a> {
    /// Its number.
    pub number: u64,
    /// Its messages.
    pub messages: &'a [u8],
    /// It was sent before.
    pub again: bool,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            ring: VecDeque::new(),
            base: 0,
            unsent: 0,
            lost: BTreeSet::new(),
            in_flight: 0,
            transmissions: 0,
            arrived: None,
            reacted: 0,
            window: FIRST_WINDOW,
            slow_start_until: RING as f64,
            smoothed: None,
            variation: Duration::ZERO,
            backoff: 0,
            acknowledged: 0,
            waiting: 0,
        }
    }
}

impl Outgoing {
    /// Adds a message, of at most [`crate::sync::MAX_MESSAGE`] bytes. False, and
    /// without effect, if there is no room.
    #[must_use]
    pub fn push(&mut self, now: Instant, message: &[u8]) -> bool {
        let Ok(length) = u16::try_from(message.len()) else {
            return false;
        };
        let size = 2 + message.len();
        let is_open = self.ring.back().is_some_and(|last| {
            last.state == State::Unsent && last.messages.len() + size <= MAX_PACKET
        });
        if !is_open {
            if self.ring.len() >= RING || size > MAX_PACKET {
                return false;
            }
            self.ring.push_back(Packet {
                messages: Vec::with_capacity(size),
                count: 0,
                queued: now,
                sent: None,
                was_resent: false,
                state: State::Unsent,
            });
        }
        let Some(packet) = self.ring.back_mut() else {
            return false;
        };
        packet.messages.extend(length.to_be_bytes());
        packet.messages.extend(message);
        packet.count += 1;
        self.waiting += 1;
        true
    }

    /// The next packet that may be sent now.
    pub fn next(&mut self, now: Instant) -> Option<Transmission<'_>> {
        if self.in_flight as f64 >= self.window {
            return None;
        }
        let number = match self.lost.pop_first() {
            Some(number) => number,
            None => {
                let number = self.unsent;
                self.packet(number)?;
                self.unsent += 1;
                number
            }
        };
        let order = self.transmissions;
        self.transmissions += 1;
        self.in_flight += 1;
        let packet = self.packet(number)?;
        let again = packet.sent.is_some();
        packet.sent = Some((now, order));
        packet.was_resent |= again;
        packet.state = State::InFlight;
        Some(Transmission {
            number,
            messages: &packet.messages,
            again,
        })
    }

    fn packet(&mut self, number: u64) -> Option<&mut Packet> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.ring.get_mut(index)
    }

    /// The receiver says what it has. What it can't have is ignored.
    pub fn acknowledge(&mut self, now: Instant, acknowledgement: &Acknowledgement) {
        let taken = acknowledgement.taken;
        if taken > self.unsent {
            return;
        }
        let mut came = 0;
        let mut measured = None;
        // The receiver never gives back what it holds.
        for (first, count) in &acknowledgement.ranges {
            let first = taken.saturating_add(u64::from(*first));
            let end = first.saturating_add(u64::from(*count)).min(self.unsent);
            for number in first.max(self.base)..end {
                came += usize::from(self.arrive(now, number, &mut measured));
            }
        }
        while self.base < taken {
            came += usize::from(self.arrive(now, self.base, &mut measured));
            let Some(packet) = self.ring.pop_front() else {
                break;
            };
            self.base += 1;
            self.acknowledged += packet.count;
            self.waiting = self.waiting.saturating_sub(packet.count);
        }
        if came == 0 {
            return;
        }
        self.backoff = 0;
        if let Some(sample) = measured {
            self.measure(sample);
        }
        self.grow(came);
        self.find_lost();
    }

    /// Whether this is news.
    fn arrive(&mut self, now: Instant, number: u64, measured: &mut Option<Duration>) -> bool {
        let Some(packet) = self.packet(number) else {
            return false;
        };
        let before = std::mem::replace(&mut packet.state, State::Held);
        let (sent, was_resent) = (packet.sent, packet.was_resent);
        match before {
            State::Held => return false,
            State::InFlight => self.in_flight = self.in_flight.saturating_sub(1),
            State::Lost => {
                self.lost.remove(&number);
            }
            State::Unsent => {}
        }
        // Which transmission of several arrived isn't known (Karn's algorithm).
        if let (Some((at, order)), false) = (sent, was_resent) {
            self.arrived = self.arrived.max(Some(order));
            // The latest one waited least for others.
            *measured = Some(now.saturating_duration_since(at));
        }
        true
    }

    fn measure(&mut self, sample: Duration) {
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    fn grow(&mut self, came: usize) {
        let came = came as f64;
        self.window += if self.window < self.slow_start_until {
            came
        } else {
            came / self.window
        };
        self.window = self.window.min(RING as f64);
    }

    fn find_lost(&mut self) {
        let Some(arrived) = self.arrived else {
            return;
        };
        self.lose(|_, order| order + REORDERING <= arrived);
    }

    /// Declares those in flight lost that `is_lost` says, and goes slower once a
    /// round trip.
    fn lose(&mut self, is_lost: impl Fn(Instant, u64) -> bool) -> bool {
        let mut latest = None;
        for (index, packet) in self.ring.iter_mut().enumerate() {
            let Some((at, order)) = packet.sent.filter(|_| packet.state == State::InFlight) else {
                continue;
            };
            if is_lost(at, order) {
                packet.state = State::Lost;
                self.in_flight = self.in_flight.saturating_sub(1);
                self.lost.insert(self.base + index as u64);
                latest = latest.max(Some(order));
            }
        }
        if latest.is_some_and(|latest| latest >= self.reacted) {
            self.reacted = self.transmissions;
            self.window = (self.window / 2.0).max(SMALLEST_WINDOW);
            self.slow_start_until = self.window;
        }
        latest.is_some()
    }

    fn time_out(&self) -> Duration {
        let base = self
            .smoothed
            .map_or(FIRST_TIME_OUT, |smoothed| smoothed + self.variation * 4);
        let longer = base.max(SHORTEST_TIME_OUT) * (1 << self.backoff.min(7));
        longer.min(LONGEST_TIME_OUT)
    }

    /// When [`Self::handle_time_out`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let in_flight = self.ring.iter().filter(|p| p.state == State::InFlight);
        let first = in_flight.filter_map(|packet| packet.sent).map(|(at, _)| at);
        Some(first.min()? + self.time_out())
    }

    /// What was sent too long ago is to be sent again.
    pub fn handle_time_out(&mut self, now: Instant) {
        let time_out = self.time_out();
        if self.lose(|at, _| at + time_out <= now) {
            self.backoff = self.backoff.saturating_add(1);
        }
    }

    /// Messages that the peer's reader has had.
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Messages that it has not had.
    pub const fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Since when the oldest of them waits.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.ring.front().map(|packet| packet.queued)
    }
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
