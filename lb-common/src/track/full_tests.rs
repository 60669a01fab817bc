use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::{thread, vec, vec::Vec};

use super::*;
use crate::{
    clock::UNIT_SHIFT,
    flow::{BRIEF_UNITS, BUCKET_WORDS, CLOSING_UNITS, CONTROL, Idle, memory::MemoryTable},
    load::{Counts, Meter},
    member::MemberState,
    schedule::{self, Members, Policy, choose, scheduler},
};

const SLOTS: u32 = 7;
const IDLE: Idle = Idle {
    open_units: 100,
    half_units: 9,
};

/// One service with members 1 to 4 in a table of [`SLOTS`].
struct Shop {
    flows: MemoryTable,
    states: Vec<MemberState>,
    max: Vec<u32>,
    slots: Vec<AtomicU64>,
    turns: AtomicU64,
    now: AtomicU32,
    policy: Policy,
    resets: bool,
    /// Member on the server that every packet's source has; zero: none.
    held: AtomicU32,
    /// How often a flow was noted as alive, and where the last one was.
    noted: [AtomicU32; 2],
}

impl Shop {
    fn new(scheduler: u8, buckets: u32) -> Self {
        Self {
            flows: MemoryTable::counting(buckets, 5),
            states: vec![MemberState::UP; 5],
            max: vec![0; 5],
            slots: (0..SLOTS)
                .map(|slot| AtomicU64::new(SlotWord::stable(slot % 4 + 1).0))
                .collect(),
            turns: AtomicU64::new(0),
            now: AtomicU32::new(8_000),
            policy: Policy {
                scheduler,
                cycle: 4,
                slots: SLOTS,
                groups: [4, 0, 0, 0],
            },
            resets: false,
            held: AtomicU32::new(0),
            noted: Default::default(),
        }
    }

    /// Flows noted as alive so far, and the last one's member.
    fn noted(&self) -> (u32, u32) {
        (self.noted[0].load(SeqCst), self.noted[1].load(SeqCst))
    }

    fn slot(&self, hash: u64) -> SlotWord {
        SlotWord(self.slots[(hash % u64::from(SLOTS)) as usize].load(SeqCst))
    }

    fn send(&self, hash: u64, kind: Kind) -> Decision {
        let question = Question {
            slot: self.slot(hash),
            hash,
            key: FlowKey::new(hash, self.flows.buckets()),
            kind,
        };
        let times = Times {
            now_ticks: self.now.load(SeqCst),
            syn_window_ticks: 4,
            idle: IDLE,
            longest_idle: IDLE,
        };
        decide(self, question, times)
    }

    fn pass(&self, units: u32) {
        self.now.fetch_add(units << UNIT_SHIFT, SeqCst);
    }

    fn counts(&self, member: u32) -> (u32, u32) {
        let counts = Counts(self.flows.counts()[member as usize].load(SeqCst));
        (counts.half(), counts.open())
    }

    fn total(&self, member: u32) -> u32 {
        Counts(self.flows.counts()[member as usize].load(SeqCst)).total()
    }

    fn entries(&self) -> impl Iterator<Item = (u32, usize, FlowWord)> + '_ {
        (0..self.flows.buckets())
            .flat_map(|bucket| (CONTROL + 1..BUCKET_WORDS).map(move |word| (bucket, word)))
            .map(|(bucket, word)| (bucket, word, FlowWord(self.flows.load(bucket, word))))
            .filter(|(_, _, entry)| !entry.is_empty())
    }

    fn sweep(&self) {
        let now = self.now.load(SeqCst);
        for (bucket, word, entry) in self.entries() {
            if !entry.is_live(now, IDLE) {
                let gone = FlowWord::EMPTY;
                flow::exchange(&self.flows, bucket, word, entry, gone, Place::Free);
            }
        }
    }

    /// What the table's entries come to, told one by one.
    fn recount(&self, member: u32) -> (u32, u32) {
        let (mut half, mut open) = (0, 0);
        for (_, _, entry) in self.entries() {
            if entry.member() == member && entry.is_full() {
                half += u32::from(!entry.is_confirmed() && !entry.is_unsure());
                open += u32::from(entry.is_confirmed() && !entry.is_closing());
            }
        }
        (half, open)
    }
}

