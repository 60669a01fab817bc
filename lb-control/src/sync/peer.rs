//! One peer of the thread: its link, its sockets and its reader.

use std::{sync::Arc, time::Instant};

use nix::poll::{PollFd, PollFlags};
use tokio::sync::mpsc::error::TrySendError;

use super::{
    handle::{Change, Sinks, StreamEvent, StreamQueue, StreamSender, Waker},
    link::{Config, Event, Link, Random},
    settings::{PeerSettings, Settings},
    socket::PathSocket,
};
use crate::status::{LinkStatus, PathStatus};

/// Datagrams of a path, or events of a peer, before others have their turn.
const BATCH: usize = 64;

/// A peer.
pub(super) struct Peer {
    settings: PeerSettings,
    link: Link,
    sockets: Vec<PathSocket>,
    /// Of the stream that the reader was told of.
    queue: Option<Arc<StreamQueue>>,
    /// A message of it for which there was no room.
    waiting: Option<Vec<u8>>,
    was_up: bool,
    since: Instant,
}

/// What became of the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// All of them are delivered.
    All,
    /// More than a batch waits.
    More,
    /// The reader has no room.
    Full,
}

impl Peer {
    pub(super) fn new(
        all: &Settings,
        settings: PeerSettings,
        epoch: u64,
        random: Box<dyn Random + Send>,
        now: Instant,
    ) -> Self {
        let config = Config {
            node: all.node.as_str().into(),
            peer: Arc::clone(&settings.name),
            key: all.key.clone(),
            epoch,
            paths: settings.paths.len(),
            keepalive: all.keepalive,
        };
        let sockets = settings.paths.iter();
        Self {
            link: Link::new(config, random, now),
            sockets: sockets.map(|path| PathSocket::new(*path, now)).collect(),
            settings,
            queue: None,
            waiting: None,
            was_up: false,
            since: now,
        }
    }

    pub(super) const fn settings(&self) -> &PeerSettings {
        &self.settings
    }

