//! Floods: many frames with sources out of nowhere.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{LinkSocket, Mac, Packet, tcp_flags};
use crate::netns::Netns;

/// Frames per system call.
const BATCH: usize = 64;

/// Frames made before the sending starts, each with a source of its own; then
/// they repeat. Making one costs more than sending it.
const PREPARED: usize = 1 << 16;

/// What the flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloodKind {
    /// First segments of connections that nobody wants.
    Syn,
    /// Segments of connections that don't exist.
    StrayAck,
    /// Datagrams.
    Udp,
}

/// A flood to be.
#[derive(Clone, Debug)]
pub struct FloodOptions {
    /// What it is made of.
    pub kind: FloodKind,
    /// MAC address of the sender.
    pub source_mac: Mac,
    /// MAC address of the next hop.
    pub destination_mac: Mac,
    /// Where it goes.
    pub target: SocketAddr,
    /// Frames per second; as many as possible without it.
    pub rate: Option<u32>,
    /// When it ends by itself; only on drop without it.
    pub duration: Option<Duration>,
    /// Decides the sources. The same seed makes the same flood.
    pub seed: u64,
}

/// A running flood, on a thread of its own. Ends on drop.
///
/// Sources are random addresses of 198.18.0.0/15 (RFC 2544) or 2001:2::/48
/// (RFC 5180) with random ports, 65,536 of them.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<Result<()>>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    refused: AtomicU64,
}

impl Flood {
    /// Starts it on an interface of a namespace.
    pub fn start(ns: &Netns, interface: &str, options: &FloodOptions) -> Result<Self> {
        let socket = ns.run(|| LinkSocket::sender(interface))??;
        let shared = Arc::new(Shared::default());
        let thread = {
            let (shared, options) = (Arc::clone(&shared), options.clone());
            ns.thread(move || send(&socket, &options, &shared))
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Times that the interface's queue was full.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Ends it: the number of frames sent.
    pub fn stop(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()?;
        Ok(self.sent())
    }

    /// Waits until its duration is over: the number of frames sent.
    pub fn wait(mut self) -> Result<u64> {
        self.join()?;
        Ok(self.sent())
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result?,
            Some(Err(_)) => Err(anyhow!("the flood's thread panicked")),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Err(e) = self.join() {
            eprintln!("flood: {e:#}");
        }
    }
}

fn send(socket: &LinkSocket, options: &FloodOptions, shared: &Shared) -> Result<()> {
    let mut rng = Rng::new(options.seed);
    let started = Instant::now();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut next = 0;
    while !shared.stop.load(Ordering::Relaxed)
        && options.duration.is_none_or(|d| started.elapsed() < d)
    {
        // The first round makes the frames it sends.
        while frames.len() < PREPARED && frames.len() < next + BATCH {
            frames.push(frame(options, &mut rng));
        }
        let end = (next + BATCH).min(frames.len());
        match socket.send_many(&mut frames[next..end]) {
            Ok(sent) => {
                shared.sent.fetch_add(sent as u64, Ordering::Relaxed);
                next = (next + sent) % PREPARED;
            }
            // The queue is full: what a NIC would drop.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
            Err(e) => return Err(e.into()),
        }
        if let Some(rate) = options.rate {
            let sent = shared.sent.load(Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
            let due = started + Duration::from_secs_f64(sent as f64 / f64::from(rate.max(1)));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

fn frame(options: &FloodOptions, rng: &mut Rng) -> Vec<u8> {
    let random = rng.next_u64();
    let [a, b, c, d, e, f, g, _] = random.to_le_bytes();
    let ip: IpAddr = if options.target.is_ipv4() {
        Ipv4Addr::new(198, 18 | a & 1, b, c).into()
    } else {
        let pair = |x: u8, y: u8| u16::from(x) << 8 | u16::from(y);
        Ipv6Addr::new(
            0x2001,
            2,
            0,
            pair(a, b),
            0,
            pair(c, d),
            pair(e, f),
            pair(g, 1),
        )
        .into()
    };
    let source = SocketAddr::new(ip, u16::from_le_bytes([d, e]).max(1));
    let packet = match options.kind {
        FloodKind::Syn => Packet::tcp(source, options.target).flags(tcp_flags::SYN),
        FloodKind::StrayAck => Packet::tcp(source, options.target).flags(tcp_flags::ACK),
        FloodKind::Udp => Packet::udp(source, options.target).payload(*b"flood"),
    };
    packet
        .macs(options.source_mac, options.destination_mac)
        .build()
}

/// A small generator of random numbers (`SplitMix64`) for repeatable tests.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
