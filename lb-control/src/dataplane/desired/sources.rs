//! Which sources may use a service, and which are not kept together.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{SOURCE_KEY_FIXED_BITS, SourceKey, source, source_set},
    limit,
    net::Addr,
};

use super::Builder;
use crate::{
    dataplane::state::{MapSnapshot, SourcePrefix},
    model::{Defence, Prefix, Service},
};

impl Builder<'_> {
    /// The sets of a service's sources, by the numbers that its entry names: who
    /// may use it, and who is not kept together.
    ///
    /// Packets go by one set at any moment. So a set that is in use is never
    /// changed: one with other contents gets another number.
    pub(super) fn source_sets(&mut self, service: &Service, id: u32) -> (u32, u32) {
        let sources = self.source_set(id, 0, |set| {
            rules(&service.defence, service.address.is_ipv4(), set)
        });
        let proxies = self.source_set(id, sources, |set| {
            let except = service.balance.except.iter();
            except.map(|p| (entry(p, set), source::PROXY)).collect()
        });
        (sources, proxies)
    }

    /// One of them, which isn't `taken`, with what `rules` says of a set.
    fn source_set(
        &mut self,
        id: u32,
        taken: u32,
        rules: impl Fn(u32) -> BTreeMap<SourcePrefix, u32>,
    ) -> u32 {
        let snapshot = self.given.snapshot;
        let in_use = sets_in_use(snapshot, id);
        if rules(0).is_empty() {
            return 0;
        }
        let same = |set: &&u32| **set != taken && contents(snapshot, **set) == rules(**set);
        let set = in_use.iter().find(same).copied().unwrap_or_else(|| {
            (1..=u8::MAX)
                .map(|number| source_set(id, number))
                .find(|set| *set != taken && !in_use.contains(set))
                .unwrap_or(source_set(id, 1))
        });
        self.state.sources.extend(rules(set));
        set
    }

    /// Cost of a new flow where so many a second are allowed; zero: no limit.
    pub(super) fn cost(&self, per_second: Option<u32>) -> u32 {
        limit::cost(per_second.unwrap_or(0), self.given.hz)
    }
}

/// Sets that packets of the service go by.
fn sets_in_use(snapshot: &MapSnapshot, id: u32) -> BTreeSet<u32> {
    snapshot
        .entries()
        .filter(|entry| entry.id == id)
        .flat_map(|entry| [entry.sources, entry.proxies])
        .filter(|set| *set != 0)
        .collect()
}

fn contents(snapshot: &MapSnapshot, set: u32) -> BTreeMap<SourcePrefix, u32> {
    snapshot
        .sources
        .range(SourcePrefix::first(set)..)
        .take_while(|(prefix, _)| prefix.key.set == set)
        .map(|(prefix, value)| (*prefix, *value))
        .collect()
}

fn rules(defence: &Defence, is_v4: bool, set: u32) -> BTreeMap<SourcePrefix, u32> {
    let mut rules = BTreeMap::new();
    if !defence.allow.is_empty() {
        let all = if is_v4 {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        rules.insert(entry(&Prefix::of(all, 0), set), source::DENIED);
    }
    rules.extend(defence.deny.iter().map(|p| (entry(p, set), source::DENIED)));
    rules.extend(
        defence
            .allow
            .iter()
            .map(|p| (entry(p, set), source::ALLOWED)),
    );
    rules
}

fn entry(prefix: &Prefix, set: u32) -> SourcePrefix {
    let (address, _) = Addr::from_ip(prefix.address);
    SourcePrefix {
        key: SourceKey { set, address },
        prefix_bits: SOURCE_KEY_FIXED_BITS + u32::from(prefix.bits),
    }
}
