//! Properties of the way from any configuration to any other.

mod follow;
mod pools;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_common::{
    abi::{
        MemberEntry, SOURCE_KEY_FIXED_BITS, ServiceEntry, feature, method, service_flag, source,
    },
    member::MemberState,
    net::{Addr, NextHop},
    persist,
    slot::SlotWord,
};
use proptest::prelude::*;

use super::{
    apply::{apply, execute},
    desired::{
        BackendCondition, BackendKey, Condition, DesiredState, Given, Hop, Link, Runtime,
        TableCache, desired,
    },
    fake::FakeMaps,
    plan::{MapOp, plan},
    state::{Capacity, MapSnapshot, SourcePrefix},
    store::MapStore,
};
use crate::{
    model::{
        Backend, Balance, Dataplane, Defence, ForwardingMethod, Interface, Model, OnBackendDown,
        Persistence, Pool, PoolPolicy, Ports, Prefix, Protocol, Replies, Scheduler, Service,
        Tunnel, WhenAllDown, XdpMode,
    },
    scheduler::Factor,
};

const HZ: u32 = 1000;
const CAPACITY: Capacity = Capacity {
    services: 8,
    members: 100,
    slots: 1000,
    flow_buckets: 64,
    source_prefixes: 1024,
    limited_sources: 1024,
    bindings: 1_000,
    fragments: 1024,
    persistent_sources: 1024,
};
const NOW: u32 = 5000;

fn backend(n: u8) -> Backend {
    Backend {
        name: format!("b{n}"),
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 1, n)),
        port: None,
        weight: 1,
        priority: 1,
        max_connections: 0,
    }
}

fn service(n: u8, pool: &str) -> Service {
    Service {
        name: format!("s{n}"),
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)),
        ports: Ports::Ranges(vec![(80, 80)]),
        protocol: Protocol::Tcp,
        forwarding: ForwardingMethod::L2Dsr,
        replies: Replies::Port,
        defence: Defence::default(),
        on_backend_down: OnBackendDown::Keep,
        balance: Balance::default(),
        persistence: None,
        topology: Default::default(),
        pool: pool.into(),
        table_size: 31,
        table_size_is_explicit: false,
    }
}

fn model(pools: impl IntoIterator<Item = (String, Vec<Backend>)>, services: Vec<Service>) -> Model {
    Model {
        node: "test".into(),
        interfaces: vec![Interface {
            name: "eth0".into(),
            xdp: XdpMode::Auto,
        }],
        dataplane: Dataplane {
            max_flows: 256,
            max_services: CAPACITY.services,
            max_members: CAPACITY.members,
            max_slots: CAPACITY.slots,
            max_source_prefixes: 1024,
            max_limited_sources: 1024,
            max_bindings: 1_000,
            max_fragments: 1024,
            max_persistent_sources: 1024,
            icmp_rate: 1000,
            tcp_idle: Duration::from_secs(8100),
            udp_idle: Duration::from_secs(120),
            dead_after: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(300),
            hash_secret_file: None,
            pin_dir: "/nowhere".into(),
            debug_log: false,
            manage_sysctls: false,
            yields_when_daemon_dead: false,
            tunnel: Tunnel::default(),
            probes: crate::model::ProbePath::default(),
        },
        metrics: None,
        pools: pools
            .into_iter()
            .map(|(name, backends)| {
                let pool = Pool {
                    backends,
                    ..Pool::default()
                };
                (name, pool)
            })
            .collect(),
        services,
        full_nat: None,
        vrrp: Vec::new(),
        sync: None,
    }
}

fn one_pool(backends: impl IntoIterator<Item = u8>, services: Vec<Service>) -> Model {
    let backends = backends.into_iter().map(backend).collect();
    model([("p".to_owned(), backends)], services)
}

fn runtime() -> Runtime {
    Runtime {
        links: vec![Link {
            name: "eth0".into(),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            is_bridge: false,
            is_blocked: false,
            egress: 7,
            tags: [0; 2],
            ways: vec![(7, [0; 2], 7)],
        }],
        next_hops: (1..=9)
            .map(|n| {
                let hop = Hop {
                    mac: [2, 0, 0, 0, 1, n],
                    ifindex: 7,
                    mtu: 1500,
                };
                (IpAddr::V4(Ipv4Addr::new(10, 0, 1, n)), hop)
            })
            .collect(),
        ..Runtime::default()
    }
}