    /// Opens what isn't open, reads what came and does what is due.
    pub(super) fn attend(&mut self, now: Instant) {
        let mut buffer = PathSocket::buffer();
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            socket.open(now);
            for _ in 0..BATCH {
                let Some(datagram) = socket.receive(now, &mut buffer) else {
                    break;
                };
                self.link.handle_datagram(now, index, datagram);
            }
        }
        self.link.handle_timeout(now);
        for (path, socket) in self.link.paths().iter().zip(&mut self.sockets) {
            if path.is_alive(now, self.link.path_time_out()) {
                socket.works();
            }
        }
        if self.link.is_up() != self.was_up {
            self.was_up = self.link.is_up();
            self.since = now;
            if self.was_up {
                tracing::info!(peer = %self.settings.name, "the link to the peer is up");
            } else {
                tracing::warn!(peer = %self.settings.name, "the link to the peer is down: it is silent on all paths");
            }
        }
    }

    pub(super) fn tell(&mut self, message: &[u8]) {
        self.link.tell(message);
    }

    /// Hands on the urgent messages that came.
    pub(super) fn deliver_urgent(&mut self, sinks: &Sinks) {
        while let Some(message) = self.link.poll_urgent() {
            (sinks.urgent)(&self.settings.name, &message);
        }
    }

    /// Hands on what came of the stream, as far as the reader has room.
    pub(super) fn deliver(&mut self, sinks: &Sinks, waker: &Arc<Waker>) -> Delivered {
        for _ in 0..BATCH {
            if !self.link.has_event() {
                return Delivered::All;
            }
            let permit = match sinks.stream.try_reserve() {
                Ok(permit) => permit,
                Err(TrySendError::Full(())) => return Delivered::Full,
                // Nobody reads any more: the daemon ends.
                Err(TrySendError::Closed(())) => return Delivered::All,
            };
            let Some(event) = self.link.poll_event() else {
                return Delivered::All;
            };
            let change = match event {
                Event::Up { epoch } => Change::Up {
                    epoch,
                    stream: self.begin_queue(waker),
                },
                Event::Down => {
                    self.end_queue();
                    Change::Down
                }
                Event::Message(message) => Change::Message(message),
            };
            permit.send(StreamEvent {
                peer: Arc::clone(&self.settings.name),
                change,
            });
        }
        Delivered::More
    }

    fn begin_queue(&mut self, waker: &Arc<Waker>) -> StreamSender {
        self.end_queue();
        let queue = Arc::<StreamQueue>::default();
        self.queue = Some(Arc::clone(&queue));
        StreamSender::new(queue, Arc::clone(waker))
    }

    /// The stream that the reader was told of takes nothing any more. Whether it was
    /// told of one.
    pub(super) fn end_queue(&mut self) -> bool {
        self.waiting = None;
        let queue = self.queue.take();
        if let Some(queue) = &queue {
            queue.end();
        }
        queue.is_some()
    }

    /// Sends what there is to send.
    pub(super) fn flush(&mut self, now: Instant) {
        match (&self.queue, self.link.acknowledged()) {
            (Some(queue), Some(count)) => {
                queue.acknowledge(count);
                while let Some(message) = self.waiting.take().or_else(|| queue.pop()) {
                    if !self.link.send(now, &message) {
                        self.waiting = Some(message);
                        break;
                    }
                }
            }
            // The reader will hear of it; the senders know already.
            (Some(queue), None) => queue.end(),
            (None, _) => {}
        }
        while let Some((path, datagram)) = self.link.poll_transmit(now) {
            if let Some(socket) = self.sockets.get_mut(path) {
                socket.send(now, &datagram);
            }
        }
    }

    /// When something is due.
    pub(super) fn due(&self) -> Instant {
        let sockets = self.sockets.iter().filter_map(PathSocket::due);
        let link = self.link.poll_timeout();
        sockets.chain([link]).min().unwrap_or(link)
    }

    /// What to wait for.
    pub(super) fn polled(&self) -> impl Iterator<Item = PollFd<'_>> {
        let open = self.sockets.iter().filter_map(PathSocket::fd);
        open.map(|fd| PollFd::new(fd, PollFlags::POLLIN))
    }

    pub(super) fn status(&self, now: Instant, unix: u64) -> LinkStatus {
        let link = &self.link;
        let mut stream = link.stream_status(now);
        let queued = self.queue.as_ref().map_or(0, |queue| queue.len());
        stream.waiting += queued as u64 + u64::from(self.waiting.is_some());
        stream.sent += queued as u64 + u64::from(self.waiting.is_some());
        let paths = link.paths().iter().zip(&self.sockets);
        LinkStatus {
            peer: self.settings.name.to_string(),
            up: link.is_up(),
            since: unix.saturating_sub(now.saturating_duration_since(self.since).as_secs()),
            epoch: link.epoch().map(|epoch| format!("{epoch:016x}")),
            became_up: link.became_up(),
            sessions: link.sessions_made(),
            paths: paths
                .map(|(path, socket)| PathStatus {
                    local: socket.settings().local,
                    remote: socket.settings().remote,
                    alive: path.is_alive(now, link.path_time_out()),
                    heard_by_peer: path.heard_by_peer(),
                    heard_ago_ms: path.heard().map(|at| {
                        let ago = now.saturating_duration_since(at).as_millis();
                        u64::try_from(ago).unwrap_or(u64::MAX)
                    }),
                    round_trip_us: path
                        .round_trip()
                        .map(|trip| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX)),
                    sent: path.sent,
                    received: path.received,
                    error: socket.error().map(str::to_owned),
                })
                .collect(),
            stream,
            urgent: link.urgent_status().clone(),
            rejected: link.rejected_by_name(),
            ..LinkStatus::default()
        }
    }
}
