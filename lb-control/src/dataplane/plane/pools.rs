//! Full NAT's part in the running data path.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    abi::{PoolEntry, VipEntry, VipKey, vip_flag},
    binding::{self, Limits, Ring},
    clock::{self, UNIT_SHIFT},
    member::MemberState,
};

use super::Plane;
use crate::dataplane::{
    apply::execute,
    bindings::Books,
    error::PlaneError,
    plan::MapOp,
    state::MapSnapshot,
    stats,
    sweep::{self, Bits},
};

impl Plane {
    /// Looks after full NAT's ports; the members that flows have through them.
    pub(super) fn keep_books(
        &mut self,
        snapshot: &MapSnapshot,
        pools: &BTreeMap<VipKey, PoolEntry>,
        now_ticks: u32,
    ) -> Bits {
        let maps = &self.loaded.maps;
        let config = &snapshot.config;
        let hz = self.loaded.hz;
        let ticks = |ms| clock::ticks(ms, hz) as u32;
        let members = self.member_infos(snapshot);
        let idle_ticks = snapshot
            .entries()
            .map(|s| (s.id, (s.idle_units + 1) << UNIT_SHIFT))
            .collect();
        let mut named = Bits::new(members.len());
        let books = Books {
            bindings: &maps.bindings(),
            flows: &maps.nat_flows(),
            free: &maps.free_ports(),
            ring_capacity: Ring::capacity_for(self.capacity.bindings),
            pools,
            members: &members,
            idle_ticks: &idle_ticks,
            limits: Limits {
                open_ticks: 0,
                half_ticks: config.half_units << UNIT_SHIFT,
                closing_ticks: ticks(binding::CLOSING_MS),
            },
            rest_ticks: ticks(binding::REST_MS),
            now_ticks,
        };
        self.books = self.bookkeeper.keep(&books, &mut named);
        named
    }

    /// Full NAT's addresses, those that are being removed included.
    pub fn pool_addresses(&self) -> Vec<IpAddr> {
        let pools = self.desired.pools.keys();
        pools.map(|key| key.address.to_ip(key.family)).collect()
    }

    /// Removes full NAT's addresses whose last flow is over.
    pub(super) fn free_pools(&mut self, now_ticks: u32) -> Result<(), PlaneError> {
        for key in std::mem::take(&mut self.books.over) {
            if self.desired.pools.get(&key).is_none_or(|p| p.draining == 0) {
                continue;
            }
            let is_pool = |vip: &VipEntry| vip.flags & vip_flag::POOL != 0;
            let mut ops = vec![MapOp::RemovePool(key)];
            if self.desired.vips.get(&key).is_some_and(is_pool) {
                ops.insert(0, MapOp::RemoveVip(key));
                self.desired.vips.remove(&key);
            }
            for op in &ops {
                execute(&mut self.loaded.maps, op, now_ticks)?;
            }
            self.desired.pools.remove(&key);
        }
        Ok(())
    }

    pub(super) fn pool_rows(&self) -> Vec<stats::PoolRow> {
        let pools = &self.desired.pools;
        let row = |(key, entry): (&VipKey, &PoolEntry)| stats::PoolRow {
            address: key.address.to_ip(key.family),
            draining: entry.draining != 0,
            ports: self.books.pools.get(key).copied().unwrap_or_default(),
        };
        pools.iter().map(row).collect()
    }

    /// Members by id, as tables are swept by them.
    pub(super) fn member_infos(&self, snapshot: &MapSnapshot) -> Vec<sweep::MemberInfo> {
        let highest = snapshot.members.keys().next_back().copied().unwrap_or(0);
        let mut members = vec![sweep::MemberInfo::default(); highest as usize + 1];
        for (id, member) in &snapshot.members {
            let state = MemberState(member.state);
            // Of flows that another node has, that one says who serves them.
            let follows = self.followed.contains(&member.service)
                && !self.desired.departed.contains(id)
                && !state.serves();
            if let Some(info) = members.get_mut(*id as usize) {
                *info = sweep::MemberInfo {
                    state: if follows {
                        MemberState::DRAINING
                    } else {
                        state
                    },
                    service: member.service,
                };
            }
        }
        members
    }
}
