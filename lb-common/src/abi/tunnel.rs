//! Where tunnels' outer packets come from.

use crate::net::{Addr, Be16};

/// Sources of outer packets, part of [`super::Config`]: a prefix for each
/// family, whose host bits the flow's hash fills in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// IPv4 prefix, network byte order, its host bits zero.
    pub source_v4: u32,
    /// Mask of the IPv4 host bits, network byte order; zero: one fixed source.
    pub host_v4: u32,
    /// IPv6 prefix, its host bits zero.
    pub source_v6: Addr,
    /// Mask of the host bits in the last two words of the IPv6 address.
    pub host_v6: [u32; 2],
    /// UDP port that backends take GUE at.
    pub gue_port: Be16,
    /// Zero.
    pub reserved: [u16; 3],
}
