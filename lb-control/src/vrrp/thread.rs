//! Runs the virtual routers of this node on a thread of its own, which waits for
//! nothing but the network and the clock.

#![allow(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::{
    io,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::fd::AsFd as _,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::{TimeSpec, TimeValLike as _},
};

use super::{
    codec::ChecksumForm,
    machine::Settings,
    notify::{Groups, StateChange, Who},
    packet::Mac,
    peering::{Outcome, Peering},
    router::{Move, Router},
    trackers::Tracked,
};
use crate::status::VrrpStatus;

mod peers;

pub use peers::{Peers, Telephone};

/// One virtual router of this node: a VRID and a family on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterConfig {
    /// The interface.
    pub interface: String,
    /// Whether it is of IPv4.
    pub is_v4: bool,
    /// What the machine needs to know; its `source` is found out here.
    pub settings: Settings,
    /// Addresses that are announced, and owned: the virtual ones but for the
    /// link-local one that IPv6 asks for.
    pub announced: Vec<IpAddr>,
    /// Form of the checksum that is sent.
    pub checksum: ChecksumForm,
    /// Who is told; empty: the group.
    pub peers: Vec<IpAddr>,
    /// Those of one group are active, backups or failed together.
    pub group: Option<String>,
    /// Hosts on its segment that prove, by an answer, that it is reached.
    pub references: Vec<IpAddr>,
    /// Its word in the data path.
    pub owner: u16,
    /// Its MAC address; `None`: that of the interface.
    pub virtual_mac: Option<Mac>,
    /// The data path owns for as long as advertisements are believed, and not
    /// until it is told otherwise.
    pub lease: bool,
}

/// Is told of changes of state. It doesn't wait for anything.
pub type Listener = Box<dyn FnMut(StateChange) + Send>;

/// Where the data path keeps what it owns.
pub trait Ownership: Send {
    /// From now on, until `until` or without end, this word is owned.
    ///
    /// # Errors
    /// It can't be written; in words.
    fn own(&mut self, word: u16, until: Option<Instant>) -> Result<(), String>;

    /// From now on this word is not owned.
    ///
    /// # Errors
    /// It can't be written; in words.
    fn disown(&mut self, word: u16) -> Result<(), String>;

    /// From now on the virtual router with this word has its virtual MAC address on
    /// the device with this index, or nowhere.
    ///
    /// # Errors
    /// It can't be written; in words.
    fn place_mac(&mut self, word: u16, device: Option<u32>) -> Result<(), String>;
}

/// What the thread is told.
enum Command {
    Configure(Vec<RouterConfig>),
    /// The links that carry frames.
    Links(Vec<String>),
    /// What is watched beside links.
    Track(Tracked),
    Peers(peers::Command),
    Stop(Sender<()>),
}

/// The running thread. Dropping it stops the virtual routers in order.
#[derive(Debug)]
pub struct Vrrp {
    commands: Sender<Command>,
    wake: Arc<UnixStream>,
    status: Arc<Mutex<Vec<VrrpStatus>>>,
    thread: Option<JoinHandle<()>>,
}

/// How long a stop may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(2);

impl Vrrp {
    /// Starts the thread, in the network namespace of the calling one, without any
    /// virtual router.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(ownership: Box<dyn Ownership>, listener: Listener) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let status = Arc::<Mutex<Vec<VrrpStatus>>>::default();
        let runner = Runner {
            commands: receiver,
            woken,
            status: Arc::clone(&status),
            ownership,
            routers: Vec::new(),
            links: Vec::new(),
            tracked: Tracked::new(),
            groups: Groups::default(),
            listener,
            peering: Peering::new(peers::epoch()),
            cooperation: peers::Cooperation::default(),
        };
        let thread = std::thread::Builder::new()
            .name("vrrp".into())
            .spawn(move || runner.run())?;
        Ok(Self {
            commands,
            wake: Arc::new(wake),
            status,
            thread: Some(thread),
        })
    }

    /// These are the virtual routers from now on. Those that stay as they are go
    /// on; those that are gone leave in order.
    pub fn configure(&self, routers: Vec<RouterConfig>) {
        self.tell(Command::Configure(routers));
    }

    /// These links carry frames; virtual routers on others can't forward.
    pub fn links(&self, names: Vec<String>) {
        self.tell(Command::Links(names));
    }

    /// This is how the things are that virtual routers watch.
    pub fn track(&self, tracked: Tracked) {
        self.tell(Command::Track(tracked));
    }

    /// What the virtual routers do.
    pub fn status(&self) -> Vec<VrrpStatus> {
        lock(&self.status).clone()
    }

    fn tell(&self, command: Command) {
        send(&self.commands, &self.wake, command);
    }
}

