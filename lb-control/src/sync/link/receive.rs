//! What a datagram does.

use std::time::Instant;

use super::Link;
use crate::sync::{
    counts::Reason,
    frame::{self, Frame},
    session::MOST_MESSAGES,
    window::Seen,
    wire::{self, Datagram, Kind, Malformed},
};

/// Urgent messages that wait for [`Link::poll_urgent`].
const MOST_URGENT: usize = 1024;

impl Link {
    /// A datagram came by path number `path`.
    pub fn handle_datagram(&mut self, now: Instant, path: usize, bytes: &[u8]) {
        if let Err(reason) = self.datagram(now, path, bytes) {
            self.rejected.count(reason);
        }
    }

    fn datagram(&mut self, now: Instant, path: usize, bytes: &[u8]) -> Result<(), Reason> {
        let datagram = wire::decode(bytes).map_err(|malformed| match malformed {
            Malformed::Truncated => Reason::Truncated,
            Malformed::Oversized => Reason::Oversized,
            Malformed::Foreign => Reason::Foreign,
            Malformed::Version => Reason::Version,
        })?;
        match datagram.kind {
            Kind::Hint => self.hinted(now, datagram.session),
            Kind::Initiation => self.initiated(now, path, datagram.session, datagram.payload),
            Kind::Response => self.responded(now, datagram.session, datagram.payload),
            Kind::Transport => self.transport(now, path, &datagram),
        }
    }

    fn transport(
        &mut self,
        now: Instant,
        path: usize,
        datagram: &Datagram<'_>,
    ) -> Result<(), Reason> {
        let Some(session) = self.sessions.find(datagram.session) else {
            self.hint_at(now, path, datagram.session);
            return Err(Reason::UnknownSession);
        };
        let seen = session.window.look(path, datagram.nonce);
        if seen == Seen::Old || datagram.nonce >= 2 * MOST_MESSAGES {
            return Err(Reason::Replayed);
        }
        let plaintext = session.open(datagram.nonce, datagram.payload);
        let plaintext = plaintext.ok_or(Reason::NotAuthentic)?;
        let read = frame::read(&plaintext);
        if seen == Seen::ByOthers {
            // It proves its path alive, if it was sent by it.
            if !read.is_ok_and(|(on_every_path, _)| on_every_path) {
                return Err(Reason::Replayed);
            }
            session.window.take(path, datagram.nonce);
            self.hear(now, path);
            return Ok(());
        }
        session.window.take(path, datagram.nonce);
        self.hear(now, path);
        self.confirmed(now, datagram.session);
        let (_, frames) = read.map_err(|_| Reason::Unreadable)?;
        for frame in frames {
            self.frame(now, path, frame)?;
        }
        Ok(())
    }

    fn hear(&mut self, now: Instant, path: usize) {
        if let Some(path) = self.paths.get_mut(path) {
            path.hear(now);
        }
    }

    fn frame(&mut self, now: Instant, path: usize, frame: Frame<'_>) -> Result<(), Reason> {
        let clock = self.clock(now);
        match frame {
            Frame::Keepalive(keepalive) => {
                if let Some(path) = self.paths.get_mut(path) {
                    path.take(now, clock, &keepalive);
                }
            }
            Frame::Acknowledgement(acknowledgement) => {
                if let Some(streams) = &mut self.streams {
                    streams.outgoing.acknowledge(now, &acknowledgement);
                }
            }
            Frame::Packet { number, messages } => {
                if let Some(streams) = &mut self.streams {
                    let received = streams.incoming.receive(number, messages);
                    received.map_err(|_| Reason::Unreadable)?;
                }
            }
            Frame::Urgent(message) => {
                self.totals.urgent.received += 1;
                if self.urgent.len() < MOST_URGENT {
                    self.urgent.push_back(message.to_vec());
                }
            }
        }
        Ok(())
    }
}
