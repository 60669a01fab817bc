use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Barrier,
    vec::Vec,
};

use super::*;
use crate::{
    abi::{Binding, PoolEntry},
    flow::memory::MemoryTable,
    net::protocol,
};

const V4: u8 = family::V4;

struct Maps {
    bindings: MemoryTable,
    flows: MemoryTable,
    free: MemoryTable,
    ring: Ring,
}

/// Ports 1000.. of 192.0.2.1, with indices from 1 on.
fn maps(ports: u32) -> Maps {
    let capacity = Ring::capacity_for(ports);
    let maps = Maps {
        bindings: MemoryTable::new(ports + 1),
        flows: MemoryTable::new(buckets_for(ports)),
        free: MemoryTable::new(Ring::lines(capacity)),
        ring: Ring::new(V4, capacity),
    };
    let (pool, _) = Addr::from_ip("192.0.2.1".parse().unwrap());
    for index in 1..=ports {
        let at = maps.bindings.bucket(index).unwrap();
        dedicate(&maps.bindings, at, pool, Be16::new(999 + index as u16), V4);
        let old = state(&maps.bindings, at);
        assert!(change(&maps.bindings, at, old, old.freed(0)));
        assert!(maps.ring.put(&maps.free, index));
    }
    maps
}

fn tuple(client: u32, port: u16) -> Tuple {
    Tuple {
        source: Addr::v4((0x0a00_0000 + client).to_be()),
        destination: Addr::v4(0xc633_6401u32.to_be()),
        source_port: Be16::new(port),
        destination_port: Be16::new(80),
        protocol: protocol::TCP,
        family: V4,
    }
}

fn flow(tuple: &Tuple) -> Flow<'_> {
    Flow {
        tuple,
        hash: crate::hash::flow_hash([1, 2], tuple),
        service: 7,
    }
}

impl Maps {
    fn state(&self, index: u32) -> BindingState {
        state(&self.bindings, self.bindings.bucket(index).unwrap())
    }

    fn count(&self, usage: Use) -> usize {
        (1..self.bindings.buckets())
            .filter(|i| self.state(*i).usage() == usage)
            .count()
    }

    fn open(&self, tuple: &Tuple, member: u32, now: u32) -> Option<(u32, Opened)> {
        let index = claim(&self.bindings, &self.free, self.ring, now, Kind::Syn);
        let flow = flow(tuple);
        let opened = |index| open(&self.bindings, &self.flows, index, &flow, member, now);
        (index != 0).then(|| (index, opened(index)))
    }

    fn find(&self, tuple: &Tuple) -> Option<u32> {
        find(&self.bindings, &self.flows, &flow(tuple)).map(|f| f.entry.member())
    }
}

#[test]
fn a_binding_tells_the_whole_tuple_and_its_record_says_the_same() {
    let maps = maps(8);
    let tuple = tuple(5, 4321);
    let (index, opened) = maps.open(&tuple, 0x9_8765, 77).unwrap();
    assert_eq!(opened, Opened::Mine);
    assert_eq!(maps.find(&tuple), Some(index));
    let at = maps.bindings.bucket(index).unwrap();
    assert_eq!(member(&maps.bindings, at), 0x9_8765);
    assert_eq!(service(&maps.bindings, at), 7);
    let source = End {
        address: tuple.source,
        port: tuple.source_port,
    };
    assert_eq!(client(&maps.bindings, at), source);
    assert_eq!(vip_port(&maps.bindings, at).get(), 80);
    assert_eq!(pool(&maps.bindings, at).port.get(), 999 + index as u16);
    assert_eq!(protocol(&maps.bindings, at), protocol::TCP);

    let words: [u64; 8] = core::array::from_fn(|w| maps.bindings.load(at, w));
    // SAFETY: both are 64 bytes without padding, and any bits are a value.
    let record: Binding = unsafe { core::mem::transmute(words) };
    assert_eq!(record.client, tuple.source);
    assert_eq!(record.client_port, tuple.source_port);
    assert_eq!(record.vip_port.get(), 80);
    assert_eq!(record.pool.to_ip(V4).to_string(), "192.0.2.1");
    assert_eq!(record.pool_port.get(), 999 + index as u16);
    assert_eq!((record.protocol, record.family), (protocol::TCP, V4));
    assert_eq!((record.member, record.service), (0x9_8765, 7));
    assert_eq!(record.hash, flow(&tuple).hash);
}

