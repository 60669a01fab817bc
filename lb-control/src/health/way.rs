//! The way of probes: to a backend's own address, or to the VIP and by the data
//! path to the backend, as clients' packets go.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpSocket;

/// A backend of a service, as the data path knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Through {
    /// The service.
    pub service: String,
    /// The backend's own address.
    pub address: IpAddr,
    /// Its port, where it has one of its own.
    pub port: Option<u16>,
}

/// Members of the data path, by what they are.
pub type Members = Arc<BTreeMap<Through, u32>>;

/// Lets probes into the data path.
pub trait Passage: fmt::Debug + Send + Sync {
    /// Has what is sent from the port that this gives, at `source`, go to
    /// `member`.
    ///
    /// # Errors
    /// There is no way, or no port left; in words.
    fn open(&self, member: u32, source: IpAddr) -> Result<Pass, String>;
}

/// The right to send a probe through the data path, until it is dropped.
pub struct Pass {
    /// Where the probe has to come from.
    pub port: u16,
    /// The mark that its packets need.
    pub mark: u32,
    /// Gives the port back.
    pub back: Box<dyn Send + Sync>,
}

/// Where a probe goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address that it is sent to.
    pub address: SocketAddr,
    /// What it is sent from, and its mark, through the data path.
    pub through: Option<(SocketAddr, u32)>,
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            through: None,
        }
    }
}

impl Destination {
    /// A TCP socket that can be connected, and which ends with a reset when it is
    /// dropped.
    pub(super) fn tcp(&self) -> io::Result<TcpSocket> {
        let socket = if self.address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_zero_linger()?;
        if let Some((source, mark)) = self.through {
            SockRef::from(&socket).set_mark(mark)?;
            socket.bind(source)?;
        }
        Ok(socket)
    }

    /// A connected UDP socket: it hears of ICMP errors.
    pub(super) fn udp(&self) -> io::Result<tokio::net::UdpSocket> {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if let Some((source, mark)) = self.through {
            socket.set_mark(mark)?;
            socket.bind(&source.into())?;
        }
        socket.connect(&self.address.into())?;
        tokio::net::UdpSocket::from_std(socket.into())
    }
}

/// The address of this host that a backend's answer to `vip` finds its way to: the
/// one that is used towards the backend, where that is of the VIP's family.
pub(super) fn source_towards(backend: IpAddr, vip: IpAddr) -> io::Result<IpAddr> {
    let towards = if backend.is_ipv4() == vip.is_ipv4() {
        backend
    } else {
        vip
    };
    let any: SocketAddr = match towards {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // Nothing is sent. The discard port (RFC 863).
    socket.connect((towards, 9))?;
    Ok(socket.local_addr()?.ip())
}
