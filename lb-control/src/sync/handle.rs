//! What the rest of the program holds of the links: handles that never wait.

use std::{
    collections::VecDeque,
    fmt, io,
    io::Write as _,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    MAX_MESSAGE,
    settings::Settings,
    thread::{self, Command},
};
use crate::status::LinkStatus;

/// Urgent messages that wait for the thread.
const URGENT_QUEUE: usize = 256;
/// Messages of a stream that wait for the thread; more wait in its ring.
const STREAM_QUEUE: usize = 512;
/// How long a stop may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(2);

/// Why a message was not taken. It has no effect then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too much waits already; later there may be room.
    #[error("too many messages wait already")]
    Full,
    /// The stream has ended; another one may have begun.
    #[error("the stream has ended")]
    Ended,
    /// Longer than [`MAX_MESSAGE`].
    #[error("a message has at most {MAX_MESSAGE} bytes")]
    TooLong,
}

/// Is given the peer's name and its message.
pub type UrgentSink = Box<dyn Fn(&str, &[u8]) + Send>;

/// Where what comes from peers goes.
pub struct Sinks {
    /// Called on the links' thread for each urgent message, with the peer's name;
    /// must not block.
    pub urgent: UrgentSink,
    /// Ups, downs and messages of the streams. Whoever reads it late makes the
    /// peers wait: what doesn't fit is not acknowledged.
    pub stream: tokio::sync::mpsc::Sender<StreamEvent>,
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks").finish_non_exhaustive()
    }
}

/// What happened on the stream from a peer.
#[derive(Clone, Debug)]
pub struct StreamEvent {
    /// The peer's name.
    pub peer: Arc<str>,
    /// What happened.
    pub change: Change,
}

/// `Up`, then any number of `Message`, then `Down`, and so on.
#[derive(Clone, Debug)]
pub enum Change {
    /// A stream begins, each way. Nothing of an earlier one comes any more, and
    /// what of it was not acknowledged is lost.
    Up {
        /// Of the start of the peer's daemon: the same after a mere interruption.
        epoch: u64,
        /// The way to the peer for as long as this stream lives.
        stream: StreamSender,
    },
    /// The stream has ended.
    Down,
    /// The next message.
    Message(Vec<u8>),
}

/// Sends urgent messages. For any thread; clones are cheap.
#[derive(Clone, Debug)]
pub struct UrgentSender {
    queue: Arc<UrgentQueue>,
    waker: Arc<Waker>,
}

/// Messages with the peer that each is for.
type Urgent = VecDeque<(Option<Arc<str>>, Vec<u8>)>;

#[derive(Debug, Default)]
pub(super) struct UrgentQueue(Mutex<Urgent>);

