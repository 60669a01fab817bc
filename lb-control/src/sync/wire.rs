//! Datagrams between peers: a header in the clear and what is encrypted behind it.
//!
//! | byte | field |
//! |---|---|
//! | 0 | magic, `LBSY` |
//! | 4 | version of the protocol, 1 |
//! | 5 | type |
//! | 6 | reserved, 0 when sent, ignored |
//! | 8 | session id, big endian; in a hint that which was unknown, or 0 |
//! | 16 | nonce, big endian; 0 but in `transport` |
//! | 24 | payload |

/// Bytes of the longest datagram. With the headers of UDP and IPv6 it fits the
/// smallest MTU of IPv6 (1,280), so it is never fragmented, in a tunnel or not.
pub const MAX_DATAGRAM: usize = 1200;
/// Bytes before the payload.
pub const HEADER: usize = 24;
/// Bytes that encryption adds.
pub const TAG: usize = 16;
/// Bytes that may be encrypted.
pub const MAX_PLAINTEXT: usize = MAX_DATAGRAM - HEADER - TAG;

const MAGIC: [u8; 4] = *b"LBSY";
/// The protocol's version.
pub const VERSION: u8 = 1;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// "I don't know this session": authenticated by nothing.
    Hint,
    /// First message of a handshake.
    Initiation,
    /// Second and last message of a handshake.
    Response,
    /// Within a session.
    Transport,
}

impl Kind {
    const ALL: [(Self, u8); 4] = [
        (Self::Hint, 1),
        (Self::Initiation, 2),
        (Self::Response, 3),
        (Self::Transport, 4),
    ];
}

/// A datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// What it is.
    pub kind: Kind,
    /// The session that it is of.
    pub session: u64,
    /// Number of the message in its session and direction.
    pub nonce: u64,
    /// What follows.
    pub payload: &'a [u8],
}

/// Why bytes are no datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header, or than its type can be.
    Truncated,
    /// Longer than [`MAX_DATAGRAM`].
    Oversized,
    /// Another magic or type.
    Foreign,
    /// Another version of the protocol.
    Version,
}

/// Reads a datagram.
///
/// # Errors
/// See [`Malformed`].
pub fn decode(bytes: &[u8]) -> Result<Datagram<'_>, Malformed> {
    if bytes.len() > MAX_DATAGRAM {
        return Err(Malformed::Oversized);
    }
    let (header, payload) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or(Malformed::Truncated)?;
    let [m0, m1, m2, m3, version, kind, _, _, rest @ ..] = header;
    if [*m0, *m1, *m2, *m3] != MAGIC {
        return Err(Malformed::Foreign);
    }
    if *version != VERSION {
        return Err(Malformed::Version);
    }
    let (kind, _) = Kind::ALL
        .into_iter()
        .find(|(_, number)| number == kind)
        .ok_or(Malformed::Foreign)?;
    let is_whole = match kind {
        Kind::Hint => payload.is_empty(),
        _ => payload.len() >= TAG,
    };
    if !is_whole {
        return Err(Malformed::Truncated);
    }
    let both = u128::from_be_bytes(*rest);
    Ok(Datagram {
        kind,
        session: (both >> 64) as u64,
        nonce: both as u64,
        payload,
    })
}

/// The header of a datagram, to which the payload is to be added.
pub fn header(kind: Kind, session: u64, nonce: u64) -> Vec<u8> {
    let number = Kind::ALL.into_iter().find(|(it, _)| *it == kind);
    let mut bytes = Vec::with_capacity(MAX_DATAGRAM);
    bytes.extend(MAGIC);
    bytes.extend([VERSION, number.map_or(0, |(_, number)| number), 0, 0]);
    bytes.extend(session.to_be_bytes());
    bytes.extend(nonce.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transport() -> Vec<u8> {
        let mut bytes = header(Kind::Transport, 0x0102_0304_0506_0708, 9);
        bytes.extend([0xaa; TAG]);
        bytes
    }

    #[test]
    fn the_header_is_as_the_table_says() {
        let bytes = transport();
        assert_eq!(bytes[..8], *b"LBSY\x01\x04\0\0");
        assert_eq!(
            bytes[8..24],
            [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9]
        );
        let read = decode(&bytes).unwrap();
        assert_eq!(
            (read.kind, read.session, read.nonce),
            (Kind::Transport, 0x0102_0304_0506_0708, 9)
        );
        assert_eq!(read.payload, [0xaa; TAG]);
    }

    #[test]
    fn each_defect_has_its_name() {
        let bytes = transport();
        for length in 0..bytes.len() {
            assert_eq!(
                decode(&bytes[..length]),
                Err(Malformed::Truncated),
                "{length}"
            );
        }
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            decode(&bytes).err()
        };
        assert_eq!(changed(0, b'X'), Some(Malformed::Foreign));
        assert_eq!(changed(4, 2), Some(Malformed::Version));
        assert_eq!(changed(5, 0), Some(Malformed::Foreign));
        assert_eq!(changed(5, 5), Some(Malformed::Foreign));
        assert_eq!(
            changed(5, 1),
            Some(Malformed::Truncated),
            "a hint has no payload"
        );
        assert_eq!(changed(6, 7), None, "reserved");
        let mut long = bytes.clone();
        long.resize(MAX_DATAGRAM, 0);
        assert!(decode(&long).is_ok());
        long.push(0);
        assert_eq!(decode(&long), Err(Malformed::Oversized));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1300), fixed in any::<bool>()) {
            let mut bytes = bytes;
            if fixed && bytes.len() >= 5 {
                bytes[..5].copy_from_slice(b"LBSY\x01");
            }
            if let Ok(read) = decode(&bytes) {
                let mut again = header(read.kind, read.session, read.nonce);
                again[6..8].copy_from_slice(&bytes[6..8]);
                again.extend(read.payload);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
