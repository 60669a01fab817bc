//! The keyed flow hash: SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast
//! short-input PRF", 2012) over the tuple
//!
//! `source address | destination address | source port | destination port | protocol`
//!
//! in network byte order: 13 bytes for IPv4, 37 for IPv6. The key is secret
//! and shared by the nodes of a cluster, so nobody outside can aim at a slot
//! or a bucket, and every node sends a flow to the same backend.

use crate::net::{Addr, Be16, family};

/// The 128-bit key, as SipHash's two little-endian words.
pub type HashKey = [u64; 2];

/// Whose packet it is: the five-tuple, as the client sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`family`] of both addresses.
    pub family: u8,
}

impl Tuple {
    /// What the hash of a service by source is taken of: all that remains is the leading
    /// `prefix` bits of the source.
    #[inline(always)]
    pub fn source_only(&self, prefix: u8) -> Self {
        Self {
            source: self.source.masked(self.family, prefix),
            destination: Addr::default(),
            source_port: Be16::default(),
            destination_port: Be16::default(),
            protocol: 0,
            family: self.family,
        }
    }
}

struct Sip([u64; 4]);

impl Sip {
    #[inline(always)]
    fn round(&mut self) {
        let [mut v0, mut v1, mut v2, mut v3] = self.0;
        v0 = v0.wrapping_add(v1);
        v2 = v2.wrapping_add(v3);
        v1 = v1.rotate_left(13) ^ v0;
        v3 = v3.rotate_left(16) ^ v2;
        v0 = v0.rotate_left(32);
        v2 = v2.wrapping_add(v1);
        v0 = v0.wrapping_add(v3);
        v1 = v1.rotate_left(17) ^ v2;
        v3 = v3.rotate_left(21) ^ v0;
        v2 = v2.rotate_left(32);
        self.0 = [v0, v1, v2, v3];
    }

    #[inline(always)]
    fn block(&mut self, m: u64) {
        self.0[3] ^= m;
        self.round();
        self.0[0] ^= m;
    }
}

/// Two native words in memory order as SipHash's little-endian 64-bit block.
#[inline(always)]
const fn block(first: u32, second: u32) -> u64 {
    u32::from_le(first) as u64 | (u32::from_le(second) as u64) << 32
}

/// SipHash-1-3 of the tuple.
#[inline(always)]
pub fn flow_hash(key: HashKey, t: &Tuple) -> u64 {
    let mut s = Sip([
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ]);
    let length = if t.family == family::V4 {
        s.block(block(t.source.0[0], t.destination.0[0]));
        13u64
    } else {
        s.block(block(t.source.0[0], t.source.0[1]));
        s.block(block(t.source.0[2], t.source.0[3]));
        s.block(block(t.destination.0[0], t.destination.0[1]));
        s.block(block(t.destination.0[2], t.destination.0[3]));
        37
    };
    let ports = u16::from_le(t.source_port.wire()) as u64
        | (u16::from_le(t.destination_port.wire()) as u64) << 16;
    s.block(ports | (t.protocol as u64) << 32 | length << 56);
    s.0[2] ^= 0xff;
    s.round();
    s.round();
    s.round();
    s.0[0] ^ s.0[1] ^ s.0[2] ^ s.0[3]
}

/// The part of a flow hash that is kept in flow entries; it alone tells the
/// slot. 31 bits: the lowest is zero, since an entry needs its place.
#[inline(always)]
pub const fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 & !1
}

/// The part of a flow hash that chooses the bucket.
#[inline(always)]
pub const fn bucket_bits(hash: u64) -> u32 {
    hash as u32
}

/// `value · n / 2^32`: maps 32 uniform bits to `0..n` without a division.
#[inline(always)]
pub const fn scale(value: u32, n: u32) -> u32 {
    ((value as u64 * n as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;
    use std::vec::Vec;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    fn reference(key: HashKey, t: &Tuple) -> u64 {
        let n = if t.family == family::V4 { 4 } else { 16 };
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&t.source.bytes()[..n]);
        bytes.extend_from_slice(&t.destination.bytes()[..n]);
        bytes.extend_from_slice(&t.source_port.wire().to_ne_bytes());
        bytes.extend_from_slice(&t.destination_port.wire().to_ne_bytes());
        bytes.push(t.protocol);
        let mut h = SipHasher13::new_with_keys(key[0], key[1]);
        h.write(&bytes);
        h.finish()
    }

    proptest! {
        #[test]
        fn the_flow_hash_is_siphash_1_3_of_the_packets_bytes(
            key in any::<[u64; 2]>(), source in any::<[u8; 16]>(), destination in any::<[u8; 16]>(),
            sport in any::<u16>(), dport in any::<u16>(), protocol in any::<u8>(), v4 in any::<bool>(),
        ) {
            let addr = |b: [u8; 16]| if v4 {
                Addr::v4(u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
            } else {
                Addr::from_bytes(b)
            };
            let t = Tuple {
                source: addr(source), destination: addr(destination),
                source_port: Be16::new(sport), destination_port: Be16::new(dport),
                protocol, family: if v4 { family::V4 } else { family::V6 },
            };
            prop_assert_eq!(flow_hash(key, &t), reference(key, &t));
        }

        #[test]
        fn scaling_stays_in_range(value in any::<u32>(), n in 1u32..) {
            prop_assert!(scale(value, n) < n);
        }
    }
}
