//! What a QUIC packet says to somebody who can't decrypt it (RFC 8999, RFC
//! 9000 §17.2, RFC 9369 §3.2).

use crate::track::Kind;

/// Bytes of a datagram that [`kind`] looks at.
pub const BYTES: usize = 5;

/// QUIC version 1 (RFC 9000 §15).
const V1: u32 = 1;
/// QUIC version 2 (RFC 9369 §3.1).
const V2: u32 = 0x6b33_43cf;

const LONG_HEADER: u8 = 0x80;
const TYPE: u8 = 0x30;
/// Type of an Initial packet in version 1 (RFC 9000 §17.2.2).
const INITIAL_V1: u8 = 0x00;
/// Type of an Initial packet in version 2 (RFC 9369 §3.2).
const INITIAL_V2: u8 = 0x10;

/// What the first bytes of a client's datagram mean to its flow: an Initial
/// packet is the SYN. A version that isn't known opens no flow; its server
/// answers with those that it knows (RFC 9000 §6).
#[inline(always)]
pub const fn kind([first, v0, v1, v2, v3]: [u8; BYTES]) -> Kind {
    let initial = match u32::from_be_bytes([v0, v1, v2, v3]) {
        V1 => INITIAL_V1,
        V2 => INITIAL_V2,
        _ => return Kind::Data,
    };
    if first & LONG_HEADER != 0 && first & TYPE == initial {
        Kind::Syn
    } else {
        Kind::Data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (first byte, version) to kind.
    fn of(first: u8, version: u32) -> Kind {
        let [a, b, c, d] = version.to_be_bytes();
        kind([first, a, b, c, d])
    }

    #[test]
    fn initial_packets_open_a_flow_whatever_the_bits_that_are_protected_or_greased() {
        for low in 0..16 {
            // RFC 9287: the fixed bit may be zero.
            for fixed in [0, 0x40] {
                assert_eq!(of(0x80 | fixed | low, V1), Kind::Syn);
                assert_eq!(of(0x90 | fixed | low, V2), Kind::Syn);
            }
        }
    }

    #[test]
    fn other_long_headers_open_none() {
        // 0-RTT, Handshake, Retry in either version's numbers.
        for kind in [0x10, 0x20, 0x30] {
            assert_eq!(of(0xc0 | kind, V1), Kind::Data);
        }
        for kind in [0x00, 0x20, 0x30] {
            assert_eq!(of(0xc0 | kind, V2), Kind::Data);
        }
        // Version negotiation, and a version reserved to provoke it.
        assert_eq!(of(0xc0, 0), Kind::Data);
        assert_eq!(of(0xc0, 0x1a2a_3a4a), Kind::Data);
    }

    #[test]
    fn short_headers_open_none_even_if_their_bytes_look_like_a_version() {
        assert_eq!(of(0x40, V1), Kind::Data);
        assert_eq!(of(0x50, V2), Kind::Data);
    }
}
