//! Tells the peers of this node's flows, and takes over what they tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    dataplane::{desired::AdoptedShares, error::PlaneError, plane::Plane},
    model::owner_word,
    replication::{
        export::{Exporter, Step},
        import::{Importer, Own},
        world::Catalogue,
    },
    status::{LinkStatus, ReplicationStatus, Standing, VrrpStatus},
    sync::{Change, StreamEvent, StreamSender},
};

/// Between two looks at the tables.
pub const PERIOD: Duration = Duration::from_millis(100);

/// A look takes at most one part in so many of the time.
const SHARE_OF_TIME: u32 = 20;

/// Words that are looked at before other events have their turn.
const BUDGET: usize = 1 << 20;

/// Between two looks at the sources with servers of their own.
const SOURCES: Duration = Duration::from_secs(1);

/// All peers.
#[derive(Debug, Default)]
pub struct Replication {
    peers: BTreeMap<Arc<str>, Peer>,
    /// Services that this node owns, of those that a virtual router has.
    owned: BTreeSet<u32>,
    /// Not before.
    next: Option<Instant>,
    next_sources: Option<Instant>,
}

#[derive(Debug, Default)]
struct Peer {
    stream: Option<StreamSender>,
    exporter: Exporter,
    importer: Importer,
    /// When the look began that is under way.
    began: Option<Instant>,
    /// Messages sent by the end of a look, and when that began.
    told: Option<(u64, Instant)>,
    /// The peer had everything as of then.
    current: Option<Instant>,
}

impl Replication {
    /// Takes what has happened on a link. Whether [`Self::adopted`] has changed.
    ///
    /// # Errors
    /// The data path can't be read or written.
    pub fn take(&mut self, event: StreamEvent, plane: &mut Plane) -> Result<bool, PlaneError> {
        let own = self.own(plane.ids());
        let peer = self.peers.entry(event.peer).or_default();
        let message = match event.change {
            Change::Up { stream, .. } => {
                *peer = Peer {
                    stream: Some(stream),
                    exporter: std::mem::take(&mut peer.exporter),
                    importer: std::mem::take(&mut peer.importer),
                    ..Peer::default()
                };
                peer.exporter.reset();
                peer.importer.reset();
                return Ok(false);
            }
            Change::Down => {
                peer.stream = None;
                peer.current = None;
                peer.exporter.reset();
                peer.importer.reset();
                return Ok(false);
            }
            Change::Message(message) => message,
        };
        let hello = plane.hello();
        let importer = &mut peer.importer;
        let effects = plane.with_tables(|world| importer.take(world, hello, &own, &message))?;
        if effects.asked {
            peer.exporter.reset();
        }
        if !effects.sources.is_empty() {
            plane.take_sources(&effects.sources)?;
        }
        Ok(effects.adopted)
    }

    /// Services that this node owns, or that nobody else can.
    fn own(&self, catalogue: &Catalogue) -> Own {
        let always = catalogue.services.iter().filter(|(_, s)| s.owner == 0);
        let always = always.map(|(id, _)| *id);
        self.owned.iter().copied().chain(always).collect()
    }

    /// Whether there is a peer.
    pub fn is_used(&self) -> bool {
        !self.peers.is_empty()
    }

    /// When [`Self::tick`] wants to be called.
    pub fn due(&self) -> Option<Instant> {
        let is_linked = self.peers.values().any(|peer| peer.stream.is_some());
        self.next.filter(|_| is_linked)
    }

