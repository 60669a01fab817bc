//! Sockets of VRRP: one for each interface and family, which hears the group and
//! whoever speaks to this node alone.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::codec::{Ends, GROUP_V4, GROUP_V6, PROTOCOL, TTL};

/// Longer than any message.
const MOST_BYTES: usize = 2048;

/// Internetwork control, as routing protocols have it (RFC 791 §3.1).
pub const TRAFFIC_CLASS: u8 = 0xc0;

/// A packet that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it came from and went to.
    pub ends: Ends,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What follows the IP header.
    pub message: Vec<u8>,
}

/// One interface and family.
#[derive(Debug)]
pub struct VrrpSocket {
    socket: Socket,
    ifindex: u32,
    is_v4: bool,
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl VrrpSocket {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses: no permission, no such interface, no such family.
    pub fn open(interface: &str, ifindex: u32, is_v4: bool) -> io::Result<Self> {
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let protocol = Protocol::from(i32::from(PROTOCOL));
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        if is_v4 {
            socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(ifindex))?;
            socket.set_multicast_loop_v4(false)?;
            socket.set_multicast_ttl_v4(TTL.into())?;
            socket.set_ttl_v4(TTL.into())?;
            socket.set_tos_v4(TRAFFIC_CLASS.into())?;
        } else {
            socket.join_multicast_v6(&GROUP_V6, ifindex)?;
            socket.set_multicast_loop_v6(false)?;
            socket.set_multicast_hops_v6(TTL.into())?;
            socket.set_unicast_hops_v6(TTL.into())?;
            socket.set_multicast_if_v6(ifindex)?;
            socket.set_tclass_v6(TRAFFIC_CLASS.into())?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Self {
            socket,
            ifindex,
            is_v4,
        })
    }

    /// Sends a message; its source is that of `ends`, whatever other addresses the
    /// interface has.
    ///
    /// # Errors
    /// It can't be sent.
    pub fn send(&self, message: &[u8], ends: &Ends) -> io::Result<()> {
        let fd = self.socket.as_raw_fd();
        let (data, flags) = ([IoSlice::new(message)], MsgFlags::empty());
        match (ends.source, ends.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: self.ifindex.cast_signed(),
                    ipi_spec_dst: libc::in_addr {
                        s_addr: source.to_bits().to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &data, &control, flags, Some(&to))?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: source.octets(),
                    },
                    ipi6_ifindex: self.ifindex,
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, self.ifindex));
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &data, &control, flags, Some(&to))?;
            }
            _ => return Err(io::Error::other("two families in one packet")),
        }
        Ok(())
    }

    /// The next packet; `None` if none is there.
    ///
    /// # Errors
    /// The socket can't be read.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let received = if self.is_v4 {
            self.receive_v4()
        } else {
            self.receive_v6()
        };
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            other => other,
        }
    }

    /// With the IP header (raw(7)).
    fn receive_v4(&self) -> io::Result<Option<Received>> {
        let mut buffer = [0; MOST_BYTES];
        let length =
            nix::sys::socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        let packet = buffer.get(..length).unwrap_or_default();
        Ok(read_v4(packet).or_else(|| Some(unreadable(self.is_v4))))
    }

    /// Without the IP header; what it said comes beside.
    fn receive_v6(&self) -> io::Result<Option<Received>> {
        let mut buffer = [0; MOST_BYTES];
        let mut control = nix::cmsg_space!(libc::c_int, libc::in6_pktinfo);
        let mut data = [IoSliceMut::new(&mut buffer)];
        let (mut ttl, mut destination) = (0, Ipv6Addr::UNSPECIFIED);
        let (length, source) = {
            let received = recvmsg::<SockaddrIn6>(
                self.socket.as_raw_fd(),
                &mut data,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            for message in received.cmsgs()? {
                match message {
                    ControlMessageOwned::Ipv6HopLimit(hops) => {
                        ttl = u8::try_from(hops).unwrap_or_default();
                    }
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        destination = info.ipi6_addr.s6_addr.into();
                    }
                    _ => {}
                }
            }
            let source = received.address.map(|address| address.ip());
            (received.bytes, source)
        };
        let Some(source) = source else {
            return Ok(Some(unreadable(self.is_v4)));
        };
        Ok(Some(Received {
            ends: Ends {
                source: source.into(),
                destination: destination.into(),
            },
            ttl,
            message: buffer.get(..length).unwrap_or_default().to_vec(),
        }))
    }
}

/// An IPv4 packet (RFC 791 §3.1).
fn read_v4(packet: &[u8]) -> Option<Received> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    Some(Received {
        ends: Ends {
            source: address(12)?,
            destination: address(16)?,
        },
        ttl: *packet.get(8)?,
        message: packet.get(header..)?.to_vec(),
    })
}

/// What nobody can read is thrown away as too short by the decoder, and counted.
fn unreadable(is_v4: bool) -> Received {
    let nobody: IpAddr = if is_v4 {
        [0; 4].into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    Received {
        ends: Ends {
            source: nobody,
            destination: nobody,
        },
        ttl: TTL,
        message: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_header_is_read_with_its_options() {
        let mut packet = vec![0; 24];
        packet[0] = 0x46;
        packet[8] = 255;
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet[16..20].copy_from_slice(&[224, 0, 0, 18]);
        packet.extend([0x31, 51, 150]);
        let read = read_v4(&packet).unwrap();
        assert_eq!(read.message, [0x31, 51, 150]);
        assert_eq!((read.ttl, read.ends.destination), (255, GROUP_V4.into()));
        for length in 0..24 {
            assert_eq!(read_v4(&packet[..length]), None, "{length}");
        }
    }
}
