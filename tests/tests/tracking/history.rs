//! Random histories and the reference model that judges them.
//!
//! The model knows nothing of slots and entries: only which member each flow
//! was given, whether that member still serves, and how long the flow was
//! idle. What the controller does (tables, plans, sweeps) is its real code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::Result;
use lb_common::{
    abi::{MemberEntry, ServiceEntry, ServiceKey},
    clock::UNIT_SHIFT,
    flow::memory::MemoryTable,
    hash::Tuple,
    member::MemberState,
    net::{Addr, Be16, family, protocol},
    slot::SlotWord,
    track::Kind,
};
use lb_control::{
    dataplane::{
        desired::{DesiredState, Table},
        plan::{MapOp, plan},
        state::MapSnapshot,
        sweep::{MemberInfo, ServiceInfo, Sweeper, World},
    },
    scheduler::{self, identity, maglev},
};
use lb_tests::packet::Rng;

use crate::plant::{
    HALF_UNITS, IDLE_TICKS, IDLE_UNITS, MEMBERS, Plant, RESET, SERVICE, SIZE, SYN_WINDOW,
};

/// Ticks for which a failing member serves its flows.
const DEAD_AFTER: u32 = 30;

/// Ticks for which a flow that only sent a SYN is promised its member: until a
/// client's last retransmission.
const HANDSHAKE: u32 = 63;

/// What a history is like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Buckets of the flow table: seven flows each.
    pub buckets: u32,
    /// Steps of the history.
    pub steps: u32,
    /// Spoofed SYNs and stray ACKs in each burst; none at 0.
    pub flood: u32,
    /// Flows of members that are gone are reset.
    pub resets: bool,
}

/// What a history came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Broken promises, in words.
    pub violations: Vec<String>,
    /// Members in the order of the packets; 0 for a drop.
    pub trace: Vec<u32>,
    pub flows: u64,
    pub found: u64,
    pub half_open_moved: u64,
    pub inserted: u64,
    pub refused: u64,
    pub changes: u64,
    pub stabilised: u64,
    /// Flows of members that are gone whose client was told.
    pub reset: u64,
}

impl Report {
    pub fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.found += other.found;
        self.half_open_moved += other.half_open_moved;
        self.inserted += other.inserted;
        self.refused += other.refused;
        self.changes += other.changes;
        self.stabilised += other.stabilised;
        self.reset += other.reset;
        self.trace.extend(&other.trace);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} flows, {} packets, {} of flows older than a change, {} entries made, {} refused, \
             {} changes, {} slots made stable, {} half-open flows moved, {} flows reset",
            self.flows,
            self.trace.len(),
            self.found,
            self.inserted,
            self.refused,
            self.changes,
            self.stabilised,
            self.half_open_moved,
            self.reset,
        )
    }
}

/// Condition of a member, as the controller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Up,
    Draining,
    FailingSince(u32),
    Gone,
}

/// A client's connection.
#[derive(Clone, Debug)]
struct Flow {
    tuple: Tuple,
    member: u32,
    seen: u32,
    first_syn: u32,
    is_open: bool,
}

struct History<'a, P> {
    plant: &'a mut P,
    rng: Rng,
    now: u32,
    members: BTreeMap<u32, (Condition, u32)>,
    next_member: u32,
    next_flow: u32,
    flows: Vec<Flow>,
    /// Flows whose member was given up.
    orphans: Vec<Flow>,
    sweeper: Sweeper,
    /// When slots last changed.
    last_change: u32,
    /// When they changed before that.
    change_before: u32,
    /// See [`Options::resets`].
    resets: bool,
    report: Report,
}

/// Runs one history.
pub fn run<P: Plant>(plant: &mut P, seed: u64, options: Options) -> Result<Report> {
    let mut history = History {
        plant,
        rng: Rng::new(seed),
        now: 1_000_000,
        members: (1..5).map(|id| (id, (Condition::Up, 100))).collect(),
        next_member: 5,
        next_flow: 0,
        flows: Vec::new(),
        orphans: Vec::new(),
        sweeper: Sweeper::default(),
        last_change: 0,
        change_before: 0,
        resets: options.resets,
        report: Report::default(),
    };
    history.plant.set_ticks(history.now)?;
    history.apply(true)?;
    for _ in 0..options.steps {
        history.step(options)?;
        if !history.report.violations.is_empty() {
            break;
        }
    }
    (history.report.inserted, history.report.refused) = history.plant.events()?;
    Ok(history.report)
}

