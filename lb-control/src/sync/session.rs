//! One session: keys of one handshake, and the numbers of its messages.

use std::time::Instant;

use super::{
    handshake::{Hello, Keys},
    window::Window,
    wire::{self, Kind},
};

/// Messages of a session; long before, another one is made.
pub const MOST_MESSAGES: u64 = 1 << 48;

/// A session.
#[derive(Debug)]
pub struct Session {
    /// Chosen by whoever began it.
    pub id: u64,
    /// What the peer said of itself.
    pub peer: Hello,
    /// When the handshake was complete here.
    pub since: Instant,
    /// Nonces that came.
    pub window: Window,
    keys: Keys,
    sent: u64,
}

impl Session {
    /// After a handshake.
    pub fn new(id: u64, keys: Keys, peer: Hello, now: Instant) -> Self {
        Self {
            id,
            peer,
            since: now,
            window: Window::default(),
            keys,
            sent: 0,
        }
    }

    /// Messages that were sent in it.
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// A datagram with the plaintext in it. `None` after too many of them.
    pub fn seal(&mut self, plaintext: &[u8]) -> Option<Vec<u8>> {
        // Twice as many, so that a new session that takes its time doesn't matter.
        if self.sent >= 2 * MOST_MESSAGES {
            return None;
        }
        let nonce = self.sent;
        self.sent += 1;
        let mut datagram = wire::header(Kind::Transport, self.id, nonce);
        self.keys
            .encrypt(nonce, plaintext, &mut datagram)
            .then_some(datagram)
    }

    /// The plaintext, if it is authentic.
    pub fn open(&self, nonce: u64, ciphertext: &[u8]) -> Option<Vec<u8>> {
        self.keys.decrypt(nonce, ciphertext)
    }
}