impl World for Shop {
    type Flows = MemoryTable;

    fn flows(&self) -> &MemoryTable {
        &self.flows
    }

    fn state(&self, member: u32) -> MemberState {
        self.states[member as usize]
    }

    fn is_ours(&self, _member: u32) -> bool {
        true
    }

    fn resets(&self) -> bool {
        self.resets
    }

    fn replace_slot(&self, current: SlotWord, new: SlotWord) -> bool {
        let mut done = false;
        for slot in &self.slots {
            done |= slot
                .compare_exchange(current.0, new.0, SeqCst, SeqCst)
                .is_ok();
        }
        done
    }
}

impl Meter for Shop {
    fn max(&self, member: u32) -> u32 {
        self.max[member as usize]
    }

    fn add(&self, member: u32, by: u64) -> Counts {
        Counts(self.flows.counts()[member as usize].fetch_add(by, SeqCst))
    }

    fn counts(&self, member: u32) -> Counts {
        Counts(self.flows.counts()[member as usize].load(SeqCst))
    }

    fn next(&self, _member: u32) -> u32 {
        0
    }
}

impl Members for Shop {
    fn in_slot(&self, index: u32) -> u32 {
        SlotWord(self.slots[index as usize].load(SeqCst)).current()
    }

    fn listed(&self, index: u32) -> u32 {
        index + 1
    }

    fn turn(&self) -> u64 {
        self.turns.fetch_add(1, SeqCst)
    }

    fn ask(&self, member: u32, by: u64) -> u32 {
        schedule::ask(self, self.state(member).takes_new(), member, by)
    }

    fn weigh(&self, member: u32) -> u64 {
        schedule::weigh(self, self.state(member).takes_new(), member, 1)
    }
}

impl Service for Shop {
    fn choose(&self, hash: u64, home: u32, by: u64) -> Choice {
        choose(self, &self.policy, hash, home, by)
    }

    fn rejoin(&self, by: u64) -> u32 {
        let held = self.held.load(SeqCst);
        if held != 0 && load::admit(self, held, by) == Room::Taken {
            held
        } else {
            0
        }
    }

    fn remember(&self, member: u32) {
        self.noted[0].fetch_add(1, SeqCst);
        self.noted[1].store(member, SeqCst);
    }

    fn admit(&self, member: u32, by: u64) -> u32 {
        load::admit(self, member, by) as u32
    }

    fn give_back(&self, member: u32, by: u64) {
        load::give_back(self, member, by);
    }

