//! The books of full NAT's ports against a model, with a daemon that may die
//! at any write.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use lb_common::{
    abi::{PoolEntry, VipKey},
    binding::{self, BindingState, Flow, Limits, Opened, Ring, Side, Use},
    flow::{FlowTable, memory::MemoryTable},
    hash::{Tuple, flow_hash},
    member::MemberState,
    net::{Addr, Be16, family, protocol},
    track::Kind,
};
use proptest::prelude::*;

use super::{
    bindings::{Bookkeeper, Books, BooksReport, PoolUse},
    sweep::{Bits, MemberInfo},
};

const LIMITS: Limits = Limits {
    open_ticks: 0,
    half_ticks: 63,
    closing_ticks: 60,
};
const REST: u32 = 60;
const IDLE: u32 = 300;
const SERVICE: u32 = 3;
const MEMBERS: u32 = 4;

/// Memory that a daemon can't write to any more once it is dead.
struct Mortal<'a> {
    table: &'a MemoryTable,
    writes_left: &'a Cell<Option<u32>>,
}

impl Mortal<'_> {
    fn may_write(&self) -> bool {
        match self.writes_left.get() {
            None => true,
            Some(0) => false,
            Some(n) => {
                self.writes_left.set(Some(n - 1));
                true
            }
        }
    }
}

impl FlowTable for Mortal<'_> {
    type Bucket = u32;

    fn buckets(&self) -> u32 {
        self.table.buckets()
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        self.table.bucket(index)
    }

    fn load(&self, bucket: u32, word: usize) -> u64 {
        self.table.load(bucket, word)
    }

    fn replace(&self, bucket: u32, word: usize, current: u64, new: u64) -> bool {
        self.may_write() && self.table.replace(bucket, word, current, new)
    }
}

struct World {
    bindings: MemoryTable,
    flows: MemoryTable,
    free: MemoryTable,
    ring_capacity: u32,
    pools: BTreeMap<VipKey, PoolEntry>,
    members: Vec<MemberInfo>,
    keeper: Bookkeeper,
    now: u32,
}

fn address(text: &str) -> VipKey {
    let (address, family) = Addr::from_ip(text.parse().unwrap());
    VipKey {
        address,
        family,
        reserved: [0; 3],
    }
}

fn pool(base: u32, count: u32) -> PoolEntry {
    PoolEntry {
        base,
        count,
        first_port: 2000,
        draining: 0,
    }
}

fn client(n: u32) -> Tuple {
    Tuple {
        source: Addr::v4(0x0a00_0000 + n),
        destination: Addr::v4(0xc0a8_0001),
        source_port: Be16::new(1024 + n as u16),
        destination_port: Be16::new(80),
        protocol: protocol::TCP,
        family: family::V4,
    }
}

impl World {
    fn new(pools: &[(&str, u32, u32)]) -> Self {
        let total: u32 = pools.iter().map(|(_, _, count)| count).sum();
        let ring_capacity = Ring::capacity_for(total);
        let serving = MemberInfo {
            state: MemberState::UP,
            service: SERVICE,
        };
        Self {
            bindings: MemoryTable::new(total + 1),
            // With so few flows chance would refuse one now and then.
            flows: MemoryTable::new(2 * binding::buckets_for(total)),
            free: MemoryTable::new(Ring::lines(ring_capacity)),
            ring_capacity,
            pools: pools
                .iter()
                .map(|(name, base, count)| (address(name), pool(*base, *count)))
                .collect(),
            members: vec![serving; MEMBERS as usize + 1],
            keeper: Bookkeeper::default(),
            now: 1_000_000,
        }
    }

