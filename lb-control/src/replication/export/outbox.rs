//! Messages on their way to the link.

use std::collections::VecDeque;

use crate::replication::record::{MESSAGE_BYTES, Record};

/// A message that is being made, and those that the link had no room for.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    batch: Vec<u8>,
    waiting: VecDeque<Vec<u8>>,
    pub(super) bytes: u64,
}

impl Outbox {
    /// Adds a record to the message that is being made.
    pub(super) fn put(&mut self, record: &Record) {
        let length = self.batch.len();
        if self.batch.first() == Some(&record.kind()) {
            record.put(&mut self.batch);
            if self.batch.len() <= MESSAGE_BYTES {
                return;
            }
            self.batch.truncate(length);
        }
        self.close();
        self.batch.push(record.kind());
        record.put(&mut self.batch);
    }

    /// Nothing more comes into that message.
    pub(super) fn close(&mut self) {
        if !self.batch.is_empty() {
            let message = std::mem::take(&mut self.batch);
            self.bytes += message.len() as u64;
            self.waiting.push_back(message);
        }
    }

    /// Whether all that was closed could be sent.
    pub(super) fn drain(&mut self, send: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        while let Some(message) = self.waiting.front() {
            if !send(message) {
                return false;
            }
            self.waiting.pop_front();
        }
        true
    }
}
