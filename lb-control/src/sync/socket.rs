//! The UDP socket of a path, which comes and goes with its address.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};

use super::{settings::PathSettings, wire::MAX_DATAGRAM};

/// Between two attempts to open it.
const RETRY: Duration = Duration::from_secs(1);
/// Room for what comes while the thread is not running: a whole ring, with what the
/// kernel adds to each datagram, of several peers.
const RECEIVE_BUFFER: usize = 4 << 20;
/// One byte more than allowed tells a datagram that is too long.
const BUFFER: usize = MAX_DATAGRAM + 1;

/// The socket of a path, open or to be opened.
#[derive(Debug)]
pub struct PathSocket {
    settings: PathSettings,
    socket: Option<UdpSocket>,
    open_due: Instant,
    error: Option<String>,
}

impl PathSocket {
    /// Not open yet.
    pub const fn new(settings: PathSettings, now: Instant) -> Self {
        Self {
            settings,
            socket: None,
            open_due: now,
            error: None,
        }
    }

    /// Its ends.
    pub const fn settings(&self) -> &PathSettings {
        &self.settings
    }

    /// What the kernel says against it.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// To wait for.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(UdpSocket::as_fd)
    }

    /// When to call [`Self::open`]; `None`: it is open.
    pub fn due(&self) -> Option<Instant> {
        self.socket.is_none().then_some(self.open_due)
    }

    /// Opens it, if it isn't and it is time.
    pub fn open(&mut self, now: Instant) {
        if self.socket.is_some() || self.open_due > now {
            return;
        }
        self.open_due = now + RETRY;
        match open(&self.settings) {
            Ok(socket) => {
                self.socket = Some(socket);
                self.error = None;
            }
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    /// The path works again, whatever was said against it.
    pub fn works(&mut self) {
        self.error = None;
    }

    /// Sends a datagram, or doesn't: that is found out by the peer's silence.
    pub fn send(&mut self, now: Instant, datagram: &[u8]) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = socket.send(datagram) {
            self.failed(now, &error);
        }
    }

    /// The next datagram.
    pub fn receive<'a>(&mut self, now: Instant, buffer: &'a mut [u8; BUFFER]) -> Option<&'a [u8]> {
        let socket = self.socket.as_ref()?;
        match socket.recv(buffer) {
            Ok(length) => buffer.get(..length),
            Err(error) => {
                self.failed(now, &error);
                None
            }
        }
    }

    /// Room for a datagram.
    pub const fn buffer() -> [u8; BUFFER] {
        [0; BUFFER]
    }

    fn failed(&mut self, now: Instant, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return,
            // An answer of the network or of the peer's host (ICMP), not of this
            // socket.
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable => {}
            // Its address or interface may be another one by now.
            _ => {
                self.socket = None;
                self.open_due = now + RETRY;
            }
        }
        let text = error.to_string();
        if self.error.as_ref() != Some(&text) {
            self.error = Some(text);
        }
    }
}

fn open(settings: &PathSettings) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(settings.local);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Links to several peers may have one local end.
    socket.set_reuse_port(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        // Without the right to, as much as everybody gets.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    socket.bind(&settings.local.into())?;
    socket.connect(&settings.remote.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(local: &str, remote: &str) -> PathSettings {
        PathSettings {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        }
    }

    #[test]
    fn an_address_that_is_not_there_is_tried_again_and_named() {
        let now = Instant::now();
        let mut socket = PathSocket::new(settings("192.0.2.1:9", "192.0.2.2:9"), now);
        assert_eq!(socket.due(), Some(now));
        socket.open(now);
        assert!(socket.error().unwrap().contains("assign"), "{socket:?}");
        assert_eq!(socket.due(), Some(now + RETRY));
        socket.send(now, b"nothing happens");
        assert_eq!(socket.receive(now, &mut PathSocket::buffer()), None);
    }

    #[test]
    fn a_port_that_nobody_has_is_no_reason_to_give_up() {
        let now = Instant::now();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = free.local_addr().unwrap();
        drop(free);
        let mut socket = PathSocket::new(settings("127.0.0.1:0", &remote.to_string()), now);
        socket.open(now);
        assert_eq!(socket.error(), None);
        socket.send(now, b"to nobody");
        socket.send(now, b"to nobody");
        assert!(socket.error().unwrap().contains("refused"), "{socket:?}");
        assert_eq!(socket.due(), None, "still open");
    }
}
