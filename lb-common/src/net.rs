//! Addresses, ports and MAC addresses as they stand in packets and maps.

/// A 16-bit integer in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Be16(u16);

impl Be16 {
    /// From the host's byte order.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// From the two bytes as they stand in the packet, read as a native integer.
    #[inline(always)]
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    /// In the host's byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The bytes as they stand in the packet, as a native integer: what
    /// checksum arithmetic works on.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// The value, or `kept` where it is zero: a port that is not rewritten.
    #[inline(always)]
    #[must_use]
    pub const fn or(self, kept: Self) -> Self {
        if self.is_zero() { kept } else { self }
    }

    /// Whether the value is zero (in maps: "any" or "keep").
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Address family of a packet, a service or a backend: 4 or 6.
pub mod family {
    /// IPv4.
    pub const V4: u8 = 4;
    /// IPv6.
    pub const V6: u8 = 6;
}

/// IANA protocol numbers that the data path knows.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// An IPv4 or IPv6 address, network byte order, as two native words read from
/// memory. IPv4 stands in the first four bytes, the rest is zero; the family
/// is kept beside it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// An IPv4 address from its four bytes read as a native integer.
    #[inline(always)]
    pub const fn v4(raw: u32) -> Self {
        Self([raw, 0, 0, 0])
    }

    /// From bytes in network order.
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }

    /// The bytes in network order.
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (
            a.to_ne_bytes(),
            b.to_ne_bytes(),
            c.to_ne_bytes(),
            d.to_ne_bytes(),
        );
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// The address with all but its leading `prefix` bits zero.
    #[inline(always)]
    #[must_use]
    pub const fn masked(self, family: u8, prefix: u8) -> Self {
        let [a, b, c, d] = self.0;
        let prefix = prefix as u32;
        if family == family::V4 {
            return Self([a & prefix_mask(prefix, 0), 0, 0, 0]);
        }
        Self([
            a & prefix_mask(prefix, 0),
            b & prefix_mask(prefix, 32),
            c & prefix_mask(prefix, 64),
            d & prefix_mask(prefix, 96),
        ])
    }

    /// The address and its [`family`] of a standard address.
    pub fn from_ip(ip: core::net::IpAddr) -> (Self, u8) {
        match ip {
            core::net::IpAddr::V4(v4) => (Self::v4(u32::from_ne_bytes(v4.octets())), family::V4),
            core::net::IpAddr::V6(v6) => (Self::from_bytes(v6.octets()), family::V6),
        }
    }

    /// The standard address; [`family::V4`] reads the first four bytes.
    pub fn to_ip(self, family: u8) -> core::net::IpAddr {
        if family == family::V4 {
            core::net::IpAddr::from(self.0[0].to_ne_bytes())
        } else {
            core::net::IpAddr::from(self.bytes())
        }
    }
}

/// The bits of a prefix that fall into the word of an address that begins
/// `before` bits into it, as that word stands in memory.
#[inline(always)]
const fn prefix_mask(prefix: u32, before: u32) -> u32 {
    let rest = prefix.saturating_sub(before);
    let bits = if rest > 32 { 32 } else { rest };
    ((0xffff_ffff_0000_0000_u64 >> bits) as u32).to_be()
}

/// A MAC address, first byte first.
pub type Mac = [u8; 6];

/// Where a member's frames go: destination MAC and index in the `LINKS` map,
/// in one word, so that a change of the next hop is one atomic write.
///
/// In memory: six bytes of MAC, then the link index as a native `u16`. Zero is
/// "not resolved".
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop(pub u64);

impl NextHop {
    /// Nothing known.
    pub const UNRESOLVED: Self = Self(0);

    /// A resolved next hop.
    pub const fn new(mac: Mac, link: u16) -> Self {
        let l = link.to_ne_bytes();
        Self(u64::from_ne_bytes([
            mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], l[0], l[1],
        ]))
    }

    /// Destination MAC.
    #[inline(always)]
    pub const fn mac(self) -> Mac {
        let b = self.0.to_ne_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// Index in the `LINKS` map.
    #[inline(always)]
    pub const fn link(self) -> u16 {
        let b = self.0.to_ne_bytes();
        u16::from_ne_bytes([b[6], b[7]])
    }

    /// Whether frames can be sent.
    #[inline(always)]
    pub const fn is_resolved(self) -> bool {
        self.0 != 0
    }
}

/// TCP's flag bits (RFC 9293 §3.1), byte 13 of the header.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement field is valid.
    pub const ACK: u8 = 0x10;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_into_the_map_and_back() {
        for ip in ["192.0.2.1", "0.0.0.0", "2001:db8::1", "::"] {
            let ip: core::net::IpAddr = ip.parse().unwrap();
            let (addr, family) = Addr::from_ip(ip);
            assert_eq!(addr.to_ip(family), ip);
        }
    }

    #[test]
    fn a_port_keeps_network_order_in_memory() {
        assert_eq!(Be16::new(80).wire().to_ne_bytes(), [0, 80]);
        assert_eq!(
            Be16::from_wire(u16::from_ne_bytes([0x1f, 0x90])).get(),
            8080
        );
    }

    #[test]
    fn a_next_hop_holds_mac_and_link_in_one_word() {
        let hop = NextHop::new([2, 0, 0, 1, 2, 3], 0x1234);
        assert_eq!(hop.mac(), [2, 0, 0, 1, 2, 3]);
        assert_eq!(hop.link(), 0x1234);
        assert!(hop.is_resolved() && !NextHop::UNRESOLVED.is_resolved());
        assert_eq!(&hop.0.to_ne_bytes()[..6], &[2, 0, 0, 1, 2, 3]);
    }
}
