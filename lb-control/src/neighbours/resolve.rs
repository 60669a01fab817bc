//! The next hop of every target, decided without a socket.
//!
//! [`Resolver`] is told what the kernel says of links, routes and neighbours,
//! hands out what the kernel has to be asked or told, and gives the view.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
};

use super::{
    Hop, Link, NeighbourView, OwnAddress, Target, Unresolved,
    devices::{Device, devices},
};

/// The kernel's answer to "how is this address reached".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Over a link, through a router or directly.
    Via {
        /// The link.
        ifindex: u32,
        /// The router; `None`: the address is on the link.
        gateway: Option<IpAddr>,
        /// The route's own MTU, where it has one.
        mtu: Option<u32>,
    },
    /// The address is this machine's own.
    Local,
    /// There is no route, in the kernel's words.
    None(String),
}

/// A neighbour's state (NUD), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Its MAC address is valid, though perhaps not confirmed lately
    /// (REACHABLE, STALE, DELAY, PROBE, and what an operator pinned with
    /// NOARP). It is used until the kernel says FAILED or names another: a
    /// neighbour that is being probed has not failed.
    Known,
    /// An operator's permanent entry: used, and never touched.
    Permanent,
    /// Asked, no answer yet (INCOMPLETE), or not even asked (NONE).
    Resolving,
    /// Didn't answer.
    Failed,
}

/// A neighbour entry of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its state.
    pub state: NeighbourState,
    /// Its MAC address, if any.
    pub mac: Option<[u8; 6]>,
}

/// A neighbour's name: link and address.
pub type NeighbourKey = (u32, IpAddr);

/// What the kernel has to be asked or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for the route to this address.
    LookUp(IpAddr),
    /// Keep this neighbour resolved from now on.
    Keep(NeighbourKey),
    /// Stop that.
    Release(NeighbourKey),
}

/// What is known, and what follows from it.
#[derive(Debug, Default)]
pub struct Resolver {
    managed: BTreeSet<String>,
    targets: HashMap<IpAddr, bool>,
    links: HashMap<u32, Link>,
    addresses: BTreeSet<OwnAddress>,
    devices: Vec<Device>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    routes: HashMap<IpAddr, Route>,
    kept: HashSet<NeighbourKey>,
    look_ups: VecDeque<IpAddr>,
    look_ups_queued: HashSet<IpAddr>,
    keeping: VecDeque<Action>,
    /// Kept neighbours may differ from the wanted ones.
    review: bool,
    /// See [`Resolver::take_link_loss`].
    link_lost: bool,
}