    /// A sweep that may be cut off after some writes.
    fn sweep(&mut self, writes: Option<u32>) -> (BooksReport, Bits) {
        let writes_left = Cell::new(writes);
        let mortal = |table| Mortal {
            table,
            writes_left: &writes_left,
        };
        let (bindings, flows, free) = (
            mortal(&self.bindings),
            mortal(&self.flows),
            mortal(&self.free),
        );
        let mut named = Bits::new(self.members.len());
        let books = Books {
            bindings: &bindings,
            flows: &flows,
            free: &free,
            ring_capacity: self.ring_capacity,
            pools: &self.pools,
            members: &self.members,
            idle_ticks: &BTreeMap::from([(SERVICE, IDLE)]),
            limits: LIMITS,
            rest_ticks: REST,
            now_ticks: self.now,
        };
        let report = self.keeper.keep(&books, &mut named);
        (report, named)
    }

    fn kill(&mut self, writes: u32) {
        self.sweep(Some(writes));
        self.keeper = Bookkeeper::default();
    }

    fn open(&self, n: u32, member: u32) -> Option<(u32, Opened)> {
        let ring = Ring::new(family::V4, self.ring_capacity);
        let index = binding::claim(&self.bindings, &self.free, ring, self.now, Kind::Syn);
        let tuple = client(n);
        let flow = Flow {
            tuple: &tuple,
            hash: flow_hash([5, 6], &tuple),
            service: SERVICE,
        };
        let open = |i| binding::open(&self.bindings, &self.flows, i, &flow, member, self.now);
        (index != 0).then(|| (index, open(index)))
    }

    fn find(&self, n: u32) -> Option<u32> {
        let tuple = client(n);
        let flow = Flow {
            tuple: &tuple,
            hash: flow_hash([5, 6], &tuple),
            service: SERVICE,
        };
        binding::find(&self.bindings, &self.flows, &flow).map(|f| f.entry.member())
    }

    fn packet(&self, index: u32, side: Side, kind: Kind) {
        binding::touch(&self.bindings, index, self.now, side, kind);
    }

    fn state(&self, index: u32) -> BindingState {
        binding::state(&self.bindings, index)
    }

    /// Indices in the ring of IPv4, oldest first.
    fn ring(&self) -> Vec<u32> {
        let ring = Ring::new(family::V4, self.ring_capacity);
        let (taken, put) = ring.counts(&self.free).unwrap();
        (taken..put)
            .map(|p| ring.peek(&self.free, p).unwrap())
            .collect()
    }

    fn uses(&self) -> PoolUse {
        let mut uses = PoolUse::default();
        for index in 1..self.bindings.buckets() {
            match self.state(index).usage() {
                Use::Absent => uses.removed += 1,
                Use::Free => uses.free += 1,
                Use::Claimed | Use::Used => uses.used += 1,
                Use::Resting => uses.resting += 1,
            }
        }
        uses
    }

    /// Free ports that nobody can get.
    fn lost(&self) -> usize {
        let ring: BTreeSet<u32> = self.ring().into_iter().collect();
        (1..self.bindings.buckets())
            .filter(|i| self.state(*i).is_free() && !ring.contains(i))
            .count()
    }
}

#[test]
fn a_new_address_gives_its_ports_out_and_each_knows_its_number() {
    let mut world = World::new(&[("192.0.2.1", 1, 10), ("192.0.2.2", 11, 5)]);
    let (report, _) = world.sweep(None);
    assert_eq!(report.pools[&address("192.0.2.2")].free, 5);
    assert_eq!(world.ring(), (1..=15).collect::<Vec<_>>());
    let at = world.bindings.bucket(12).unwrap();
    let end = binding::pool(&world.bindings, at);
    assert_eq!(end.address.to_ip(4).to_string(), "192.0.2.2");
    assert_eq!(end.port.get(), 2001);
}