#[test]
fn the_members_of_a_backend_with_a_limit_form_a_ring_over_its_services() {
    let mut backends = vec![backend(1), backend(2)];
    backends[0].max_connections = 10;
    let services = |n: u8| (1..=n).map(|n| service(n, "p")).collect::<Vec<_>>();
    let mut maps = FakeMaps::new(CAPACITY.slots);
    // Of the members that are configured; others take no new flows.
    let of = |maps: &FakeMaps, wanted: &DesiredState, n: u8| {
        let snapshot = maps.snapshot().unwrap();
        let address = Addr::from_ip(backend(n).address).0;
        let limits: Vec<_> = wanted
            .limits
            .keys()
            .filter(|id| snapshot.members[id].address == address)
            .map(|id| (*id, snapshot.limits[id].next))
            .collect();
        limits
    };
    for (n, ring) in [(1, false), (3, true), (2, true), (1, false)] {
        let model = model([("p".to_owned(), backends.clone())], services(n));
        reconcile(&mut maps, &model, &runtime());
        let wanted = wanted(&maps, &model, &runtime(), &BTreeSet::new());
        let members = of(&maps, &wanted, 1);
        let configured: Vec<_> = members.iter().filter(|(_, next)| *next != 0).collect();
        if ring {
            assert_eq!(configured.len(), usize::from(n), "{members:?}");
            let mut at = configured[0].0;
            let mut seen = BTreeSet::new();
            while seen.insert(at) {
                at = members.iter().find(|(id, _)| *id == at).unwrap().1;
            }
            assert_eq!(seen.len(), usize::from(n), "one ring: {members:?}");
        } else {
            assert!(configured.is_empty(), "{members:?}");
        }
        assert!(
            of(&maps, &wanted, 2).iter().all(|(_, next)| *next == 0),
            "no limit"
        );
    }
}

/// A server that is in a pool and in its fallback is one member of the service.
#[test]
fn a_member_of_two_pools_is_in_one_ring_that_comes_back_to_it() {
    let limited = Backend {
        max_connections: 10,
        ..backend(1)
    };
    // Whichever of the two names comes first.
    for fallback in ["a", "z"] {
        let pools = ["p", fallback, "r"].map(|name| (name.to_owned(), vec![limited.clone()]));
        let services = vec![
            service(1, "p"),
            service(2, "p"),
            service(3, fallback),
            service(4, "r"),
        ];
        let mut model = model(pools, services);
        policy(
            &mut model,
            PoolPolicy {
                when_all_down: WhenAllDown::FallbackPool(fallback.into()),
                ..PoolPolicy::default()
            },
        );
        // Its services use the second pool, and not that one's fallback.
        if let Some(pool) = model.pools.get_mut("r") {
            pool.policy.when_all_down = WhenAllDown::FallbackPool("p".into());
        }
        let mut maps = FakeMaps::new(CAPACITY.slots);
        reconcile(&mut maps, &model, &runtime());
        let limits = maps.snapshot().unwrap().limits;
        for first in limits.keys() {
            let (mut at, mut seen) = (limits[first].next, BTreeSet::new());
            while at != *first {
                assert!(
                    seen.insert(at),
                    "{first} isn't in the ring it leads to: {limits:?}"
                );
                at = limits[&at].next;
            }
            assert_eq!(seen.len(), 3, "all four count: {limits:?}");
        }
    }
}

#[test]
fn servers_lead_to_the_members_of_each_service_that_take_new_flows() {
    let persistence = Some(Persistence {
        prefix_v4: 24,
        prefix_v6: 64,
        timeout: Duration::from_secs(600),
        group: Some("shop".into()),
    });
    let services = [1, 2, 3].map(|n| Service {
        persistence: persistence.clone().filter(|_| n < 3),
        ..service(n, "p")
    });
    let mut backends: Vec<_> = [1, 2, 3].map(backend).into();
    backends[2].weight = 0;
    let model = model([("p".to_owned(), backends)], services.into());
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let mut now = runtime();
    reconcile(&mut maps, &model, &now);
    let known = |maps: &FakeMaps, name: &str| -> BTreeSet<(u32, u32)> {
        let snapshot = maps.snapshot().unwrap();
        let servers = snapshot.servers.iter();
        servers
            .filter(|(key, _)| key.backend == persist::backend(name))
            .map(|(key, member)| {
                assert_eq!(snapshot.members[member].service, key.service);
                assert_eq!(snapshot.limits[member].backend, key.backend);
                (key.service, *member)
            })
            .collect()
    };
    assert_eq!(
        known(&maps, "b1").len(),
        2,
        "one of each service that has it"
    );
    assert_eq!(known(&maps, "b2").len(), 2);
    assert!(known(&maps, "b3").is_empty(), "weight 0");
    let snapshot = maps.snapshot().unwrap();
    let of: BTreeMap<u32, (u32, u32, u8)> = snapshot
        .entries()
        .map(|e| (e.id, (e.group, e.persist_ticks, e.persist_v4)))
        .collect();
    let same: BTreeSet<_> = of.values().copied().collect();
    assert_eq!(same.len(), 2, "two of one group, and one that has none");
    assert!(same.contains(&(0, 0, 0)) && same.iter().any(|s| s.0 == persist::group("shop")));
    condition(&mut now, 2, Condition::Draining);
    reconcile(&mut maps, &model, &now);
    assert!(known(&maps, "b2").is_empty(), "it takes no new flows");
    let (both, some) = (known(&maps, "b1"), maps.clone());
    // What is left out of the file is gone from the map.
    let without = Model {
        services: vec![service(1, "p"), service(2, "p"), service(3, "p")],
        ..model
    };
    reconcile(&mut maps, &without, &now);
    assert!(maps.snapshot().unwrap().servers.is_empty());
    assert_eq!(known(&some, "b1"), both);
}

