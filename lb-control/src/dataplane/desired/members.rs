//! The members of a service, those that have left it, and their replies.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    abi::{LinkEntry, MemberEntry, ReplyEntry, ReplyKey, method},
    member::MemberState,
    net::{Addr, Be16, NextHop},
    tunnel,
};

use super::{BackendCondition, BackendKey, Builder, Condition, DesiredError};
use crate::{
    dataplane::{ports, state::MemberKey},
    model::{Backend, ForwardingMethod, Replies, Scheduler, Service, WhenAllDown},
    scheduler::{self, Factor, Ranked},
};

/// The members of one service.
pub(super) struct Members {
    /// Their shares and groups.
    pub(super) ranked: Vec<Ranked>,
    /// Slots stay as they are because nobody gets flows.
    pub(super) keep: bool,
    /// Percent of a priority group that has to be available.
    pub(super) min_available: u8,
}

/// A backend of a service.
struct Candidate<'a> {
    pool: &'a str,
    backend: &'a Backend,
    condition: BackendCondition,
    /// Its pool is the one that gets the flows.
    in_force: bool,
}

impl<'a> Builder<'a> {
    /// The members of a service: its pool's backends, and those of the pool
    /// that stands in when all of them are down.
    pub(super) fn members(&mut self, service: &Service, id: u32) -> Result<Members, DesiredError> {
        let candidates = self.candidates(service);
        let nobody_up = !candidates
            .iter()
            .any(|c| c.in_force && takes_new(c.condition));
        let own = self.model.pools.get(&service.pool);
        let in_force = match candidates.iter().find(|c| c.in_force) {
            Some(c) => self.model.pools.get(c.pool),
            None => own,
        };
        let fails = own.is_some_and(|pool| pool.policy.when_all_down == WhenAllDown::Fail);
        let everybody = nobody_up && !fails;
        let weights: Vec<(u32, Factor)> = candidates
            .iter()
            .map(|c| match c.condition.condition {
                Condition::Up if c.in_force => (c.condition.weight.into(), factor(service, c)),
                Condition::Failing | Condition::Dead if c.in_force && everybody => {
                    (c.backend.weight.into(), Factor::ONE)
                }
                _ => (0, Factor::ONE),
            })
            .collect();
        let shares = scheduler::shares(&weights);
        let mut ranked = Vec::new();
        for (candidate, share) in candidates.iter().zip(shares) {
            let backend = candidate.backend;
            let key = member_key(service, backend, id);
            let member = match self.known_members.get(&key) {
                Some(member) => *member,
                None => self.new_member(service, backend, key)?,
            };
            ranked.push(Ranked {
                member: scheduler::Member {
                    identity: scheduler::identity(backend.address, backend.port),
                    share,
                    id: member,
                },
                priority: backend.priority,
                max: backend.max_connections,
                capacity: capacity(candidate),
            });
            self.server(service, backend, id, (member, share));
            if backend.max_connections > 0 {
                let key = BackendKey {
                    pool: candidate.pool.to_owned(),
                    backend: backend.name.clone(),
                };
                self.sharers.entry(key).or_default().push(member);
            }
            let state = member_state(service, candidate, everybody);
            // A backend of both pools is the one that gets flows.
            let before = self
                .state
                .members
                .get(&member)
                .map(|m| MemberState(m.state));
            if before.is_some_and(|before| before.takes_new()) {
                continue;
            }
            let next_hop = self.next_hop(backend.address, member);
            let mtu = self.mtu(backend.address, member, key.method);
            self.state
                .members
                .insert(member, key.entry(state, next_hop.0, mtu));
            self.replies(service, backend, member)?;
        }
        let somebody_has = ranked.iter().any(|r| r.member.share > 0);
        Ok(Members {
            ranked,
            keep: nobody_up && !fails && !somebody_has,
            min_available: in_force.map_or(0, |pool| pool.policy.min_available),
        })
    }

    /// The backends of a service. Its fallback is in force while nobody of its
    /// own pool takes new flows and somebody of the fallback does.
    fn candidates(&self, service: &Service) -> Vec<Candidate<'a>> {
        let model = self.model;
        let of = |pool: &str| {
            let (name, pool) = model.pools.get_key_value(pool)?;
            let known = pool.backends.iter().map(|backend| Candidate {
                pool: name,
                backend,
                condition: self.condition(service, name, backend),
                in_force: true,
            });
            Some(known.collect::<Vec<_>>())
        };
        let mut own = of(&service.pool).unwrap_or_default();
        let fallback = model.fallback(service).and_then(|(name, _)| of(name));
        let mut fallback = fallback.unwrap_or_default();
        let somebody = |all: &[Candidate<'_>]| all.iter().any(|c| takes_new(c.condition));
        let falls_back = !somebody(&own) && somebody(&fallback);
        own.iter_mut().for_each(|c| c.in_force = !falls_back);
        fallback.iter_mut().for_each(|c| c.in_force = falls_back);
        own.append(&mut fallback);
        own
    }

