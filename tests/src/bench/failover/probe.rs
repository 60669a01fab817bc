//! Datagrams to the VIP, one every half millisecond, and by way of which node they
//! went.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    ops::RangeBounds,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::{
    netns::Netns,
    packet::{LinkSocket, Mac},
    process::wait_for,
    topology::Host,
};

/// Of the echo.
pub const PORT: u16 = 7001;

/// From one datagram to the next.
const PERIOD: Duration = Duration::from_micros(500);

/// What is answered later wasn't forwarded, but waited for an owner.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often an echo looks whether it is to end.
const WAKES: Duration = Duration::from_millis(100);

/// Of the client and the echoes, so that what else runs delays them less.
const REAL_TIME_PRIORITY: i32 = 40;

/// Ethernet, IPv4 without options and UDP, in bytes.
const HEADERS: usize = 14 + 20 + 8;

/// Answers the VIP until it is dropped.
#[derive(Debug)]
pub struct Echo {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<Result<()>>>>,
}

impl Echo {
    /// On a node, which may have the address later.
    pub fn on_node(ns: &Netns, vip: Ipv4Addr, node: u8) -> Result<Self> {
        let socket = ns.run(|| bind(vip))??;
        Ok(Self::spawn(ns, move |ended| {
            socket.set_read_timeout(Some(WAKES))?;
            let mut buffer = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((8, from)) = socket.recv_from(&mut buffer[..8]) {
                    buffer[8] = node;
                    // Without the address it can't be sent, which is an answer, too.
                    let _ = socket.send_to(&buffer[..9], from);
                }
            }
            Ok(())
        }))
    }

    /// On a server with the VIP behind two balancers with these MAC addresses.
    pub fn on_server(server: &Host, vip: Ipv4Addr, nodes: [Mac; 2]) -> Result<Self> {
        let interface = server.interface().name.clone();
        let socket = server.ns.run(|| bind(vip))??;
        let frames = server
            .ns
            .run(|| LinkSocket::receiver(&interface, WAKES))??;
        Ok(Self::spawn(&server.ns, move |ended| {
            let mut frame = [0; 2048];
            while !ended.load(Ordering::Relaxed) {
                let Some(received) = frames.receive(&mut frame)? else {
                    continue;
                };
                let frame = &frame[..received.length.min(frame.len())];
                let Some((number, from)) = datagram(frame, vip) else {
                    continue;
                };
                let sender = nodes.iter().position(|mac| mac.0 == frame[6..12]);
                let Some(node) = sender.and_then(|node| u8::try_from(node).ok()) else {
                    continue;
                };
                let mut answer = [node; 9];
                answer[..8].copy_from_slice(&number);
                let _ = socket.send_to(&answer, from);
            }
            Ok(())
        }))
    }

    fn spawn(ns: &Netns, work: impl FnOnce(&AtomicBool) -> Result<()> + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = ns.thread(move || {
            be_punctual();
            work(&until)
        });
        Self {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(Ok(Ok(Err(error)))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("an echo ended: {error:#}");
        }
    }
}

/// A socket with the VIP, whether the host has it or not.
fn bind(vip: Ipv4Addr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_freebind_v4(true)?;
    socket.bind(&SocketAddr::from((vip, PORT)).into())?;
    Ok(socket.into())
}

/// The number in a client's datagram, and where it came from.
fn datagram(frame: &[u8], vip: Ipv4Addr) -> Option<([u8; 8], SocketAddr)> {
    let is_ours = frame.len() >= HEADERS + 8
        && frame[12..15] == [0x08, 0x00, 0x45]
        && frame[23] == 17
        && frame[30..34] == vip.octets()
        && frame[36..38] == PORT.to_be_bytes();
    if !is_ours {
        return None;
    }
    let number = frame[HEADERS..HEADERS + 8].try_into().ok()?;
    let address: [u8; 4] = frame[26..30].try_into().ok()?;
    let port = u16::from_be_bytes([frame[34], frame[35]]);
    Some((number, SocketAddr::from((address, port))))
}

/// What happened to the datagrams.
#[derive(Debug, Default)]
pub struct Seen {
    /// When each was sent.
    sent: Vec<Instant>,
    /// The node by way of which it was answered.
    by: Vec<Option<u8>>,
    /// The longest time without sending.
    pub stall: Duration,
}