#[test]
fn all_ports_come_back_when_their_flows_are_over_and_they_have_rested() {
    let mut world = World::new(&[("192.0.2.1", 1, 100)]);
    world.sweep(None);
    for n in 0..100 {
        let (index, opened) = world.open(n, 1).unwrap();
        assert_eq!(opened, Opened::Mine);
        world.packet(index, Side::Client, Kind::Data);
        if n < 40 {
            world.packet(index, Side::Client, Kind::Fin);
            world.packet(index, Side::Backend, Kind::Fin);
        }
    }
    assert_eq!(world.open(100, 1), None, "none is left");
    world.now += 61;
    let (report, _) = world.sweep(None);
    let expected = PoolUse {
        used: 60,
        resting: 40,
        ..PoolUse::default()
    };
    assert_eq!(report.pools[&address("192.0.2.1")], expected);
    assert_eq!((report.ended, report.flows[&SERVICE]), (40, 60));
    assert_eq!((world.find(0), world.find(40)), (None, Some(41)));
    world.now += REST;
    world.sweep(None);
    assert_eq!(world.open(100, 1), None, "the last tick of the rest counts");
    world.now += 1;
    world.sweep(None);
    assert_eq!(world.uses().free, 40);
    world.now += IDLE;
    world.sweep(None);
    world.now += REST + 1;
    world.sweep(None);
    let all = PoolUse {
        free: 100,
        ..PoolUse::default()
    };
    assert_eq!((world.uses(), world.lost()), (all, 0));
    for n in 200..300 {
        assert_eq!(world.open(n, 1).unwrap().1, Opened::Mine);
    }
}

#[test]
fn a_member_that_serves_nobody_loses_its_bindings_and_others_are_named() {
    let mut world = World::new(&[("192.0.2.1", 1, 10)]);
    world.sweep(None);
    world.open(1, 1).unwrap();
    world.open(2, 2).unwrap();
    world.members[1].state = MemberState::DEAD;
    let (report, named) = world.sweep(None);
    assert_eq!(report.ended, 1);
    assert!(named.has(2) && !named.has(1));
    assert_eq!((world.find(1), world.find(2)), (None, Some(2)));
}

#[test]
fn an_address_that_is_removed_keeps_its_flows_and_takes_no_new_ones() {
    let mut world = World::new(&[("192.0.2.1", 1, 10), ("192.0.2.2", 11, 5)]);
    world.sweep(None);
    let (index, _) = world.open(1, 1).unwrap();
    world.packet(index, Side::Client, Kind::Data);
    world.pools.get_mut(&address("192.0.2.1")).unwrap().draining = 1;
    let (report, _) = world.sweep(None);
    let expected = PoolUse {
        used: 1,
        removed: 9,
        ..PoolUse::default()
    };
    assert_eq!(report.pools[&address("192.0.2.1")], expected);
    assert_eq!((world.find(1), report.over.len()), (Some(index), 0));
    // At once: packets give up after a few ports that aren't free.
    assert_eq!(world.ring(), (11..=15).collect::<Vec<_>>());
    world.now += IDLE + 1;
    world.sweep(None);
    world.now += REST + 1;
    let (report, _) = world.sweep(None);
    assert_eq!(report.over, [address("192.0.2.1")]);

    world.pools.get_mut(&address("192.0.2.1")).unwrap().draining = 0;
    world.sweep(None);
    assert_eq!((world.uses().free, world.lost()), (15, 0));
}