#[test]
fn another_tuple_with_the_same_hash_is_another_flow() {
    let maps = maps(8);
    let first = tuple(5, 4321);
    maps.open(&first, 1, 0).unwrap();
    for other in [
        Tuple {
            source: Addr::v4(9),
            ..first
        },
        Tuple {
            source_port: Be16::new(1),
            ..first
        },
        Tuple {
            destination_port: Be16::new(81),
            ..first
        },
        Tuple {
            protocol: protocol::UDP,
            ..first
        },
    ] {
        let forged = Flow {
            tuple: &other,
            ..flow(&first)
        };
        assert!(
            find(&maps.bindings, &maps.flows, &forged).is_none(),
            "{other:?}"
        );
    }
    let stranger = Flow {
        service: 8,
        ..flow(&first)
    };
    assert!(find(&maps.bindings, &maps.flows, &stranger).is_none());
    assert!(find(&maps.bindings, &maps.flows, &flow(&first)).is_some());
}

#[test]
fn every_port_is_given_out_once_oldest_first_and_then_none() {
    let maps = maps(20);
    let given: Vec<u32> = (0..20)
        .map(|n| maps.open(&tuple(n, 1), 1, 0).unwrap().0)
        .collect();
    assert_eq!(given, (1..=20).collect::<Vec<_>>());
    assert_eq!(maps.open(&tuple(20, 1), 1, 0), None);
    assert_eq!((maps.count(Use::Used), maps.count(Use::Free)), (20, 0));
}

#[test]
fn a_ring_goes_round_and_refuses_more_than_it_holds() {
    let table = MemoryTable::new(Ring::lines(8));
    let ring = Ring::new(family::V6, 8);
    for round in 0..5u32 {
        for n in 1..=8 {
            assert!(ring.put(&table, round * 8 + n));
        }
        assert!(!ring.put(&table, 99));
        for n in 1..=8 {
            assert_eq!(ring.take(&table), round * 8 + n);
        }
        assert_eq!(ring.take(&table), 0);
    }
    assert_eq!(Ring::new(V4, 8).take(&table), 0, "the other family's");
}

#[test]
fn a_port_that_is_in_the_ring_but_not_free_is_passed_over() {
    let maps = maps(3);
    maps.ring.put(&maps.free, 1);
    let given: Vec<u32> = (0..3)
        .map(|n| maps.open(&tuple(n, 1), 1, 0).unwrap().0)
        .collect();
    assert_eq!(given, [1, 2, 3]);
    assert_eq!(
        maps.open(&tuple(9, 1), 1, 0),
        None,
        "the second 1 is in use"
    );
}

#[test]
fn who_finds_the_flow_bound_already_gives_way_and_its_port_rests() {
    let maps = maps(4);
    let tuple = tuple(1, 1);
    assert_eq!(maps.open(&tuple, 1, 5), Some((1, Opened::Mine)));
    assert_eq!(maps.open(&tuple, 2, 6), Some((2, Opened::Theirs)));
    assert_eq!(maps.state(2).usage(), Use::Resting);
    assert_eq!(maps.find(&tuple), Some(1));
}

