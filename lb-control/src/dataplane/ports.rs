//! Ports of a service as keys of the maps.

use crate::model::Ports;

/// A range of at most so many ports becomes that many keys of the hash, which
/// is faster to look up than the prefix tree.
pub const SINGLE_KEYS: u32 = 16;

/// Keys for the ports of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortKeys {
    /// One key of `SERVICES` each.
    pub single: Vec<u16>,
    /// One key of `RANGES` each.
    pub blocks: Vec<Block>,
}

/// `2^(16 - prefix_bits)` ports from `first` on, which is a multiple of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First port.
    pub first: u16,
    /// Leading bits of the port that all ports of the block share.
    pub prefix_bits: u32,
}

/// The keys that cover exactly these ports.
pub fn keys(ports: &Ports) -> PortKeys {
    let mut keys = PortKeys::default();
    match ports {
        Ports::Any => keys.blocks.push(Block {
            first: 0,
            prefix_bits: 0,
        }),
        Ports::Ranges(ranges) => {
            for &(first, last) in ranges {
                if u32::from(last).saturating_sub(u32::from(first)) < SINGLE_KEYS {
                    keys.single.extend(first..=last);
                } else {
                    blocks(first, last, &mut keys.blocks);
                }
            }
        }
    }
    keys
}

/// Covers `first..=last` with as few aligned blocks as can be.
fn blocks(first: u16, last: u16, out: &mut Vec<Block>) {
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        let aligned = next.trailing_zeros().min(16);
        let fits = (end - next).ilog2();
        let bits = aligned.min(fits);
        out.push(Block {
            first: next as u16,
            prefix_bits: 16 - bits,
        });
        next += 1 << bits;
    }
}

/// The only port of a service, if it has one.
pub fn single_port(ports: &Ports) -> Option<u16> {
    match ports {
        Ports::Ranges(ranges) => match ranges.as_slice() {
            [(first, last)] if first == last => Some(*first),
            _ => None,
        },
        Ports::Any => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_keys_of_a_range_cover_each_of_its_ports_once_and_no_other(
            first in any::<u16>(), length in 0u16..=u16::MAX,
        ) {
            let last = first.saturating_add(length);
            let keys = keys(&Ports::Ranges(vec![(first, last)]));
            let mut covered: Vec<u32> = keys.single.iter().map(|p| u32::from(*p)).collect();
            for block in &keys.blocks {
                let n = 1u32 << (16 - block.prefix_bits);
                prop_assert_eq!(u32::from(block.first) % n, 0);
                covered.extend(u32::from(block.first)..u32::from(block.first) + n);
            }
            let wanted: Vec<u32> = (u32::from(first)..=u32::from(last)).collect();
            prop_assert_eq!(covered, wanted);
            prop_assert!(keys.blocks.len() <= 30);
        }
    }

    #[test]
    fn any_port_is_one_block() {
        let keys = keys(&Ports::Any);
        assert_eq!(
            (keys.single.len(), keys.blocks.as_slice()),
            (
                0,
                [Block {
                    first: 0,
                    prefix_bits: 0
                }]
                .as_slice()
            )
        );
    }
}