#[test]
fn wherever_the_daemon_dies_the_next_one_finds_every_port() {
    // Enough writes for all that one sweep does here.
    for writes in 0..400 {
        let mut world = World::new(&[("192.0.2.1", 1, 40), ("192.0.2.2", 41, 10)]);
        world.sweep(None);
        for n in 0..20 {
            world.open(n, 1).unwrap();
        }
        world.now += 64;
        world.sweep(None);
        world.now += REST + 1;
        world.pools.get_mut(&address("192.0.2.2")).unwrap().draining = 1;
        world.kill(writes);
        assert!(
            world.lost() <= 1,
            "{writes}: {} ports in flight",
            world.lost()
        );
        assert_eq!(world.uses().size(), 50, "{writes}");
        world.sweep(None);
        world.sweep(None);
        let expected = PoolUse {
            free: 40,
            removed: 10,
            ..PoolUse::default()
        };
        assert_eq!((world.uses(), world.lost()), (expected, 0), "{writes}");
        world.sweep(None);
        assert_eq!(world.ring().len(), 40, "{writes}: each once");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open(u32, u32),
    Packet(u32, bool, Kind),
    Wait(u32),
    Sweep,
    Kill(u32),
    Drain(usize, bool),
    Member(u32, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kinds = prop::sample::select(vec![Kind::Syn, Kind::Data, Kind::Fin, Kind::Rst]);
    let step = prop_oneof![
        6 => (0..60u32, 1..=MEMBERS).prop_map(|(n, m)| Step::Open(n, m)),
        6 => (0..60u32, any::<bool>(), kinds).prop_map(|(n, c, k)| Step::Packet(n, c, k)),
        2 => (1..80u32).prop_map(Step::Wait),
        1 => Just(Step::Wait(IDLE)),
        3 => Just(Step::Sweep),
        2 => (0..60u32).prop_map(Step::Kill),
        1 => (0..2usize, any::<bool>()).prop_map(|(p, d)| Step::Drain(p, d)),
        1 => (1..=MEMBERS, any::<bool>()).prop_map(|(m, up)| Step::Member(m, up)),
    ];
    prop::collection::vec(step, 1..300)
}

/// What the model knows of a port.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Port {
    Idle { since: u32 },
    Of { flow: u32 },
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ports_are_never_lost_nor_given_out_twice_nor_without_a_rest(steps in steps()) {
        let mut world = World::new(&[("192.0.2.1", 1, 24), ("192.0.2.2", 25, 8)]);
        let names = [address("192.0.2.1"), address("192.0.2.2")];
        let size = 32;
        world.sweep(None);
        let long_ago = world.now - 10_000;
        let mut ports = vec![Port::Idle { since: long_ago }; size as usize + 1];
        for step in steps {
            match step {
                Step::Open(n, member) => {
                    if world.find(n).is_none()
                        && let Some((index, Opened::Mine)) = world.open(n, member)
                    {
                        let Port::Idle { since } = ports[index as usize] else {
                            panic!("port {index} was given out twice");
                        };
                        prop_assert!(world.now - since > REST, "no rest for {index}");
                        prop_assert_eq!(world.pools[&names[usize::from(index > 24)]].draining, 0);
                        ports[index as usize] = Port::Of { flow: n };
                    }
                }
                Step::Packet(n, from_client, kind) => {
                    let side = if from_client { Side::Client } else { Side::Backend };
                    if let Some(index) = world.find(n) {
                        world.packet(index, side, kind);
                    }
                }
                Step::Wait(ticks) => world.now += ticks,
                Step::Sweep => { world.sweep(None); }
                Step::Kill(writes) => world.kill(writes),
                Step::Drain(which, draining) => {
                    // As the daemon does: a sweep follows every change.
                    world.pools.get_mut(&names[which]).unwrap().draining = draining.into();
                    world.sweep(None);
                }
                Step::Member(member, up) => {
                    world.members[member as usize].state =
                        if up { MemberState::UP } else { MemberState::DEAD };
                }
            }
            prop_assert_eq!(world.uses().size(), size);
            for (index, port) in ports.iter_mut().enumerate().skip(1) {
                let is_used = world.state(index as u32).is_used();
                match *port {
                    Port::Of { .. } if !is_used => *port = Port::Idle { since: world.now },
                    Port::Of { flow } => prop_assert_eq!(world.find(flow), Some(index as u32)),
                    Port::Idle { .. } => prop_assert!(!is_used),
                }
            }
        }
        // All flows end, and every port of an address that stays is free again.
        for name in names {
            world.pools.get_mut(&name).unwrap().draining = 0;
        }
        world.now += IDLE + 100;
        world.sweep(None);
        world.now += REST + 1;
        for _ in 0..3 {
            world.sweep(None);
        }
        let all = PoolUse { free: size, ..PoolUse::default() };
        prop_assert_eq!((world.uses(), world.lost()), (all, 0));
        let mut ring = world.ring();
        ring.sort_unstable();
        prop_assert_eq!(ring, (1..=size).collect::<Vec<_>>());
    }
}
