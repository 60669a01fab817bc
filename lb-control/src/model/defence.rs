//! Who may use a service, how much of it, and what becomes of connections
//! whose server is gone.

use std::{fmt, net::IpAddr};

use serde::Serialize;

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// Leading bits that its addresses share.
    pub bits: u8,
}

impl Prefix {
    /// The block of `bits` leading bits that an address belongs to.
    pub fn of(address: IpAddr, bits: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(bits.min(32)))
                    .unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(bits.min(128)))
                    .unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
        };
        Self { address, bits }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who may use a service, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Defence {
    /// Sources that are let in. Not empty: everybody else is denied.
    pub allow: Vec<Prefix>,
    /// Sources that are kept out. The longest prefix of both lists decides.
    pub deny: Vec<Prefix>,
    /// New flows a second on each core.
    pub new_flows_per_core: Option<u32>,
    /// New flows a second from each IPv4 address or IPv6 /64.
    pub new_flows_per_source: Option<u32>,
}

/// What becomes of connections whose backend is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBackendDown {
    /// They stay for `dead_after`, since the alarm may be false; then as
    /// [`Self::Rehash`].
    #[default]
    Keep,
    /// They go to another backend at once.
    Rehash,
    /// Their clients are told at once, by an RST.
    Reset,
}
