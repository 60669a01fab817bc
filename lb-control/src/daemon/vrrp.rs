//! The virtual routers of the configuration, on their thread.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::virtual_mac;
use tokio::sync::Notify;

use super::{
    notifier::Notifier,
    sync::Peers,
    trackers::{Seen, Trackers},
};
use crate::{
    api::Reply,
    dataplane::{owners::OwnerWords, plane::Plane},
    model::{self, Model, owner_word},
    neighbours::NeighbourView,
    status::{
        VrrpStatus,
        request::{FailoverAnswer, FailoverRequest, MovedRouter, Refusal},
    },
    sync::UrgentSender,
    vrrp::{
        codec::{ChecksumForm, Version},
        machine::Settings,
        peering::Outcome,
        thread::{self as vrrp, Ownership, RouterConfig, Vrrp},
    },
};

/// What `notify` tells at the end may take so long.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// The thread, where the configuration has virtual routers, and what they watch.
#[derive(Debug, Default)]
pub struct VirtualRouters {
    thread: Option<Vrrp>,
    notifier: Option<Notifier>,
    trackers: Trackers,
    /// What a former daemon left in the data path is gone.
    has_tidied: bool,
    in_sync: bool,
}

struct Words(OwnerWords);

impl Ownership for Words {
    fn own(&mut self, word: u16, until: Option<Instant>) -> Result<(), String> {
        self.0.own(word, until).map_err(|error| error.to_string())
    }

    fn disown(&mut self, word: u16) -> Result<(), String> {
        self.0.disown(word).map_err(|error| error.to_string())
    }

    fn place_mac(&mut self, word: u16, device: Option<u32>) -> Result<(), String> {
        let placed = self.0.place_mac(word, device);
        placed.map_err(|error| error.to_string())
    }
}

impl VirtualRouters {
    /// Those of the model are there from now on. Starts the thread with the first.
    ///
    /// # Errors
    /// There is no thread, or the data path can't be told; in words.
    pub fn follow(&mut self, model: &Model, plane: &Plane, peers: &Peers) -> Result<(), String> {
        let words = || plane.owner_words(model).map_err(|e| e.to_string());
        if !self.has_tidied {
            let kept: Vec<u16> = routers(model).iter().map(|router| router.owner).collect();
            let tidied = words()?.forget_macs_but(&kept);
            tidied.map_err(|error| error.to_string())?;
            self.has_tidied = true;
        }
        if self.thread.is_none() && !model.vrrp.is_empty() {
            let notifier = Notifier::start();
            let thread = Vrrp::start(Box::new(Words(words()?)), notifier.listener());
            self.thread = Some(thread.map_err(|error| format!("VRRP: {error}"))?);
            self.notifier = Some(notifier);
        }
        self.trackers.follow(model);
        if let Some(notifier) = &self.notifier {
            notifier.follow(model);
        }
        if let Some(thread) = &self.thread {
            peers.answer(thread.telephone());
            let link = peers
                .urgent()
                .map(|link| Box::new(Link(link)) as Box<dyn vrrp::Peers>);
            thread.peers(link);
            // Before the first of them starts.
            thread.wait_for_sync(model.sync.as_ref().map(|sync| sync.wait));
            thread.configure(routers(model));
        }
        Ok(())
    }

    /// Tells when a script has changed, so that [`Self::watch`] is due.
    pub fn changes(&self) -> Arc<Notify> {
        self.trackers.changes()
    }

    /// Looks at what the virtual routers watch, at `unix` in seconds since the Unix
    /// epoch.
    pub fn watch(&mut self, seen: &Seen<'_>, unix: u64) {
        if let Some(thread) = &self.thread
            && let Some(tracked) = self.trackers.look(seen, unix)
        {
            thread.track(tracked);
        }
    }

    /// Stops them in order, and tells so.
    pub async fn stop(&mut self) {
        self.thread = None;
        if let Some(notifier) = self.notifier.take() {
            notifier.finish(TOLD_WITHIN).await;
        }
    }

    /// Whether this node has all that its peers have told.
    pub fn in_sync(&mut self, in_sync: bool) {
        if let Some(thread) = &self.thread
            && std::mem::replace(&mut self.in_sync, in_sync) != in_sync
        {
            thread.in_sync(in_sync);
        }
    }

    /// Hands over what an operator asks for; the daemon goes on meanwhile.
    pub fn hand_over(&self, request: FailoverRequest, reply: Reply<FailoverAnswer>) {
        let Some(thread) = &self.thread else {
            // Whoever asked may have hung up.
            let _ = reply.send(Err(Refusal::because("this node has no virtual routers")));
            return;
        };
        let done = move |outcome: Outcome| {
            let answer = answer(outcome);
            let _ = reply.send(answer);
        };
        thread.hand_over(request.vrids, request.to, Box::new(done));
    }

    /// What the kernel says of the interfaces.
    pub fn links(&self, view: &NeighbourView) {
        if let Some(thread) = &self.thread {
            let up = view.links.iter().filter(|link| link.up && link.forwards);
            thread.links(up.map(|link| link.name.clone()).collect());
        }
    }