fn condition(runtime: &mut Runtime, n: u8, condition: Condition) {
    let key = BackendKey {
        pool: "p".into(),
        backend: format!("b{n}"),
    };
    let condition = BackendCondition {
        condition,
        ..BackendCondition::up(1)
    };
    runtime.backends.insert(key, condition);
}

fn wanted(
    maps: &FakeMaps,
    model: &Model,
    runtime: &Runtime,
    expired: &BTreeSet<u32>,
) -> DesiredState {
    let snapshot = maps.snapshot().unwrap();
    let given = Given {
        snapshot: &snapshot,
        capacity: CAPACITY,
        hz: HZ,
        expired,
    };
    desired(model, runtime, given, &mut TableCache::default()).unwrap()
}

fn ops(maps: &FakeMaps, model: &Model, runtime: &Runtime) -> Vec<MapOp> {
    let desired = wanted(maps, model, runtime, &BTreeSet::new());
    plan(&desired, &maps.snapshot().unwrap())
}

fn reconcile(maps: &mut FakeMaps, model: &Model, runtime: &Runtime) {
    let ops = ops(maps, model, runtime);
    apply(maps, &ops, NOW).unwrap();
}

/// Everything a packet can be led to exists.
fn assert_nothing_dangles(maps: &FakeMaps) {
    let s = maps.snapshot().unwrap();
    let entries: Vec<&ServiceEntry> = s.services.values().chain(s.ranges.values()).collect();
    let mut ranges = BTreeMap::new();
    for entry in &entries {
        assert!(
            s.service_names.contains_key(&entry.id),
            "no name: {entry:?}"
        );
        ranges.insert(entry.slot_offset, (entry.slot_size, entry.id));
        assert!(s.config.longest_idle_units >= entry.idle_units);
        for word in &s.slots[&entry.id] {
            // Zero is nobody: the service has no backend that may serve.
            for id in [word.current(), word.base()]
                .into_iter()
                .filter(|id| *id != 0)
            {
                let member = s
                    .members
                    .get(&id)
                    .unwrap_or_else(|| panic!("no member {id}"));
                assert_eq!(member.service, entry.id, "a stranger's member: {word:?}");
                assert_ne!(MemberState(member.state), MemberState::FREE);
                if member.next_hop != 0 {
                    assert!(s.links.contains_key(&member.next_hop().link()));
                }
                let serves = MemberState(member.state).serves();
                if member.method == method::NAT && serves && id == word.current() {
                    assert!(s.config.features & feature::REPLIES != 0);
                    let has_reply = s.replies.keys().any(|k| k.address == member.address);
                    assert!(has_reply, "replies of {member:?} aren't recognised");
                }
            }
        }
    }
    assert!(s.ranges.is_empty() || s.config.features & feature::RANGES != 0);
    let mut end = 0;
    for (offset, (size, _)) in ranges {
        assert!(offset >= end, "slot ranges overlap");
        end = offset + size;
    }
    for reply in s.replies.values() {
        assert!(reply.member == 0 || s.members.contains_key(&reply.member));
    }
}

fn assert_holds(maps: &FakeMaps, desired: &DesiredState) {
    let s = maps.snapshot().unwrap();
    assert_eq!(s.services, desired.services);
    assert_eq!(s.ranges, desired.ranges);
    assert_eq!(s.vips, desired.vips);
    assert_eq!(s.members, desired.members);
    assert_eq!(s.replies, desired.replies);
    assert_eq!(s.links, desired.links);
    assert_eq!(s.sources, desired.sources);
    assert_eq!(s.config, desired.config);
    assert_eq!(s.service_names, desired.service_names);
    for (id, table) in &desired.tables {
        for (word, member) in s.slots[id].iter().zip(table.members.iter()) {
            let serves = |id| MemberState(s.members.get(&id).map_or(0, |m| m.state)).serves();
            if !table.keep {
                assert_eq!(word.current(), *member);
            }
            let base_may_be_dead = table.resets && !table.stateless;
            assert!(
                !word.is_tracked()
                    || base_may_be_dead
                    || word.base() == word.current()
                    || serves(word.base()),
                "the base of {word:?} doesn't serve"
            );
            assert!(!(table.stateless && word.is_tracked()));
        }
    }
}

/// One state of the world: what is configured, and how the backends are.
#[derive(Clone, Debug)]
struct Step {
    model: Model,
    runtime: Runtime,
}