    fn new_member(
        &mut self,
        service: &Service,
        backend: &Backend,
        key: MemberKey,
    ) -> Result<u32, DesiredError> {
        let member = self
            .member_ids
            .take()
            .ok_or_else(|| DesiredError::TooManyMembers {
                service: service.name.clone(),
                backend: backend.address,
                limit: self.given.capacity.members,
                departed: self
                    .given
                    .snapshot
                    .members
                    .keys()
                    .filter(|id| !self.state.members.contains_key(id))
                    .count(),
            })?;
        // Two backends of one pool with one address and port are one member.
        self.known_members.insert(key, member);
        Ok(member)
    }

    fn condition(&self, service: &Service, pool: &str, backend: &Backend) -> BackendCondition {
        let key = BackendKey {
            pool: pool.to_owned(),
            backend: backend.name.clone(),
        };
        let known = self.runtime.backends.get(&key).copied();
        let known = known.unwrap_or(BackendCondition::up(backend.weight));
        BackendCondition {
            condition: known.condition.to_service(service.on_backend_down),
            ..known
        }
    }

    fn next_hop(&self, address: IpAddr, member: u32) -> NextHop {
        if self.runtime.unreachable.contains(&address) {
            return NextHop::UNRESOLVED;
        }
        match self.runtime.next_hops.get(&address) {
            Some(hop) => self
                .state
                .links
                .iter()
                .find(|(_, link)| link.match_ifindex == hop.ifindex && link.match_tags == [0; 2])
                .map_or(NextHop::UNRESOLVED, |(index, _)| {
                    NextHop::new(hop.mac, *index)
                }),
            None => self.last_known_next_hop(address, member),
        }
    }

    fn last_known_next_hop(&self, address: IpAddr, member: u32) -> NextHop {
        let snapshot = self.given.snapshot;
        let (address, family) = Addr::from_ip(address);
        // A new member of a known backend starts with what others know of it.
        let hop = snapshot
            .members
            .get(&member)
            .or_else(|| {
                snapshot
                    .members
                    .values()
                    .find(|m| (m.address, m.outer_family) == (address, family))
            })
            .map_or(NextHop::UNRESOLVED, MemberEntry::next_hop);
        let same_link = |links: &BTreeMap<u16, LinkEntry>| links.get(&hop.link()).map(|l| l.device);
        if hop.is_resolved() && same_link(&self.state.links) == same_link(&snapshot.links) {
            hop
        } else {
            NextHop::UNRESOLVED
        }
    }

    /// Longest packet towards a backend, where that matters: in tunnels. What
    /// isn't known now stays what it was.
    fn mtu(&self, address: IpAddr, member: u32, method: u8) -> u16 {
        if !tunnel::is_tunnel(method) {
            return 0;
        }
        match self.runtime.next_hops.get(&address) {
            Some(hop) => u16::try_from(hop.mtu).unwrap_or(u16::MAX),
            None => self
                .given
                .snapshot
                .members
                .get(&member)
                .map_or(0, |m| m.mtu),
        }
    }

    fn replies(
        &mut self,
        service: &Service,
        backend: &Backend,
        member: u32,
    ) -> Result<(), DesiredError> {
        for (key, entry) in reply_keys(service, backend.address, backend.port, member) {
            let before = self.state.replies.insert(key, entry);
            if before.is_some_and(|before| before != entry) {
                return Err(DesiredError::ReplyConflict {
                    service: service.name.clone(),
                    backend: backend.address,
                    port: key.port.get(),
                });
            }
        }
        Ok(())
    }

    /// Members that the maps hold and the configuration doesn't: drained
    /// while their service lives and the time-out hasn't passed.
    pub(super) fn departed(&mut self) {
        let snapshot = self.given.snapshot;
        for (&id, entry) in &snapshot.members {
            if self.state.members.contains_key(&id) {
                continue;
            }
            let service = self
                .state
                .service_names
                .get(&entry.service)
                .and_then(|name| self.model.services.iter().find(|s| s.name == *name));
            let before = MemberState(entry.state);
            let state = match service {
                Some(_) if before.serves() && !self.given.expired.contains(&id) => {
                    if before.is_down() {
                        MemberState::FAILING
                    } else {
                        MemberState::DRAINING
                    }
                }
                _ => MemberState::DEAD,
            };
            let address = entry.address.to_ip(entry.outer_family);
            let next_hop = self.next_hop(address, id);
            let mtu = self.mtu(address, id, entry.method);
            self.state.members.insert(
                id,
                MemberEntry {
                    state: state.0,
                    next_hop: next_hop.0,
                    mtu,
                    ..*entry
                },
            );
            self.state.departed.insert(id);
            if state.serves() && entry.method == method::NAT {
                let theirs = snapshot.replies.iter().filter(|(key, reply)| {
                    (key.address, key.family, key.protocol)
                        == (entry.address, entry.family, entry.protocol)
                        && (reply.member == id || reply.member == 0)
                });
                for (key, reply) in theirs {
                    // Whoever is configured has precedence.
                    self.state.replies.entry(*key).or_insert(*reply);
                }
            }
        }
        // A name stays until nothing refers to its id.
        for entry in self.state.members.values() {
            if let Some(name) = snapshot.service_names.get(&entry.service) {
                self.state
                    .service_names
                    .entry(entry.service)
                    .or_insert_with(|| name.clone());
            }
        }
    }
}

