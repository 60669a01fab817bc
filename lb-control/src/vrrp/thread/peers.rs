//! The thread's part in what the nodes decide together by the peer link.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use super::{Outcome, Runner, Vrrp};
use crate::vrrp::peering::{Effect, PeerName};

/// The way to the peers: at best once, in any order, or not at all. It never waits.
pub trait Peers: Send {
    /// Has a message of at most [`super::super::report::MOST_BYTES`] sent to this
    /// peer, or to all.
    fn tell(&self, peer: Option<&str>, message: Vec<u8>);
}

/// Whom an outcome is told; called on the thread, and must not wait.
pub type Reply = Box<dyn FnOnce(Outcome) + Send>;

/// What the thread is told of peers.
pub(super) enum Command {
    /// There is a link, or none.
    Link(Option<Box<dyn Peers>>),
    Heard {
        peer: PeerName,
        message: Vec<u8>,
    },
    /// This node waits for sync for so long after its start, or doesn't.
    WaitForSync(Option<Duration>),
    InSync(bool),
    HandOver {
        vrids: Vec<u8>,
        to: Option<String>,
        done: Reply,
    },
}

/// Takes what comes from peers, on any thread.
#[derive(Clone)]
pub struct Telephone {
    commands: Sender<super::Command>,
    wake: Arc<super::UnixStream>,
}

impl fmt::Debug for Telephone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telephone").finish_non_exhaustive()
    }
}

impl Telephone {
    /// A message of a peer has come.
    pub fn heard(&self, peer: &str, message: &[u8]) {
        let (peer, message) = (peer.into(), message.to_vec());
        let command = super::Command::Peers(Command::Heard { peer, message });
        super::send(&self.commands, &self.wake, command);
    }
}

impl Vrrp {
    /// From now on the nodes decide together by this link, or each for itself.
    pub fn peers(&self, link: Option<Box<dyn Peers>>) {
        self.tell(super::Command::Peers(Command::Link(link)));
    }

    /// What takes messages of peers.
    pub fn telephone(&self) -> Telephone {
        Telephone {
            commands: self.commands.clone(),
            wake: Arc::clone(&self.wake),
        }
    }

    /// Until it is in sync this node doesn't preempt, but for no longer than this
    /// after its start; `None`: there is nothing to be in sync with.
    pub fn wait_for_sync(&self, at_most: Option<Duration>) {
        self.tell(super::Command::Peers(Command::WaitForSync(at_most)));
    }

    /// Whether this node's tables are in sync with its peers'.
    pub fn in_sync(&self, in_sync: bool) {
        self.tell(super::Command::Peers(Command::InSync(in_sync)));
    }

    /// Hands over what is active here, with its sync groups: these VRIDs or, without
    /// any, all; to this peer or to the best one. `done` is called within a second.
    pub fn hand_over(&self, vrids: Vec<u8>, to: Option<String>, done: Reply) {
        let command = Command::HandOver { vrids, to, done };
        self.tell(super::Command::Peers(command));
    }
}

/// What the runner keeps for it.
#[derive(Default)]
pub(super) struct Cooperation {
    link: Option<Box<dyn Peers>>,
    started: Option<Instant>,
    token: u64,
    replies: BTreeMap<u64, Reply>,
    stopping: Option<Sender<()>>,
}

impl Runner {
    pub(super) fn obey_peers(&mut self, command: Command) {
        let now = Instant::now();
        let started = *self.cooperation.started.get_or_insert(now);
        match command {
            Command::Link(link) => {
                self.peering.link(link.is_some());
                self.cooperation.link = link;
            }
            Command::Heard { peer, message } => self.peering.heard(now, &peer, &message),
            Command::WaitForSync(at_most) => {
                let until = at_most.and_then(|at_most| started.checked_add(at_most));
                self.peering.wait_for_sync(until);
            }
            Command::InSync(in_sync) => self.peering.in_sync(in_sync),
            Command::HandOver { vrids, to, done } => {
                self.cooperation.token += 1;
                let token = self.cooperation.token;
                self.cooperation.replies.insert(token, done);
                self.observe(now);
                self.peering
                    .hand_over(now, &vrids, to.as_deref(), false, token);
            }
        }
    }

    fn observe(&mut self, now: Instant) {
        let views = self.routers.iter().map(|router| router.view(now));
        self.peering.observe(views.collect());
    }

    /// Decides together with the peers, and does it.
    pub(super) fn cooperate(&mut self, now: Instant) {
        /// Each decision may have another one follow; none has a third.
        const ROUNDS: u32 = 3;
        for _ in 0..ROUNDS {
            self.observe(now);
            self.peering.tick(now);
            let mut has_changed = false;
            while let Some(effect) = self.peering.next_effect() {
                has_changed |= self.execute(now, effect);
            }
            if !has_changed {
                break;
            }
        }
        let waits = self.peering.waits_for_sync(now);
        for router in &mut self.routers {
            router.wait_for_sync(waits);
        }
    }

    fn execute(&mut self, now: Instant, effect: Effect) -> bool {
        match effect {
            Effect::Order(id, order) => {
                let ownership = self.ownership.as_mut();
                let router = self.routers.iter_mut().find(|router| router.id() == id);
                router.is_some_and(|router| router.obey(now, &order, ownership))
            }
            Effect::Tell(peer, message) => {
                if let Some(link) = &self.cooperation.link {
                    link.tell(peer.as_deref(), message);
                }
                false
            }
            Effect::Done(token, outcome) => {
                for (id, peer) in &outcome.moved {
                    let is_v4 = id.is_v4;
                    tracing::info!(vrid = id.vrid, is_v4, %peer, "VRRP: handed over");
                }
                if let Some(reply) = self.cooperation.replies.remove(&token) {
                    reply(outcome);
                }
                false
            }
        }
    }

    /// Begins to stop: whoever can take over does so first.
    pub(super) fn stop(&mut self, stopped: Sender<()>) {
        let now = Instant::now();
        self.cooperation.stopping = Some(stopped);
        self.cooperation.token += 1;
        self.observe(now);
        let token = self.cooperation.token;
        self.peering.hand_over(now, &[], None, true, token);
    }

    /// Leaves in order once nothing is being handed over any more. Whom to tell.
    pub(super) fn has_stopped(&mut self, now: Instant) -> Option<Sender<()>> {
        if self.cooperation.stopping.is_none() || self.peering.is_handing_over() {
            return None;
        }
        self.configure(Vec::new());
        self.cooperate(now);
        // That a group has stopped is known when its last member has.
        self.tell_changes();
        self.publish();
        self.cooperation.stopping.take()
    }
}

/// Of this start of the daemon: a random number.
pub(super) fn epoch() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