/// Blocks within one another and beside.
fn any_defence() -> impl Strategy<Value = Defence> {
    let blocks = || {
        let block = (
            0..4u8,
            prop_oneof![Just(0u8), Just(8), Just(16), Just(24), Just(32)],
        )
            .prop_map(|(n, bits)| Prefix::of([100, n, n, n].into(), bits));
        proptest::collection::btree_set(block, 0..4)
    };
    let rate = || proptest::option::of(1..100u32);
    (blocks(), blocks(), rate(), rate()).prop_map(|(allow, deny, core, source)| Defence {
        deny: deny.difference(&allow).copied().collect(),
        allow: allow.into_iter().collect(),
        new_flows_per_core: core,
        new_flows_per_source: source,
    })
}

fn any_service(n: u8) -> impl Strategy<Value = Service> {
    let kind = (0..3u8, 0..5u8, any::<bool>(), 1..=2u8, any::<bool>());
    (kind, any_defence()).prop_map(
        move |((ports, kind, udp, address, resets), defence)| Service {
            defence,
            on_backend_down: if resets && !udp {
                OnBackendDown::Reset
            } else {
                OnBackendDown::Keep
            },
            // Now and then a service changes its VIP.
            address: IpAddr::V4(Ipv4Addr::new(192, 0, address, n)),
            ports: match ports {
                0 => Ports::Ranges(vec![(80, 80)]),
                1 => Ports::Ranges(vec![(80, 80), (443, 443), (1000, 1999)]),
                _ => Ports::Any,
            },
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            forwarding: if kind < 2 {
                ForwardingMethod::Nat
            } else {
                ForwardingMethod::L2Dsr
            },
            replies: Replies::Flow,
            balance: Balance::default(),
            ..service(n, "p")
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let condition = prop_oneof![
        4 => Just(Condition::Up),
        1 => Just(Condition::Overloaded),
        1 => Just(Condition::Draining),
        1 => Just(Condition::Failing),
        1 => Just(Condition::Dead),
        1 => Just(Condition::Disabled),
    ];
    let backends = proptest::collection::btree_map(1..=6u8, (condition, 0..4u16), 1..6);
    let services = (
        proptest::option::of(any_service(1)),
        proptest::option::of(any_service(2)),
        proptest::option::of(any_service(3)),
    );
    (backends, services).prop_map(|(backends, services)| {
        let services = [services.0, services.1, services.2]
            .into_iter()
            .flatten()
            .collect();
        let model = one_pool(backends.keys().copied(), services);
        let mut runtime = runtime();
        for (n, (condition, weight)) in backends {
            let key = BackendKey {
                pool: "p".into(),
                backend: format!("b{n}"),
            };
            runtime.backends.insert(
                key,
                BackendCondition {
                    condition,
                    ..BackendCondition::up(weight)
                },
            );
        }
        Step { model, runtime }
    })
}

/// What the lists say of a source.
fn is_allowed(defence: &Defence, source: Ipv4Addr) -> bool {
    let longest = |list: &[Prefix]| {
        list.iter()
            .filter(|p| Prefix::of(source.into(), p.bits) == **p)
            .map(|p| p.bits)
            .max()
    };
    match (longest(&defence.allow), longest(&defence.deny)) {
        (Some(allow), Some(deny)) => allow > deny,
        (Some(_), None) => true,
        (None, Some(_)) => false,
        (None, None) => defence.allow.is_empty(),
    }
}

/// What the maps say of a source, at the key with this entry.
fn is_let_in(s: &MapSnapshot, entry: &ServiceEntry, source: Ipv4Addr) -> bool {
    if entry.flags & service_flag::GUARDED == 0 {
        assert_eq!(entry.sources, 0, "a set that nobody looks at");
    }
    let covers = |p: &SourcePrefix| {
        let bits = p.prefix_bits - SOURCE_KEY_FIXED_BITS;
        let block = Prefix::of(source.into(), bits as u8);
        p.key.set == entry.sources && p.key.address == Addr::from_ip(block.address).0
    };
    s.sources
        .iter()
        .filter(|(p, _)| covers(p))
        .max_by_key(|(p, _)| p.prefix_bits)
        .is_none_or(|(_, value)| *value == source::ALLOWED)
}

/// Every source fares as by the old lists of a service or as by its new ones.
fn assert_sources(maps: &FakeMaps, old: Option<&Model>, new: &Model) {
    let s = maps.snapshot().unwrap();
    for entry in s.entries() {
        let name = &s.service_names[&entry.id];
        let lists: Vec<&Defence> = old
            .into_iter()
            .chain([new])
            .flat_map(|m| &m.services)
            .filter(|service| service.name == *name)
            .map(|service| &service.defence)
            .collect();
        for n in 0..5 {
            for last in [n, 9] {
                let source = Ipv4Addr::new(100, n, n, last);
                let is = is_let_in(&s, entry, source);
                assert!(
                    lists.iter().any(|list| is_allowed(list, source) == is),
                    "{source} is let in: {is}; {lists:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_source_is_let_in_or_kept_out_because_of_a_change(
        steps in proptest::collection::vec(any_step(), 1..6), fails_at in 0usize..200,
    ) {
        let mut maps = FakeMaps::new(CAPACITY.slots);
        let mut old = None;
        for step in &steps {
            // A plan that isn't completed, then another.
            for stop in [fails_at, usize::MAX] {
                let ops = ops(&maps, &step.model, &step.runtime);
                for op in ops.iter().take(stop) {
                    execute(&mut maps, op, NOW).unwrap();
                    assert_sources(&maps, old, &step.model);
                }
            }
            assert_sources(&maps, None, &step.model);
            let used: BTreeSet<u32> = maps.snapshot().unwrap().entries().map(|e| e.sources).collect();
            let there: BTreeSet<u32> =
                maps.snapshot().unwrap().sources.keys().map(|p| p.key.set).collect();
            prop_assert!(there.is_subset(&used), "sets that nobody goes by: {there:?}");
            old = Some(&step.model);
        }
    }

    #[test]
    fn a_plan_leads_to_the_desired_state_and_nothing_dangles_at_any_point(
        steps in proptest::collection::vec(any_step(), 1..6),
    ) {
        let mut maps = FakeMaps::new(CAPACITY.slots);
        for (n, step) in (0u32..).zip(&steps) {
            let desired = wanted(&maps, &step.model, &step.runtime, &BTreeSet::new());
            for op in plan(&desired, &maps.snapshot().unwrap()) {
                execute(&mut maps, &op, NOW + n).unwrap();
                if !matches!(op, MapOp::Slot(_)) {
                    assert_nothing_dangles(&maps);
                }
            }
            assert_nothing_dangles(&maps);
            assert_holds(&maps, &desired);
            // The way from a state to itself is empty.
            prop_assert_eq!(ops(&maps, &step.model, &step.runtime), vec![]);
        }
    }

    #[test]
    fn a_failure_at_any_step_is_made_good_by_the_next_plan(
        steps in proptest::collection::vec(any_step(), 2..5), fails_at in 0usize..60,
    ) {
        let mut maps = FakeMaps::new(CAPACITY.slots);
        for step in &steps {
            maps.writes_left = Some(fails_at);
            let ops = ops(&maps, &step.model, &step.runtime);
            let failed = apply(&mut maps, &ops, NOW).is_err();
            prop_assert_eq!(failed, ops.len() > fails_at);
            assert_nothing_dangles(&maps);
            maps.writes_left = None;
            let desired = wanted(&maps, &step.model, &step.runtime, &BTreeSet::new());
            reconcile(&mut maps, &step.model, &step.runtime);
            assert_holds(&maps, &desired);
        }
    }

    #[test]
    fn ids_stay_what_they_are_whatever_else_changes(
        steps in proptest::collection::vec(any_step(), 2..6),
    ) {
        let mut maps = FakeMaps::new(CAPACITY.slots);
        let mut ids: BTreeMap<u32, MemberEntry> = BTreeMap::new();
        for step in &steps {
            reconcile(&mut maps, &step.model, &step.runtime);
            let members = maps.snapshot().unwrap().members;
            for (id, before) in ids {
                let now = members[&id];
                prop_assert_eq!(
                    MemberEntry { state: 0, next_hop: 0, ..before },
                    MemberEntry { state: 0, next_hop: 0, ..now }
                );
            }
            ids = members;
        }
    }
}

fn words(maps: &FakeMaps) -> Vec<SlotWord> {
    maps.snapshot().unwrap().slots[&1].clone()
}

fn id_of(maps: &FakeMaps, n: u8) -> u32 {
    let s = maps.snapshot().unwrap();
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 1, n));
    *s.members
        .iter()
        .find(|(_, m)| m.address.to_ip(m.outer_family) == address)
        .expect("the backend is a member")
        .0
}

#[test]
fn a_new_service_starts_with_stable_slots_though_their_last_owner_left_tracked_ones() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(
        &mut maps,
        &one_pool([1, 2], vec![service(1, "p")]),
        &runtime(),
    );
    reconcile(
        &mut maps,
        &one_pool([1, 2, 3], vec![service(1, "p")]),
        &runtime(),
    );
    assert!(words(&maps).iter().any(|w| w.is_tracked()));
    reconcile(&mut maps, &one_pool([1, 2], vec![]), &runtime());
    reconcile(
        &mut maps,
        &one_pool([1, 2], vec![service(2, "p")]),
        &runtime(),
    );
    assert!(maps.all_slots()[..31].iter().all(|w| !w.is_tracked()));
}

#[test]
fn slots_that_change_keep_their_old_member_as_base_and_the_others_stay_stable() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(
        &mut maps,
        &one_pool([1, 2], vec![service(1, "p")]),
        &runtime(),
    );
    let before = words(&maps);
    reconcile(
        &mut maps,
        &one_pool([1, 2, 3], vec![service(1, "p")]),
        &runtime(),
    );
    let third = id_of(&maps, 3);
    for (old, new) in before.iter().zip(words(&maps)) {
        if new.current() == old.current() {
            assert_eq!(*old, new);
        } else {
            assert!(new.is_tracked());
            assert_eq!((new.base(), new.age(NOW)), (old.current(), 0));
        }
    }
    assert!(words(&maps).iter().any(|w| w.current() == third));
}

#[test]
fn a_member_that_stops_serving_is_the_base_of_no_slot() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let model = one_pool([1, 2, 3], vec![service(1, "p")]);
    reconcile(&mut maps, &model, &runtime());
    let first = id_of(&maps, 1);
    let mut runtime = runtime();
    condition(&mut runtime, 1, Condition::Draining);
    reconcile(&mut maps, &model, &runtime);
    assert!(words(&maps).iter().any(|w| w.base() == first));
    assert!(words(&maps).iter().all(|w| w.current() != first));
    condition(&mut runtime, 1, Condition::Disabled);
    let ops = ops(&maps, &model, &runtime);
    let state = ops
        .iter()
        .position(|op| matches!(op, MapOp::SetMemberState(..)));
    let slot = ops.iter().position(|op| matches!(op, MapOp::Slot(_)));
    assert!(state < slot, "the state is written first");
    apply(&mut maps, &ops, NOW).unwrap();
    assert!(words(&maps).iter().all(|w| w.base() != first));
}

