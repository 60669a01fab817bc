//! The receiving end: order, and what to acknowledge.

use std::collections::{BTreeMap, VecDeque};

use super::RING;
use crate::sync::frame::{self, Acknowledgement, MAX_RANGES, Unreadable};

/// What came of the peer's stream.
#[derive(Debug, Default)]
pub struct Incoming {
    /// Packets that the reader has had, all of them.
    taken: u64,
    /// Packets that came from `taken` on.
    held: BTreeMap<u64, Vec<u8>>,
    /// What the reader has not had of packet `taken`.
    open: VecDeque<Vec<u8>>,
    is_due: bool,
}

impl Incoming {
    /// A packet came; once or again.
    ///
    /// # Errors
    /// It does not hold whole messages.
    pub fn receive(&mut self, number: u64, messages: &[u8]) -> Result<(), Unreadable> {
        frame::messages(messages)?;
        // Whatever was lost, the sender wants to know where things stand.
        self.is_due = true;
        let is_open = number == self.taken && !self.open.is_empty();
        let is_ahead = number.checked_sub(self.taken);
        if is_ahead.is_some_and(|ahead| ahead < RING as u64) && !is_open {
            let entry = self.held.entry(number);
            entry.or_insert_with(|| messages.to_vec());
        }
        Ok(())
    }

    /// The next message, which the reader has had then.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        while self.open.is_empty() {
            let packet = self.held.remove(&self.taken)?;
            let messages = frame::messages(&packet).unwrap_or_default();
            self.open = messages.into_iter().map(<[u8]>::to_vec).collect();
            if self.open.is_empty() {
                self.packet_taken();
            }
        }
        let message = self.open.pop_front();
        if self.open.is_empty() {
            self.packet_taken();
        }
        message
    }

    /// A message waits for the reader.
    pub fn has_next(&self) -> bool {
        !self.open.is_empty() || self.held.contains_key(&self.taken)
    }

    fn packet_taken(&mut self) {
        self.taken += 1;
        self.is_due = true;
    }

    /// Something is to be acknowledged that wasn't.
    pub const fn is_due(&self) -> bool {
        self.is_due
    }

    /// What came.
    pub fn acknowledge(&mut self) -> Acknowledgement {
        self.is_due = false;
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        let open = (!self.open.is_empty()).then_some(self.taken);
        for number in open.into_iter().chain(self.held.keys().copied()) {
            let Ok(ahead) = u16::try_from(number.saturating_sub(self.taken)) else {
                break;
            };
            let is_full = ranges.len() == MAX_RANGES;
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == ahead => *count += 1,
                _ if is_full => break,
                _ => ranges.push((ahead, 1)),
            }
        }
        Acknowledgement {
            taken: self.taken,
            ranges,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Vec<u8> {
        [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
    }

    fn texts(incoming: &mut Incoming) -> Vec<String> {
        std::iter::from_fn(|| incoming.next())
            .map(|message| String::from_utf8(message).unwrap())
            .collect()
    }

    #[test]
    fn messages_come_in_order_and_once() {
        let mut incoming = Incoming::default();
        incoming.receive(1, &one("c")).unwrap();
        assert_eq!(incoming.next(), None);
        incoming.receive(0, &[one("a"), one("b")].concat()).unwrap();
        incoming.receive(0, &one("x")).unwrap();
        assert_eq!(texts(&mut incoming), ["a", "b", "c"]);
        incoming.receive(1, &one("c")).unwrap();
        assert_eq!(incoming.next(), None);
    }

    #[test]
    fn what_the_reader_has_not_had_is_held_and_not_taken() {
        let mut incoming = Incoming::default();
        incoming.receive(0, &[one("a"), one("b")].concat()).unwrap();
        incoming.receive(2, &one("d")).unwrap();
        let expected = |taken, ranges: &[(u16, u16)]| Acknowledgement {
            taken,
            ranges: ranges.to_vec(),
        };
        assert_eq!(incoming.acknowledge(), expected(0, &[(0, 1), (2, 1)]));
        assert!(!incoming.is_due());
        incoming.next();
        // Half of it is as good as nothing.
        assert_eq!(incoming.acknowledge(), expected(0, &[(0, 1), (2, 1)]));
        incoming.receive(0, &[one("a"), one("b")].concat()).unwrap();
        assert_eq!(texts(&mut incoming), ["b"], "not again");
        assert!(incoming.is_due());
        assert_eq!(incoming.acknowledge(), expected(1, &[(1, 1)]));
    }

    #[test]
    fn memory_is_bounded_by_the_ring() {
        let mut incoming = Incoming::default();
        for number in 0..2 * RING as u64 {
            incoming.receive(number, &one("m")).unwrap();
        }
        incoming.receive(u64::MAX, &one("m")).unwrap();
        assert_eq!(texts(&mut incoming).len(), RING);
    }

    #[test]
    fn a_packet_without_a_message_is_taken_and_one_that_is_cut_is_not() {
        let mut incoming = Incoming::default();
        incoming.receive(0, &[]).unwrap();
        assert_eq!(incoming.receive(1, &[0, 5, 1]), Err(Unreadable));
        incoming.receive(1, &one("a")).unwrap();
        assert_eq!(texts(&mut incoming), ["a"]);
    }
}
