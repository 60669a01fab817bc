//! The TCP reset that answers a segment of a connection that is no more
//! (RFC 9293 §3.10.7.1).

use crate::net::tcp_flags;

/// What of a segment its answer depends on. Numbers in the host's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// SEG.SEQ.
    pub sequence: u32,
    /// SEG.ACK.
    pub acknowledgement: u32,
    /// The flags byte.
    pub flags: u8,
    /// Bytes of data.
    pub data_bytes: u32,
}

/// The numbers of a reset, in the host's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// SEG.SEQ.
    pub sequence: u32,
    /// SEG.ACK.
    pub acknowledgement: u32,
    /// The flags byte.
    pub flags: u8,
}

impl Reset {
    /// The answer to a segment, which must not be a reset itself: the next
    /// number that its sender expects, or without an acknowledgement an
    /// acknowledgement of all it holds.
    #[inline(always)]
    pub const fn answering(segment: Segment) -> Self {
        if segment.flags & tcp_flags::ACK != 0 {
            return Self {
                sequence: segment.acknowledgement,
                acknowledgement: 0,
                flags: tcp_flags::RST,
            };
        }
        // SYN and FIN take a number each.
        let is_syn = (segment.flags & tcp_flags::SYN != 0) as u32;
        let is_fin = (segment.flags & tcp_flags::FIN != 0) as u32;
        Self {
            sequence: 0,
            acknowledgement: segment
                .sequence
                .wrapping_add(segment.data_bytes)
                .wrapping_add(is_syn + is_fin),
            flags: tcp_flags::RST | tcp_flags::ACK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Segment = Segment {
        sequence: u32::MAX - 1,
        acknowledgement: 77,
        flags: tcp_flags::ACK,
        data_bytes: 10,
    };

    fn of(flags: u8) -> (u32, u32, u8) {
        let reset = Reset::answering(Segment { flags, ..SEGMENT });
        (reset.sequence, reset.acknowledgement, reset.flags)
    }

    #[test]
    fn an_acknowledgement_says_which_number_is_expected() {
        assert_eq!(of(tcp_flags::ACK), (77, 0, tcp_flags::RST));
        assert_eq!(of(tcp_flags::ACK | tcp_flags::FIN), (77, 0, tcp_flags::RST));
    }

    #[test]
    fn without_one_everything_is_acknowledged_and_the_numbers_wrap() {
        let flags = tcp_flags::RST | tcp_flags::ACK;
        assert_eq!(of(0), (0, 8, flags));
        assert_eq!(of(tcp_flags::SYN), (0, 9, flags));
        assert_eq!(of(tcp_flags::FIN), (0, 9, flags));
        assert_eq!(of(tcp_flags::SYN | tcp_flags::FIN), (0, 10, flags));
    }
}