#[test]
fn when_every_backend_is_down_all_of_them_share_the_flows_in_whatever_order_they_went() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let model = one_pool([1, 2, 3], vec![service(1, "p")]);
    reconcile(&mut maps, &model, &runtime());
    let mut runtime = runtime();
    condition(&mut runtime, 1, Condition::Dead);
    reconcile(&mut maps, &model, &runtime);
    condition(&mut runtime, 2, Condition::Failing);
    condition(&mut runtime, 3, Condition::Disabled);
    reconcile(&mut maps, &model, &runtime);
    let owners = owners(&maps);
    assert_eq!(owners.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(owners[&1].abs_diff(owners[&2]) <= 1, "{owners:?}");
    let s = maps.snapshot().unwrap();
    let state = |n| MemberState(s.members[&id_of(&maps, n)].state);
    assert_eq!(
        (state(1), state(2)),
        (MemberState::FAILING, MemberState::FAILING)
    );
    assert_eq!(state(3), MemberState::DEAD);
}

#[test]
fn when_nobody_gets_flows_the_slots_stay() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let model = one_pool([1, 2], vec![service(1, "p")]);
    reconcile(&mut maps, &model, &runtime());
    let before = words(&maps);
    let mut runtime = runtime();
    condition(&mut runtime, 1, Condition::Draining);
    condition(&mut runtime, 2, Condition::Draining);
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(words(&maps), before);
}

