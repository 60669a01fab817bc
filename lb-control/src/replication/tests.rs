use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use lb_common::{
    abi::{PersistEntry, PersistKey, PoolEntry, VipKey},
    binding::{self, BindingState},
    flow::{self, FlowKey, FlowTable, FlowWord, Idle, Mark, Place, memory::MemoryTable},
    hash::{Tuple, scale, tag},
    member::MemberState,
    net::{Addr, Be16, family},
    slot::SlotWord,
    track::{self, Times},
};
use proptest::prelude::*;

use super::{
    export::{Exporter, Step},
    import::{Effects, Importer, Own},
    record::{Hello, MemberEnd, Record},
    world::{Catalogue, Service, World},
};
use crate::status::Standing;

const BUCKETS: u32 = 64;
const SIZE: u32 = 61;
const IDLE: Idle = Idle {
    open_units: 100,
    half_units: 8,
};
const HELLO: Hello = Hello {
    version: super::record::VERSION,
    buckets: BUCKETS,
    key_mark: 7,
};
const POOL: [u8; 4] = [192, 0, 2, 100];

/// A node with services "a" and "b" of three members each.
struct Node {
    catalogue: Catalogue,
    flows: MemoryTable,
    replies: MemoryTable,
    slots: Vec<AtomicU64>,
    bindings: MemoryTable,
    nat_flows: MemoryTable,
    now: u32,
}

fn end_of(number: u8) -> MemberEnd {
    let (address, family) = Addr::from_ip([10, 0, 0, number].into());
    MemberEnd {
        address,
        family,
        port: Be16::new(80),
        method: 0,
    }
}

impl Node {
    /// Ids and slots of each node are others.
    fn new(first_id: u32, numbers: &[u8], now: u32) -> Self {
        let mut node = Self {
            catalogue: Catalogue::default(),
            flows: MemoryTable::counting(BUCKETS, 100),
            replies: MemoryTable::new(BUCKETS),
            slots: (0..200).map(|_| AtomicU64::new(0)).collect(),
            bindings: MemoryTable::new(20),
            nat_flows: MemoryTable::new(BUCKETS),
            now,
        };
        let pool = VipKey {
            address: Addr::from_ip(POOL.into()).0,
            family: family::V4,
            ..VipKey::default()
        };
        let ports = PoolEntry {
            base: 1 + first_id % 7,
            count: 8,
            first_port: 4_000,
            draining: 0,
        };
        node.catalogue.pools.insert(pool, ports);
        for index in ports.base..ports.base + ports.count {
            let free = BindingState::default().freed(0);
            node.bindings
                .replace(index, binding::word::STATE, 0, free.0);
        }
        node.configure(first_id, numbers);
        node
    }

    fn configure(&mut self, first_id: u32, numbers: &[u8]) {
        let catalogue = &mut self.catalogue;
        catalogue.version += 1;
        catalogue.members = vec![None; 60];
        catalogue.ids.clear();
        for (service, name) in [(first_id, "a"), (first_id + 1, "b")] {
            let id = |number: u8| service * 5 + u32::from(number);
            for number in numbers {
                let end = end_of(*number);
                catalogue.members[id(*number) as usize] = Some((service, end));
                catalogue.ids.insert((service, end), id(*number));
            }
            // Not what any scheduler makes, but a function of the numbers alone.
            let member = |slot: u32| id(numbers[slot as usize % numbers.len()]);
            let table: Arc<[u32]> = (0..SIZE).map(member).collect();
            let offset = (service - first_id) * SIZE + first_id;
            for (slot, member) in (offset..).zip(table.iter()) {
                let word = &self.slots[slot as usize];
                if word.load(Relaxed) == 0 {
                    word.store(SlotWord::stable(*member).0, Relaxed);
                }
            }
            catalogue.names.insert(name.into(), service);
            let known = Service {
                name: name.into(),
                owner: 51,
                offset,
                full: false,
                by_source: false,
                keep: false,
                idle_units: IDLE.open_units,
                shares: numbers.iter().map(|n| (u64::from(*n), 1)).collect(),
                table,
            };
            catalogue.services.insert(service, known);
        }
    }