#[test]
fn of_two_that_are_claimed_at_the_same_time_the_lower_index_wins() {
    let maps = maps(4);
    let t = tuple(1, 1);
    let claim = || claim(&maps.bindings, &maps.free, maps.ring, 5, Kind::Syn);
    let (low, high) = (claim(), claim());
    // The higher one has published its entry and is about to look.
    let at = maps.bindings.bucket(high).unwrap();
    let claimed = maps.state(high);
    assert_eq!(
        open(&maps.bindings, &maps.flows, high, &flow(&t), 1, 5),
        Opened::Mine
    );
    let back = BindingState(claimed.0);
    assert!(change(&maps.bindings, at, maps.state(high), back));
    assert_eq!(
        open(&maps.bindings, &maps.flows, low, &flow(&t), 1, 5),
        Opened::Mine
    );
    assert_eq!(maps.state(high).usage(), Use::Resting, "its claim is gone");
    assert!(!change(&maps.bindings, at, claimed, claimed.used()));
    assert_eq!(maps.find(&t), Some(low));
}

#[test]
fn who_finds_a_lower_claim_gives_way_without_touching_it() {
    let maps = maps(4);
    let t = tuple(1, 1);
    let (low, claimed) = {
        let low = claim(&maps.bindings, &maps.free, maps.ring, 5, Kind::Syn);
        (low, maps.state(low))
    };
    open(&maps.bindings, &maps.flows, low, &flow(&t), 1, 5);
    let at = maps.bindings.bucket(low).unwrap();
    assert!(change(&maps.bindings, at, maps.state(low), claimed));
    assert_eq!(maps.open(&t, 2, 5), Some((2, Opened::Theirs)));
    assert_eq!(maps.state(low), claimed);
    assert_eq!(maps.find(&t), Some(low));
}

#[test]
fn no_room_for_the_entry_puts_the_port_to_rest() {
    let maps = Maps {
        flows: MemoryTable::new(2),
        ..maps(40)
    };
    let refused = (0..40)
        .filter(|n| maps.open(&tuple(*n, 1), 1, 0).unwrap().1 == Opened::Refused)
        .count();
    assert_eq!(refused, 40 - 14);
    assert_eq!((maps.count(Use::Used), maps.count(Use::Resting)), (14, 26));
}

#[test]
fn exactly_one_of_the_cores_that_race_for_a_flow_wins() {
    const ROUNDS: u32 = 20_000;
    const CORES: u32 = 2;
    let maps = maps(ROUNDS * CORES);
    let barrier = Barrier::new(CORES as usize);
    let run = || {
        let mut mine = BTreeMap::new();
        for n in 0..ROUNDS {
            let tuple = tuple(n, 1);
            barrier.wait();
            let (index, opened) = maps.open(&tuple, 1, 0).unwrap();
            if opened == Opened::Mine {
                mine.insert(n, index);
            }
        }
        mine
    };
    let (a, b) = std::thread::scope(|scope| {
        let other = scope.spawn(run);
        (run(), other.join().unwrap())
    });
    for n in 0..ROUNDS {
        let winners: Vec<u32> = [a.get(&n), b.get(&n)]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        assert_eq!(winners.len(), 1, "flow {n}: {winners:?}");
        assert_eq!(maps.find(&tuple(n, 1)), winners.first().copied());
    }
    assert_eq!(maps.count(Use::Used) as u32, ROUNDS);
    assert_eq!(maps.count(Use::Resting) as u32, ROUNDS * (CORES - 1));
    let entries = (0..maps.flows.buckets())
        .flat_map(|b| (CONTROL + 1..BUCKET_WORDS).map(move |w| (b, w)))
        .filter(|(b, w)| maps.flows.load(*b, *w) != 0)
        .count();
    assert_eq!(entries as u32, ROUNDS, "losers left no entry");
}

#[test]
fn cores_that_take_ports_at_the_same_time_never_get_the_same() {
    let maps = maps(50_000);
    let run = || {
        let mut taken = Vec::new();
        loop {
            match claim(&maps.bindings, &maps.free, maps.ring, 0, Kind::Syn) {
                0 => break,
                index => taken.push(index),
            }
        }
        taken
    };
    let (a, b) = std::thread::scope(|scope| {
        let other = scope.spawn(run);
        (run(), other.join().unwrap())
    });
    let all: BTreeSet<u32> = a.iter().chain(&b).copied().collect();
    assert_eq!(all.len(), a.len() + b.len());
    // A core that lost too often in a row gave up earlier than it had to.
    let left = maps.count(Use::Free);
    assert_eq!(all.len() + left, 50_000);
}