    /// What they do.
    pub fn status(&self) -> Vec<VrrpStatus> {
        let mut rows = self.thread.as_ref().map(Vrrp::status).unwrap_or_default();
        for row in &mut rows {
            let is_v4 = row.family == "IPv4";
            let notifier = self.notifier.as_ref();
            row.notify = notifier.and_then(|notifier| notifier.status((row.vrid, is_v4)));
        }
        rows
    }
}

/// The way to the peers.
struct Link(UrgentSender);

impl vrrp::Peers for Link {
    fn tell(&self, peer: Option<&str>, message: Vec<u8>) {
        // What is lost is said again, or given up.
        let _ = self.0.tell(peer, message);
    }
}

/// Refused if nothing has moved.
fn answer(outcome: Outcome) -> Result<FailoverAnswer, Refusal> {
    let Outcome { moved, errors } = outcome;
    if moved.is_empty() {
        return Err(Refusal { errors });
    }
    let moved = moved.into_iter().map(|(id, peer)| MovedRouter {
        vrid: id.vrid,
        family: if id.is_v4 { "IPv4" } else { "IPv6" }.to_owned(),
        peer: peer.to_string(),
    });
    Ok(FailoverAnswer {
        moved: moved.collect(),
        errors,
    })
}

/// A virtual router of each family that has addresses.
fn routers(model: &Model) -> Vec<RouterConfig> {
    let families = model
        .vrrp
        .iter()
        .flat_map(|vrrp| [(vrrp, true), (vrrp, false)]);
    families
        .filter_map(|(vrrp, is_v4)| router(vrrp, is_v4, model.dataplane.yields_when_daemon_dead))
        .collect()
}

fn router(vrrp: &model::Vrrp, is_v4: bool, lease: bool) -> Option<RouterConfig> {
    let of_family = |all: &[IpAddr]| -> Vec<IpAddr> {
        let all = all.iter().filter(|address| address.is_ipv4() == is_v4);
        all.copied().collect()
    };
    let announced = of_family(&vrrp.addresses);
    if announced.is_empty() {
        return None;
    }
    let mut addresses = announced.clone();
    // RFC 9568 §5.2.9: the first one is link-local.
    let is_link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    match addresses.iter().position(is_link_local) {
        Some(place) => addresses.swap(0, place),
        None if is_v4 => {}
        None => addresses.insert(0, link_local(vrrp.vrid).into()),
    }
    Some(RouterConfig {
        interface: vrrp.interface.clone(),
        is_v4,
        settings: Settings {
            version: if vrrp.version == 2 {
                Version::V2
            } else {
                Version::V3
            },
            vrid: vrrp.vrid,
            priority: vrrp.priority,
            interval: vrrp.interval,
            preempt: vrrp.preempt,
            preempt_delay: vrrp.preempt_delay,
            startup_delay: vrrp.startup_delay,
            addresses,
            source: Ipv6Addr::UNSPECIFIED.into(),
        },
        announced,
        checksum: if vrrp.pseudo_header {
            ChecksumForm::PseudoHeader
        } else {
            ChecksumForm::Message
        },
        peers: of_family(&vrrp.peers),
        group: vrrp.sync_group.clone(),
        references: of_family(&vrrp.track.reference_hosts),
        owner: owner_word(vrrp.vrid, is_v4),
        virtual_mac: vrrp
            .virtual_mac
            .then(|| virtual_mac::of(owner_word(vrrp.vrid, is_v4))),
        lease,
    })
}

/// Of the virtual MAC address 00-00-5E-00-02-VRID (RFC 9568 §7.3), as RFC 4291
/// appendix A makes it of one.
fn link_local(vrid: u8) -> Ipv6Addr {
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        0x0200,
        0x5eff,
        0xfe00,
        0x0200 | u16::from(vrid),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::testing::vrrp;

    fn addresses(router: &RouterConfig) -> Vec<String> {
        let all = router.settings.addresses.iter();
        all.map(ToString::to_string).collect()
    }

    #[test]
    fn each_family_is_a_virtual_router_with_a_word_of_its_own() {
        let both = vrrp(&["192.0.2.10", "2001:db8::10", "192.0.2.11"]);
        let v4 = router(&both, true, true).unwrap();
        assert_eq!(addresses(&v4), ["192.0.2.10", "192.0.2.11"]);
        assert_eq!((v4.owner, v4.peers.len(), v4.lease), (51, 1, true));
        let v6 = router(&both, false, false).unwrap();
        assert_eq!((v6.owner, v6.peers.len(), v6.lease), (256 + 51, 0, false));
        assert_eq!(router(&vrrp(&["192.0.2.10"]), false, true), None);
    }

    #[test]
    fn ipv6_begins_with_a_link_local_address() {
        let made = router(&vrrp(&["2001:db8::10"]), false, true).unwrap();
        assert_eq!(
            addresses(&made),
            ["fe80::200:5eff:fe00:233", "2001:db8::10"]
        );
        // Which isn't owned or announced: nobody asked for it.
        assert_eq!(made.announced.len(), 1);
        let given = router(&vrrp(&["2001:db8::10", "fe80::1"]), false, true).unwrap();
        assert_eq!(addresses(&given), ["fe80::1", "2001:db8::10"]);
    }
}
