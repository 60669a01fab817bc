//! The far end of a tunnel, for kernels without `ipip`, `sit`, `ip6_tunnel` and
//! `fou`: takes IPIP and GUE packets off a host's interface, checks the outer
//! headers, and hands the packet inside to the host's kernel by a tun device.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    packet::{Capture, CapturedFrame, Direction, View, internet_checksum, protocol},
    topology::Host,
};

/// Port of GUE by default.
pub const GUE_PORT: u16 = 6080;

const DEVICE: &str = "tun0";

/// What came through the tunnel, and what didn't.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Packets taken out of tunnels.
    pub packets: u64,
    /// Outer sources.
    pub sources: BTreeSet<IpAddr>,
    /// Packets to an address that should only be found inside.
    pub direct: u64,
    /// Outer headers that are wrong, and how.
    pub wrong: Vec<String>,
}

/// The running end of a tunnel at one host; ends on drop.
#[derive(Debug)]
pub struct Decapsulator {
    _capture: Capture,
    found: Arc<Mutex<Found>>,
}

impl Decapsulator {
    /// Takes packets to `vips` out of tunnels that end at any address of the
    /// host's first interface.
    pub fn start(host: &Host, vips: &[IpAddr]) -> Result<Self> {
        let device = host.ns.run(open)??;
        host.ns.exec(&["ip", "link", "set", DEVICE, "up"])?;
        // Clients aren't behind the tunnel, and the balancer is not where the
        // outer source is: see what the README says of servers.
        for name in ["all", DEVICE] {
            host.ns
                .sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
        let found = Arc::new(Mutex::new(Found::default()));
        let interface = host.interface();
        // What GRO puts together has no whole checksum any more, which packets
        // that come in by a tun device need.
        host.ns
            .exec(&["ethtool", "-K", &interface.name, "gro", "off"])?;
        let own: Vec<IpAddr> = interface
            .v4
            .iter()
            .map(|a| IpAddr::from(*a))
            .chain(interface.v6.iter().map(|a| IpAddr::from(*a)))
            .collect();
        let vips = vips.to_vec();
        let handle = {
            let found = Arc::clone(&found);
            move |frame: &CapturedFrame| take(frame, &own, &vips, &device, &found)
        };
        Ok(Self {
            _capture: Capture::start(&host.ns, &interface.name, handle)?,
            found,
        })
    }

    /// What was found so far.
    pub fn found(&self) -> Found {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A tun device in the namespace of the calling thread.
fn open() -> Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("/dev/net/tun")?;
    // SAFETY: plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
    // SAFETY: the request is what this command takes, and outlives the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw const request) };
    ensure!(done == 0, "TUNSETIFF: {}", io::Error::last_os_error());
    Ok(device)
}

/// Whether the frame was a tunnel's.
fn take(
    frame: &CapturedFrame,
    own: &[IpAddr],
    vips: &[IpAddr],
    mut device: &File,
    found: &Mutex<Found>,
) -> bool {
    let Ok(view) = View::parse(&frame.bytes) else {
        return false;
    };
    let Some((source, destination)) = view.addresses() else {
        return false;
    };
    if frame.direction != Direction::Received {
        return false;
    }
    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
    if vips.contains(&destination) {
        found.direct += 1;
        return false;
    }
    let is_gue = view.destination().is_some_and(|to| to.port() == GUE_PORT);
    let is_ipip = matches!(view.protocol, protocol::IPIP | protocol::IPV6);
    if !own.contains(&destination) || !is_gue && !is_ipip {
        return false;
    }
    found.packets += 1;
    found.sources.insert(source);
    match inside(&view, is_gue).and_then(|inner| Ok(device.write_all(inner)?)) {
        Ok(()) => {}
        Err(e) => found.wrong.push(format!("{e:#}: {view:?}")),
    }
    true
}

/// The packet inside, if the outer headers are right.
fn inside<'a>(view: &View<'a>, is_gue: bool) -> Result<&'a [u8]> {
    let (source, _) = view.addresses().context("not IP")?;
    let outer = view.ip_packet();
    let in_prefix = match source {
        IpAddr::V4(v4) => v4.octets()[..2] == [198, 18],
        IpAddr::V6(v6) => v6.segments()[..4] == [0x100, 0, 0, 0],
    };
    ensure!(in_prefix, "outer source {source}");
    ensure!(view.ttl == 64, "outer TTL {}", view.ttl);
    if source.is_ipv4() {
        ensure!(internet_checksum(&[&outer[..20]]) == 0, "header checksum");
        ensure!(outer[6..8] == [0x40, 0], "not \"don't fragment\"");
    }
    let (number, inner) = if is_gue {
        let from = view.source().context("no source port")?;
        ensure!(from.port() >= 32_768, "source port {}", from.port());
        let datagram = view.layer4();
        ensure!(datagram.len() >= 12, "shorter than GUE's header");
        let length = usize::from(u16::from_be_bytes([datagram[4], datagram[5]]));
        ensure!(length == datagram.len(), "UDP length {length}");
        ensure!(datagram[6..9] == [0; 3], "UDP checksum or GUE's first byte");
        ensure!(datagram[10..12] == [0; 2], "GUE flags");
        (datagram[9], &datagram[12..])
    } else {
        (view.protocol, view.layer4())
    };
    let version = inner.first().context("nothing inside")? >> 4;
    let expected = if version == 4 {
        protocol::IPIP
    } else {
        protocol::IPV6
    };
    ensure!(number == expected, "protocol {number} of IPv{version}");
    ensure!(class(inner) == class(outer), "another traffic class");
    Ok(inner)
}

fn class(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 {
        packet[1]
    } else {
        packet[0] << 4 | packet[1] >> 4
    }
}
