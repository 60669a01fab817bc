//! The members of a service, those that have left it, and their replies.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    abi::{LinkEntry, MemberEntry, ReplyEntry, ReplyKey, method},
    member::MemberState,
    net::{Addr, Be16, NextHop},
    tunnel,
};

use super::{BackendCondition, BackendKey, Builder, Condition, DesiredError, spread::Ranked};
use crate::{
    dataplane::{ports, state::MemberKey},
    model::{Backend, ForwardingMethod, Pool, Replies, Service},
    scheduler,
};

impl Builder<'_> {
    /// The members of a service. Returns their shares and groups, and whether
    /// slots stay as they are because no backend is up.
    pub(super) fn members(
        &mut self,
        service: &Service,
        pool: &Pool,
        id: u32,
    ) -> Result<(Vec<Ranked>, bool), DesiredError> {
        let conditions: Vec<_> = pool
            .backends
            .iter()
            .map(|backend| (backend, self.condition(service, backend)))
            .collect();
        let nobody_up = !conditions
            .iter()
            .any(|(_, c)| c.condition == Condition::Up && c.weight > 0);
        let mut ranked = Vec::new();
        for (backend, condition) in conditions {
            let key = member_key(service, backend, id);
            let member = match self.known_members.get(&key) {
                Some(member) => *member,
                None => self.new_member(service, backend, key)?,
            };
            let state = member_state(condition, nobody_up);
            let share = match condition.condition {
                Condition::Up => u32::from(condition.weight),
                Condition::Failing | Condition::Dead if nobody_up => u32::from(backend.weight),
                _ => 0,
            };
            ranked.push(Ranked {
                member: scheduler::Member {
                    identity: scheduler::identity(backend.address, backend.port),
                    share,
                    id: member,
                },
                priority: backend.priority,
                max: backend.max_connections,
                backend: self.server(service, backend, id, (member, share)),
            });
            if backend.max_connections > 0 {
                let key = BackendKey {
                    pool: service.pool.clone(),
                    backend: backend.name.clone(),
                };
                self.sharers.entry(key).or_default().push(member);
            }
            let next_hop = self.next_hop(backend.address, member);
            let mtu = self.mtu(backend.address, member, key.method);
            self.state
                .members
                .insert(member, key.entry(state, next_hop.0, mtu));
            self.replies(service, backend, member)?;
        }
        Ok((ranked, nobody_up))
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

    fn condition(&self, service: &Service, backend: &Backend) -> BackendCondition {
        let key = BackendKey {
            pool: service.pool.clone(),
            backend: backend.name.clone(),
        };
        let known = self.runtime.backends.get(&key).copied();
        let known = known.unwrap_or(BackendCondition {
            condition: Condition::Up,
            weight: backend.weight,
        });
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

fn member_state(condition: BackendCondition, nobody_up: bool) -> MemberState {
    match condition.condition {
        Condition::Up if condition.weight > 0 => MemberState::UP,
        Condition::Up | Condition::Draining => MemberState::DRAINING,
        Condition::Failing => MemberState::FAILING,
        Condition::Dead if nobody_up => MemberState::FAILING,
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
