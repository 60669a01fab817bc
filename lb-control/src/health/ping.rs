//! The ping check: passes when an echo request is answered.
//!
//! One raw socket for each family sends and receives for all checks: the kernel
//! hands every ICMP message to every raw socket, so that a socket for each check
//! would cost the square of their number.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::oneshot,
    task::{self, AbortHandle},
};

use super::{
    Found, Verdict,
    probe::{Failure, Outcome},
    trace::Trace,
};
use crate::model::Ping;

/// Header of an echo request or reply (RFC 792, RFC 4443 §4.1).
const HEADER: usize = 8;

/// Bytes of data of a ping that isn't given a size.
const DATA: usize = 16;

/// The largest packet.
const MOST_BYTES: usize = 65_535;

/// What the answers of a family look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Sends echo requests and finds out whose the answers are.
#[derive(Debug, Default)]
pub struct Pinger {
    v4: OnceLock<Receiver>,
    v6: OnceLock<Receiver>,
    /// Numbers of requests: identifier and sequence number together.
    next: AtomicU32,
}

#[derive(Debug)]
struct Receiver {
    socket: Arc<UdpSocket>,
    waiting: Arc<Waiting>,
    task: AbortHandle,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whoever waits for the answer to a request.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<u32, Waiter>>);

#[derive(Debug)]
struct Waiter {
    target: IpAddr,
    data: Vec<u8>,
    answer: oneshot::Sender<Answer>,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Reply,
    /// An ICMP error of this type and code, about the request.
    Error {
        kind: u8,
        code: u8,
    },
}

impl Waiting {
    fn all(&self) -> MutexGuard<'_, HashMap<u32, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits no longer once it is dropped.
struct Registered<'a>(&'a Waiting, u32);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}

impl Pinger {
    /// Sends one request and waits for what comes back.
    ///
    /// # Errors
    /// The request can't be sent, or the network says so.
    pub async fn probe(&self, target: IpAddr, ping: &Ping, trace: &Trace) -> Outcome {
        let family = if target.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let receiver = self.receiver(family)?;
        let number = self.next.fetch_add(1, Relaxed);
        let request = request(family, number, ping.packet_size);
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter {
            target,
            data: request.get(HEADER..).unwrap_or_default().to_vec(),
            answer,
        };
        receiver.waiting.all().insert(number, waiter);
        let _registered = Registered(&receiver.waiting, number);
        trace.step("waiting for the echo reply");
        let to = SocketAddr::new(target, 0);
        let sent = receiver.socket.send_to(&request, to).await;
        if let Err(error) = sent {
            if error.raw_os_error() == Some(libc::EMSGSIZE) {
                let size = ping.packet_size.unwrap_or_default();
                let words = format!("a packet of {size} bytes is too large for the path");
                return Err(Failure::Wrong(words));
            }
            return Err(error.into());
        }
        match answered.await {
            Ok(Answer::Reply) => Ok(Found::new(Verdict::Pass, "answered")),
            Ok(Answer::Error { kind, code }) => {
                Ok(Found::new(Verdict::Refused, explain(family, kind, code)))
            }
            Err(_) => Err(Failure::Ours("the socket for pings is gone".into())),
        }
    }

    fn receiver(&self, family: Family) -> io::Result<&Receiver> {
        let cell = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        if cell.get().is_none() {
            // If another was faster, this one ends here.
            let _ = cell.set(Receiver::start(family)?);
        }
        cell.get()
            .ok_or_else(|| io::Error::other("no socket for pings"))
    }
}

impl Receiver {
    fn start(family: Family) -> io::Result<Self> {
        let socket = match family {
            Family::V4 => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)),
            Family::V6 => Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)),
        }?;
        socket.set_nonblocking(true)?;
        never_fragment(&socket, family)?;
        // Room for the answers to many requests at once; less is no failure.
        let _ = socket.set_recv_buffer_size(4 << 20);
        // Raw sockets have the same calls as those of UDP, and no ports.
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let waiting = Arc::<Waiting>::default();
        let receiving = receive(Arc::clone(&socket), Arc::clone(&waiting), family);
        Ok(Self {
            task: task::spawn(receiving).abort_handle(),
            socket,
            waiting,
        })
    }
}

/// Requests have DF set, and whatever is too large is refused.
fn never_fragment(socket: &Socket, family: Family) -> io::Result<()> {
    let (level, option, value) = match family {
        Family::V4 => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        Family::V6 => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
    };
    // SAFETY: the option is an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

async fn receive(socket: Arc<UdpSocket>, waiting: Arc<Waiting>, family: Family) {
    let mut buffer = vec![0; MOST_BYTES];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An error that is about one packet; the next call waits.
            task::yield_now().await;
            continue;
        };
        let message = buffer.get(..length).unwrap_or_default();
        if let Some(heard) = Heard::read(family, message) {
            tell(&waiting, from.ip(), &heard);
        }
    }
}

