//! What a session's messages hold, decrypted: flags and frames.
//!
//! Byte 0 is 1 where the message goes by every path, else 0. Frames follow up to the
//! end; numbers are big endian:
//!
//! | frame | fields |
//! |---|---|
//! | 1 keepalive | own clock (8, microseconds since any start, not 0), peer's clock as last heard on this path (8, 0: never), microseconds since then (4), whether the peer is heard on this path (1) |
//! | 2 acknowledgement | packets of the stream that were taken (8), number of ranges (1), and for each the first packet beyond that is held (2, relative) and how many (2) |
//! | 3 packet | number (8), length (2), messages: each its length (2) and its bytes |
//! | 4 urgent | length (2), bytes |

use super::wire::MAX_PLAINTEXT;

/// Bytes that messages of a packet may have, with two more for each.
pub const MAX_PACKET: usize = MAX_PLAINTEXT - 1 - PACKET_HEADER;
const PACKET_HEADER: usize = 1 + 8 + 2;
/// Most ranges of an acknowledgement.
pub const MAX_RANGES: usize = 32;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Proof of life and measurement.
    Keepalive(Keepalive),
    /// What of the stream came.
    Acknowledgement(Acknowledgement),
    /// A part of the stream.
    Packet {
        /// Its number, from 0.
        number: u64,
        /// Whole messages, each with its length.
        messages: &'a [u8],
    },
    /// An urgent message.
    Urgent(&'a [u8]),
}

/// See the module's table; of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// The sender's clock in microseconds, not 0.
    pub clock: u64,
    /// The receiver's clock as last heard; 0: never.
    pub echo: u64,
    /// Microseconds since then.
    pub held: u32,
    /// The sender hears the receiver on this path.
    pub hears: bool,
}

/// Which packets came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledgement {
    /// All before this number were taken by the reader.
    pub taken: u64,
    /// Others that came: first, relative to `taken`, and count.
    pub ranges: Vec<(u16, u16)>,
}

/// Nobody who has the key sends this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Frames to be sent in one message.
#[derive(Clone, Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Without a frame.
    pub fn new(on_every_path: bool) -> Self {
        Self(vec![u8::from(on_every_path)])
    }

    /// Adds a keepalive.
    pub fn keepalive(mut self, keepalive: &Keepalive) -> Self {
        self.0.push(1);
        self.0.extend(keepalive.clock.to_be_bytes());
        self.0.extend(keepalive.echo.to_be_bytes());
        self.0.extend(keepalive.held.to_be_bytes());
        self.0.push(u8::from(keepalive.hears));
        self
    }

    /// Adds an acknowledgement; ranges beyond [`MAX_RANGES`] are left out.
    pub fn acknowledgement(mut self, acknowledgement: &Acknowledgement) -> Self {
        let ranges = acknowledgement.ranges.iter().take(MAX_RANGES);
        self.0.push(2);
        self.0.extend(acknowledgement.taken.to_be_bytes());
        self.0.push(ranges.len() as u8);
        for (first, count) in ranges {
            self.0.extend(first.to_be_bytes());
            self.0.extend(count.to_be_bytes());
        }
        self
    }

    /// Adds a packet of at most [`MAX_PACKET`] bytes.
    pub fn packet(mut self, number: u64, messages: &[u8]) -> Self {
        self.0.push(3);
        self.0.extend(number.to_be_bytes());
        self.0.extend((messages.len() as u16).to_be_bytes());
        self.0.extend(messages);
        self
    }

    /// Adds an urgent message.
    pub fn urgent(mut self, message: &[u8]) -> Self {
        self.0.push(4);
        self.0.extend((message.len() as u16).to_be_bytes());
        self.0.extend(message);
        self
    }

    /// The plaintext.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whether the message went by every path, and its frames.
///
/// # Errors
/// There is no message like this.
pub fn read(plaintext: &[u8]) -> Result<(bool, Vec<Frame<'_>>), Unreadable> {
    let mut rest = Reader(plaintext);
    let on_every_path = rest.flag()?;
    let mut frames = Vec::new();
    while !rest.0.is_empty() {
        frames.push(rest.frame()?);
    }
    Ok((on_every_path, frames))
}

