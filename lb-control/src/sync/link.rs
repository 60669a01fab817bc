//! The link to one peer, without a clock, a socket or a source of random numbers:
//! `handle_*` is told what happens, `poll_*` says what is to be done.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    counts::Counts,
    frame::Writer,
    path::Path,
    settings::Key,
    stream::{receive::Incoming, send::Outgoing},
};
use crate::status::{StreamStatus, UrgentStatus};

mod receive;
mod sessions;

use sessions::Sessions;

/// Without a sign of life on any path for so long, the link is down and what it
/// knew is given up.
pub const DOWN_AFTER: Duration = Duration::from_secs(3);
/// The least time without a sign of life after which a path is not alive.
const SHORTEST_PATH_TIME_OUT: Duration = Duration::from_millis(300);
/// Keepalives that a path may miss.
const MISSED_KEEPALIVES: u32 = 5;

/// Numbers that nobody can foretell.
pub trait Random {
    /// The next of them.
    fn next(&mut self) -> u64;
}

/// What a link knows from the beginning.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: Arc<str>,
    /// The peer's, which is another one.
    pub peer: Arc<str>,
    /// The secret that both have.
    pub key: Key,
    /// Of this start of the daemon.
    pub epoch: u64,
    /// How many paths there are.
    pub paths: usize,
    /// Between two keepalives.
    pub keepalive: Duration,
}

/// What happens on the stream: `Up`, then messages, then `Down`, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both begin a stream each way.
    Up {
        /// Of the peer's start.
        epoch: u64,
    },
    /// The streams have ended.
    Down,
    /// The next message of the peer's stream; it counts as taken.
    Message(Vec<u8>),
}

/// The streams each way between two incarnations.
#[derive(Debug)]
struct Streams {
    /// No two of a link have the same.
    number: u64,
    epoch: u64,
    incarnation: u64,
    outgoing: Outgoing,
    incoming: Incoming,
}

/// Totals over all streams, without the one there is.
#[derive(Debug, Default)]
struct Totals {
    acknowledged: u64,
    sent: u64,
    resent: u64,
    received: u64,
    became_up: u64,
    sessions: u64,
    urgent: UrgentStatus,
}

/// The link to one peer.
pub struct Link {
    config: Config,
    random: Box<dyn Random + Send>,
    started: Instant,
    incarnation: u64,
    sessions: Sessions,
    paths: Vec<Path>,
    keepalive_due: Instant,
    streams: Option<Streams>,
    streams_made: u64,
    /// The streams that the reader knows of.
    told: Option<u64>,
    urgent: VecDeque<Vec<u8>>,
    transmits: VecDeque<(usize, Vec<u8>)>,
    rejected: Counts,
    totals: Totals,
}

impl Link {
    /// Down, and about to change that.
    pub fn new(config: Config, mut random: Box<dyn Random + Send>, now: Instant) -> Self {
        Self {
            incarnation: random.next(),
            sessions: Sessions::new(now),
            paths: vec![Path::default(); config.paths],
            keepalive_due: now,
            streams: None,
            streams_made: 0,
            told: None,
            urgent: VecDeque::new(),
            transmits: VecDeque::new(),
            rejected: Counts::default(),
            totals: Totals::default(),
            started: now,
            config,
            random,
        }
    }