impl Resolver {
    /// Knows nothing yet.
    pub fn new(managed: impl IntoIterator<Item = String>) -> Self {
        Self {
            managed: managed.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Names of the interfaces the data path is attached to.
    pub fn set_managed(&mut self, managed: impl IntoIterator<Item = String>) {
        self.managed = managed.into_iter().collect();
        self.find_devices();
        self.review = true;
    }

    /// The addresses whose next hops are wanted from now on.
    pub fn set_targets(&mut self, targets: &[Target]) {
        self.targets.clear();
        for target in targets {
            *self.targets.entry(target.address).or_default() |= target.on_link_only;
        }
        self.routes
            .retain(|address, _| self.targets.contains_key(address));
        let unknown: Vec<IpAddr> = self
            .targets
            .keys()
            .filter(|address| !self.routes.contains_key(address))
            .copied()
            .collect();
        for address in unknown {
            self.queue_look_up(address);
        }
        self.review = true;
    }

    /// The kernel described a link.
    pub fn handle_link(&mut self, link: Link) {
        let carried = self.managed_link(link.ifindex).is_some_and(|old| old.up);
        self.link_lost |= carried && !link.up;
        let known = self.links.insert(link.ifindex, link.clone());
        self.find_devices();
        let routes_may_differ = known.is_none_or(|old| old.up != link.up || old.name != link.name);
        if routes_may_differ {
            self.handle_routing_change(None);
        }
        self.review = true;
    }

    /// This node has an address.
    pub fn handle_address(&mut self, address: OwnAddress) {
        self.addresses.insert(address);
        self.handle_routing_change(None);
    }

    /// This node has an address no more.
    pub fn handle_address_gone(&mut self, address: OwnAddress) {
        self.addresses.remove(&address);
        self.handle_routing_change(None);
    }

    /// A link is gone.
    pub fn handle_link_gone(&mut self, ifindex: u32) {
        self.link_lost |= self.managed_link(ifindex).is_some_and(|old| old.up);
        self.links.remove(&ifindex);
        self.addresses.retain(|own| own.ifindex != ifindex);
        self.find_devices();
        self.neighbours.retain(|(link, _), _| *link != ifindex);
        self.kept.retain(|(link, _)| *link != ifindex);
        self.handle_routing_change(None);
    }

    /// The kernel described a neighbour.
    pub fn handle_neighbour(&mut self, key: NeighbourKey, mut neighbour: Neighbour) {
        let known = self.neighbours.get(&key).map(|known| known.state);
        // The kernel tries again and again; until one attempt succeeds the
        // operator should read of the failure.
        if known == Some(NeighbourState::Failed) && neighbour.state == NeighbourState::Resolving {
            neighbour.state = NeighbourState::Failed;
        }
        if known.is_none()
            || (known != Some(neighbour.state) && neighbour.state == NeighbourState::Permanent)
        {
            self.review = true;
        }
        self.neighbours.insert(key, neighbour);
    }

    /// A neighbour entry was deleted. If we kept it, it has to be made anew.
    pub fn handle_neighbour_gone(&mut self, key: NeighbourKey) {
        self.neighbours.remove(&key);
        if self.kept.remove(&key) {
            self.review = true;
        }
    }

    /// Routes changed: those to the prefix, or (`None`) any. Only targets
    /// within it are looked up again.
    pub fn handle_routing_change(&mut self, prefix: Option<(IpAddr, u8)>) {
        let affected: Vec<IpAddr> = self
            .targets
            .keys()
            .filter(|address| {
                prefix.is_none_or(|(network, length)| contains(network, length, **address))
            })
            .copied()
            .collect();
        for address in affected {
            self.queue_look_up(address);
        }
        self.review = true;
    }

    /// The answer to [`Action::LookUp`].
    pub fn handle_route(&mut self, address: IpAddr, route: Route) {
        if self.targets.contains_key(&address) {
            self.routes.insert(address, route);
            self.review = true;
        }
    }

    /// All links and neighbours follow (a dump): forget those known so far.
    /// What the kernel keeps for us it still keeps, unless the dump lacks it;
    /// [`Resolver::end_of_dump`] finds out.
    pub fn begin_dump(&mut self) {
        self.links.clear();
        self.addresses.clear();
        self.find_devices();
        self.neighbours.clear();
    }

    /// The dump is complete.
    pub fn end_of_dump(&mut self) {
        let neighbours = &self.neighbours;
        self.kept.retain(|key| neighbours.contains_key(key));
        self.handle_routing_change(None);
    }

    /// What to ask or tell the kernel next.
    pub fn next_action(&mut self) -> Option<Action> {
        if let Some(address) = self.look_ups.pop_front() {
            self.look_ups_queued.remove(&address);
            return Some(Action::LookUp(address));
        }
        if std::mem::take(&mut self.review) {
            self.review_kept();
        }
        self.keeping.pop_front()
    }

    /// Neighbours that are kept resolved.
    pub fn kept(&self) -> impl Iterator<Item = NeighbourKey> + '_ {
        self.kept.iter().copied()
    }

    /// The link of this index, if it is a device behind the managed ones.
    pub fn managed_link(&self, ifindex: u32) -> Option<&Link> {
        self.links
            .get(&ifindex)
            .filter(|_| self.devices.iter().any(|d| d.ifindex == ifindex))
    }

    /// Whether a managed link that carried frames doesn't since the last call. A virtual
    /// router on it lets go, and nobody forwards until it knows.
    pub fn take_link_loss(&mut self) -> bool {
        std::mem::take(&mut self.link_lost)
    }

    fn find_devices(&mut self) {
        self.devices = devices(&self.links, &self.managed);
    }

    /// What is known of all targets and managed links.
    pub fn view(&self) -> NeighbourView {
        let mut links: Vec<Link> = self
            .links
            .values()
            .filter(|link| self.managed.contains(&link.name))
            .cloned()
            .collect();
        links.sort_by(|a, b| a.name.cmp(&b.name));
        NeighbourView {
            hops: self
                .targets
                .iter()
                .map(|(address, on_link_only)| (*address, self.resolve(*address, *on_link_only)))
                .collect(),
            links,
            addresses: self.addresses.iter().copied().collect(),
            devices: self.devices.clone(),
        }
    }

    fn resolve(&self, address: IpAddr, on_link_only: bool) -> Result<Hop, Unresolved> {
        let key = self.next_hop(address, on_link_only)?;
        let (ifindex, next_hop) = key;
        let link = self.link_name(ifindex);
        let neighbour = self.neighbours.get(&key);
        match neighbour.map(|neighbour| (neighbour.state, neighbour.mac)) {
            Some((NeighbourState::Known | NeighbourState::Permanent, Some(mac))) => Ok(Hop {
                mac,
                ifindex,
                mtu: self.mtu(address, ifindex),
            }),
            Some((NeighbourState::Failed, _)) => Err(Unresolved::Failed { next_hop, link }),
            _ => Err(Unresolved::Resolving { next_hop, link }),
        }
    }

    fn mtu(&self, address: IpAddr, ifindex: u32) -> u32 {
        let of_link = self.links.get(&ifindex).map_or(0, |link| link.mtu);
        match self.routes.get(&address) {
            Some(Route::Via { mtu: Some(mtu), .. }) => of_link.min(*mtu),
            _ => of_link,
        }
    }

    /// Link and address of the neighbour that frames for the target go to.
    fn next_hop(&self, address: IpAddr, on_link_only: bool) -> Result<NeighbourKey, Unresolved> {
        let (ifindex, gateway) = match self.routes.get(&address) {
            None => return Err(Unresolved::Pending),
            Some(Route::Local) => return Err(Unresolved::Local),
            Some(Route::None(detail)) => {
                return Err(Unresolved::NoRoute {
                    detail: detail.clone(),
                });
            }
            Some(Route::Via {
                ifindex, gateway, ..
            }) => (*ifindex, *gateway),
        };
        let link = self.link_name(ifindex);
        let Some(managed) = self.managed_link(ifindex) else {
            return Err(Unresolved::UnmanagedLink { link });
        };
        if !managed.up {
            return Err(Unresolved::LinkDown { link });
        }
        match gateway {
            Some(gateway) if on_link_only => Err(Unresolved::NotOnLink { gateway, link }),
            Some(gateway) => Ok((ifindex, gateway)),
            None => Ok((ifindex, address)),
        }
    }

    /// All differences at once: with thousands of targets one by one would be
    /// quadratic.
    fn review_kept(&mut self) {
        let wanted = self.wanted();
        let release = self.kept.difference(&wanted).copied();
        self.keeping.extend(release.map(Action::Release));
        let keep = wanted.difference(&self.kept).copied();
        self.keeping.extend(keep.map(Action::Keep));
        self.kept = wanted;
    }

    fn wanted(&self) -> HashSet<NeighbourKey> {
        self.targets
            .iter()
            .filter_map(|(address, on_link_only)| self.next_hop(*address, *on_link_only).ok())
            .filter(|key| {
                // To manage an entry would take its permanence.
                self.neighbours
                    .get(key)
                    .is_none_or(|neighbour| neighbour.state != NeighbourState::Permanent)
            })
            .collect()
    }

    fn link_name(&self, ifindex: u32) -> String {
        self.links
            .get(&ifindex)
            .map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
    }

    fn queue_look_up(&mut self, address: IpAddr) {
        if self.look_ups_queued.insert(address) {
            self.look_ups.push_back(address);
        }
    }
}

/// Whether the prefix holds the address.
fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    fn same_head(a: u128, b: u128, width: u32, length: u8) -> bool {
        let length = u32::from(length).min(width);
        length == 0 || (a ^ b) >> (width - length) == 0
    }
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            same_head(a.to_bits().into(), b.to_bits().into(), 32, length)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => same_head(a.to_bits(), b.to_bits(), 128, length),
        _ => false,
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
