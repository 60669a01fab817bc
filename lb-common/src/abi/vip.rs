//! VIPs, and who else says that one is its own.

use crate::net::{Addr, Mac};

/// A VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipKey {
    /// The address.
    pub address: Addr,
    /// Address family.
    pub family: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What the data path needs to know of a VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipEntry {
    /// Index in `OWNERS`.
    pub owner: u16,
    /// See [`vip_flag`].
    pub flags: u16,
}

/// Bits of [`VipEntry::flags`].
pub mod vip_flag {
    /// No VIP, but an address of full NAT's pool: what is sent to it are replies.
    pub const POOL: u16 = 1;
}

/// The last one that claimed a VIP which this node owns, in ARP or neighbour
/// discovery. Written at most once a tick for each VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Its MAC address.
    pub mac: Mac,
    /// Zero.
    pub reserved: [u8; 2],
    /// Index of the device that the claim came in by.
    pub device: u32,
    /// Tick of the claim.
    pub ticks: u32,
}

/// Entries of the `CLAIMS` map.
pub const CLAIMS: u32 = 1024;