impl Seen {
    /// The longest time from a datagram without an answer to the next one with one, of
    /// those sent in a time. Zero where all were answered.
    pub fn gap(&self, time: impl RangeBounds<Instant>) -> Duration {
        let mut longest = Duration::ZERO;
        let mut since = None;
        for (sent, by) in self.sent.iter().zip(&self.by) {
            // What is under way at a fault isn't a gap before it.
            match (by, since) {
                (None, None) => since = Some(*sent).filter(|sent| time.contains(sent)),
                (Some(_), Some(from)) => {
                    if time.contains(sent) {
                        longest = longest.max(*sent - from);
                    }
                    since = None;
                }
                _ => {}
            }
        }
        longest
    }

    /// From `at` to the first one sent after it that went by way of this node.
    pub fn first_by(&self, node: u8, at: Instant) -> Option<Duration> {
        let mut all = self.sent.iter().zip(&self.by);
        let first = all.find(|(sent, by)| **sent >= at && **by == Some(node));
        first.map(|(sent, _)| *sent - at)
    }
}

/// A client that sends until it is asked.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    thread: JoinHandle<std::io::Result<Result<Seen>>>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    /// Answers by way of each node.
    answers: [AtomicU64; 2],
}

impl Probe {
    /// Begins to send from this host.
    pub fn start(ns: &Netns, vip: Ipv4Addr) -> Result<Self> {
        let shared: Arc<Shared> = Arc::default();
        let own = Arc::clone(&shared);
        let thread = ns.thread(move || send(vip, &own));
        Ok(Self { shared, thread })
    }

    /// Waits until a node has forwarded so many more.
    pub fn wait_answers(&self, node: usize, more: u64, limit: Duration) -> Result<()> {
        let answers = &self.shared.answers[node];
        let enough = answers.load(Ordering::Relaxed) + more;
        let what = format!("answers by way of node {}", node + 1);
        wait_for(what, limit, || answers.load(Ordering::Relaxed) >= enough)
    }

    /// What was seen.
    pub fn end(self) -> Result<Seen> {
        self.shared.ended.store(true, Ordering::Relaxed);
        let seen = self.thread.join();
        let seen = seen.map_err(|_| anyhow::anyhow!("the client panicked"))???;
        ensure!(!seen.sent.is_empty(), "nothing was sent");
        Ok(seen)
    }
}

fn send(vip: Ipv4Addr, shared: &Shared) -> Result<Seen> {
    be_punctual();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_nonblocking(true)?;
    let target = SocketAddr::from((vip, PORT));
    let mut seen = Seen::default();
    let mut next = Instant::now();
    while !shared.ended.load(Ordering::Relaxed) {
        let now = Instant::now();
        let last = seen.sent.last().copied().unwrap_or(now);
        seen.stall = seen.stall.max(now - last);
        let number = u64::try_from(seen.sent.len())?;
        seen.sent.push(now);
        seen.by.push(None);
        // What can't be sent isn't answered.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        next = (next + PERIOD).max(now);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        take(&socket, &mut seen, shared)?;
    }
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        thread::sleep(PERIOD);
        take(&socket, &mut seen, shared)?;
    }
    Ok(seen)
}

/// Takes the answers that are there.
fn take(socket: &UdpSocket, seen: &mut Seen, shared: &Shared) -> Result<()> {
    let mut buffer = [0; 64];
    // An error is an ICMP message to an earlier one, or that there is no more.
    while let Ok((9, _)) = socket.recv_from(&mut buffer) {
        let number = u64::from_be_bytes(buffer[..8].try_into()?);
        let (index, node) = (usize::try_from(number)?, buffer[8]);
        let sent = seen.sent.get(index).context("an answer to nothing")?;
        if sent.elapsed() > PATIENCE {
            continue;
        }
        seen.by[index] = Some(node);
        shared.answers[usize::from(node)].fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn be_punctual() {
    let parameters = libc::sched_param {
        sched_priority: REAL_TIME_PRIORITY,
    };
    // SAFETY: of this thread, and the parameters live through the call.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) };
    if rc != 0 {
        eprintln!(
            "without real-time priority: {}",
            std::io::Error::last_os_error()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_lasts_from_the_first_lost_to_the_next_answered() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let by = vec![Some(0), None, Some(0), None, None, Some(1), Some(1), None];
        let seen = Seen {
            sent: (0..8).map(at).collect(),
            by,
            stall: Duration::ZERO,
        };
        assert_eq!(seen.gap(at(2)..), Duration::from_millis(2));
        assert_eq!(seen.gap(..at(3)), Duration::from_millis(1));
        assert_eq!(seen.gap(..at(4)), Duration::from_millis(1), "it ends later");
        assert_eq!(seen.gap(at(6)..), Duration::ZERO, "it has no end");
        assert_eq!(seen.first_by(1, at(2)), Some(Duration::from_millis(3)));
        assert_eq!(seen.first_by(0, at(3)), None);
    }
}
