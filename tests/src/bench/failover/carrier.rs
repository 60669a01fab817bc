//! Carriers, taken without the time that a program takes to start.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, ensure};

use crate::topology::Port;

/// A switch port.
#[derive(Debug)]
pub struct Carrier {
    /// Any socket of the switch's namespace.
    socket: UdpSocket,
    interface: String,
}

impl Carrier {
    /// That of this port.
    pub fn of(port: &Port) -> Result<Self> {
        let socket = port.ns.run(|| UdpSocket::bind("127.0.0.1:0"))??;
        ensure!(port.interface.len() < libc::IFNAMSIZ, "too long a name");
        Ok(Self {
            socket,
            interface: port.interface.clone(),
        })
    }

    /// Sets the port up or down; the other end has a carrier or none.
    pub fn set(&self, is_up: bool) -> Result<()> {
        // SAFETY: plain data for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.interface.bytes()) {
            *to = from.cast_signed();
        }
        self.ask(libc::SIOCGIFFLAGS, &mut request)?;
        let up = libc::IFF_UP as libc::c_short;
        // SAFETY: the kernel has just written the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = if is_up { flags | up } else { flags & !up };
        self.ask(libc::SIOCSIFFLAGS, &mut request)
    }

    fn ask(&self, command: libc::Ioctl, request: &mut libc::ifreq) -> Result<()> {
        let fd = self.socket.as_raw_fd();
        // SAFETY: both commands read and write one ifreq.
        let rc = unsafe { libc::ioctl(fd, command, std::ptr::from_mut(request)) };
        let error = io::Error::last_os_error;
        (rc == 0)
            .then_some(())
            .with_context(|| format!("flags of {}: {}", self.interface, error()))
    }
}
