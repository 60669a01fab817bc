//! Packet sockets. All of the harness's calls to AF_PACKET are here.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Netns;

const ETH_P_ALL_BE: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;

/// A socket that sends and receives whole frames on one interface of the
/// namespace it was opened in.
#[derive(Debug)]
pub struct LinkSocket(OwnedFd);

/// One received frame.
#[derive(Debug)]
pub(crate) struct Received {
    pub length: usize,
    pub sent_by_us: bool,
    /// A tag the kernel took off: EtherType and tag control information.
    pub vlan: Option<(u16, u16)>,
}

impl LinkSocket {
    /// Opens one that only sends: it sees no frames.
    pub fn sender(interface: &str) -> Result<Self> {
        let socket = Self::open(interface, 0)?;
        socket.set(libc::PACKET_QDISC_BYPASS, 1)?;
        Ok(socket)
    }

    /// Opens one that sees every frame of the interface.
    pub(crate) fn receiver(interface: &str, timeout: Duration) -> Result<Self> {
        let socket = Self::open(interface, ETH_P_ALL_BE)?;
        socket.set(libc::PACKET_AUXDATA, 1)?;
        let buffer: libc::c_int = 64 << 20;
        socket.set_at(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer)?;
        let timeout = libc::timeval {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_usec: timeout.subsec_micros().into(),
        };
        socket.set_at(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        Ok(socket)
    }

    fn open(interface: &str, protocol: i32) -> Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: a valid C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        ensure!(
            index != 0,
            "no interface {interface}: {}",
            io::Error::last_os_error()
        );
        // SAFETY: no memory involved. Protocol 0: sees nothing until bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        ensure!(
            fd >= 0,
            "packet socket: {} (root is needed)",
            io::Error::last_os_error()
        );
        // SAFETY: a new descriptor, owned by nobody else.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: plain data for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol as u16;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: a valid address of the length given.
        let rc = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            )
        };
        ensure!(
            rc == 0,
            "binding to {interface}: {}",
            io::Error::last_os_error()
        );
        Ok(socket)
    }

    fn set(&self, option: libc::c_int, value: libc::c_int) -> Result<()> {
        self.set_at(libc::SOL_PACKET, option, &value)
    }

    fn set_at<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> Result<()> {
        // SAFETY: value is readable for the length given.
        let rc = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                mem::size_of::<T>() as libc::socklen_t,
            )
        };
        ensure!(
            rc == 0,
            "socket option {level}/{option}: {}",
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: frame is readable for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        ensure!(
            usize::try_from(sent) == Ok(frame.len()),
            "sending {} bytes: {}",
            frame.len(),
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// Sends frames in one system call; how many were accepted.
    pub(super) fn send_many(&self, frames: &mut [Vec<u8>]) -> io::Result<usize> {
        let mut vectors: Vec<libc::iovec> = frames
            .iter_mut()
            .map(|f| libc::iovec {
                iov_base: f.as_mut_ptr().cast(),
                iov_len: f.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|v| {
                // SAFETY: plain data for which zero is valid.
                let mut m: libc::mmsghdr = unsafe { mem::zeroed() };
                m.msg_hdr.msg_iov = v;
                m.msg_hdr.msg_iovlen = 1;
                m
            })
            .collect();
        // SAFETY: the headers point at vectors and frames that live until here.
        let sent = unsafe {
            libc::sendmmsg(
                self.0.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives one frame into `buffer`; nothing on time-out.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: plain data for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut control = [0u64; 16];
        // SAFETY: plain data for which zero is valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = mem::size_of_val(&address) as libc::socklen_t;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        // SAFETY: every pointer in the message is valid for its length.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            let e = io::Error::last_os_error();
            return match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(e),
            };
        };
        let vlan = stripped_vlan(&message);
        let sent_by_us = address.sll_pkttype == libc::PACKET_OUTGOING;
        Ok(Some(Received {
            length,
            sent_by_us,
            vlan,
        }))
    }

    /// Frames dropped for want of buffer space since the last call.
    pub(super) fn missed(&self) -> Result<u32> {
        // SAFETY: plain data for which zero is valid.
        let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut length = mem::size_of_val(&stats) as libc::socklen_t;
        // SAFETY: stats is writable for the length given.
        let rc = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        ensure!(rc == 0, "PACKET_STATISTICS: {}", io::Error::last_os_error());
        Ok(stats.tp_drops)
    }
}

/// The tag the kernel took off a received frame, from the auxiliary data.
fn stripped_vlan(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel filled in the message's control buffer.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return valid headers or null.
        let h = unsafe { &*header };
        if (h.cmsg_level, h.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: the kernel put a tpacket_auxdata there, at any alignment.
            let aux: libc::tpacket_auxdata = unsafe {
                libc::CMSG_DATA(header)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned()
            };
            if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                return None;
            }
            return Some((aux.tp_vlan_tpid, aux.tp_vlan_tci));
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// Sends frames on an interface of a namespace.
pub fn send_raw(ns: &Netns, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    ns.run(|| {
        let socket = LinkSocket::sender(interface)?;
        frames.iter().try_for_each(|f| socket.send(f))
    })?
    .with_context(|| format!("on {interface} of {}", ns.name()))
}