    /// Time has passed. To be called when [`Self::poll_timeout`] says so; oftener
    /// does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_silent = self.heard().is_none_or(|heard| heard + DOWN_AFTER <= now);
        if self.streams.is_some() && is_silent {
            self.give_up(now);
        }
        if self.keepalive_due <= now {
            self.send_keepalives(now);
        }
        self.renew_session(now);
        if let Some(streams) = &mut self.streams
            && streams.outgoing.deadline().is_some_and(|at| at <= now)
        {
            streams.outgoing.handle_time_out(now);
        }
    }

    /// When something is due.
    pub fn poll_timeout(&self) -> Instant {
        let stream = self.streams.as_ref().and_then(|s| s.outgoing.deadline());
        let due = stream.into_iter().chain([self.keepalive_due]);
        let down = self.streams.as_ref().and(self.heard());
        due.chain(down.map(|heard| heard + DOWN_AFTER))
            .chain(self.sessions.due(self.is_initiator()))
            .min()
            .unwrap_or(self.keepalive_due)
    }

    /// The next datagram to be sent, and by which path.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        if self.transmits.is_empty() {
            self.send_stream(now);
        }
        let (path, datagram) = self.transmits.pop_front()?;
        if let Some(path) = self.paths.get_mut(path) {
            path.sent += 1;
        }
        Some((path, datagram))
    }

    /// The next urgent message that came.
    pub fn poll_urgent(&mut self) -> Option<Vec<u8>> {
        self.urgent.pop_front()
    }

    /// What the stream's reader has to be told next; what it is told is done with.
    pub fn poll_event(&mut self) -> Option<Event> {
        let current = self.streams.as_ref().map(|streams| streams.number);
        if self.told != current {
            if self.told.take().is_some() {
                return Some(Event::Down);
            }
            self.told = current;
            let epoch = self.streams.as_ref()?.epoch;
            return Some(Event::Up { epoch });
        }
        let message = self.streams.as_mut()?.incoming.next()?;
        self.totals.received += 1;
        Some(Event::Message(message))
    }

    /// [`Self::poll_event`] has something to say.
    pub fn has_event(&self) -> bool {
        let current = self.streams.as_ref().map(|streams| streams.number);
        let incoming = self.streams.as_ref().map(|streams| &streams.incoming);
        self.told != current || incoming.is_some_and(Incoming::has_next)
    }

    /// Sends an urgent message by all paths. False if the link is down.
    pub fn tell(&mut self, message: &[u8]) -> bool {
        let datagram = self.sessions.current_mut().and_then(|session| {
            let written = Writer::new(true).urgent(message);
            session.seal(written.bytes())
        });
        let Some(datagram) = datagram.filter(|_| self.streams.is_some()) else {
            self.totals.urgent.dropped += 1;
            return false;
        };
        self.totals.urgent.sent += 1;
        self.send_everywhere(&datagram);
        true
    }

    /// Adds a message to the stream that the reader knows of. False, and without
    /// effect, while there is no room or another one has begun.
    #[must_use]
    pub fn send(&mut self, now: Instant, message: &[u8]) -> bool {
        let told = self.told;
        let known = self.streams.as_mut().filter(|s| Some(s.number) == told);
        known.is_some_and(|streams| streams.outgoing.push(now, message))
    }

    /// Messages of the stream that the reader knows of that the peer's reader has had.
    /// `None` if it has ended, or none has begun.
    pub fn acknowledged(&self) -> Option<u64> {
        let streams = self.streams.as_ref();
        let known = streams.filter(|streams| Some(streams.number) == self.told)?;
        Some(known.outgoing.acknowledged())
    }

    /// It is up.
    pub const fn is_up(&self) -> bool {
        self.streams.is_some()
    }

    /// Of the peer's start, while the link is up.
    pub fn epoch(&self) -> Option<u64> {
        self.streams.as_ref().map(|streams| streams.epoch)
    }

    /// Times that it came up.
    pub const fn became_up(&self) -> u64 {
        self.totals.became_up
    }

    /// Sessions that came into force.
    pub const fn sessions_made(&self) -> u64 {
        self.totals.sessions
    }

    /// Its paths.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Without anything on a path for so long it is not alive.
    pub fn path_time_out(&self) -> Duration {
        let missed = self.config.keepalive * MISSED_KEEPALIVES;
        missed.max(SHORTEST_PATH_TIME_OUT)
    }

    /// What was thrown away, by reason.
    pub fn rejected_by_name(&self) -> BTreeMap<String, u64> {
        self.rejected.by_name()
    }

    /// The urgent messages.
    pub const fn urgent_status(&self) -> &UrgentStatus {
        &self.totals.urgent
    }

    /// The streams.
    pub fn stream_status(&self, now: Instant) -> StreamStatus {
        let outgoing = self.streams.as_ref().map(|streams| &streams.outgoing);
        let waiting = outgoing.map_or(0, Outgoing::waiting);
        let acknowledged = outgoing.map_or(0, Outgoing::acknowledged);
        let since = outgoing.and_then(Outgoing::waiting_since);
        let lag = since.map(|since| now.saturating_duration_since(since));
        let lag = lag.map_or(0, |lag| lag.as_millis());
        StreamStatus {
            sent: self.totals.sent + acknowledged + waiting,
            acknowledged: self.totals.acknowledged + acknowledged,
            resent: self.totals.resent,
            waiting,
            lag_ms: u64::try_from(lag).unwrap_or(u64::MAX),
            received: self.totals.received,
        }
    }

    fn is_initiator(&self) -> bool {
        self.config.node < self.config.peer
    }

    fn heard(&self) -> Option<Instant> {
        self.paths.iter().filter_map(Path::heard).max()
    }

    fn clock(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The peer is gone for good, as far as anybody knows.
    fn give_up(&mut self, now: Instant) {
        self.end_streams();
        // Whoever hears this number knows that all before is forgotten here.
        self.incarnation = self.random.next();
        self.sessions.clear(now);
    }

    fn end_streams(&mut self) {
        if let Some(ended) = self.streams.take() {
            self.totals.acknowledged += ended.outgoing.acknowledged();
            self.totals.sent += ended.outgoing.acknowledged() + ended.outgoing.waiting();
        }
    }

    /// `session` is in force from now on. Others are there if the peer has not
    /// forgotten what it knew.
    fn begin_streams(&mut self, epoch: u64, incarnation: u64) {
        self.end_streams();
        self.streams_made += 1;
        self.totals.became_up += 1;
        self.streams = Some(Streams {
            number: self.streams_made,
            epoch,
            incarnation,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
        });
    }

    fn send_everywhere(&mut self, datagram: &[u8]) {
        let paths = 0..self.paths.len();
        self.transmits
            .extend(paths.map(|path| (path, datagram.to_vec())));
    }

    /// A keepalive on each path, in the session that is in force and in the one that
    /// waits to be.
    fn send_keepalives(&mut self, now: Instant) {
        self.keepalive_due = now + self.config.keepalive;
        let (clock, time_out) = (self.clock(now), self.path_time_out());
        let incoming = self.streams.as_mut().map(|streams| &mut streams.incoming);
        let acknowledgement = incoming.map(Incoming::acknowledge);
        for (index, path) in self.paths.iter().enumerate() {
            let keepalive = path.keepalive(now, clock, time_out);
            let written = Writer::new(false).keepalive(&keepalive);
            if let Some(session) = self.sessions.next_mut()
                && let Some(datagram) = session.seal(written.bytes())
            {
                self.transmits.push_back((index, datagram));
            }
            let written = match &acknowledgement {
                Some(acknowledgement) => written.acknowledgement(acknowledgement),
                None => written,
            };
            if let Some(session) = self.sessions.current_mut()
                && let Some(datagram) = session.seal(written.bytes())
            {
                self.transmits.push_back((index, datagram));
            }
        }
    }

    /// The best path, and the next best one.
    fn best_paths(&self, now: Instant) -> (usize, usize) {
        let time_out = self.path_time_out();
        let alive = || {
            let all = self.paths.iter().enumerate();
            all.filter(|(_, path)| path.is_alive(now, time_out))
        };
        let mut both_ways = alive().filter(|(_, path)| path.heard_by_peer());
        let best = both_ways.next().or_else(|| alive().next());
        let best = best.map_or(0, |(index, _)| index);
        (best, both_ways.next().map_or(best, |(index, _)| index))
    }

    /// An acknowledgement that is due, and the next packet.
    fn send_stream(&mut self, now: Instant) {
        let (best, second) = self.best_paths(now);
        let Some(streams) = &mut self.streams else {
            return;
        };
        let Some(session) = self.sessions.current_mut() else {
            return;
        };
        if streams.incoming.is_due() {
            let acknowledgement = streams.incoming.acknowledge();
            let written = Writer::new(false).acknowledgement(&acknowledgement);
            let datagram = session.seal(written.bytes());
            self.transmits
                .extend(datagram.map(|datagram| (best, datagram)));
        }
        if let Some(packet) = streams.outgoing.next(now) {
            let path = if packet.again { second } else { best };
            self.totals.resent += u64::from(packet.again);
            let written = Writer::new(false).packet(packet.number, packet.messages);
            let datagram = session.seal(written.bytes());
            self.transmits
                .extend(datagram.map(|datagram| (path, datagram)));
        }
    }

    /// The session that is in force.
    #[cfg(test)]
    fn session(&self) -> Option<&super::session::Session> {
        self.sessions.current()
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("node", &self.config.node)
            .field("peer", &self.config.peer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
use super::testing as tests_net;

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "simulation_tests.rs"]
mod simulation_tests;
