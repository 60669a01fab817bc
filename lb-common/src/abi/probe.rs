//! Probes of health checks that go the way of clients' packets.

use crate::net::Addr;

/// Source ports of probes, and entries of the map `PROBES`.
pub const PROBE_PORTS: u32 = 4096;

/// Where the probe from a port goes, and so whose the answers to it are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeEntry {
    /// This host's address that it is from.
    pub address: Addr,
    /// The member that gets it; zero: nobody does.
    pub member: u32,
    /// Zero.
    pub reserved: u32,
}
