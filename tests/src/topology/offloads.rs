//! Offloads of veth interfaces, which decide what XDP sees.

use anyhow::Result;

use crate::netns::Netns;

/// Offloads of a topology's interfaces.
///
/// GRO stays on in every mode: it gives the receiving end of a veth NAPI,
/// without which every frame that XDP_TX or XDP_REDIRECT sends there is
/// dropped silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums finished by the sender and no segmentation offload, as frames
    /// look on a wire.
    Off,
    /// All on: as between containers. A sender's unfinished checksum is lost
    /// when the kernel turns its packet into an XDP frame.
    On,
    /// On at the hosts, but off at the ends that face the balancer, as a NIC
    /// would finish the work before the wire.
    Wire,
}

impl Offloads {
    /// Sets an interface's; `faces_balancer` when the balancer is at its other
    /// end.
    pub(crate) fn apply(self, ns: &Netns, interface: &str, faces_balancer: bool) -> Result<()> {
        let on = match self {
            Self::Off => false,
            Self::On => true,
            Self::Wire => !faces_balancer,
        };
        let s = if on { "on" } else { "off" };
        ns.exec(&[
            "ethtool", "-K", interface, "tx", s, "tso", s, "gso", s, "gro", "on",
        ])?;
        Ok(())
    }
}
