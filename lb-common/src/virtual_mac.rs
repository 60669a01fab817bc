//! The MAC address of a virtual router (RFC 9568 §7.3): 00-00-5E-00-01-VRID for
//! IPv4, 00-00-5E-00-02-VRID for IPv6. It is another form of the router's owner
//! word, whose index is its VRID, and 256 more for IPv6.

use crate::net::Mac;

/// The bytes that all of them begin with.
pub const PREFIX: [u8; 4] = [0, 0, 0x5e, 0];

/// That of the virtual router with owner word `index`.
#[inline(always)]
pub const fn of(index: u16) -> Mac {
    let [a, b, c, d] = PREFIX;
    let [family, vrid] = end(index);
    [a, b, c, d, family, vrid]
}

/// Its last two bytes.
#[inline(always)]
pub const fn end(index: u16) -> [u8; 2] {
    [(index >> 8) as u8 + 1, index as u8]
}

/// Index of the owner word that an address with [`PREFIX`] and this end stands
/// for; beyond `OWNERS` if it is no virtual router's.
#[inline(always)]
pub const fn owner(end: [u8; 2]) -> u32 {
    let [family, vrid] = end;
    (family as u32).wrapping_sub(1) << 8 | vrid as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::OWNERS;

    #[test]
    fn addresses_are_those_of_rfc_9568() {
        assert_eq!(of(51), [0, 0, 0x5e, 0, 1, 51]);
        assert_eq!(of(256 + 255), [0, 0, 0x5e, 0, 2, 255]);
    }

    #[test]
    fn each_address_stands_for_its_word_and_others_for_none() {
        for index in 0..OWNERS as u16 {
            assert_eq!(owner(end(index)), u32::from(index));
        }
        for family in (0..=u8::MAX).filter(|family| !matches!(family, 1 | 2)) {
            assert!(owner([family, 51]) >= OWNERS, "{family}");
        }
    }
}