fn send(commands: &Sender<Command>, wake: &UnixStream, command: Command) {
    // Whoever has ended says so in the log.
    let _ = commands.send(command);
    // A full pipe wakes it as well.
    let _ = (&*wake).write(&[1]);
}

impl Drop for Vrrp {
    fn drop(&mut self) {
        let (stopped, is_stopped) = mpsc::channel();
        self.tell(Command::Stop(stopped));
        // In order or not: nobody waits for ever.
        let _ = is_stopped.recv_timeout(STOPPED_WITHIN);
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Runner {
    commands: Receiver<Command>,
    woken: UnixStream,
    status: Arc<Mutex<Vec<VrrpStatus>>>,
    ownership: Box<dyn Ownership>,
    routers: Vec<Router>,
    links: Vec<String>,
    tracked: Tracked,
    groups: Groups,
    listener: Listener,
    peering: Peering,
    cooperation: peers::Cooperation,
}

impl Runner {
    fn run(mut self) {
        be_punctual();
        loop {
            self.wait();
            // What waits is read before the time is looked at.
            for router in &mut self.routers {
                router.read(self.ownership.as_mut());
            }
            self.obey();
            let now = Instant::now();
            self.cooperate(now);
            self.hold_groups(now);
            for router in &mut self.routers {
                router.tick(now, self.ownership.as_mut());
            }
            self.keep_together(now);
            self.cooperate(now);
            self.tell_changes();
            self.publish();
            if let Some(stopped) = self.has_stopped(now) {
                let _ = stopped.send(());
                return;
            }
        }
    }

    /// Until something comes, or the first of the timers is due.
    fn wait(&self) {
        let due = self.routers.iter().filter_map(Router::due);
        let due = due.chain(self.peering.poll_timeout()).min();
        let time = due.map(|due| {
            let time = due.saturating_duration_since(Instant::now());
            TimeSpec::nanoseconds(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
        });
        let sockets = self.routers.iter().flat_map(Router::sockets);
        let mut waiting: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::new(socket, PollFlags::POLLIN))
            .collect();
        waiting.push(PollFd::new(self.woken.as_fd(), PollFlags::POLLIN));
        // A signal wakes it for nothing.
        let _ = ppoll(&mut waiting, time, None);
    }

    /// Does as it was told.
    fn obey(&mut self) {
        let mut bytes = [0; 64];
        while matches!((&self.woken).read(&mut bytes), Ok(1..)) {}
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Configure(wanted) => self.configure(wanted),
                Command::Links(names) => {
                    self.links = names;
                    self.follow_links();
                }
                Command::Track(tracked) => {
                    self.tracked = tracked;
                    self.follow_links();
                }
                Command::Peers(command) => self.obey_peers(command),
                Command::Stop(stopped) => self.stop(stopped),
            }
        }
    }

    fn configure(&mut self, wanted: Vec<RouterConfig>) {
        let (stay, go): (Vec<Router>, Vec<Router>) = std::mem::take(&mut self.routers)
            .into_iter()
            .partition(|router| wanted.contains(router.config()));
        for mut router in go {
            router.stop(self.ownership.as_mut());
            router
                .take_changes()
                .into_iter()
                .for_each(&mut self.listener);
        }
        self.routers = stay;
        for config in wanted {
            if !self.routers.iter().any(|r| *r.config() == config) {
                let mut router = Router::new(config);
                router.restrain(self.peering.waits_for_sync(Instant::now()));
                self.routers.push(router);
            }
        }
        self.follow_links();
    }