fn tell(waiting: &Waiting, from: IpAddr, heard: &Heard<'_>) {
    let mut all = waiting.all();
    let is_its = |waiter: &Waiter| match heard {
        Heard::Reply { data, .. } => waiter.target == from && waiter.data == *data,
        Heard::Error { target, .. } => waiter.target == *target,
    };
    let (number, answer) = match *heard {
        Heard::Reply { number, .. } => (number, Answer::Reply),
        Heard::Error {
            number, kind, code, ..
        } => (number, Answer::Error { kind, code }),
    };
    if all.get(&number).is_some_and(is_its)
        && let Some(waiter) = all.remove(&number)
    {
        // Its probe may have run out of time.
        let _ = waiter.answer.send(answer);
    }
}

/// A message that may be for somebody who waits.
#[derive(Debug, PartialEq, Eq)]
enum Heard<'a> {
    Reply {
        number: u32,
        data: &'a [u8],
    },
    Error {
        number: u32,
        /// Where the request was to go.
        target: IpAddr,
        kind: u8,
        code: u8,
    },
}

impl<'a> Heard<'a> {
    /// Of a raw socket: under IPv4 with the IP header (ip(7), raw(7)), under IPv6
    /// without.
    fn read(family: Family, packet: &'a [u8]) -> Option<Self> {
        match family {
            Family::V4 => {
                let message = packet.get(header_length(packet)?..)?;
                match message.first()? {
                    0 => Self::reply(message),
                    // Destination unreachable, time exceeded.
                    kind @ (3 | 11) => {
                        let quoted = message.get(HEADER..)?;
                        let target: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
                        let request = quoted.get(header_length(quoted)?..)?;
                        let asked = quoted.get(9) == Some(&1) && request.first() == Some(&8);
                        asked.then_some(())?;
                        Self::error(*kind, message, IpAddr::from(target), request)
                    }
                    _ => None,
                }
            }
            Family::V6 => match packet.first()? {
                129 => Self::reply(packet),
                // Unreachable, packet too big, time exceeded.
                kind @ 1..=3 => {
                    let quoted = packet.get(HEADER..)?;
                    let target: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
                    let request = quoted.get(40..)?;
                    let asked = quoted.get(6) == Some(&58) && request.first() == Some(&128);
                    asked.then_some(())?;
                    Self::error(*kind, packet, IpAddr::from(target), request)
                }
                _ => None,
            },
        }
    }

    fn reply(message: &'a [u8]) -> Option<Self> {
        Some(Self::Reply {
            number: number(message)?,
            data: message.get(HEADER..)?,
        })
    }

    fn error(kind: u8, message: &[u8], target: IpAddr, request: &[u8]) -> Option<Self> {
        Some(Self::Error {
            number: number(request)?,
            target,
            kind,
            code: *message.get(1)?,
        })
    }
}

/// Bytes of an IPv4 header (RFC 791 §3.1).
fn header_length(packet: &[u8]) -> Option<usize> {
    Some(usize::from(packet.first()? & 0x0f) * 4)
}

/// Identifier and sequence number, in network byte order.
fn number(message: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(4..8)?.try_into().ok()?))
}

/// An echo request, whose packet has the wanted size.
fn request(family: Family, number: u32, packet_size: Option<u16>) -> Vec<u8> {
    let (kind, ip_header) = match family {
        Family::V4 => (8, 20),
        Family::V6 => (128, 40),
    };
    let data = packet_size.map_or(DATA, |size| {
        usize::from(size).saturating_sub(ip_header + HEADER)
    });
    let mut message = vec![kind, 0, 0, 0];
    message.extend(number.to_be_bytes());
    message.extend(b"lbctl ping ".iter().cycle().take(data));
    if family == Family::V4 {
        let sum = checksum(&message).to_be_bytes();
        message.splice(2..4, sum);
    }
    // Under IPv6 the kernel does that (RFC 3542 §3.1).
    message
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([
            pair.first().copied().unwrap_or_default(),
            low,
        ]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An ICMP error in words (RFC 792, RFC 4443).
fn explain(family: Family, kind: u8, code: u8) -> String {
    let words = match (family, kind, code) {
        (Family::V4, 3, 0) | (Family::V6, 1, 0) => "network unreachable",
        (Family::V4, 3, 1) | (Family::V6, 1, 3) => "host unreachable",
        (Family::V4, 3, 4) | (Family::V6, 2, _) => "the packet is too large for the path",
        (Family::V4, 3, 9 | 10 | 13) | (Family::V6, 1, 1) => "forbidden by a firewall",
        (Family::V4, 11, _) | (Family::V6, 3, _) => "time to live exceeded",
        _ => return format!("unreachable: ICMP type {kind}, code {code}"),
    };
    words.to_owned()
}

#[cfg(test)]
#[path = "ping_tests.rs"]
mod tests;