fn member_key(service: &Service, backend: &Backend, id: u32) -> MemberKey {
    let (address, outer_family) = Addr::from_ip(backend.address);
    let (vip, family) = Addr::from_ip(service.address);
    let (method, port) = match service.forwarding {
        ForwardingMethod::L2Dsr => (method::L2_DSR, None),
        ForwardingMethod::Nat => (method::NAT, backend.port),
        ForwardingMethod::FullNat => (method::FULL_NAT, backend.port),
        ForwardingMethod::Ipip => (method::IPIP, None),
        ForwardingMethod::Gue => (method::GUE, None),
    };
    let vip_port = port.and(ports::single_port(&service.ports));
    MemberKey {
        service: id,
        address,
        port: Be16::new(port.unwrap_or(0)),
        vip,
        vip_port: Be16::new(vip_port.unwrap_or(0)),
        method,
        family,
        outer_family,
        protocol: service.protocol.number(),
    }
}

fn takes_new(condition: BackendCondition) -> bool {
    condition.condition == Condition::Up && condition.weight > 0
}

/// What is made of the weight of a backend, for this service.
fn factor(service: &Service, candidate: &Candidate<'_>) -> Factor {
    let factors = candidate.condition.factors;
    let factor = factors.slow_start.and(factors.load);
    match service.balance.scheduler {
        Scheduler::ResponseTime => factor.and(factors.response),
        _ => factor,
    }
}

/// What a backend can take now, and what when all is well. A slow start is a
/// lack of capacity; what its answers say of its load is not.
fn capacity(candidate: &Candidate<'_>) -> (u32, u32) {
    let BackendCondition {
        weight, factors, ..
    } = candidate.condition;
    let configured = f64::from(candidate.backend.weight);
    let available = if takes_new(candidate.condition) {
        f64::from(weight) * factors.slow_start.fraction()
    } else {
        0.0
    };
    let units = |weight: f64| (weight * 1024.0) as u32;
    (units(available.min(configured)), units(configured))
}

fn member_state(service: &Service, candidate: &Candidate<'_>, everybody: bool) -> MemberState {
    let everybody = everybody && candidate.in_force;
    // Where slots alone don't decide, new flows go to nobody but those that
    // take them.
    let asks = service.balance.tracking.full || service.forwarding == ForwardingMethod::FullNat;
    match candidate.condition.condition {
        Condition::Failing | Condition::Dead if everybody && asks => MemberState::UP,
        Condition::Up if candidate.condition.weight > 0 && candidate.in_force => MemberState::UP,
        Condition::Up | Condition::Draining => MemberState::DRAINING,
        // Its flows stay; a SYN that is sent again goes to somebody else at once.
        Condition::Overloaded | Condition::Failing => MemberState::FAILING,
        Condition::Dead if everybody => MemberState::FAILING,
        Condition::Dead | Condition::Disabled => MemberState::DEAD,
    }
}

/// Where replies of a member come from, under NAT.
fn reply_keys(
    service: &Service,
    address: IpAddr,
    port: Option<u16>,
    member: u32,
) -> Vec<(ReplyKey, ReplyEntry)> {
    if service.forwarding != ForwardingMethod::Nat {
        return Vec::new();
    }
    let (address, family) = Addr::from_ip(address);
    let key = |port| ReplyKey {
        address,
        port: Be16::new(port),
        protocol: service.protocol.number(),
        family,
    };
    match service.replies {
        Replies::Flow => {
            let port = port.or_else(|| ports::single_port(&service.ports));
            vec![(key(port.unwrap_or(0)), ReplyEntry { member: 0 })]
        }
        Replies::Port => match port {
            Some(port) => vec![(key(port), ReplyEntry { member })],
            None => ports::keys(&service.ports)
                .single
                .into_iter()
                .map(|port| (key(port), ReplyEntry { member }))
                .collect(),
        },
    }
}
