//! One virtual router with its sockets: does what its machine says.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use super::{
    codec::{Advertisement, ChecksumForm, Ends, GROUP_V4, GROUP_V6, LEAVING, Malformed},
    link::Link,
    machine::{Action, Hold, Machine, Oddity, Reason, State, Why},
    references::References,
    schedule::Schedule,
    thread::{Ownership, RouterConfig},
    words::{family, name, shown, shown_mac, waits, words},
};
use super::{notify::StateChange, trackers};
use crate::status::{TrackerStatus, VrrpStatus};

mod cooperation;
mod tracking;

/// An oddity is logged again after so long.
const ODD_AGAIN: Duration = Duration::from_secs(3600);

/// Intervals that backups wait for (RFC 9568 §6.1).
const MISSED: u32 = 3;

/// See the module's description.
pub struct Router {
    config: RouterConfig,
    machine: Machine,
    link: Option<Link>,
    reason: String,
    changed: Instant,
    announcements: Schedule,
    counts: VrrpStatus,
    odd: BTreeMap<String, Instant>,
    moved: Option<Move>,
    trackers: Vec<TrackerStatus>,
    changes: Vec<StateChange>,
    references: References,
    agreed: cooperation::Agreed,
}

/// What the members of a group do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// From active to backup.
    LetGo,
    /// To active.
    Claimed,
}

