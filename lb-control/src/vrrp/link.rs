//! What a virtual router has of its interface: the socket that it hears by, and
//! its ways to send.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
};

use nix::ifaddrs::getifaddrs;

use super::{
    announce,
    codec::Ends,
    group,
    packet::{Mac, PacketSocket},
    references_socket::Prober,
    socket::VrrpSocket,
    thread::RouterConfig,
};

/// See the module's description.
#[derive(Debug)]
pub struct Link {
    socket: VrrpSocket,
    frames: PacketSocket,
    prober: Option<Prober>,
    source: IpAddr,
    mac: Mac,
    own_mac: Mac,
    is_virtual: bool,
    ifindex: u32,
}

impl Link {
    /// Opens it in the network namespace of the calling thread. While it is open the
    /// interface takes frames to the virtual MAC address, where there is one.
    ///
    /// # Errors
    /// The interface lacks an address, or the kernel refuses; in words.
    pub fn open(config: &RouterConfig) -> Result<Self, String> {
        let name = &config.interface;
        let (source, mac) = addresses(name, config.is_v4)?;
        let words = |error: io::Error| error.to_string();
        let ifindex = nix::net::if_::if_nametoindex(name.as_str()).map_err(|e| e.to_string())?;
        let frames = PacketSocket::open(ifindex).map_err(words)?;
        if let Some(mac) = config.virtual_mac {
            let accepted = frames.accept(mac);
            accepted
                .map_err(|error| format!("it doesn't take the virtual MAC address: {error}"))?;
        }
        let prober = match config.references.as_slice() {
            [] => None,
            _ => Some(Prober::open(ifindex, config.is_v4).map_err(words)?),
        };
        Ok(Self {
            prober,
            socket: VrrpSocket::open(name, ifindex, config.is_v4).map_err(words)?,
            frames,
            source,
            mac: config.virtual_mac.unwrap_or(mac),
            own_mac: mac,
            is_virtual: config.virtual_mac.is_some(),
            ifindex,
        })
    }

    /// What it hears by.
    pub fn socket(&self) -> &VrrpSocket {
        &self.socket
    }

    /// All that it hears by.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let prober = self.prober.iter().map(|prober| prober.as_fd());
        std::iter::once(self.socket.as_fd()).chain(prober)
    }

    /// Asks a reference host, from the interface's own addresses: a backup sends
    /// nothing from the virtual one.
    ///
    /// # Errors
    /// It can't be sent.
    pub fn ask(&self, host: IpAddr) -> io::Result<()> {
        match &self.prober {
            Some(prober) => prober.send(host, self.source, self.own_mac),
            None => Ok(()),
        }
    }

    /// What reference hosts are heard by, where there are any.
    pub fn prober(&self) -> Option<&Prober> {
        self.prober.as_ref()
    }

    /// The primary address, from which advertisements come.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The MAC address that the virtual addresses have.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Index of the interface, if the virtual router has its virtual MAC address on
    /// it.
    pub fn virtual_mac_device(&self) -> Option<u32> {
        self.is_virtual.then_some(self.ifindex)
    }

    /// Sends a VRRP message. To the group it comes from the virtual MAC address
    /// (RFC 9568 §7.2), where there is one: so switches learn where that is. To a
    /// single node it comes from the interface's own.
    ///
    /// # Errors
    /// It can't be sent.
    pub fn send(&self, message: &[u8], ends: &Ends) -> io::Result<()> {
        let frame = self
            .is_virtual
            .then(|| group::frame(message, ends, self.mac))
            .flatten();
        match frame {
            Some(frame) => self.frames.send(&frame),
            None => self.socket.send(message, ends),
        }
    }

    /// Tells the segment that these addresses are here.
    ///
    /// # Errors
    /// Some of it can't be sent.
    pub fn announce(&self, addresses: &[IpAddr]) -> io::Result<()> {
        let sent: io::Result<Vec<()>> = addresses
            .iter()
            .map(|address| self.frames.send(&announce::frame(*address, self.mac)))
            .collect();
        sent.map(drop)
    }
}

/// The primary address of an interface, its first of IPv4 or its link-local one
/// (RFC 9568 §1.7), and its MAC address.
fn addresses(interface: &str, is_v4: bool) -> Result<(IpAddr, Mac), String> {
    let (mut source, mut mac) = (None, None);
    let all = getifaddrs().map_err(|error| error.to_string())?;
    for one in all.filter(|one| one.interface_name == interface) {
        let Some(address) = one.address else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            mac = mac.or(link.addr());
        }
        let v4 = address.as_sockaddr_in().filter(|_| is_v4);
        let v6 = address.as_sockaddr_in6().filter(|_| !is_v4);
        let v6 = v6.map(|v6| v6.ip()).filter(|v6| v6.is_unicast_link_local());
        let found = v4.map(|v4| IpAddr::from(v4.ip())).or(v6.map(IpAddr::from));
        source = source.or(found);
    }
    let needed = if is_v4 {
        "has no IPv4 address"
    } else {
        "has no link-local address"
    };
    Ok((source.ok_or(needed)?, mac.ok_or("has no MAC address")?))
}