#[test]
fn a_removed_backend_drains_until_its_time_is_over() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(
        &mut maps,
        &one_pool([1, 2], vec![service(1, "p")]),
        &runtime(),
    );
    let second = id_of(&maps, 2);
    let less = one_pool([1], vec![service(1, "p")]);
    reconcile(&mut maps, &less, &runtime());
    let state = |maps: &FakeMaps| MemberState(maps.snapshot().unwrap().members[&second].state);
    assert_eq!(state(&maps), MemberState::DRAINING);
    let late = wanted(&maps, &less, &runtime(), &BTreeSet::from([second]));
    let ops = plan(&late, &maps.snapshot().unwrap());
    apply(&mut maps, &ops, NOW).unwrap();
    assert_eq!(state(&maps), MemberState::DEAD);
    assert!(words(&maps).iter().all(|w| w.base() != second));
}

#[test]
fn a_slot_that_the_data_path_pressed_meanwhile_is_changed_all_the_same() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(
        &mut maps,
        &one_pool([1, 2], vec![service(1, "p")]),
        &runtime(),
    );
    reconcile(
        &mut maps,
        &one_pool([1, 2, 3], vec![service(1, "p")]),
        &runtime(),
    );
    maps.press_at = Some(NOW + 1);
    let model = one_pool([1, 2, 3, 4], vec![service(1, "p")]);
    let desired = wanted(&maps, &model, &runtime(), &BTreeSet::new());
    reconcile(&mut maps, &model, &runtime());
    assert_holds(&maps, &desired);
}

#[test]
fn a_live_service_keeps_its_table_size() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    reconcile(
        &mut maps,
        &one_pool([1, 2], vec![service(1, "p")]),
        &runtime(),
    );
    let larger = Service {
        table_size: 101,
        table_size_is_explicit: false,
        ..service(1, "p")
    };
    reconcile(&mut maps, &one_pool([1, 2], vec![larger]), &runtime());
    assert_eq!(words(&maps).len(), 31);
}

