//! Probes of reference hosts: ARP requests (RFC 826) and neighbour solicitations
//! (RFC 4861 §4.3), and their answers, past the kernel's own neighbour tables.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::sys::socket::MsgFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    announce::{BROADCAST, ICMPV6, checksum},
    packet::{ETHER_ARP, ETHER_IPV6, Mac, ethernet, send_to},
};

/// Longer than what is read of an answer.
const MOST_BYTES: usize = 256;

const ETHERNET: usize = 14;
const ARP_REPLY: u16 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Sends probes by one interface, and hears the answers.
#[derive(Debug)]
pub struct Prober {
    socket: Socket,
    ifindex: u32,
    is_v4: bool,
}

impl AsFd for Prober {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Prober {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(ifindex: u32, is_v4: bool) -> io::Result<Self> {
        // Of no protocol until the filter is there: nothing else is to come.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        attach_filter(&socket, is_v4)?;
        let prober = Self {
            socket,
            ifindex,
            is_v4,
        };
        let address = prober.address();
        // SAFETY: the address is as long as stated, and lives through the call.
        let bound = unsafe {
            libc::bind(
                prober.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(prober)
    }

    fn address(&self) -> libc::sockaddr_ll {
        // SAFETY: plain data for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let protocol = if self.is_v4 { ETHER_ARP } else { ETHER_IPV6 };
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.ifindex.cast_signed();
        address.sll_halen = 6;
        address
    }

    /// Asks `host`, from the interface's own addresses.
    ///
    /// # Errors
    /// It can't be sent, or the addresses are of two families.
    pub fn send(&self, host: IpAddr, source: IpAddr, mac: Mac) -> io::Result<()> {
        let frame = match (host, source) {
            (IpAddr::V4(host), IpAddr::V4(source)) => arp_request(host, source, mac),
            (IpAddr::V6(host), IpAddr::V6(source)) => solicitation(host, source, mac),
            _ => return Err(io::Error::other("two families in one probe")),
        };
        send_to(&self.socket, &frame, &self.address())
    }

    /// Who has answered; `Some(None)` for what is no answer, `None` if nothing is
    /// there.
    ///
    /// # Errors
    /// The socket can't be read.
    pub fn receive(&self) -> io::Result<Option<Option<IpAddr>>> {
        let mut buffer = [0; MOST_BYTES];
        let flags = MsgFlags::MSG_DONTWAIT;
        match nix::sys::socket::recv(self.socket.as_raw_fd(), &mut buffer, flags) {
            Ok(length) => Ok(Some(read(buffer.get(..length).unwrap_or_default()))),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn arp_request(host: Ipv4Addr, source: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHER_ARP);
    // Ethernet, IPv4, lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(source.octets());
    frame.extend([0; 6]);
    frame.extend(host.octets());
    frame
}

fn solicitation(host: Ipv6Addr, source: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let [.., a, b, c] = host.octets();
    // Solicited-node multicast (RFC 4291 §2.7.1), and its MAC (RFC 2464 §7).
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(host.octets());
    message.extend([1, 1]);
    message.extend(mac);
    let sum = checksum(source, group, &message).to_be_bytes();
    message.splice(2..4, sum);
    let mut frame = ethernet([0x33, 0x33, 0xff, a, b, c], mac, ETHER_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// The address that a frame says to be somebody's, if it is an answer.
fn read(frame: &[u8]) -> Option<IpAddr> {
    let packet = frame.get(ETHERNET..)?;
    let number = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let kind = frame.get(12..14)?;
    if kind == ETHER_ARP.to_be_bytes() {
        let sender: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
        return (number(6)? == ARP_REPLY).then(|| sender.into());
    }
    // From this segment alone (RFC 4861 §7.1.2).
    let is_answer = kind == ETHER_IPV6.to_be_bytes()
        && *packet.get(6)? == ICMPV6
        && *packet.get(7)? == 255
        && *packet.get(40)? == ADVERTISEMENT;
    let target: [u8; 16] = packet.get(48..64)?.try_into().ok()?;
    is_answer.then(|| target.into())
}

/// Nothing but ARP replies, or neighbour advertisements without extension headers,
/// wakes the thread.
fn attach_filter(socket: &Socket, is_v4: bool) -> io::Result<()> {
    // Instructions of classic BPF (bpf(4)), offsets in the frame.
    let word = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |size: u32, at: u32| word(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at);
    let equal = |k: u32, jf: u8| word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, jf, k);
    let end = |bytes: u32| word(libc::BPF_RET | libc::BPF_K, 0, 0, bytes);
    let mut program = if is_v4 {
        vec![
            load(libc::BPF_H, 20),
            equal(ARP_REPLY.into(), 1),
            end(MOST_BYTES as u32),
            end(0),
        ]
    } else {
        vec![
            load(libc::BPF_B, 20),
            equal(ICMPV6.into(), 3),
            load(libc::BPF_B, 54),
            equal(ADVERTISEMENT.into(), 1),
            end(MOST_BYTES as u32),
            end(0),
        ]
    };
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_request_is_no_answer_and_its_reply_is_one() {
        let host: Ipv4Addr = [192, 0, 2, 1].into();
        let mut frame = arp_request(host, [192, 0, 2, 2].into(), MAC);
        assert_eq!((frame.len(), &frame[38..]), (42, &[192, 0, 2, 1][..]));
        assert_eq!(read(&frame), None);
        frame[21] = 2;
        assert_eq!(read(&frame), Some(IpAddr::from([192, 0, 2, 2])));
        for length in 0..32 {
            assert_eq!(read(&frame[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_solicitation_is_whole_and_an_advertisement_answers_it() {
        let host: Ipv6Addr = "2001:db8::1:2:3".parse().unwrap();
        let source: Ipv6Addr = "fe80::9".parse().unwrap();
        let mut frame = solicitation(host, source, MAC);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 2, 0, 3]);
        let group: [u8; 16] = frame[38..54].try_into().unwrap();
        assert_eq!(Ipv6Addr::from(group).to_string(), "ff02::1:ff02:3");
        assert_eq!(checksum(source, group.into(), &frame[54..]), 0);
        assert_eq!(read(&frame), None);
        frame[54] = ADVERTISEMENT;
        assert_eq!(read(&frame), Some(host.into()));
        frame[21] = 64;
        assert_eq!(read(&frame), None, "it came from elsewhere");
    }
}