    fn world(&self) -> World<'_, MemoryTable> {
        World {
            catalogue: &self.catalogue,
            flows: &self.flows,
            replies: &self.replies,
            slots: &self.slots,
            bindings: &self.bindings,
            nat_flows: &self.nat_flows,
            now_ticks: self.now,
            tick_ms: 1_024,
            longest_idle: IDLE,
        }
    }

    fn service(&self, name: &str) -> u32 {
        self.catalogue.names[name]
    }

    /// Id of a member of a service by its number, and back.
    fn id(&self, service: &str, number: u8) -> u32 {
        self.catalogue.ids[&(self.service(service), end_of(number))]
    }

    fn number(&self, id: u32) -> u8 {
        let (_, end) = self.catalogue.members[id as usize].as_ref().unwrap();
        let address = end.address.to_ip(family::V4).to_string();
        address.rsplit('.').next().unwrap().parse().unwrap()
    }

    fn slot(&self, service: &str, slot: u32) -> &AtomicU64 {
        let offset = self.catalogue.services[&self.service(service)].offset;
        &self.slots[(offset + slot) as usize]
    }

    /// The slot goes to another member, as a pool change has it.
    fn change(&self, service: &str, slot: u32, number: u8) {
        let word = SlotWord(self.slot(service, slot).load(Relaxed));
        let changed = word.changed(self.id(service, number), true, self.now);
        self.slot(service, slot).store(changed.0, Relaxed);
    }

    fn insert(&self, service: &str, hash: u64, number: u8, mark: Mark) {
        let key = FlowKey::new(hash, BUCKETS);
        let entry = FlowWord::new(key.tag, self.id(service, number), self.now, mark);
        assert!(flow::insert(
            &self.flows,
            key,
            entry,
            Place::Free,
            self.now,
            IDLE
        ));
    }

    /// Number of the member that data of a flow goes to.
    fn member_of(&self, service: &str, hash: u64) -> u8 {
        let slot = SlotWord(self.slot(service, scale(tag(hash), SIZE)).load(Relaxed));
        if !slot.is_tracked() {
            return self.number(slot.current());
        }
        let times = Times {
            now_ticks: self.now,
            syn_window_ticks: 3,
            idle: IDLE,
            longest_idle: IDLE,
        };
        let decider = Decider(self, self.service(service));
        let key = FlowKey::new(hash, BUCKETS);
        self.number(track::peek(&decider, slot, key, times))
    }

    fn services(&self) -> BTreeSet<u32> {
        self.catalogue.services.keys().copied().collect()
    }
}

struct Decider<'a>(&'a Node, u32);

impl track::World for Decider<'_> {
    type Flows = MemoryTable;

    fn flows(&self) -> &MemoryTable {
        &self.0.flows
    }

    fn state(&self, _: u32) -> MemberState {
        MemberState::UP
    }

    fn is_ours(&self, member: u32) -> bool {
        let known = self.0.catalogue.service_of(member);
        known.is_some_and(|(service, _)| service == self.1)
    }

    fn resets(&self) -> bool {
        false
    }

    fn replace_slot(&self, _: SlotWord, _: SlotWord) -> bool {
        true
    }
}

/// Two nodes and what is between them.
struct Pair {
    from: Node,
    to: Node,
    exporter: Exporter,
    importer: Importer,
    own: Own,
}

impl Pair {
    fn new() -> Self {
        Self {
            from: Node::new(1, &[1, 2, 3], 1_000),
            to: Node::new(4, &[1, 2, 3], 77),
            exporter: Exporter::default(),
            importer: Importer::default(),
            own: Own::new(),
        }
    }

    fn pass(&mut self) -> Effects {
        self.pass_with(usize::MAX, usize::MAX)
    }