impl Router {
    /// Waits for its link.
    pub fn new(config: RouterConfig) -> Self {
        Self {
            machine: Machine::new(config.settings.clone()),
            references: References::new(&config.references, config.settings.interval),
            agreed: cooperation::Agreed::default(),
            config,
            link: None,
            reason: "waiting for its interface".into(),
            changed: now(),
            announcements: Schedule::default(),
            counts: VrrpStatus::default(),
            odd: BTreeMap::new(),
            moved: None,
            trackers: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// What it is.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// What it hears by.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.link.iter().flat_map(Link::sockets)
    }

    /// When it wants to be called next.
    pub fn due(&self) -> Option<Instant> {
        let timeout = self.machine.poll_timeout().into_iter();
        let others = self.announcements.next().into_iter();
        timeout.chain(others).chain(self.references_due()).min()
    }

    /// Takes what waits in its socket.
    pub fn read(&mut self, ownership: &mut dyn Ownership) {
        self.read_answers();
        while let Some(link) = &self.link {
            match link.socket().receive() {
                Ok(Some(packet)) => {
                    let (ends, ttl) = (packet.ends, packet.ttl);
                    self.heard(&packet.message, &ends, ttl, ownership);
                }
                Ok(None) => return,
                Err(error) => {
                    self.odd("socket", &format!("its socket can't be read: {error}"));
                    return;
                }
            }
        }
    }

    fn heard(&mut self, message: &[u8], ends: &Ends, ttl: u8, ownership: &mut dyn Ownership) {
        let own = self.link.as_ref().map(Link::source);
        if Some(ends.source) == own {
            return;
        }
        let peers = &self.config.peers;
        if !peers.is_empty() && !peers.contains(&ends.source) {
            self.reject("stranger");
            return;
        }
        let (advertisement, form) = match Advertisement::decode(message, ends, ttl) {
            Ok(decoded) => decoded,
            Err(malformed) => return self.malformed(malformed, ends.source),
        };
        // Others' virtual routers are on the same segment.
        if advertisement.vrid != self.config.settings.vrid {
            return;
        }
        if form == ChecksumForm::PseudoHeader {
            let mut words = format!(
                "{} sums its checksum over a pseudo-header, as keepalived does and RFC 9568 doesn't",
                ends.source
            );
            if self.config.checksum == ChecksumForm::Message {
                words += "; keepalived throws away what doesn't: set `checksum: pseudo-header`";
            }
            self.counts.peer_checksum = Some("pseudo-header".into());
            self.odd("checksum_form", &words);
        }
        let odd = self.machine.received(now(), &advertisement, ends.source);
        let is_taken = !odd
            .iter()
            .any(|odd| matches!(odd, Oddity::Version | Oddity::TwoOwners));
        self.counts.received += u64::from(is_taken);
        for oddity in odd {
            let (name, what) = words(oddity, &advertisement);
            self.reject(name);
            self.odd(name, &format!("{} {what}", ends.source));
        }
        self.act(ownership);
    }

    fn malformed(&mut self, why: Malformed, from: IpAddr) {
        self.reject(why.name());
        self.odd(why.name(), &format!("a message of {from} is {why}"));
    }

    fn reject(&mut self, name: &str) {
        *self.counts.rejected.entry(name.to_owned()).or_default() += 1;
    }

    /// Told once in a while: whoever is odd is so all the time.
    fn odd(&mut self, name: &str, words: &str) {
        let now = now();
        let is_new = self
            .odd
            .get(name)
            .is_none_or(|last| now.saturating_duration_since(*last) >= ODD_AGAIN);
        if is_new {
            self.odd.insert(name.to_owned(), now);
            let vrid = self.config.settings.vrid;
            tracing::warn!(vrid, interface = self.config.interface, "VRRP: {words}");
        }
    }

    /// The time is now `now`, and everything that came before was read.
    pub fn tick(&mut self, now: Instant, ownership: &mut dyn Ownership) {
        self.count_late(now);
        self.machine.timeout(now);
        self.act(ownership);
        self.probe(now);
        if self.announcements.take(now) {
            self.announce();
        }
    }

    /// The interfaces that it needs carry frames, or it is said why not.
    pub fn follow_links(
        &mut self,
        now: Instant,
        broken: Option<&str>,
        ownership: &mut dyn Ownership,
    ) {
        if let Some(why) = broken {
            if self.machine.state() == State::Initialize {
                self.reason = why.to_owned();
            }
            self.machine.broken(why);
            self.act(ownership);
            // Its own may come back as another one.
            self.close();
            self.references.forget();
            return;
        }
        if self.link.is_none() {
            match Link::open(&self.config) {
                Ok(link) => {
                    let mut settings = self.config.settings.clone();
                    settings.source = link.source();
                    if self.machine.settings().source != link.source() {
                        self.machine = Machine::new(settings);
                        self.weigh();
                        self.machine.restrain(self.agreed.restrained);
                    }
                    self.place_mac(link.virtual_mac_device(), ownership);
                    self.link = Some(link);
                }
                Err(error) => {
                    self.reason = format!("{}: {error}", self.config.interface);
                    self.odd("interface", &self.reason.clone());
                    return;
                }
            }
        }
        if self.machine.state() == State::Initialize {
            // Whatever a former daemon left: somebody else may be active by now.
            self.disown(ownership);
        }
        self.machine.mended(now);
        self.machine.start(now);
        self.act(ownership);
    }

    /// Whether it keeps its group from becoming active.
    pub fn is_in_the_way(&self) -> bool {
        self.machine.is_in_the_way()
    }

    /// What its group has to do as well, once.
    pub fn take_move(&mut self) -> Option<Move> {
        self.moved.take()
    }

    /// Another member of its group has let go, or has claimed.
    pub fn follow_group(&mut self, now: Instant, done: Move, ownership: &mut dyn Ownership) {
        match done {
            Move::LetGo => self.machine.yield_with_group(now),
            Move::Claimed => self.machine.claim_with_group(now),
        }
        self.act(ownership);
        // It follows, and is not followed for that.
        self.moved = None;
    }

    /// Leaves in order.
    pub fn stop(&mut self, ownership: &mut dyn Ownership) {
        self.machine.stop();
        self.act(ownership);
        self.disown(ownership);
        self.place_mac(None, ownership);
        self.close();
    }

    /// What the machine says, in its order.
    fn act(&mut self, ownership: &mut dyn Ownership) {
        while let Some(action) = self.machine.next_action() {
            match action {
                Action::Own(true) => self.own(ownership),
                Action::Own(false) => self.disown(ownership),
                Action::Advertise(priority) => {
                    // The lease counts from before backups start to wait.
                    if priority != LEAVING && self.machine.state() == State::Active {
                        self.own(ownership);
                    }
                    self.advertise(priority);
                }
                Action::Announce => {
                    self.announce();
                    self.announcements.begin(now());
                }
                Action::Changed { from, to, reason } => self.note(from, to, &reason),
            }
        }
    }

    fn own(&mut self, ownership: &mut dyn Ownership) {
        let interval = self.config.settings.interval;
        let lease = self
            .config
            .lease
            .then(|| now().checked_add(interval * MISSED + self.agreed.lease))
            .flatten();
        let told = ownership.own(self.config.owner, lease);
        self.told(told);
    }

    fn disown(&mut self, ownership: &mut dyn Ownership) {
        self.announcements.end();
        let told = ownership.disown(self.config.owner);
        self.told(told);
    }

    fn place_mac(&mut self, device: Option<u32>, ownership: &mut dyn Ownership) {
        let told = ownership.place_mac(self.config.owner, device);
        self.told(told);
    }

    fn told(&mut self, told: Result<(), String>) {
        if let Err(error) = told {
            self.odd(
                "ownership",
                &format!("the data path can't be told: {error}"),
            );
        }
    }

    fn advertise(&mut self, priority: u8) {
        let Some(link) = &self.link else {
            return;
        };
        let settings = self.machine.settings();
        let advertisement = Advertisement {
            version: settings.version,
            vrid: settings.vrid,
            priority,
            interval: settings.interval,
            addresses: settings.addresses.clone(),
        };
        let group = if self.config.is_v4 {
            GROUP_V4.into()
        } else {
            GROUP_V6.into()
        };
        let to = match self.config.peers.as_slice() {
            [] => vec![group],
            peers => peers.to_vec(),
        };
        let mut failed = None;
        for destination in to {
            let ends = Ends {
                source: link.source(),
                destination,
            };
            let message = advertisement.encode(&ends, self.config.checksum);
            match link.send(&message, &ends) {
                Ok(()) => self.counts.sent += 1,
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.odd("send", &format!("advertisements can't be sent: {error}"));
        }
    }

    fn announce(&mut self) {
        let Some(link) = &self.link else {
            return;
        };
        if let Err(error) = link.announce(&self.config.announced) {
            self.odd("announce", &format!("announcements can't be sent: {error}"));
        }
    }

    fn note(&mut self, from: State, to: State, reason: &Reason) {
        self.reason = shown(reason);
        self.changed = now();
        self.note_hand_over(reason);
        self.moved = match (from, to) {
            (State::Active, State::Backup) => Some(Move::LetGo),
            (_, State::Active) => Some(Move::Claimed),
            _ => self.moved,
        };
        self.counts.became_active += u64::from(to == State::Active);
        self.note_change(to);
        tracing::info!(
            vrid = self.config.settings.vrid,
            family = family(self.config.is_v4),
            interface = self.config.interface,
            was = name(from),
            now = name(to),
            priority = self.machine.priority(),
            reason = self.reason,
            "VRRP state changed"
        );
    }

    /// As of `now`, which is `unix` in seconds since the Unix epoch.
    pub fn status(&self, now: Instant, unix: u64) -> VrrpStatus {
        let settings = self.machine.settings();
        let peer = self.machine.active_peer();
        VrrpStatus {
            vrid: settings.vrid,
            family: family(self.config.is_v4).to_owned(),
            interface: self.config.interface.clone(),
            state: name(self.machine.state()).to_owned(),
            reason: self.why_now(),
            since: unix.saturating_sub(now.saturating_duration_since(self.changed).as_secs()),
            priority: self.machine.priority(),
            priority_parts: trackers::parts(self.config.settings.priority, &self.trackers),
            trackers: self.trackers.clone(),
            interval_ms: u64::try_from(settings.interval.as_millis()).unwrap_or(u64::MAX),
            version: settings.version.into(),
            addresses: self.config.announced.clone(),
            source: self.link.as_ref().map(Link::source),
            mac: self.link.as_ref().map(|link| shown_mac(link.mac())),
            active_peer: peer.map(|(address, _)| address),
            active_priority: peer.map(|(_, priority)| priority),
            handed_over: self.machine.has_handed_over(),
            isolated: self.is_isolated(),
            reference_hosts: self.references.len(),
            reference_hosts_answering: self.references.answering(),
            ..self.counts.clone()
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "part of the shell")]
fn now() -> Instant {
    Instant::now()
}