    /// Looks at what has changed and tells it, if it is time to. Who owns what is as of
    /// the last [`Self::look_at_owners`].
    ///
    /// # Errors
    /// The data path can't be read.
    pub fn tick(&mut self, plane: &mut Plane, now: Instant) -> Result<(), PlaneError> {
        if self.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        // Also where this one fails.
        self.next = now.checked_add(PERIOD);
        let hello = plane.hello();
        let groups = plane.groups(&self.owned);
        let wants_sources = self.next_sources.is_none_or(|next| next <= now);
        let sources = if wants_sources && !groups.is_empty() {
            plane.sources()?
        } else {
            Vec::new()
        };
        let own = self.own(plane.ids());
        let owned = &self.owned;
        let mut more = false;
        for peer in self.peers.values_mut() {
            if peer.importer.wants_again(plane.ids(), &own) {
                peer.exporter.ask_again();
            }
            let Some(stream) = peer.stream.clone() else {
                continue;
            };
            peer.began.get_or_insert(now);
            let exporter = &mut peer.exporter;
            let mut send = |message: &[u8]| stream.try_send(message.to_vec()).is_ok();
            let step = plane.with_tables(|world| {
                let step = exporter.step(world, hello, owned, BUDGET, &mut send);
                if wants_sources && step == Step::Done {
                    let all = sources.iter().copied();
                    exporter.sources(world, &groups, all, &mut send);
                }
                step
            })?;
            more |= step != Step::Done;
            if step == Step::Done {
                let began = peer.began.take().unwrap_or(now);
                // What is on its way already was looked at before.
                if peer.told.is_none() {
                    peer.told = Some((stream.sent(), began));
                }
            }
            if let Some((_, began)) = peer
                .told
                .take_if(|(sent, _)| stream.acknowledged() >= *sent)
            {
                peer.current = Some(began);
            }
        }
        #[allow(clippy::disallowed_methods, reason = "part of the shell")]
        let took = now.elapsed();
        // Where there was more to look at first, they wait for the end of it.
        if wants_sources && !more {
            self.next_sources = now.checked_add(SOURCES.max(took * SHARE_OF_TIME));
        }
        let pause = if more {
            took * SHARE_OF_TIME / 4
        } else {
            PERIOD.max(took * SHARE_OF_TIME)
        };
        self.next = now.checked_add(pause);
        Ok(())
    }

    /// Who owns what. Whether [`Self::adopted`] has changed by that.
    pub fn look_at_owners(&mut self, plane: &mut Plane, vrrp: &[VrrpStatus]) -> bool {
        let active: BTreeSet<u16> = vrrp
            .iter()
            .filter(|router| router.state == "active")
            .map(|router| owner_word(router.vrid, router.family == "IPv4"))
            .collect();
        let catalogue = plane.ids();
        let owned = catalogue.services.iter();
        let owned = owned.filter(|(_, service)| active.contains(&service.owner));
        self.owned = owned.map(|(id, _)| *id).collect();
        let names: BTreeSet<Arc<str>> = self
            .own(catalogue)
            .iter()
            .filter_map(|id| Some(Arc::clone(&catalogue.services.get(id)?.name)))
            .collect();
        let mut changed = false;
        for peer in self.peers.values_mut() {
            changed |= peer.importer.disown(&names);
        }
        let followed = self
            .peers
            .values()
            .flat_map(|p| p.importer.adopted().keys());
        let followed = followed.filter_map(|name| catalogue.names.get(name).copied());
        let followed = followed.collect();
        plane.follow(followed);
        changed
    }

    /// Shares that others decide on, by service.
    pub fn adopted(&self) -> BTreeMap<String, AdoptedShares> {
        let all = self.peers.values().flat_map(|p| p.importer.adopted());
        let shares = all.map(|(name, theirs)| {
            let shares = AdoptedShares {
                shares: theirs.shares.clone(),
                keep: theirs.keep,
            };
            (name.to_string(), shares)
        });
        shares.collect()
    }

    /// Whether a peer has told all that it has.
    pub fn in_sync(&self) -> bool {
        let mut peers = self.peers.values();
        peers.any(|peer| *peer.importer.standing() == Standing::InSync)
    }

    /// Has the next [`Self::tick`] look at everything.
    pub fn hasten(&mut self) {
        self.next = None;
    }

    /// Whether every peer has the tables as of `since`, or a later time.
    pub fn is_current(&self, since: Instant) -> bool {
        let mut linked = self.peers.values().filter(|peer| peer.stream.is_some());
        linked.all(|peer| peer.current.is_some_and(|then| then >= since))
    }

    /// Adds what is replicated to what the links do.
    pub fn complete(&self, links: &mut [LinkStatus], now: Instant) {
        for link in links {
            let Some(peer) = self.peers.get(link.peer.as_str()) else {
                continue;
            };
            let is_linked = peer.stream.is_some();
            let lag = |then: Instant| now.saturating_duration_since(then).as_millis();
            link.replication = ReplicationStatus {
                tells: is_linked && peer.exporter.is_live(),
                services: if is_linked { self.owned.len() } else { 0 },
                lag_ms: peer.current.map(|then| lag(then) as u64),
                sent: peer.exporter.counts(),
                hears: peer.importer.standing().clone(),
                received: peer.importer.counts(),
            };
        }
    }

    /// Forgets the peers that aren't configured any more. Whether [`Self::adopted`]
    /// has changed.
    pub fn keep_only(&mut self, links: &[LinkStatus]) -> bool {
        let is_known = |name: &str| links.iter().any(|link| link.peer == name);
        let before = self.peers.len();
        self.peers.retain(|name, _| is_known(name));
        self.peers.len() != before
    }
}

/// Messages of one turn, so that other events have theirs.
pub const TURN: usize = 256;
