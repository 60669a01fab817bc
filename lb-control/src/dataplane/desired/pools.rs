//! Full NAT's addresses, and the clients that need them under NAT.

use std::net::IpAddr;

use lb_common::{
    abi::{
        LOCAL_KEY_FIXED_BITS, LocalKey, PoolEntry, VipEntry, VipKey, feature, service_flag,
        vip_flag,
    },
    net::{Addr, family},
};

use super::{Builder, DesiredError, OwnAddress};
use crate::{
    dataplane::{allocate::SlotRanges, state::LocalPrefix},
    model::{ForwardingMethod, Replies, Service},
};

impl Builder<'_> {
    pub(super) fn service_flags(&self, service: &Service) -> u16 {
        let is_on_link = |address: IpAddr| self.links_of(address).next().is_some();
        match service.forwarding {
            ForwardingMethod::L2Dsr | ForwardingMethod::Ipip | ForwardingMethod::Gue => 0,
            ForwardingMethod::FullNat => service_flag::FULL_NAT,
            ForwardingMethod::Nat => {
                let mut flags = 0;
                if service.replies == Replies::Flow {
                    flags |= service_flag::REPLY_FLOWS;
                }
                let mut backends = self.model.backends_of(service);
                if backends.any(|(_, b)| is_on_link(b.address)) {
                    flags |= service_flag::LOCAL;
                }
                flags
            }
        }
    }

    /// The own addresses of data path links that a backend shares a prefix with.
    fn links_of(&self, backend: IpAddr) -> impl Iterator<Item = &OwnAddress> {
        self.runtime.addresses.iter().filter(move |own| {
            self.runtime.links.iter().any(|l| l.ifindex == own.ifindex) && own.is_on_link(backend)
        })
    }

    /// Addresses of clients that a backend has on its own link: its answers
    /// would go there directly.
    pub(super) fn local(&mut self) {
        let nat = |s: &&Service| s.forwarding == ForwardingMethod::Nat;
        let backends = self
            .model
            .services
            .iter()
            .filter(nat)
            .flat_map(|s| self.model.backends_of(s))
            .map(|(_, backend)| backend);
        let mut local = Vec::new();
        for own in backends.flat_map(|backend| self.links_of(backend.address)) {
            let (address, family) = Addr::from_ip(network(own));
            local.push(LocalPrefix {
                prefix_bits: LOCAL_KEY_FIXED_BITS + u32::from(own.prefix_bits),
                key: LocalKey {
                    family: family.into(),
                    address,
                },
            });
        }
        self.state.local.extend(local.into_iter().map(|p| (p, 1)));
    }

    /// Addresses keep the bindings they have in the maps. One that has left
    /// the configuration stays, draining, until it is found to be over.
    pub(super) fn pools(&mut self) -> Result<(), DesiredError> {
        let snapshot = self.given.snapshot;
        let used = snapshot.pools.values().map(|p| (p.base, p.count));
        // Index zero is no binding.
        let mut ranges = SlotRanges::new(
            used.chain([(0, 1)]),
            self.given.capacity.bindings.saturating_add(1),
        );
        if let Some(pool) = &self.model.full_nat {
            for address in &pool.addresses {
                self.refuse_own(*address)?;
                let key = vip_key(*address);
                let count = pool.ports();
                let entry = match snapshot.pools.get(&key) {
                    Some(p) if (p.first_port, p.count) == (pool.first_port, count) => *p,
                    Some(p) => {
                        return Err(DesiredError::PoolPortsChanged {
                            address: *address,
                            from: p.first_port,
                            to: (u32::from(p.first_port) + p.count).saturating_sub(1),
                        });
                    }
                    None => PoolEntry {
                        base: ranges
                            .take(count)
                            .ok_or_else(|| DesiredError::TooManyBindings {
                                address: *address,
                                needed: count,
                                free: ranges.free(),
                            })?,
                        count,
                        first_port: pool.first_port,
                        draining: 0,
                    },
                };
                let entry = PoolEntry {
                    draining: 0,
                    ..entry
                };
                self.state.pools.insert(key, entry);
                self.state.config.features |= match key.family {
                    family::V4 => feature::OPEN_POOL_V4,
                    _ => feature::OPEN_POOL_V6,
                };
            }
        }
        for (key, entry) in &snapshot.pools {
            self.state.pools.entry(*key).or_insert(PoolEntry {
                draining: 1,
                ..*entry
            });
        }
        for key in self.state.pools.keys() {
            self.state.config.features |= match key.family {
                family::V4 => feature::POOL_V4,
                _ => feature::POOL_V6,
            };
            // A service that has got the address of a pool has precedence.
            self.state.vips.entry(*key).or_insert(VipEntry {
                owner: self.model.owner_word(key.address.to_ip(key.family)),
                flags: vip_flag::POOL,
            });
        }
        Ok(())
    }

    fn refuse_own(&self, address: IpAddr) -> Result<(), DesiredError> {
        match self.runtime.addresses.iter().find(|a| a.address == address) {
            None => Ok(()),
            Some(own) => Err(DesiredError::OwnPoolAddress {
                address,
                ifindex: own.ifindex,
            }),
        }
    }
}

fn vip_key(address: IpAddr) -> VipKey {
    let (address, family) = Addr::from_ip(address);
    VipKey {
        address,
        family,
        reserved: [0; 3],
    }
}

/// The address with the host's bits zero.
fn network(own: &OwnAddress) -> IpAddr {
    let mask = |bits: u32| {
        u128::MAX
            .checked_shl(bits.saturating_sub(u32::from(own.prefix_bits)))
            .unwrap_or(0)
    };
    match own.address {
        IpAddr::V4(a) => IpAddr::from((a.to_bits() & mask(32) as u32).to_be_bytes()),
        IpAddr::V6(a) => IpAddr::from((a.to_bits() & mask(128)).to_be_bytes()),
    }
}