#[test]
fn unknown_next_hops_stay_what_they_were_and_unreachable_ones_are_cleared() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let model = one_pool([1, 2], vec![service(1, "p")]);
    reconcile(&mut maps, &model, &runtime());
    let mut runtime = runtime();
    runtime.next_hops.clear();
    runtime
        .unreachable
        .insert(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2)));
    reconcile(&mut maps, &model, &runtime);
    let s = maps.snapshot().unwrap();
    let hop = |n| s.members[&id_of(&maps, n)].next_hop();
    assert_eq!(hop(1), NextHop::new([2, 0, 0, 0, 1, 1], 7));
    assert_eq!(hop(2), NextHop::UNRESOLVED);
}

#[test]
fn what_serves_no_more_stays_the_base_where_its_flows_are_reset() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let resetting = Service {
        on_backend_down: OnBackendDown::Reset,
        ..service(1, "p")
    };
    let model = one_pool([1, 2, 3], vec![resetting]);
    reconcile(&mut maps, &model, &runtime());
    let (first, second) = (id_of(&maps, 1), id_of(&maps, 2));
    let of_first: Vec<bool> = words(&maps).iter().map(|w| w.current() == first).collect();
    let mut runtime = runtime();
    // Not only after `dead_after`.
    condition(&mut runtime, 1, Condition::Failing);
    reconcile(&mut maps, &model, &runtime);
    let state = |maps: &FakeMaps, id: u32| MemberState(maps.snapshot().unwrap().members[&id].state);
    assert_eq!(state(&maps, first), MemberState::DEAD);
    for (word, was) in words(&maps).iter().zip(&of_first) {
        assert_eq!(
            was,
            &(word.is_tracked() && word.base() == first),
            "{word:?}"
        );
        assert_ne!(word.current(), first);
    }
    // The next one's flows have entries, those of the first one still none.
    condition(&mut runtime, 2, Condition::Dead);
    reconcile(&mut maps, &model, &runtime);
    for (word, was) in words(&maps).iter().zip(&of_first) {
        assert_ne!(word.current(), second);
        assert_eq!(was, &(word.base() == first), "{word:?}");
    }
    assert!(words(&maps).iter().any(|w| w.base() == second));
}

#[test]
fn rehashing_services_give_a_failing_backend_up_at_once() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let rehashing = Service {
        on_backend_down: OnBackendDown::Rehash,
        ..service(1, "p")
    };
    let model = one_pool([1, 2, 3], vec![rehashing, service(2, "p")]);
    let mut runtime = runtime();
    condition(&mut runtime, 1, Condition::Failing);
    reconcile(&mut maps, &model, &runtime);
    let states: Vec<MemberState> = maps
        .snapshot()
        .unwrap()
        .members
        .values()
        .filter(|m| m.address == Addr::from_ip([10, 0, 1, 1].into()).0)
        .map(|m| MemberState(m.state))
        .collect();
    assert_eq!(states, [MemberState::DEAD, MemberState::FAILING]);
}

/// Slots of a service by the numbers of the backends that have them.
fn owners(maps: &FakeMaps) -> BTreeMap<u8, usize> {
    let mut owners = BTreeMap::new();
    for word in words(maps) {
        let owner = (1..=6).find(|n| id_if_known(maps, *n) == Some(word.current()));
        *owners.entry(owner.unwrap_or(0)).or_default() += 1;
    }
    owners
}

fn id_if_known(maps: &FakeMaps, n: u8) -> Option<u32> {
    let address = Addr::from_ip(IpAddr::V4(Ipv4Addr::new(10, 0, 1, n))).0;
    let s = maps.snapshot().unwrap();
    let mut members = s.members.iter();
    members
        .find(|(_, m)| m.address == address)
        .map(|(id, _)| *id)
}

fn policy(model: &mut Model, policy: PoolPolicy) {
    model.pools.get_mut("p").unwrap().policy = policy;
}

#[test]
fn an_overloaded_backend_gets_no_new_flows_and_keeps_those_it_has() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let model = one_pool([1, 2, 3], vec![service(1, "p")]);
    reconcile(&mut maps, &model, &runtime());
    let first = id_of(&maps, 1);
    let mut runtime = runtime();
    condition(&mut runtime, 1, Condition::Overloaded);
    reconcile(&mut maps, &model, &runtime);
    let state = MemberState(maps.snapshot().unwrap().members[&first].state);
    assert_eq!(state, MemberState::FAILING);
    assert!(words(&maps).iter().all(|w| w.current() != first));
    assert!(words(&maps).iter().any(|w| w.base() == first));
}

