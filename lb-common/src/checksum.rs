//! Internet checksum arithmetic: incremental updates after RFC 1624, equation 3
//! (`HC' = ~(~HC + ~m + m')`).
//!
//! Words are native integers read from the packet's memory; the one's
//! complement sum does not depend on the byte order (RFC 1071 §2 B).

/// The change of a checksum: the sum of `~old + new` over the words replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// Replaces one 16-bit word. Up to 16,000 replacements fit.
    #[inline(always)]
    #[must_use]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old as u32 & 0xffff) + new as u32)
    }

    /// Replaces two 16-bit words that stand side by side.
    #[inline(always)]
    #[must_use]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        self.replace16(old as u16, new as u16)
            .replace16((old >> 16) as u16, (new >> 16) as u16)
    }

    /// Replaces an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn replace128(self, old: [u32; 4], new: [u32; 4]) -> Self {
        self.replace32(old[0], new[0])
            .replace32(old[1], new[1])
            .replace32(old[2], new[2])
            .replace32(old[3], new[3])
    }

    /// The checksum field after the change.
    #[inline(always)]
    pub const fn apply(self, check: u16) -> u16 {
        !fold((!check as u32 & 0xffff) + self.folded() as u32)
    }

    /// As [`Self::apply`], with zero written as all ones, which is the same
    /// number. Where all that is summed becomes zero (an ICMP echo reply may),
    /// only that is right, and RFC 1624's equation can't tell.
    #[inline(always)]
    pub const fn apply_nonzero(self, check: u16) -> u16 {
        match self.apply(check) {
            0 => 0xffff,
            sum => sum,
        }
    }

    #[inline(always)]
    const fn folded(self) -> u16 {
        fold(self.0)
    }
}

/// UDP's checksum field after a change: zero means "no checksum" over IPv4 and
/// stays; a computed zero is sent as all ones (RFC 768).
#[inline(always)]
pub const fn apply_udp(delta: Delta, check: u16) -> u16 {
    if check == 0 {
        return 0;
    }
    delta.apply_nonzero(check)
}

/// Folds a sum of 16-bit words with its carries into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071's definition, the long way.
    fn full(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // Old checksum 0xdd2f, the word 0x5555 becomes 0x3285: 0x0000.
        let be = u16::from_be;
        let delta = Delta::NONE.replace16(be(0x5555), be(0x3285));
        assert_eq!(delta.apply(be(0xdd2f)), 0);
    }

    #[test]
    fn an_echo_reply_of_zeroes_has_a_checksum_of_all_ones() {
        let request = [8, 0, 0, 0, 0, 0, 0, 0];
        let delta = Delta::NONE.replace16(u16::from_ne_bytes([8, 0]), 0);
        assert_eq!(delta.apply_nonzero(full(&request)), full(&[0; 8]));
        assert_eq!(delta.apply_nonzero(full(&request)), 0xffff);
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent_and_a_computed_zero_becomes_ones() {
        let delta = Delta::NONE.replace32(1, 2);
        assert_eq!(apply_udp(delta, 0), 0);
        let be = u16::from_be;
        let delta = Delta::NONE.replace16(be(0x5555), be(0x3285));
        assert_eq!(apply_udp(delta, be(0xdd2f)), 0xffff);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_full_computation(
            mut data in proptest::collection::vec(any::<u8>(), 40..80),
            new in any::<[u32; 4]>(), word in any::<u16>(),
        ) {
            data.truncate(data.len() & !1);
            let before = full(&data);
            let at = |d: &[u8], i: usize| u32::from_ne_bytes([d[i], d[i + 1], d[i + 2], d[i + 3]]);
            let old = [at(&data, 0), at(&data, 4), at(&data, 8), at(&data, 12)];
            let old_word = u16::from_ne_bytes([data[20], data[21]]);
            for (i, w) in new.iter().enumerate() {
                data[i * 4..i * 4 + 4].copy_from_slice(&w.to_ne_bytes());
            }
            data[20..22].copy_from_slice(&word.to_ne_bytes());
            let delta = Delta::NONE.replace128(old, new).replace16(old_word, word);
            let after = delta.apply(before);
            // Zero has two representations; only data that is all zero keeps
            // the other one (RFC 1624 §3).
            let expected = full(&data);
            prop_assert!(after == expected || (after ^ expected == 0xffff && (after == 0 || expected == 0)));
        }
    }
}