    /// Until all was told, with so many words a step and so much room in the link.
    fn pass_with(&mut self, budget: usize, room: usize) -> Effects {
        let exported = self.from.services();
        let mut all = Effects::default();
        for _ in 0..100_000 {
            let mut link = Vec::new();
            let mut send = |message: &[u8]| {
                let fits = link.len() < room;
                if fits {
                    link.push(message.to_vec());
                }
                fits
            };
            let world = self.from.world();
            let step = self
                .exporter
                .step(&world, HELLO, &exported, budget, &mut send);
            for message in link {
                assert!(message.len() <= super::record::MESSAGE_BYTES);
                let effects = self
                    .importer
                    .take(&self.to.world(), HELLO, &self.own, &message);
                all.adopted |= effects.adopted;
                all.asked |= effects.asked;
                all.sources.extend(effects.sources);
            }
            if step == Step::Done {
                return all;
            }
        }
        panic!("it never ends");
    }

    fn assert_same(&self, service: &str, hashes: &[u64]) {
        for hash in hashes {
            assert_eq!(
                self.to.member_of(service, *hash),
                self.from.member_of(service, *hash),
                "{hash:x}"
            );
        }
    }
}

/// Different enough in all bits.
fn hash(n: u64) -> u64 {
    (n + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn slot_of(hash: u64) -> u32 {
    scale(tag(hash), SIZE)
}

#[test]
fn flows_of_tracked_slots_are_known_to_the_other_node() {
    let mut pair = Pair::new();
    for slot in 0..SIZE / 2 {
        pair.from.change("a", slot, 3);
    }
    let hashes: Vec<u64> = (0..200).map(hash).collect();
    for (n, hash) in hashes.iter().enumerate() {
        if n % 3 == 0 {
            pair.from.insert("a", *hash, 3, Mark::Open);
        }
    }
    let effects = pair.pass();
    assert!(effects.adopted);
    assert_eq!(*pair.importer.standing(), Standing::InSync);
    let adopted = &pair.importer.adopted()["a"];
    assert_eq!(adopted.shares, [(1, 1), (2, 1), (3, 1)]);
    pair.assert_same("a", &hashes);
    pair.assert_same("b", &hashes);
    assert!(pair.importer.counts().flows > 25);
    assert_eq!(pair.importer.counts().refused, 0);
    // Nothing changed, so nothing is told.
    let counts = pair.exporter.counts();
    pair.pass();
    assert_eq!(pair.exporter.counts(), counts);
}

#[test]
fn changes_follow_and_entries_that_are_no_more_go() {
    let mut pair = Pair::new();
    pair.pass();
    pair.from.change("a", 5, 3);
    let hashes: Vec<u64> = (0..5_000).map(hash).filter(|h| slot_of(*h) == 5).collect();
    assert!(hashes.len() > 20);
    for hash in hashes.iter().step_by(2).take(10) {
        pair.from.insert("a", *hash, 2, Mark::Open);
    }
    pair.pass();
    pair.assert_same("a", &hashes);
    let told = pair.importer.counts().flows;
    assert_eq!(told, 10);
    let first = FlowKey::new(hashes[0], BUCKETS);
    let found = flow::find(&pair.from.flows, first, |_| true).unwrap();
    assert!(
        pair.from
            .flows
            .replace(found.bucket, found.word, found.entry.0, 0)
    );
    pair.pass();
    assert!(flow::find(&pair.to.flows, first, |_| true).is_none());
    assert_eq!(pair.importer.counts().flows, told + 1);
    // And a slot that is stable again.
    let stable = SlotWord::stable(pair.from.id("a", 3));
    pair.from.slot("a", 5).store(stable.0, Relaxed);
    pair.pass();
    let slot = SlotWord(pair.to.slot("a", 5).load(Relaxed));
    assert_eq!(slot, SlotWord::stable(pair.to.id("a", 3)));
}

#[test]
fn a_syn_alone_is_no_flow_and_an_old_entry_is_told_again_before_it_expires() {
    let mut pair = Pair::new();
    pair.from.change("a", slot_of(hash(1)), 3);
    pair.from.insert("a", hash(1), 3, Mark::Half);
    pair.pass();
    assert_eq!(pair.exporter.counts().flows, 0);
    pair.from.insert("a", hash(1), 3, Mark::Open);
    pair.pass();
    assert_eq!(pair.exporter.counts().flows, 1);
    // A packet now and then is not worth a word; after an eighth of the time it is.
    for (passed, told) in [(40, 1), (8 * 12 - 40, 2), (8, 2)] {
        pair.from.now += passed;
        pair.to.now += passed;
        let key = FlowKey::new(hash(1), BUCKETS);
        let found = flow::find(&pair.from.flows, key, |entry| entry.is_confirmed()).unwrap();
        flow::touch(&pair.from.flows, &found, pair.from.now, Mark::Open);
        pair.pass();
        assert_eq!(pair.exporter.counts().flows, told, "after {passed}");
    }
    let key = FlowKey::new(hash(1), BUCKETS);
    let found = flow::find(&pair.to.flows, key, |_| true).unwrap();
    assert!(found.entry.age(pair.to.now) <= 1);
}

#[test]
fn what_the_peer_does_not_have_any_more_goes_when_all_was_told() {
    let mut pair = Pair::new();
    // From a time when the other node was active itself.
    pair.to.change("a", 7, 2);
    pair.to.insert("a", hash(3), 2, Mark::Open);
    let slot = slot_of(hash(4));
    pair.from.change("a", slot, 1);
    pair.from.insert("a", hash(4), 1, Mark::Open);
    pair.pass();
    assert_eq!(pair.importer.counts().stale, 2);
    let key = |n| FlowKey::new(hash(n), BUCKETS);
    assert!(flow::find(&pair.to.flows, key(3), |_| true).is_none());
    assert!(flow::find(&pair.to.flows, key(4), |_| true).is_some());
    assert!(!SlotWord(pair.to.slot("a", 7).load(Relaxed)).is_tracked());
    assert!(SlotWord(pair.to.slot("a", slot).load(Relaxed)).is_tracked());
}

#[test]
fn of_services_of_this_node_only_flows_that_it_does_not_know_are_taken() {
    let mut pair = Pair::new();
    pair.own = [pair.to.service("a")].into();
    pair.to.change("a", 7, 2);
    pair.to.insert("a", hash(3), 2, Mark::Open);
    pair.to.insert("a", hash(6), 2, Mark::Open);
    // The second is known to both, with another server here.
    for (service, n) in [("a", 4), ("a", 6), ("b", 5)] {
        pair.from.change(service, slot_of(hash(n)), 1);
        pair.from.insert(service, hash(n), 1, Mark::Open);
    }
    pair.pass();
    let member = |n| {
        let key = FlowKey::new(hash(n), BUCKETS);
        let found = flow::find(&pair.to.flows, key, |_| true);
        found.map(|found| pair.to.number(found.entry.member()))
    };
    assert_eq!(
        [3, 4, 5, 6].map(member),
        [Some(2), Some(1), Some(1), Some(2)]
    );
    assert!(SlotWord(pair.to.slot("a", 7).load(Relaxed)).is_tracked());
    assert_eq!(pair.to.member_of("a", hash(4)), 1);
    assert_eq!(pair.importer.counts().stale, 0);
    // Two slots, and the flow that both know.
    assert_eq!(pair.importer.counts().own, 3);
    assert!(pair.importer.disown(&["a".into()].into()));
    assert!(!pair.importer.disown(&["a".into()].into()));
}

/// The peer tells of a service that it owns now, before this node has noticed.
#[test]
fn slots_of_a_service_that_is_not_this_nodes_any_more_are_asked_for_again() {
    let mut pair = Pair::new();
    pair.own = [pair.to.service("a")].into();
    pair.to.change("a", 7, 2);
    pair.from.change("a", 7, 2);
    let exported = pair.from.services();
    let mut messages = Vec::new();
    pair.exporter
        .step(&pair.from.world(), HELLO, &exported, usize::MAX, &mut |m| {
            messages.push(m.to_vec());
            true
        });
    let end = messages.pop().unwrap();
    for message in messages {
        pair.importer
            .take(&pair.to.world(), HELLO, &pair.own, &message);
    }
    pair.own.clear();
    pair.importer.take(&pair.to.world(), HELLO, &pair.own, &end);
    let tracked = |pair: &Pair| SlotWord(pair.to.slot("a", 7).load(Relaxed)).is_tracked();
    assert!(tracked(&pair), "it was told, but not taken");
    assert!(pair.importer.wants_again(&pair.to.catalogue, &pair.own));
    assert!(!pair.importer.wants_again(&pair.to.catalogue, &pair.own));
    pair.exporter.reset();
    pair.pass();
    assert!(tracked(&pair));
}

#[test]
fn an_entry_that_a_stable_slot_does_not_lead_to_makes_it_look_up() {
    let mut pair = Pair::new();
    pair.pass();
    let n = (0..)
        .find(|n| pair.from.member_of("a", hash(*n)) == 1)
        .unwrap();
    let slot = slot_of(hash(n));
    pair.from.change("a", slot, 2);
    pair.pass();
    // The sweeper here found nobody in it.
    let stable = SlotWord::stable(pair.to.id("a", 2));
    pair.to.slot("a", slot).store(stable.0, Relaxed);
    pair.from.insert("a", hash(n), 3, Mark::Open);
    pair.pass();
    assert_eq!(pair.to.member_of("a", hash(n)), 3);
}

#[test]
fn members_that_are_not_known_yet_are_asked_for_again() {
    let mut pair = Pair::new();
    pair.to = Node::new(4, &[1, 2], 77);
    pair.from.change("a", slot_of(hash(3)), 3);
    pair.from.insert("a", hash(3), 3, Mark::Open);
    pair.pass();
    assert!(pair.importer.counts().unknown > 2);
    assert_eq!(*pair.importer.standing(), Standing::Partial);
    assert!(!pair.importer.wants_again(&pair.to.catalogue, &pair.own));
    pair.to.configure(4, &[1, 2, 3]);
    assert!(pair.importer.wants_again(&pair.to.catalogue, &pair.own));
    assert!(!pair.importer.wants_again(&pair.to.catalogue, &pair.own));
    pair.exporter.reset();
    pair.pass();
    assert_eq!(*pair.importer.standing(), Standing::InSync);
    assert!(flow::find(&pair.to.flows, FlowKey::new(hash(3), BUCKETS), |_| true).is_some());
}

#[test]
fn nodes_that_differ_take_nothing_over_and_say_why() {
    for (other, word) in [
        (
            Hello {
                key_mark: 8,
                ..HELLO
            },
            "hash_secret_file",
        ),
        (
            Hello {
                buckets: 65,
                ..HELLO
            },
            "max_flows",
        ),
        (
            Hello {
                version: 9,
                ..HELLO
            },
            "release",
        ),
    ] {
        let mut pair = Pair::new();
        pair.from.change("a", 9, 3);
        let mut messages = Vec::new();
        let exported = pair.from.services();
        pair.exporter
            .step(&pair.from.world(), other, &exported, usize::MAX, &mut |m| {
                messages.push(m.to_vec());
                true
            });
        for message in &messages {
            pair.importer
                .take(&pair.to.world(), HELLO, &pair.own, message);
        }
        let Standing::Incompatible(why) = pair.importer.standing() else {
            panic!("{:?}", pair.importer.standing());
        };
        assert!(why.contains(word), "{why}");
        assert_eq!(pair.importer.counts().slots, 0);
        assert!(pair.importer.adopted().is_empty());
    }
}

#[test]
fn sources_keep_their_servers_and_are_told_when_that_changes() {
    let mut pair = Pair::new();
    pair.pass();
    let groups: HashMap<u32, u32> = [(1, 800)].into();
    let key = |n: u8| PersistKey {
        group: 1,
        family: 4,
        source: Addr::from_ip([192, 0, 2, n].into()).0,
    };
    let entry = |backend, last_ticks| PersistEntry {
        backend,
        last_ticks,
        ..PersistEntry::default()
    };
    let tell = |pair: &mut Pair, all: &[(PersistKey, PersistEntry)]| {
        let mut messages = Vec::new();
        let world = pair.from.world();
        pair.exporter
            .sources(&world, &groups, all.iter().copied(), &mut |m| {
                messages.push(m.to_vec());
                true
            });
        let mut sources = Vec::new();
        for message in &messages {
            let effects = pair
                .importer
                .take(&pair.to.world(), HELLO, &pair.own, message);
            sources.extend(effects.sources);
        }
        let told = |s: &super::record::Source| (s.backend, s.age_ms / 1_024);
        sources.iter().map(told).collect::<Vec<_>>()
    };
    let first = [(key(1), entry(11, 990)), (key(2), entry(12, 1_000))];
    let mut told = tell(&mut pair, &first);
    told.sort_unstable();
    assert_eq!(told, [(11, 10), (12, 0)]);
    let later = [(key(1), entry(11, 999)), (key(2), entry(13, 1_000))];
    assert_eq!(tell(&mut pair, &later), [(13, 0)]);
    assert_eq!(tell(&mut pair, &later[..1]), [(0, 0)]);
    // A group that isn't this node's isn't told.
    let other = PersistKey { group: 2, ..key(1) };
    assert!(tell(&mut pair, &[later[0], (other, entry(1, 0))]).is_empty());
}

#[test]
fn full_nats_bindings_are_the_same_ports_on_the_other_node() {
    let mut pair = Pair::new();
    let tuple = Tuple {
        source: Addr::from_ip([203, 0, 113, 9].into()).0,
        destination: Addr::from_ip([192, 0, 2, 1].into()).0,
        source_port: Be16::new(5_555),
        destination_port: Be16::new(80),
        protocol: 6,
        family: family::V4,
    };
    let pool = *pair.from.catalogue.pools.values().next().unwrap();
    for index in pool.base..pool.base + pool.count {
        let port = Be16::new(pool.first_port + (index - pool.base) as u16);
        let address = Addr::from_ip(POOL.into()).0;
        binding::dedicate(&pair.from.bindings, index, address, port, family::V4);
        let there = index - pool.base + pair.to.catalogue.pools.values().next().unwrap().base;
        binding::dedicate(&pair.to.bindings, there, address, port, family::V4);
    }
    let bind = |node: &Node, index: u32| {
        let flow = binding::Flow {
            tuple: &tuple,
            hash: hash(1),
            service: node.service("a"),
        };
        let imported = binding::Imported {
            member: node.id("a", 2),
            flags: BindingState::default().flags(),
            seen_ticks: node.now,
        };
        binding::import(
            &node.bindings,
            &node.nat_flows,
            index,
            &flow,
            imported,
            node.now,
        )
    };
    assert!(bind(&pair.from, pool.base + 3));
    pair.pass();
    let there = |pair: &Pair| {
        let flow = binding::Flow {
            tuple: &tuple,
            hash: hash(1),
            service: pair.to.service("a"),
        };
        let found = binding::find(&pair.to.bindings, &pair.to.nat_flows, &flow)?;
        let index = found.entry.member();
        let member = pair.to.number(binding::member(&pair.to.bindings, index));
        Some((binding::pool(&pair.to.bindings, index).port.get(), member))
    };
    assert_eq!(there(&pair), Some((4_003, 2)));
    assert_eq!(pair.importer.counts().bindings, 1);
    let state = binding::state(&pair.from.bindings, pool.base + 3);
    assert!(binding::change(
        &pair.from.bindings,
        pool.base + 3,
        state,
        state.ended(1_000)
    ));
    pair.pass();
    assert_eq!(there(&pair), None);
    // From an earlier time, and unknown to the peer.
    let stray = pair.to.catalogue.pools.values().next().unwrap().base;
    assert!(bind(&pair.to, stray));
    pair.exporter.reset();
    pair.pass();
    assert_eq!(there(&pair), None);
}

#[test]
fn nonsense_is_counted_and_changes_nothing() {
    let mut pair = Pair::new();
    pair.pass();
    let before: Vec<u64> = pair
        .to
        .slots
        .iter()
        .map(|slot| slot.load(Relaxed))
        .collect();
    let mut send = |record: &Record| {
        let mut message = vec![record.kind()];
        record.put(&mut message);
        pair.importer
            .take(&pair.to.world(), HELLO, &pair.own, &message);
    };
    let service = pair.from.service("a");
    let member = pair.from.id("a", 1);
    send(&Record::Slot(super::record::Slot {
        service,
        slot: SIZE,
        current: member,
        base: member,
        tracked: true,
        pressed: false,
        age_ms: 0,
    }));
    for bucket in [BUCKETS, u32::MAX] {
        send(&Record::Flow(super::record::Flow {
            bucket,
            tag: 2,
            member,
            age_ms: u32::MAX,
            which: super::record::Which::Flows,
            closing: false,
            full: false,
            overflowed: true,
        }));
    }
    pair.importer
        .take(&pair.to.world(), HELLO, &pair.own, &[8, 1, 2]);
    pair.importer.take(&pair.to.world(), HELLO, &pair.own, &[]);
    assert_eq!(pair.importer.counts().malformed, 5);
    let after: Vec<u64> = pair
        .to
        .slots
        .iter()
        .map(|slot| slot.load(Relaxed))
        .collect();
    assert_eq!(after, before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever happened on one node, in whatever steps it was told: the other
    /// one sends every known flow to the same server, and counts the same.
    #[test]
    fn the_other_node_decides_alike(
        steps in prop::collection::vec((0u8..5, 0u64..400, 1u8..4), 1..200),
        budget in 20usize..2_000,
        room in 1usize..4,
    ) {
        let mut pair = Pair::new();
        let mut open: BTreeMap<u64, FlowKey> = BTreeMap::new();
        for (what, n, number) in steps {
            match what {
                0 => pair.from.change("a", n as u32 % SIZE, number),
                1 => {
                    if let Some(key) = open.remove(&n)
                        && let Some(found) = flow::find(&pair.from.flows, key, |_| true)
                    {
                        flow::exchange(&pair.from.flows, found.bucket, found.word, found.entry, FlowWord::EMPTY, Place::Free);
                    }
                }
                2 => { pair.pass_with(budget, room); }
                _ if open.len() < 200 && !open.contains_key(&n) => {
                    pair.from.insert("a", hash(n), number, Mark::Open);
                    open.insert(n, FlowKey::new(hash(n), BUCKETS));
                }
                _ => {}
            }
        }
        pair.pass_with(budget, room);
        // One more, for what changed while it was told.
        pair.pass_with(budget, room);
        for n in 0..400 {
            prop_assert_eq!(pair.to.member_of("a", hash(n)), pair.from.member_of("a", hash(n)));
        }
        let total = |node: &Node| -> u64 { node.flows.counts().iter().map(|c| c.load(Relaxed)).sum() };
        prop_assert_eq!(total(&pair.to), total(&pair.from));
    }

    /// No message makes it panic or leave its tables.
    #[test]
    fn anything_may_come(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..50)) {
        let mut pair = Pair::new();
        pair.pass();
        for message in messages {
            let mut message = message;
            if let Some(first) = message.first_mut() {
                *first %= 14;
            }
            pair.importer.take(&pair.to.world(), HELLO, &pair.own, &message);
        }
    }
}