/// The messages of a packet.
///
/// # Errors
/// They are not whole.
pub fn messages(packet: &[u8]) -> Result<Vec<&[u8]>, Unreadable> {
    let mut rest = Reader(packet);
    let mut messages = Vec::new();
    while !rest.0.is_empty() {
        messages.push(rest.counted()?);
    }
    Ok(messages)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Unreadable)?;
        self.0 = rest;
        Ok(*first)
    }

    fn flag(&mut self) -> Result<bool, Unreadable> {
        match self.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Unreadable),
        }
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        self.bytes().map(u64::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Unreadable> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn counted(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = usize::from(self.u16()?);
        let (first, rest) = self.0.split_at_checked(length).ok_or(Unreadable)?;
        self.0 = rest;
        Ok(first)
    }

    fn frame(&mut self) -> Result<Frame<'a>, Unreadable> {
        Ok(match self.bytes()? {
            [1] => Frame::Keepalive(Keepalive {
                clock: self.u64()?,
                echo: self.u64()?,
                held: self.bytes().map(u32::from_be_bytes)?,
                hears: self.flag()?,
            }),
            [2] => {
                let taken = self.u64()?;
                let [count] = self.bytes()?;
                let ranges = (0..count).map(|_| Ok((self.u16()?, self.u16()?)));
                Frame::Acknowledgement(Acknowledgement {
                    taken,
                    ranges: ranges.collect::<Result<_, _>>()?,
                })
            }
            [3] => Frame::Packet {
                number: self.u64()?,
                messages: self.counted()?,
            },
            [4] => Frame::Urgent(self.counted()?),
            _ => return Err(Unreadable),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sync::MAX_MESSAGE;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let keepalive = Keepalive {
            clock: 1,
            echo: 2,
            held: 3,
            hears: true,
        };
        let acknowledgement = Acknowledgement {
            taken: 1 << 40,
            ranges: vec![(2, 3), (9, 1)],
        };
        let written = Writer::new(true)
            .keepalive(&keepalive)
            .acknowledgement(&acknowledgement)
            .packet(7, b"\0\x02ab\0\0")
            .urgent(b"now");
        let (on_every_path, frames) = read(written.bytes()).unwrap();
        assert!(on_every_path);
        let expected = [
            Frame::Keepalive(keepalive),
            Frame::Acknowledgement(acknowledgement),
            Frame::Packet {
                number: 7,
                messages: b"\0\x02ab\0\0",
            },
            Frame::Urgent(b"now"),
        ];
        assert_eq!(frames, expected);
        assert_eq!(messages(b"\0\x02ab\0\0"), Ok(vec![&b"ab"[..], b""]));
    }

    #[test]
    fn the_longest_of_everything_has_room() {
        const { assert!(2 + MAX_MESSAGE <= MAX_PACKET) };
        assert!(Writer::new(false).packet(0, &[0; MAX_PACKET]).bytes().len() <= MAX_PLAINTEXT);
        assert!(Writer::new(true).urgent(&[0; MAX_MESSAGE]).bytes().len() <= MAX_PLAINTEXT);
        let acknowledgement = Acknowledgement {
            taken: 0,
            ranges: vec![(1, 1); 2 * MAX_RANGES],
        };
        let written = Writer::new(false).acknowledgement(&acknowledgement);
        let (_, frames) = read(written.bytes()).unwrap();
        assert!(matches!(&frames[..], [Frame::Acknowledgement(a)] if a.ranges.len() == MAX_RANGES));
    }

    #[test]
    fn what_is_cut_or_unknown_is_unreadable() {
        let whole = Writer::new(false).packet(7, b"\0\x02ab");
        for length in 2..whole.bytes().len() {
            assert_eq!(read(&whole.bytes()[..length]), Err(Unreadable), "{length}");
        }
        for bytes in [&b""[..], b"\x02", b"\0\x05", b"\0\x04\0\x02a"] {
            assert_eq!(read(bytes), Err(Unreadable), "{bytes:?}");
        }
        assert_eq!(messages(b"\0\x03ab"), Err(Unreadable));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = messages(&bytes);
        }
    }
}
