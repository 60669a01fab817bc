//! Runs the links on a thread of its own, which waits for nothing but the network,
//! the clock and its handles.

#![allow(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::{
    collections::VecDeque,
    io,
    io::Read as _,
    os::fd::AsFd as _,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::{TimeSpec, TimeValLike as _},
};

use super::{
    handle::{Change, Sinks, StreamEvent, UrgentQueue, Waker, lock},
    link::Random,
    peer::{Delivered, Peer},
    settings::Settings,
};
use crate::status::LinkStatus;

/// A reader that had no room is tried again after this.
const READER_RETRY: Duration = Duration::from_millis(5);
/// Between two looks of others at what the links do.
const PUBLISH: Duration = Duration::from_millis(100);

/// What the thread is told.
pub(super) enum Command {
    Configure(Settings),
    Stop(Sender<()>),
}

/// What it shares with its handles.
pub(super) struct Parts {
    pub(super) commands: Receiver<Command>,
    pub(super) woken: UnixStream,
    pub(super) waker: Arc<Waker>,
    pub(super) urgent: Arc<UrgentQueue>,
    pub(super) status: Arc<Mutex<Vec<LinkStatus>>>,
    pub(super) sinks: Sinks,
}

pub(super) fn spawn(parts: Parts, settings: Settings) -> io::Result<JoinHandle<()>> {
    let epoch = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    let mut runner = Runner {
        parts,
        settings: Settings {
            peers: Vec::new(),
            ..settings.clone()
        },
        epoch,
        peers: Vec::new(),
        departed: VecDeque::new(),
        reader_due: None,
        publish_due: None,
        turn: 0,
    };
    std::thread::Builder::new()
        .name("sync".into())
        .spawn(move || {
            hurry();
            runner.configure(settings);
            runner.run();
        })
}

struct Runner {
    parts: Parts,
    settings: Settings,
    /// Of this start of the daemon.
    epoch: u64,
    peers: Vec<Peer>,
    /// Peers that are gone, of which the reader does not know it.
    departed: VecDeque<Arc<str>>,
    /// When to try the reader again.
    reader_due: Option<Instant>,
    publish_due: Option<Instant>,
    /// Whose turn it is to be first.
    turn: usize,
}

impl Runner {
    fn run(mut self) {
        loop {
            self.wait();
            let stopped = self.obey();
            let now = Instant::now();
            for peer in &mut self.peers {
                peer.attend(now);
                peer.deliver_urgent(&self.parts.sinks);
            }
            self.tell();
            self.deliver(now);
            for peer in &mut self.peers {
                peer.flush(now);
            }
            if self.publish_due.is_none_or(|due| due <= now) {
                self.publish(now);
            }
            if let Some(stopped) = stopped {
                for peer in &mut self.peers {
                    peer.end_queue();
                }
                let _ = stopped.send(());
                return;
            }
        }
    }

    fn tell(&mut self) {
        for (to, message) in self.parts.urgent.take() {
            let is_for =
                |peer: &&mut Peer| to.as_ref().is_none_or(|to| peer.settings().name == *to);
            for peer in self.peers.iter_mut().filter(is_for) {
                peer.tell(&message);
            }
        }
    }

    /// Until something comes, or the first of the timers is due.
    fn wait(&self) {
        let due = self
            .peers
            .iter()
            .map(Peer::due)
            .chain(self.reader_due)
            .min();
        let time = due.map(|due| {
            let time = due.saturating_duration_since(Instant::now());
            TimeSpec::nanoseconds(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
        });
        let mut waiting: Vec<PollFd<'_>> = self.peers.iter().flat_map(Peer::polled).collect();
        waiting.push(PollFd::new(self.parts.woken.as_fd(), PollFlags::POLLIN));
        // A signal wakes it for nothing.
        let _ = ppoll(&mut waiting, time, None);
    }

    /// Does as it was told. Whom to tell that all has ended.
    fn obey(&mut self) -> Option<Sender<()>> {
        self.parts.waker.rearm();
        let mut bytes = [0; 64];
        while matches!((&self.parts.woken).read(&mut bytes), Ok(1..)) {}
        while let Ok(command) = self.parts.commands.try_recv() {
            match command {
                Command::Configure(settings) => self.configure(settings),
                Command::Stop(stopped) => return Some(stopped),
            }
        }
        None
    }

    fn configure(&mut self, settings: Settings) {
        let now = Instant::now();
        let is_same = |own: &Settings| {
            (&own.node, &own.key, own.keepalive)
                == (&settings.node, &settings.key, settings.keepalive)
        };
        let all_go = !is_same(&self.settings);
        let (stay, go): (Vec<Peer>, Vec<Peer>) = std::mem::take(&mut self.peers)
            .into_iter()
            .partition(|peer| !all_go && settings.peers.contains(peer.settings()));
        for mut peer in go {
            if peer.end_queue() {
                self.departed.push_back(Arc::clone(&peer.settings().name));
            }
        }
        let mut stay = stay;
        for wanted in &settings.peers {
            let known = stay.iter().position(|peer| peer.settings() == wanted);
            let peer = match known {
                Some(index) => stay.swap_remove(index),
                None => Peer::new(
                    &settings,
                    wanted.clone(),
                    self.epoch,
                    Box::new(SystemRandom(self.epoch)),
                    now,
                ),
            };
            self.peers.push(peer);
        }
        self.settings = settings;
        self.publish(now);
    }

    /// Hands on what came, to the reader as far as it has room.
    fn deliver(&mut self, now: Instant) {
        self.reader_due = None;
        while let Some(peer) = self.departed.front() {
            let Ok(permit) = self.parts.sinks.stream.try_reserve() else {
                break;
            };
            permit.send(StreamEvent {
                peer: Arc::clone(peer),
                change: Change::Down,
            });
            self.departed.pop_front();
        }
        if !self.departed.is_empty() {
            if !self.parts.sinks.stream.is_closed() {
                self.reader_due = Some(now + READER_RETRY);
            }
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn.checked_rem(self.peers.len()).unwrap_or(0);
        let (later, sooner) = self.peers.split_at_mut(first);
        for peer in sooner.iter_mut().chain(later) {
            match peer.deliver(&self.parts.sinks, &self.parts.waker) {
                Delivered::All => {}
                Delivered::More => self.reader_due = Some(now),
                Delivered::Full => {
                    let retry = now + READER_RETRY;
                    self.reader_due = Some(self.reader_due.map_or(retry, |due| due.min(retry)));
                }
            }
        }
    }

    fn publish(&mut self, now: Instant) {
        self.publish_due = Some(now + PUBLISH);
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let rows = self.peers.iter().map(|peer| peer.status(now, unix));
        *lock(&self.parts.status) = rows.collect();
    }
}

/// The system's random numbers; should it have none some day, those that nobody
/// repeats will do: no secret is made of them.
struct SystemRandom(u64);

impl Random for SystemRandom {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        getrandom::u64().unwrap_or(self.0)
    }
}

/// Sooner than others, where that is allowed; but not in front of everything, as
/// whoever floods its sockets would have the processor then.
fn hurry() {
    const NICENESS: libc::c_int = -10;
    // SAFETY: has no pointers; 0 is the calling thread (setpriority(2), C library
    // differences).
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::info!(%error, "the links to peers run without priority");
    }
}