#[test]
fn a_fallback_pool_gets_the_flows_only_while_its_principal_has_nobody_for_them() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let mut model = one_pool([1, 2], vec![service(1, "p")]);
    let spare = Pool {
        backends: vec![backend(5), backend(6)],
        ..Pool::default()
    };
    model.pools.insert("spare".into(), spare);
    let when_all_down = WhenAllDown::FallbackPool("spare".into());
    policy(
        &mut model,
        PoolPolicy {
            when_all_down,
            ..PoolPolicy::default()
        },
    );
    let mut runtime = runtime();
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(owners(&maps).into_keys().collect::<Vec<_>>(), [1, 2]);
    condition(&mut runtime, 1, Condition::Failing);
    condition(&mut runtime, 2, Condition::Dead);
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(owners(&maps).into_keys().collect::<Vec<_>>(), [5, 6]);
    // The flows that the failing one has stay with it.
    let first = id_of(&maps, 1);
    assert!(words(&maps).iter().any(|w| w.base() == first));
    condition(&mut runtime, 1, Condition::Up);
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(owners(&maps).into_keys().collect::<Vec<_>>(), [1]);
    // Nobody there either: as if there were no fallback.
    condition(&mut runtime, 1, Condition::Dead);
    for n in [5, 6] {
        let key = BackendKey {
            pool: "spare".into(),
            backend: format!("b{n}"),
        };
        let dead = BackendCondition {
            condition: Condition::Dead,
            ..BackendCondition::up(1)
        };
        runtime.backends.insert(key, dead);
    }
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(owners(&maps).into_keys().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn when_all_are_down_fail_leaves_nobody_who_serves() {
    for (when_all_down, full, expected) in [
        (WhenAllDown::Fail, false, MemberState::DEAD),
        (WhenAllDown::Fail, true, MemberState::DEAD),
        (WhenAllDown::All, false, MemberState::FAILING),
        // Asked one by one, only those that take new flows get one.
        (WhenAllDown::All, true, MemberState::UP),
    ] {
        let mut maps = FakeMaps::new(CAPACITY.slots);
        let mut model = one_pool([1, 2], vec![service(1, "p")]);
        model.services[0].balance.tracking.full = full;
        policy(
            &mut model,
            PoolPolicy {
                when_all_down,
                ..PoolPolicy::default()
            },
        );
        let mut runtime = runtime();
        reconcile(&mut maps, &model, &runtime);
        condition(&mut runtime, 1, Condition::Dead);
        condition(&mut runtime, 2, Condition::Dead);
        reconcile(&mut maps, &model, &runtime);
        let s = maps.snapshot().unwrap();
        for member in s.members.values() {
            assert_eq!(MemberState(member.state), expected);
        }
    }
}

#[test]
fn a_lower_group_takes_over_what_is_missing_of_the_higher_and_gives_it_back() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let mut model = one_pool([1, 2, 3], vec![service(1, "p")]);
    model.pools.get_mut("p").unwrap().backends[2].priority = 2;
    // Enough slots for parts to be parts.
    model.services[0].table_size = 499;
    policy(
        &mut model,
        PoolPolicy {
            min_available: 100,
            ..PoolPolicy::default()
        },
    );
    let mut runtime = runtime();
    let share = |maps: &FakeMaps, n: u8| {
        let owners = owners(maps);
        let all: usize = owners.values().sum();
        owners.get(&n).copied().unwrap_or_default() * 100 / all
    };
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(share(&maps, 3), 0);
    let before = words(&maps);
    condition(&mut runtime, 2, Condition::Overloaded);
    reconcile(&mut maps, &model, &runtime);
    assert!((49..=51).contains(&share(&maps, 3)), "{}", share(&maps, 3));
    let first = id_of(&maps, 1);
    let moved_from_first = before
        .iter()
        .zip(words(&maps))
        .filter(|(old, new)| old.current() == first && new.current() != first)
        .count();
    // It had half of the slots and has half; Maglev changes some of them, too.
    assert!(moved_from_first * 3 < before.len(), "{moved_from_first}");
    condition(&mut runtime, 2, Condition::Up);
    reconcile(&mut maps, &model, &runtime);
    assert_eq!(share(&maps, 3), 0);
}

#[test]
fn response_times_count_for_services_that_go_by_them_alone() {
    for (scheduler, range) in [
        (Scheduler::Maglev, 48..=52),
        (Scheduler::ResponseTime, 31..=35),
    ] {
        let mut maps = FakeMaps::new(CAPACITY.slots);
        let mut model = one_pool([1, 2], vec![service(1, "p")]);
        model.services[0].balance.scheduler = scheduler;
        let mut runtime = runtime();
        condition(&mut runtime, 1, Condition::Up);
        let first = runtime.backends.values_mut().next().unwrap();
        first.factors.response = Factor::of(0.5);
        reconcile(&mut maps, &model, &runtime);
        let owners = owners(&maps);
        let share = owners[&1] * 100 / owners.values().sum::<usize>();
        assert!(range.contains(&share), "{scheduler}: {share}");
    }
}