    fn follow_links(&mut self) {
        let now = Instant::now();
        for router in &mut self.routers {
            let vrid = router.config().settings.vrid;
            let tracked = self.tracked.iter().find(|(of, _)| *of == vrid);
            let trackers = tracked.map_or(&[][..], |(_, trackers)| trackers);
            router.track(trackers, self.ownership.as_mut());
        }
        let broken: Vec<Option<String>> = self
            .routers
            .iter()
            .map(|router| {
                let name = &router.config().interface;
                let is_there = self.links.contains(name);
                let own = (!is_there).then(|| format!("{name} carries no frames"));
                own.or_else(|| router.fault())
            })
            .collect();
        let groups: Vec<Option<String>> = self
            .routers
            .iter()
            .map(|r| r.config().group.clone())
            .collect();
        for (index, router) in self.routers.iter_mut().enumerate() {
            let own = broken.get(index).cloned().flatten();
            // One that fails takes its group along.
            let group = router.config().group.clone();
            let others = groups.iter().zip(&broken);
            let others = others.filter(|(other, _)| group.is_some() && **other == group);
            let theirs = others.filter_map(|(_, why)| why.as_ref()).next();
            let why = own.or(theirs.map(|why| format!("its sync group: {why}")));
            router.follow_links(now, why.as_deref(), self.ownership.as_mut());
        }
        self.keep_together(now);
    }

    /// Nobody of a group claims while another one of it could not.
    fn hold_groups(&mut self, now: Instant) {
        let in_the_way: Vec<Option<String>> = self
            .routers
            .iter()
            .filter(|router| router.is_in_the_way())
            .map(|router| router.config().group.clone())
            .collect();
        for router in &mut self.routers {
            let group = &router.config().group;
            let held = group.is_some() && in_the_way.contains(group);
            router.hold_with_group(now, held && !router.is_in_the_way());
        }
    }

    /// Has the members of each group follow the one that has just changed. Who lets
    /// go goes before who claims.
    fn keep_together(&mut self, now: Instant) {
        let moves: Vec<(Option<String>, Move)> = self
            .routers
            .iter_mut()
            .filter_map(|router| Some((router.config().group.clone(), router.take_move()?)))
            .filter(|(group, _)| group.is_some())
            .collect();
        for wanted in [Move::LetGo, Move::Claimed] {
            for (group, _) in moves.iter().filter(|(_, done)| *done == wanted) {
                let has_let_go = moves.contains(&(group.clone(), Move::LetGo));
                if wanted == Move::Claimed && has_let_go {
                    continue;
                }
                let members = self.routers.iter_mut();
                for router in members.filter(|router| router.config().group == *group) {
                    router.follow_group(now, wanted, self.ownership.as_mut());
                }
            }
        }
    }

    fn tell_changes(&mut self) {
        for router in &mut self.routers {
            router
                .take_changes()
                .into_iter()
                .for_each(&mut self.listener);
        }
        let members: Vec<_> = self
            .routers
            .iter()
            .filter_map(Router::group_state)
            .collect();
        for (group, to) in self.groups.follow(&members) {
            (self.listener)(StateChange {
                reason: format!("all of {group}"),
                who: Who::Group(group),
                to,
                priority: 0,
            });
        }
    }

    fn publish(&self) {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let now = Instant::now();
        let rows = self.routers.iter().map(|router| VrrpStatus {
            peers_active: self.peering.active_peers(router.id(), now),
            ..router.status(now, unix)
        });
        *lock(&self.status) = rows.collect();
    }
}

/// Ahead of what isn't as urgent, where that is allowed. Nothing here runs for
/// long.
fn be_punctual() {
    const PRIORITY: i32 = 50;
    let parameters = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: of this thread, and the parameters live through the call.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::info!(%error, "VRRP runs without real-time priority");
    }
}