    fn has_room(&self, member: u32) -> bool {
        load::has_room(self, member)
    }
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const FLOW: u64 = 0x1234_5678_9abc_def0;

fn inserted(member: u32) -> Decision {
    Decision {
        member,
        entry: Entry::Inserted,
    }
}

fn found(member: u32) -> Decision {
    Decision {
        member,
        entry: Entry::Found,
    }
}

#[test]
fn a_connection_is_counted_from_its_syn_to_its_fin() {
    let shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    assert_eq!(shop.send(FLOW, Kind::Syn), inserted(1));
    assert_eq!(shop.counts(1), (1, 0));
    assert_eq!(shop.send(FLOW, Kind::Syn), found(1), "a retransmission");
    assert_eq!(shop.counts(1), (1, 0));
    assert_eq!(shop.send(FLOW, Kind::Data), found(1));
    assert_eq!(shop.counts(1), (0, 1));
    assert_eq!(shop.send(FLOW, Kind::Syn), found(1), "somebody else's");
    assert_eq!(shop.counts(1), (0, 1));
    assert_eq!(shop.send(FLOW, Kind::Fin), found(1));
    assert_eq!(shop.send(FLOW, Kind::Data), found(1), "its last words");
    assert_eq!(shop.counts(1), (0, 0));
    assert_eq!(shop.send(FLOW, Kind::Syn), found(1), "the next one");
    assert_eq!(shop.counts(1), (0, 1));
}

#[test]
fn a_half_open_entry_lives_for_one_unit_to_two_and_a_closing_one_for_two_minutes() {
    let shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.send(FLOW, Kind::Syn);
    shop.pass(BRIEF_UNITS);
    shop.sweep();
    assert_eq!(shop.counts(1), (1, 0));
    shop.pass(1);
    shop.sweep();
    assert_eq!(shop.counts(1), (0, 0));
    shop.send(FLOW, Kind::Syn);
    shop.send(FLOW, Kind::Rst);
    shop.pass(CLOSING_UNITS);
    assert_eq!(shop.send(FLOW, Kind::Data), found(2));
    shop.pass(CLOSING_UNITS + 1);
    shop.sweep();
    assert_eq!(shop.entries().count(), 0);
}

#[test]
fn a_stray_packet_goes_where_its_flow_would_be_and_leaves_nothing_behind() {
    let shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    let home = shop.slot(FLOW).current();
    assert_eq!(shop.send(FLOW, Kind::Data), inserted(home));
    assert_eq!(shop.counts(home), (0, 0), "one packet proves nothing");
    assert_eq!(shop.send(FLOW, Kind::Data), found(home));
    assert_eq!(shop.counts(home), (0, 1));
    for kind in [Kind::Fin, Kind::Rst] {
        let decision = shop.send(!FLOW, kind);
        assert_eq!(decision.entry, Entry::None);
        assert_eq!(decision.member, shop.slot(!FLOW).current());
    }
    shop.send(FLOW ^ 1 << 40, Kind::Data);
    assert_eq!(shop.entries().count(), 2);
    shop.pass(BRIEF_UNITS + 1);
    shop.sweep();
    assert_eq!(shop.entries().count(), 1);
}

#[test]
fn a_syn_on_an_entry_that_is_not_sure_of_its_flow_is_a_new_flow() {
    let mut shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.max[1] = 1;
    shop.add(1, load::OPEN);
    shop.send(FLOW, Kind::Data);
    let decision = shop.send(FLOW, Kind::Syn);
    assert_ne!(decision.member, 1, "which has no room");
    assert_eq!(shop.counts(decision.member), (1, 0));
    assert_eq!(shop.entries().count(), 1);
}

#[test]
fn in_a_slot_that_changed_flows_without_an_entry_stay_and_get_one_for_good() {
    let shop = Shop::new(scheduler::MAGLEV, 64);
    for slot in &shop.slots {
        slot.store(SlotWord::tracked(2, 1, 8_000).0, SeqCst);
    }
    assert_eq!(shop.send(FLOW, Kind::Data), inserted(1));
    assert_eq!(shop.counts(1), (0, 1));
    assert_eq!(shop.send(!FLOW, Kind::Syn), inserted(2));
    shop.pass(IDLE.open_units);
    shop.sweep();
    assert_eq!(shop.send(FLOW, Kind::Data), found(1));
}

#[test]
fn an_entry_of_before_full_tracking_is_counted_from_its_next_packet_on() {
    let shop = Shop::new(scheduler::MAGLEV, 64);
    let key = FlowKey::new(FLOW, 64);
    let entry = FlowWord::new(key.tag, 3, 8_000, Mark::Open);
    assert!(flow::insert(
        &shop.flows,
        key,
        entry,
        Place::Free,
        8_000,
        IDLE
    ));
    assert_eq!(shop.counts(3), (0, 0));
    assert_eq!(shop.send(FLOW, Kind::Data), found(3));
    assert_eq!(shop.counts(3), (0, 1));
}

#[test]
fn with_too_many_half_open_flows_a_syn_goes_to_its_slot_and_leaves_nothing() {
    let mut shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.max = vec![100; 5];
    for member in 1..5 {
        shop.add(member, 25 * load::HALF);
    }
    let home = shop.slot(FLOW).current();
    let decision = shop.send(FLOW, Kind::Syn);
    assert_eq!((decision.member, decision.entry), (home, Entry::Refused));
    assert_eq!(shop.counts(home), (25, 0));
    assert_eq!(shop.entries().count(), 0);
    // Unless that has no room at all.
    shop.add(home, 75 * load::OPEN);
    let decision = shop.send(FLOW, Kind::Syn);
    assert_eq!((decision.member, decision.entry), (0, Entry::NoRoom));
}

#[test]
fn without_room_anywhere_a_syn_goes_nowhere_and_what_is_open_goes_on() {
    let mut shop = Shop::new(scheduler::LEAST_CONNECTIONS, 64);
    shop.max = vec![1; 5];
    let flows: Vec<u64> = (1..5).map(|n| n * 0x0101_3057_0077_0011).collect();
    let members: Vec<u32> = flows
        .iter()
        .map(|flow| {
            shop.send(*flow, Kind::Syn);
            shop.send(*flow, Kind::Data).member
        })
        .collect();
    let decision = shop.send(FLOW, Kind::Syn);
    assert_eq!((decision.member, decision.entry), (0, Entry::NoRoom));
    for (flow, member) in flows.iter().zip(members) {
        assert_eq!(shop.send(*flow, Kind::Data), found(member));
    }
    shop.send(flows[2], Kind::Fin);
    assert_eq!(shop.send(FLOW, Kind::Syn).entry, Entry::Inserted);
}

#[test]
fn a_syn_on_a_closing_entry_takes_a_place_there_or_elsewhere() {
    let mut shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.max = vec![1; 5];
    shop.send(FLOW, Kind::Syn);
    shop.send(FLOW, Kind::Fin);
    shop.add(1, load::OPEN);
    assert_eq!(shop.send(FLOW, Kind::Syn), inserted(2), "1 has no room");
    assert_eq!((shop.counts(1), shop.counts(2)), ((0, 1), (1, 0)));
}

#[test]
fn a_full_table_sends_a_new_flow_to_its_slot_and_keeps_no_place_for_it() {
    let shop = Shop::new(scheduler::ROUND_ROBIN, 2);
    let mut seed = 5;
    let flows: Vec<u64> = (0..100).map(|_| random(&mut seed)).collect();
    let mut refused = 0;
    for flow in &flows {
        let decision = shop.send(*flow, Kind::Syn);
        if decision.entry == Entry::Refused {
            refused += 1;
            assert_eq!(decision.member, shop.slot(*flow).current());
            assert_eq!(shop.send(*flow, Kind::Data).member, decision.member);
        }
    }
    assert_eq!(refused, 86);
    assert_eq!((1..5).map(|m| shop.counts(m).0).sum::<u32>(), 14);
}

#[test]
fn where_nobody_takes_new_flows_the_slots_member_gets_them_while_it_serves() {
    let mut shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.states = vec![MemberState::FAILING; 5];
    let home = shop.slot(FLOW).current();
    assert_eq!(shop.send(FLOW, Kind::Syn), inserted(home));
    assert_eq!(shop.counts(home), (1, 0));
    shop.states = vec![MemberState::DEAD; 5];
    assert_eq!(shop.send(!FLOW, Kind::Syn).entry, Entry::None);
    assert_eq!(shop.entries().count(), 1);
}

#[test]
fn flows_of_a_member_that_died_go_to_their_slot() {
    let mut shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.turns.store(2, SeqCst);
    shop.slots[(FLOW % u64::from(SLOTS)) as usize].store(SlotWord::stable(1).0, SeqCst);
    shop.send(FLOW, Kind::Syn);
    shop.send(FLOW, Kind::Data);
    assert_eq!(shop.counts(3), (0, 1));
    shop.states[3] = MemberState::DEAD;
    assert_eq!(shop.send(FLOW, Kind::Data), inserted(1));
    assert_eq!((shop.counts(3), shop.counts(1)), ((0, 0), (0, 0)));
    assert_eq!(shop.send(FLOW, Kind::Data), found(1));
    assert_eq!(shop.counts(1), (0, 1));
}

#[test]
fn a_datagram_without_an_entry_opens_a_flow_unless_its_slot_has_old_ones() {
    let shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    assert_eq!(shop.send(FLOW, Kind::Datagram), inserted(1));
    assert_eq!(shop.counts(1), (0, 1));
    for slot in &shop.slots {
        slot.store(SlotWord::tracked(2, 4, 8_000).0, SeqCst);
    }
    assert_eq!(shop.send(!FLOW, Kind::Datagram), inserted(4), "an old one");
    shop.pass(IDLE.open_units + 2);
    assert_eq!(
        shop.send(FLOW ^ 0xff00, Kind::Datagram),
        inserted(2),
        "by turn"
    );
}

/// Four cores, a sweeper and a clock at work on a table that is too small.
#[test]
fn counts_are_what_the_table_holds_whoever_worked_on_it_at_once() {
    for seed in 0..8u64 {
        let mut shop = Shop::new(
            [scheduler::ROUND_ROBIN, scheduler::LEAST_CONNECTIONS][seed as usize % 2],
            [4, 64][seed as usize / 4],
        );
        shop.max = vec![0, 0, 40, 40, 200];
        let shop = &shop;
        thread::scope(|scope| {
            for core in 0..4u64 {
                scope.spawn(move || {
                    let mut state = seed << 8 | core;
                    for _ in 0..20_000 {
                        let draw = random(&mut state);
                        // Few flows, so that cores meet on them.
                        let flow = (draw % 300).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        let kind = match draw >> 32 & 15 {
                            0..5 => Kind::Syn,
                            5..10 => Kind::Data,
                            10 => Kind::Datagram,
                            11..14 => Kind::Fin,
                            _ => Kind::Rst,
                        };
                        shop.send(flow, kind);
                        if draw >> 40 & 0xfff == 0 {
                            shop.pass((draw >> 52) as u32 % 20);
                        }
                    }
                });
            }
            scope.spawn(move || {
                for _ in 0..2_000 {
                    shop.sweep();
                    for member in 1..5 {
                        assert!(shop.total(member) < 1_000);
                    }
                }
            });
        });
        for member in 1..5 {
            assert_eq!(
                shop.counts(member),
                shop.recount(member),
                "{seed}: {member}"
            );
        }
        shop.pass(IDLE.open_units + 2);
        shop.sweep();
        for member in 1..5 {
            let left = shop.flows.counts()[member as usize].load(SeqCst);
            assert_eq!(left, 0, "{seed}: {member}");
        }
    }
}

#[test]
fn a_source_is_noted_by_a_packet_that_follows_up_another_and_by_nothing_else() {
    let shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    // Whoever forges addresses sends one packet of each flow.
    for hash in 0..200 {
        shop.send(hash << 40, Kind::Syn);
        shop.send((hash + 1000) << 40, Kind::Data);
        shop.send((hash + 2000) << 40, Kind::Rst);
    }
    assert_eq!(shop.noted().0, 0);
    shop.pass(20);
    let first = shop.send(7000 << 40, Kind::Syn).member;
    shop.pass(1);
    shop.send(7000 << 40, Kind::Syn);
    assert_eq!(shop.noted().0, 0, "a SYN that is repeated");
    shop.send(7000 << 40, Kind::Data);
    assert_eq!(shop.noted(), (1, first));
    shop.send(7000 << 40, Kind::Data);
    assert_eq!(shop.noted().0, 1, "once in a unit of time is enough");
    shop.pass(1);
    shop.send(7000 << 40, Kind::Rst);
    assert_eq!(shop.noted().0, 1, "anybody can forge an RST");
    shop.pass(1);
    shop.send(7000 << 40, Kind::Data);
    assert_eq!(shop.noted().0, 2);
}

#[test]
fn a_new_flow_goes_to_its_sources_server_before_anybody_is_chosen() {
    let mut shop = Shop::new(scheduler::ROUND_ROBIN, 64);
    shop.max = vec![0, 0, 0, 2, 0];
    shop.held.store(3, SeqCst);
    assert_eq!(shop.send(1 << 40, Kind::Syn).member, 3);
    assert_eq!(shop.send(2 << 40, Kind::Syn).member, 3);
    assert_eq!(shop.counts(3), (2, 0), "its place is taken");
    assert_eq!(shop.turns.load(SeqCst), 0, "nobody's turn was used up");
    // Full: somebody else, who is asked for a place as ever.
    let other = shop.send(3 << 40, Kind::Syn).member;
    assert_ne!(other, 3);
    assert_eq!(shop.counts(other), (1, 0));
    // A living flow stays where it is.
    shop.held.store(4, SeqCst);
    assert_eq!(shop.send(1 << 40, Kind::Data).member, 3);
}

#[path = "full_history_tests.rs"]
mod history;
