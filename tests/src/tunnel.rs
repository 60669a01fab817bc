//! Backends that take tunnelled packets out of their tunnels, as Linux does it.

use anyhow::Result;

use crate::topology::Host;

/// Port that GUE is received on.
pub const GUE_PORT: u16 = 6080;

/// Lets a host take packets for its own addresses out of IPIP (all four
/// combinations of families) and GUE, from any sender.
///
/// The packets inside have to be for addresses of the host, such as a VIP on
/// its loopback.
pub fn decapsulate(host: &Host) -> Result<()> {
    let (v4, v6) = (host.v4(), host.v6());
    // One device for each protocol number and family of the outer header; GUE
    // hands what it carries to the same.
    let devices = format!(
        "link add tunnel44 type ipip local {v4} mode ipip\n\
         link add tunnel64 type sit local {v4} mode ip6ip\n\
         link add tunnel6 type ip6tnl local {v6} mode any\n\
         link set tunnel44 up\nlink set tunnel64 up\nlink set tunnel6 up\n"
    );
    host.ns.feed(&["ip", "-batch", "-"], &devices)?;
    for device in ["tunnel44", "tunnel64", "tunnel6"] {
        // Answers leave by another interface than requests come in by.
        host.ns
            .sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    // No name leads the kernel to these by itself.
    host.ns.exec(&["modprobe", "-a", "fou", "fou6"])?;
    let port = GUE_PORT.to_string();
    for family in ["-4", "-6"] {
        host.ns
            .exec(&["ip", family, "fou", "add", "port", &port, "gue"])?;
    }
    Ok(())
}
