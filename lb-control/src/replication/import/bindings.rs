//! Full NAT's bindings of a peer.

use lb_common::{
    abi::VipKey,
    binding::{self, Imported, Use},
    flow::FlowTable,
    hash::Tuple,
};

use super::{Importer, Own};
use crate::replication::{record::Binding, world::World};

impl Importer {
    pub(super) fn binding<T: FlowTable>(&mut self, world: &World<'_, T>, own: &Own, told: Binding) {
        let Some((member, service)) = self.anybodys(world, told.member) else {
            return;
        };
        let [pool_port, client_port, vip_port] = told.ports;
        let key = VipKey {
            address: told.pool,
            family: told.family,
            ..VipKey::default()
        };
        let pool = world.catalogue.pools.get(&key);
        let index = pool.map_or(0, |pool| pool.index(pool_port));
        let Some(at) = world.bindings.bucket(index).filter(|_| index != 0) else {
            self.missed = true;
            self.counts.unknown += 1;
            return;
        };
        let tuple = Tuple {
            source: told.client,
            source_port: client_port,
            // The hash stands for the VIP.
            destination: told.pool,
            destination_port: vip_port,
            protocol: told.protocol,
            family: told.family,
        };
        let flow = binding::Flow {
            tuple: &tuple,
            hash: told.hash,
            service,
        };
        // As with entries: only what this node doesn't know.
        if own.contains(&service)
            && (told.flags.is_none()
                || !binding::state(world.bindings, at).is_free()
                || binding::find(world.bindings, world.nat_flows, &flow).is_some())
        {
            self.counts.own += 1;
            return;
        }
        let imported = told.flags.map(|flags| Imported {
            member,
            flags,
            seen_ticks: world.ticks_ago(told.age_ms),
        });
        let (bindings, flows) = (world.bindings, world.nat_flows);
        let done = match imported {
            Some(imported) => {
                binding::import(bindings, flows, index, &flow, imported, world.now_ticks)
            }
            None => {
                if let Some(found) = binding::find(bindings, flows, &flow)
                    && found.entry.member() == index
                {
                    binding::end(bindings, flows, &found, world.now_ticks);
                }
                true
            }
        };
        if !done {
            self.counts.refused += 1;
            return;
        }
        self.counts.bindings += 1;
        let is_used = binding::state(bindings, at).usage() == Use::Used;
        if let Some(marks) = &mut self.marks
            && let Some(mark) = marks.bindings.get_mut(index as usize)
        {
            *mark = is_used;
        }
    }
}