impl<P: Plant> History<'_, P> {
    fn below(&mut self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let n = self.below(from.len().max(1) as u64) as usize;
        from.get(n).copied()
    }

    fn state(&self, id: u32) -> MemberState {
        match self.members.get(&id).map(|m| m.0) {
            Some(Condition::Up) => MemberState::UP,
            Some(Condition::Draining) => MemberState::DRAINING,
            Some(Condition::FailingSince(since)) if self.now - since < DEAD_AFTER => {
                MemberState::FAILING
            }
            Some(Condition::FailingSince(_) | Condition::Gone) => MemberState::DEAD,
            None => MemberState::FREE,
        }
    }

    fn step(&mut self, options: Options) -> Result<()> {
        let wait = match self.below(20) {
            0..9 => 0,
            9..14 => 1,
            14..17 => 5,
            17..19 => 40,
            _ => match self.below(5) {
                0 => 3000,
                _ => 400,
            },
        };
        self.pass(wait)?;
        match self.below(100) {
            0..6 => self.change()?,
            6..8 if options.flood > 0 => self.flood(options.flood)?,
            6..10 => self.spoof()?,
            10..36 => self.open()?,
            36..50 if !self.orphans.is_empty() => self.orphan()?,
            _ if self.flows.is_empty() => self.open()?,
            _ => self.talk()?,
        }
        Ok(())
    }

    /// Time passes; the controller sweeps now and then and notices deaths.
    fn pass(&mut self, mut ticks: u32) -> Result<()> {
        while ticks > 0 {
            let dead_before = self.dead();
            let part = ticks.min(100);
            self.now += part;
            ticks -= part;
            self.plant.set_ticks(self.now)?;
            if self.dead() != dead_before {
                self.apply(false)?;
            }
            if part > 20 || self.below(8) == 0 {
                self.sweep()?;
            }
        }
        Ok(())
    }

    fn dead(&self) -> BTreeSet<u32> {
        self.members
            .keys()
            .copied()
            .filter(|id| self.state(*id) == MemberState::DEAD)
            .collect()
    }

    /// Something happens to the pool.
    fn change(&mut self) -> Result<()> {
        let of = |c: fn(&Condition) -> bool, members: &BTreeMap<u32, (Condition, u32)>| {
            members
                .iter()
                .filter(|(_, m)| c(&m.0))
                .map(|(id, _)| *id)
                .collect::<Vec<_>>()
        };
        let up = of(|c| *c == Condition::Up, &self.members);
        let out = of(
            |c| matches!(c, Condition::Draining | Condition::FailingSince(_)),
            &self.members,
        );
        let draining = of(|c| *c == Condition::Draining, &self.members);
        let (id, new) = match self.below(12) {
            0..3 if self.next_member < MEMBERS => {
                self.next_member += 1;
                (Some(self.next_member - 1), Condition::Up)
            }
            3..5 if up.len() > 1 => (self.pick(&up), Condition::Draining),
            5..7 if up.len() > 1 => (self.pick(&up), Condition::FailingSince(self.now)),
            7..9 => (self.pick(&out), Condition::Up),
            9 => (self.pick(&draining), Condition::Gone),
            // A weight changes; at 11 nothing does: a reload.
            10 => {
                let id = self.pick(&up);
                let share = 1 + self.below(200) as u32;
                if let Some(member) = id.and_then(|id| self.members.get_mut(&id)) {
                    member.1 = share;
                }
                (None, Condition::Up)
            }
            _ => (None, Condition::Up),
        };
        if let Some(id) = id {
            let share = self.members.get(&id).map_or(100, |m| m.1);
            self.members.insert(id, (new, share));
        }
        self.apply(false)
    }

    /// The controller brings the maps to what it wants, by its own plan.
    fn apply(&mut self, is_first: bool) -> Result<()> {
        let key = ServiceKey::default();
        let entry = ServiceEntry {
            id: SERVICE,
            slot_size: SIZE,
            ..ServiceEntry::default()
        };
        let record = |id: u32, state: MemberState| MemberEntry {
            state: state.0,
            service: SERVICE,
            address: Addr::v4(id),
            ..MemberEntry::default()
        };
        let up: Vec<scheduler::Member> = self
            .members
            .iter()
            .filter(|(_, m)| m.0 == Condition::Up)
            .map(|(id, m)| scheduler::Member {
                identity: identity([10, 0, (id >> 8) as u8, *id as u8].into(), None),
                share: m.1,
                id: *id,
            })
            .collect();
        let members: Arc<[u32]> = maglev(&up, SIZE).into();
        let table = Table {
            offset: 0,
            stateless: false,
            keep: up.is_empty(),
            resets: self.resets,
            full: false,
            follows: false,
            made_of: Arc::new([]),
            members,
        };
        let desired = DesiredState {
            services: [(key, entry)].into(),
            members: self
                .members
                .keys()
                .map(|id| (*id, record(*id, self.state(*id))))
                .collect(),
            tables: [(SERVICE, table)].into(),
            ..DesiredState::default()
        };
        let slots = self.plant.slots()?;
        let snapshot = if is_first {
            MapSnapshot::default()
        } else {
            MapSnapshot {
                services: desired.services.clone(),
                // Every state is written anew; what it was doesn't matter.
                members: self
                    .members
                    .keys()
                    .map(|id| (*id, record(*id, MemberState(99))))
                    .collect(),
                slots: [(SERVICE, slots.clone())].into(),
                ..MapSnapshot::default()
            }
        };
        // A member that stopped serving owes its flows nothing, even if it
        // comes back before they notice.
        let flows = std::mem::take(&mut self.flows);
        let (flows, orphans): (Vec<Flow>, Vec<Flow>) = flows
            .into_iter()
            .partition(|f| self.state(f.member).serves());
        self.flows = flows;
        let mut orphans = [std::mem::take(&mut self.orphans), orphans].concat();
        orphans.retain(|f| self.resets && f.is_open && !self.state(f.member).serves());
        self.orphans = orphans;

        let mut words = BTreeMap::new();
        for op in plan(&desired, &snapshot) {
            match op {
                MapOp::SetMemberState(id, state) => self.plant.set_state(id, state)?,
                MapOp::WriteMember(id, entry) => {
                    self.plant.set_state(id, MemberState(entry.state))?;
                }
                MapOp::Slot(op) => {
                    let new = op.change.applied(slots[op.index as usize], self.now);
                    words.insert(op.index, new);
                }
                _ => {}
            }
        }
        if !words.is_empty() {
            self.report.changes += 1;
            if self.last_change != self.now {
                self.change_before = self.last_change;
            }
            self.last_change = self.now;
        }
        self.plant.set_slots(&words)
    }

    fn sweep(&mut self) -> Result<()> {
        let before = self.plant.slots()?;
        let slots: Vec<AtomicU64> = before.iter().map(|s| AtomicU64::new(s.0)).collect();
        let info = |id: u32| MemberInfo {
            state: self.state(id),
            service: SERVICE,
        };
        let members: Vec<MemberInfo> = (0..self.next_member).map(info).collect();
        let services = [ServiceInfo {
            id: SERVICE,
            offset: 0,
            size: SIZE,
            idle_units: IDLE_UNITS,
            idle_ticks: (IDLE_UNITS + 1) << UNIT_SHIFT,
            resets: self.resets,
            full: false,
            by_source: false,
        }];
        let nothing = MemoryTable::new(2);
        let (sweeper, now_ticks) = (&mut self.sweeper, self.now);
        self.plant.with_flows(&mut |flows| {
            sweeper.sweep(World {
                flows,
                reply_flows: &nothing,
                slots: &slots,
                members: &members,
                services: &services,
                loads: &[],
                half_units: HALF_UNITS,
                now_ticks,
            });
        })?;
        let mut changed = BTreeMap::new();
        for (index, (old, new)) in (0..).zip(before.iter().zip(slots)) {
            let new = SlotWord(new.into_inner());
            if new != *old {
                self.report.stabilised += u64::from(!new.is_tracked());
                changed.insert(index, new);
            }
        }
        self.plant.set_slots(&changed)
    }

    fn new_tuple(&mut self) -> Tuple {
        self.next_flow += 1;
        let random = self.rng.next_u64();
        Tuple {
            source: Addr::v4(
                u32::from_be_bytes([100, (random >> 8) as u8, (random >> 16) as u8, random as u8])
                    .to_be(),
            ),
            destination: Addr::v4(u32::from_be_bytes([192, 0, 2, 1]).to_be()),
            source_port: Be16::new(1024 + (self.next_flow % 60_000) as u16),
            destination_port: Be16::new(80),
            protocol: protocol::TCP,
            family: family::V4,
        }
    }

    fn send(&mut self, tuple: &Tuple, kind: Kind) -> Result<Option<u32>> {
        let member = self.plant.packet(tuple, kind)?;
        self.report.trace.push(member.unwrap_or(0));
        if let Some(id) = member
            && id != RESET
            && !self.state(id).serves()
        {
            self.violation(format!(
                "{kind:?} of {tuple:?} went to {id}, which serves nobody"
            ));
        }
        Ok(member)
    }

    fn violation(&mut self, what: String) {
        self.report
            .violations
            .push(format!("at {}: {what}", self.now));
    }

    /// A client connects.
    fn open(&mut self) -> Result<()> {
        let tuple = self.new_tuple();
        let (_, refused) = self.plant.events()?;
        let Some(member) = self.send(&tuple, Kind::Syn)? else {
            return Ok(());
        };
        self.report.flows += 1;
        let state = self.state(member);
        // In the window the first SYN may have gone to the base. A refused
        // insertion leaves the flow with the base.
        let is_settled = self.now - self.last_change >= SYN_WINDOW;
        let has_choice = self.members.values().any(|m| m.0 == Condition::Up);
        if is_settled && has_choice && !state.takes_new() && self.plant.events()?.1 == refused {
            self.violation(format!("a new flow went to {member}, which is {state:?}"));
        }
        let now = self.now;
        self.flows.push(Flow {
            tuple,
            member,
            seen: now,
            first_syn: now,
            is_open: false,
        });
        Ok(())
    }

    /// A client sends on its connection.
    fn talk(&mut self) -> Result<()> {
        let index = self.below(self.flows.len() as u64) as usize;
        let flow = self.flows[index].clone();
        // Idle for too long, or its server gone: no promise.
        let promised = if flow.is_open { IDLE_TICKS } else { HANDSHAKE };
        if self.now - flow.seen >= promised || !self.state(flow.member).serves() {
            self.flows.swap_remove(index);
            return Ok(());
        }
        let retransmits = !flow.is_open && self.now - flow.first_syn < 60 && self.below(10) < 3;
        let kind = match self.below(20) {
            _ if retransmits => Kind::Syn,
            0..17 => Kind::Data,
            17..19 => Kind::Fin,
            _ => Kind::Rst,
        };
        let member = self.send(&flow.tuple, kind)?;
        if self.last_change > flow.first_syn {
            self.report.found += 1;
        }
        // Nobody answered the first SYN yet: the flow may still move.
        if kind == Kind::Syn && member.is_some() && member != Some(flow.member) {
            self.report.half_open_moved += 1;
            // In the window the answer to the first SYN may be under way.
            // (Only where nothing changed between the last SYN and that change.)
            let in_window =
                self.now - self.last_change < SYN_WINDOW && flow.seen > self.change_before;
            if in_window && !self.state(flow.member).is_down() && self.plant.events()?.1 == 0 {
                self.violation(format!(
                    "a SYN of {flow:?} right after a change went to {member:?}"
                ));
            }
            let now = self.now;
            let moved = &mut self.flows[index];
            moved.member = member.unwrap_or(0);
            moved.seen = now;
            return Ok(());
        }
        if member != Some(flow.member) {
            self.violation(format!("{kind:?} of {flow:?} went to {member:?}"));
        }
        let now = self.now;
        let flow = &mut self.flows[index];
        flow.seen = now;
        flow.is_open |= kind != Kind::Syn;
        let ends = kind == Kind::Rst || (kind == Kind::Fin && self.below(2) == 0);
        if ends {
            self.flows.swap_remove(index);
        }
        Ok(())
    }

    /// A client sends on a connection whose server was given up.
    fn orphan(&mut self) -> Result<()> {
        let index = self.below(self.orphans.len() as u64) as usize;
        let flow = self.orphans[index].clone();
        if self.now - flow.seen >= IDLE_TICKS {
            self.orphans.swap_remove(index);
            return Ok(());
        }
        let kind = if self.below(5) == 0 {
            Kind::Fin
        } else {
            Kind::Data
        };
        let member = self.send(&flow.tuple, kind)?;
        self.report.reset += u64::from(member == Some(RESET));
        // A refused insertion ends it for the flows of that slot.
        if member != Some(RESET) && self.plant.events()?.1 == 0 {
            self.violation(format!(
                "{kind:?} of {flow:?}, which is gone, went to {member:?}"
            ));
        }
        Ok(())
    }

    /// Somebody sends a SYN with the tuple of a connection that has an entry.
    fn spoof(&mut self) -> Result<()> {
        let (_, refused) = self.plant.events()?;
        let known: Vec<usize> = (0..self.flows.len())
            .filter(|i| {
                let flow = &self.flows[*i];
                let is_promised = self.now - flow.seen < IDLE_TICKS;
                // It has an entry if it sent since the last change, or its
                // slot is stable and the spoofed SYN makes none.
                refused == 0 && flow.is_open && is_promised && flow.seen > self.last_change
            })
            .collect();
        let Some(index) = self.pick(&known) else {
            return Ok(());
        };
        let flow = self.flows[index].clone();
        if !self.state(flow.member).takes_new() {
            return Ok(());
        }
        let member = self.send(&flow.tuple, Kind::Syn)?;
        if member != Some(flow.member) {
            self.violation(format!("a spoofed SYN of {flow:?} went to {member:?}"));
        }
        Ok(())
    }

    /// A burst of SYNs or ACKs that belong to nobody.
    fn flood(&mut self, packets: u32) -> Result<()> {
        let kind = if self.below(2) == 0 {
            Kind::Syn
        } else {
            Kind::Data
        };
        for _ in 0..packets {
            let tuple = self.new_tuple();
            self.send(&tuple, kind)?;
        }
        Ok(())
    }
}