#[test]
fn a_binding_that_ended_is_not_found_and_its_entry_is_gone() {
    let maps = maps(4);
    let tuple = tuple(1, 1);
    maps.open(&tuple, 1, 5).unwrap();
    let found = find(&maps.bindings, &maps.flows, &flow(&tuple)).unwrap();
    assert!(end(&maps.bindings, &maps.flows, &found, 9));
    assert!(!end(&maps.bindings, &maps.flows, &found, 9));
    assert_eq!(maps.find(&tuple), None);
    assert_eq!(
        (maps.state(1).usage(), maps.state(1).age(10)),
        (Use::Resting, 1)
    );
    assert_eq!(maps.flows.load(found.bucket, found.word), 0);
}

const LIMITS: Limits = Limits {
    open_ticks: 1000,
    half_ticks: 63,
    closing_ticks: 60,
};

/// State after these packets, all at tick 100.
fn after(packets: &[(Side, Kind)]) -> BindingState {
    let start = BindingState::default()
        .freed(0)
        .claimed(100, Kind::Syn)
        .used();
    packets
        .iter()
        .fold(start, |s, (side, kind)| s.seen(100, *side, *kind))
}

#[test]
fn how_long_a_binding_lives_follows_from_what_was_seen() {
    use Kind::{Data, Fin, Rst, Syn};
    use Side::{Backend, Client};
    let cases: &[(&[(Side, Kind)], u32)] = &[
        (&[], 63),
        (&[(Backend, Data)], 63),
        (&[(Client, Syn)], 63),
        (&[(Backend, Data), (Client, Data)], 1000),
        (&[(Client, Data), (Client, Fin)], 1000),
        (&[(Client, Data), (Backend, Fin)], 1000),
        (
            &[
                (Client, Data),
                (Client, Fin),
                (Backend, Fin),
                (Client, Data),
            ],
            60,
        ),
        (&[(Client, Data), (Backend, Rst)], 60),
        (&[(Client, Rst)], 60),
        // A forged RST does no harm to a connection that goes on.
        (&[(Client, Data), (Client, Rst), (Backend, Data)], 1000),
        // The client's port is used anew.
        (&[(Client, Fin), (Backend, Fin), (Client, Syn)], 63),
        (&[(Client, Data), (Client, Syn)], 1000),
    ];
    for (packets, limit) in cases {
        let state = after(packets);
        assert!(!state.has_expired(100 + limit, LIMITS), "{packets:?}");
        assert!(state.has_expired(101 + limit, LIMITS), "{packets:?}");
        assert!(!state.has_expired(99, LIMITS), "a packet of the future");
    }
}

#[test]
fn a_use_is_told_from_the_next_by_its_count() {
    let first = BindingState::default().freed(1).claimed(2, Kind::Data);
    let second = first.used().ended(3).freed(4).claimed(5, Kind::Data);
    assert_ne!(uses(first), uses(second));
    assert_eq!(
        uses(first),
        uses(first.used().seen(9, Side::Client, Kind::Rst))
    );
    assert!(first.is_open() && first.is_claimed() && !first.is_used());
}

#[test]
fn a_claimed_binding_is_left_to_its_writer() {
    let maps = maps(1);
    let index = claim(&maps.bindings, &maps.free, maps.ring, 5, Kind::Syn);
    let at = maps.bindings.bucket(index).unwrap();
    let before = maps.state(index);
    touch(&maps.bindings, at, 9, Side::Client, Kind::Data);
    assert_eq!(maps.state(index), before);
}

#[test]
fn a_port_outside_the_pools_has_no_index() {
    let entry = PoolEntry {
        base: 100,
        count: 10,
        first_port: 1024,
        draining: 0,
    };
    let index = |port| entry.index(Be16::new(port));
    assert_eq!(
        [1023, 1024, 1033, 1034, 0, 65535].map(index),
        [0, 100, 109, 0, 0, 0]
    );
}
