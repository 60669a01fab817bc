//! Frames seen on an interface.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};

use super::{link::LinkSocket, pcap::write_pcap};
use crate::{evidence, netns::Netns, process};

/// Which way a frame went through the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the namespace.
    Received,
    /// Out of the namespace.
    Sent,
}

/// One frame.
#[derive(Clone, Debug)]
pub struct CapturedFrame {
    /// Since the Unix epoch.
    pub time: Duration,
    /// Which way it went.
    pub direction: Direction,
    /// All of it, with its VLAN tag if the kernel had taken that off.
    pub bytes: Vec<u8>,
}

/// Most matching frames that are kept; further ones are only counted.
const KEPT: usize = 10_000;

/// A running capture. When the test fails, its frames go to a pcap file.
///
/// A native XDP program consumes frames before packet sockets see them, and
/// what it sends by XDP_TX passes none either: capture at the other end of the
/// link. [`crate::topology::Topology::balancer_ports`] are those ends.
#[derive(Debug)]
pub struct Capture {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<std::io::Result<Result<()>>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    matched: AtomicU64,
    seen: AtomicU64,
    missed: AtomicU64,
    frames: Mutex<Vec<CapturedFrame>>,
}

impl Capture {
    /// Starts counting and keeping the frames that `matches` accepts. Every
    /// frame after the return is seen.
    pub fn start(
        ns: &Netns,
        interface: &str,
        matches: impl Fn(&CapturedFrame) -> bool + Send + 'static,
    ) -> Result<Self> {
        let name = format!("{}-{interface}", ns.name());
        let socket = ns
            .run(|| LinkSocket::receiver(interface, Duration::from_millis(50)))?
            .with_context(|| format!("capturing on {name}"))?;
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            ns.thread(move || receive(&socket, &shared, &matches))
        };
        Ok(Self {
            name,
            shared,
            thread: Some(thread),
        })
    }

    /// Frames that matched so far.
    pub fn count(&self) -> u64 {
        self.shared.matched.load(Ordering::Acquire)
    }

    /// Frames of any kind so far.
    pub fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::Acquire)
    }

    /// The frames that matched so far, the first 10,000 of them.
    pub fn frames(&self) -> Vec<CapturedFrame> {
        self.shared
            .frames
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until at least `count` frames have matched.
    pub fn wait_for(&self, count: u64, timeout: Duration) -> Result<()> {
        let what = format!("{count} frames in capture {}", self.name);
        process::wait_ok(what, timeout, || {
            anyhow::ensure!(self.count() >= count, "{} so far", self.count());
            Ok(())
        })
    }

    /// Ends the capture after what is already queued: the number of frames
    /// that matched. An error when the kernel had to drop frames, as then the
    /// count proves nothing.
    pub fn stop(mut self) -> Result<u64> {
        self.end()?;
        let missed = self.shared.missed.load(Ordering::Acquire);
        anyhow::ensure!(missed == 0, "capture {} missed {missed} frames", self.name);
        Ok(self.count())
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.shared.stop.store(true, Ordering::Release);
        match thread.join() {
            Ok(result) => result?,
            Err(_) => Err(anyhow!("the thread of capture {} panicked", self.name)),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            eprintln!("capture {}: {e:#}", self.name);
        }
        let (name, frames) = (self.name.clone(), self.frames());
        evidence::offer(Box::new(move || {
            let write = || -> Result<()> {
                let dir = evidence::artifacts_dir();
                std::fs::create_dir_all(&dir)?;
                let path = dir.join(format!("{name}.pcap"));
                write_pcap(&path, frames.iter().map(|f| (f.time, f.bytes.as_slice())))?;
                eprintln!("--- {} captured frames in {}", frames.len(), path.display());
                Ok(())
            };
            if let Err(e) = write() {
                eprintln!("capture {name}: {e:#}");
            }
        }));
    }
}

fn receive(
    socket: &LinkSocket,
    shared: &Shared,
    matches: &dyn Fn(&CapturedFrame) -> bool,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        // Read before receiving: what was queued before the stop still counts.
        let stopping = shared.stop.load(Ordering::Acquire);
        let Some(received) = socket.receive(&mut buffer)? else {
            if stopping {
                break;
            }
            continue;
        };
        let mut bytes = buffer[..received.length].to_vec();
        if let Some((tpid, tci)) = received.vlan {
            let tag = [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
            bytes.splice(12..12, tag);
        }
        let frame = CapturedFrame {
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            direction: if received.sent_by_us {
                Direction::Sent
            } else {
                Direction::Received
            },
            bytes,
        };
        shared.seen.fetch_add(1, Ordering::Release);
        if matches(&frame) {
            let mut frames = shared.frames.lock().unwrap_or_else(PoisonError::into_inner);
            if frames.len() < KEPT {
                frames.push(frame);
            }
            shared.matched.fetch_add(1, Ordering::Release);
        }
    }
    shared
        .missed
        .store(socket.missed()?.into(), Ordering::Release);
    Ok(())
}
