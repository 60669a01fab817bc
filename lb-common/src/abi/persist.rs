//! Which server the next connection of a source goes to.

use crate::net::Addr;

/// Key of `PERSISTENCE`: a source, as a group of services sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersistKey {
    /// `ServiceEntry::group`.
    pub group: u32,
    /// Address family.
    pub family: u32,
    /// First address of the source's prefix.
    pub source: Addr,
}

/// Value of `PERSISTENCE`. Its two words change one by one: a server is right
/// whatever time stands beside it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistEntry {
    /// The server, as [`crate::persist::backend`] numbers it; never zero.
    pub backend: u64,
    /// Coarse time of the source's last packet that was noted.
    pub last_ticks: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of `SERVERS`, whose values are member ids: a server within a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerKey {
    /// As in [`PersistEntry`].
    pub backend: u64,
    /// The service's id.
    pub service: u32,
    /// Zero.
    pub reserved: u32,
}
