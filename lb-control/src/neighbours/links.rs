//! Network interfaces as the kernel describes them.

use serde::Serialize;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The kernel's name of it.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address; zero where it has none.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Set up by the administrator and with a carrier.
    pub up: bool,
    /// Kind of a virtual device as `ip -d link` shows it: "veth", "vlan".
    pub kind: Option<String>,
}
