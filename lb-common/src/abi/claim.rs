//! Somebody else who says that a VIP is its own.

use crate::net::Mac;

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