impl UrgentQueue {
    pub(super) fn take(&self) -> Urgent {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl UrgentSender {
    /// Has `message` sent to the peer, or to all of them, at once and by every path.
    /// It arrives once or not at all; while the link is down it does not.
    ///
    /// # Errors
    /// It is too long, or too many wait already.
    pub fn tell(&self, peer: Option<&str>, message: Vec<u8>) -> Result<(), Refused> {
        if message.len() > MAX_MESSAGE {
            return Err(Refused::TooLong);
        }
        {
            let mut queue = lock(&self.queue.0);
            if queue.len() >= URGENT_QUEUE {
                return Err(Refused::Full);
            }
            queue.push_back((peer.map(Arc::from), message));
        }
        self.waker.wake();
        Ok(())
    }
}

/// Sends messages of one stream. For any thread; clones are cheap.
#[derive(Clone, Debug)]
pub struct StreamSender {
    queue: Arc<StreamQueue>,
    waker: Arc<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct StreamQueue {
    messages: Mutex<VecDeque<Vec<u8>>>,
    /// Of messages that were taken.
    sent: AtomicU64,
    acknowledged: AtomicU64,
    ended: AtomicBool,
}

impl StreamQueue {
    /// The next message that waits.
    pub(super) fn pop(&self) -> Option<Vec<u8>> {
        lock(&self.messages).pop_front()
    }

    pub(super) fn acknowledge(&self, count: u64) {
        self.acknowledged.store(count, Ordering::Release);
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.messages).len()
    }

    pub(super) fn end(&self) {
        let mut messages = lock(&self.messages);
        self.ended.store(true, Ordering::Release);
        messages.clear();
    }
}

impl StreamSender {
    pub(super) const fn new(queue: Arc<StreamQueue>, waker: Arc<Waker>) -> Self {
        Self { queue, waker }
    }

    /// Has `message` sent after all that were taken before, as soon as there is
    /// room on the way.
    ///
    /// # Errors
    /// It is too long, the stream has ended, or too much waits already.
    pub fn try_send(&self, message: Vec<u8>) -> Result<(), Refused> {
        if message.len() > MAX_MESSAGE {
            return Err(Refused::TooLong);
        }
        let is_first = {
            let mut messages = lock(&self.queue.messages);
            if self.queue.ended.load(Ordering::Acquire) {
                return Err(Refused::Ended);
            }
            if messages.len() >= STREAM_QUEUE {
                return Err(Refused::Full);
            }
            messages.push_back(message);
            self.queue.sent.fetch_add(1, Ordering::AcqRel);
            messages.len() == 1
        };
        if is_first {
            self.waker.wake();
        }
        Ok(())
    }

    /// Messages that were taken since the stream began.
    pub fn sent(&self) -> u64 {
        self.queue.sent.load(Ordering::Acquire)
    }

    /// Those of them that the peer has handed on to its reader. All, when it is
    /// equal to [`Self::sent`].
    pub fn acknowledged(&self) -> u64 {
        self.queue.acknowledged.load(Ordering::Acquire)
    }

    /// The stream has ended: nothing more is taken or acknowledged.
    pub fn has_ended(&self) -> bool {
        self.queue.ended.load(Ordering::Acquire)
    }
}

/// Wakes the thread.
#[derive(Debug)]
pub(super) struct Waker {
    stream: UnixStream,
    is_woken: AtomicBool,
}

impl Waker {
    /// One end to wake, and one to wait for.
    pub(super) fn pair() -> io::Result<(Arc<Self>, UnixStream)> {
        let (stream, woken) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let is_woken = AtomicBool::new(false);
        Ok((Arc::new(Self { stream, is_woken }), woken))
    }

    pub(super) fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            // A full pipe wakes it as well.
            let _ = (&self.stream).write(&[1]);
        }
    }

    /// Before the thread looks at what it was told: who comes later wakes it again.
    pub(super) fn rearm(&self) {
        self.is_woken.store(false, Ordering::Release);
    }
}

/// The links of this node, on a thread of their own. Dropping it ends them.
#[derive(Debug)]
pub struct PeerLinks {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    urgent: Arc<UrgentQueue>,
    status: Arc<Mutex<Vec<LinkStatus>>>,
    thread: Option<JoinHandle<()>>,
}

impl PeerLinks {
    /// Starts the thread, in the network namespace of the calling one.
    ///
    /// # Errors
    /// There is no thread to be had, or no random numbers.
    pub fn start(settings: Settings, sinks: Sinks) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let (waker, woken) = Waker::pair()?;
        let urgent = Arc::<UrgentQueue>::default();
        let status = Arc::<Mutex<Vec<LinkStatus>>>::default();
        let parts = thread::Parts {
            commands: receiver,
            woken,
            waker: Arc::clone(&waker),
            urgent: Arc::clone(&urgent),
            status: Arc::clone(&status),
            sinks,
        };
        let thread = thread::spawn(parts, settings)?;
        Ok(Self {
            commands,
            waker,
            urgent,
            status,
            thread: Some(thread),
        })
    }

    /// These are the links from now on. A peer whose settings stay as they are keeps
    /// its session and its stream, unless the key, this node's name or the keepalive
    /// changed.
    pub fn configure(&self, settings: Settings) {
        self.command(Command::Configure(settings));
    }

    /// A way to send urgent messages that outlives changes of the settings.
    pub fn urgent(&self) -> UrgentSender {
        UrgentSender {
            queue: Arc::clone(&self.urgent),
            waker: Arc::clone(&self.waker),
        }
    }

    /// What the links do.
    pub fn status(&self) -> Vec<LinkStatus> {
        lock(&self.status).clone()
    }

    fn command(&self, command: Command) {
        // Whoever has ended says so in the log.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

impl Drop for PeerLinks {
    fn drop(&mut self) {
        let (stopped, is_stopped) = mpsc::channel();
        self.command(Command::Stop(stopped));
        // In order or not: nobody waits for ever.
        let _ = is_stopped.recv_timeout(STOPPED_WITHIN);
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
