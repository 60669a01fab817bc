//! Whole frames of Ethernet, and the socket that sends them.

use std::{io, os::fd::AsRawFd as _};

use socket2::{Domain, Protocol, Socket, Type};

/// First byte first.
pub type Mac = [u8; 6];

/// EtherType of ARP.
pub const ETHER_ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const ETHER_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHER_IPV6: u16 = 0x86dd;

/// The header of a frame.
pub fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes()].concat()
}

/// The Internet checksum (RFC 1071) over all of it, in the host's byte order.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let [high, low] = [0, 1].map(|at| pair.get(at).copied().unwrap_or_default());
        u32::from(u16::from_be_bytes([high, low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends frames by one interface, and hears nothing.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    ifindex: u32,
}

impl PacketSocket {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        // Of no protocol: it hears nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, ifindex })
    }

    /// Has the interface take frames to this MAC address, and those below it (of a
    /// VLAN, of a bond), for as long as the socket is open (packet(7)).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn accept(&self, mac: Mac) -> io::Result<()> {
        let [a, b, c, d, e, f] = mac;
        let membership = libc::packet_mreq {
            mr_ifindex: self.ifindex.cast_signed(),
            mr_type: libc::PACKET_MR_UNICAST as libc::c_ushort,
            mr_alen: 6,
            mr_address: [a, b, c, d, e, f, 0, 0],
        };
        // SAFETY: the option is as long as stated, and lives through the call.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const membership).cast(),
                size_of_val(&membership) as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// It can't be sent.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: plain data for which zero is valid.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as libc::sa_family_t;
        to.sll_ifindex = self.ifindex.cast_signed();
        to.sll_halen = 6;
        send_to(&self.socket, frame, &to)
    }
}

/// Sends a frame by a packet socket to where the address says.
///
/// # Errors
/// It can't be sent.
pub(super) fn send_to(socket: &Socket, frame: &[u8], to: &libc::sockaddr_ll) -> io::Result<()> {
    // SAFETY: frame and address are as long as stated, and live through it.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(to).cast(),
            size_of_val(to) as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
