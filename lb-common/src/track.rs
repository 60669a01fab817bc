//! Just-enough tracking: which member a packet in a tracked slot goes to.
//!
//! In a stable slot every flow belongs to the slot's current member and
//! nothing here is called. In a tracked one these rules hold (docs/ARCHITECTURE.md
//! has the reasons):
//!
//! - `miss` = the slot's base while it serves its old flows, else the current member.
//! - A packet with a live entry goes to the entry's member while that serves. A
//!   SYN too, unless the member takes no new flows and the entry is closing, or
//!   the member fails its checks and nobody ever followed up the first SYN.
//! - A SYN without an entry goes to the current member, with an entry; in the
//!   first three seconds after the change to the base, with an entry, while
//!   that is not down: the first SYN may have gone there. If no entry can be
//!   made it goes to `miss`.
//! - Any other packet without an entry goes to `miss`, and gets an entry where
//!   that is the base. An RST never makes one.
//! - Where base and current member are the same, no entry has to be made: the
//!   slot itself tells.
//! - A refused insertion makes the slot's time now, so that it stays tracked
//!   until the flow, which has no entry, can be told from new ones.
//! - Where flows of a member that serves nobody any more are to be reset, a
//!   packet that isn't a SYN goes to that member, which tells the caller: by its
//!   live entry, or without one by the slot's base. A refused insertion ends
//!   that: the flow without an entry is the current member's, which becomes the base.
//! - A datagram of a service that tracks UDP may be either: without an entry it
//!   is taken for an old flow's for one idle period after the change, and for a
//!   new flow's from then on.
//!
//! Services with full tracking have rules of their own: [`full`].
//!
//! The invariant: a flow that is idle for less than its time-out never changes
//! its member while that member serves it, whatever the pressure on the table.

use crate::{
    clock::UNIT_SHIFT,
    flow::{self, FlowKey, FlowTable, FlowWord, Found, Idle, Mark, Place},
    member::MemberState,
    net::tcp_flags,
    slot::SlotWord,
};

pub mod full;

/// What a packet means to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a TCP connection: SYN without ACK, RST and FIN.
    Syn,
    /// Anything in between.
    Data,
    /// The sender is done.
    Fin,
    /// The connection is broken off.
    Rst,
    /// UDP: nothing tells the first from the rest.
    Datagram,
}

impl Kind {
    /// From TCP's flags byte.
    #[inline(always)]
    pub const fn of_tcp(flags: u8) -> Self {
        if flags & tcp_flags::RST != 0 {
            Self::Rst
        } else if flags & tcp_flags::FIN != 0 {
            Self::Fin
        } else if flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN {
            Self::Syn
        } else {
            Self::Data
        }
    }

    /// The reverse of `as u32`.
    #[inline(always)]
    pub const fn of_number(number: u32) -> Self {
        match number {
            0 => Self::Syn,
            1 => Self::Data,
            2 => Self::Fin,
            3 => Self::Rst,
            _ => Self::Datagram,
        }
    }

    /// What it leaves in the flow's entry.
    #[inline(always)]
    pub const fn mark(self) -> Mark {
        match self {
            Self::Syn => Mark::Half,
            Self::Data | Self::Datagram => Mark::Open,
            Self::Fin | Self::Rst => Mark::Closing,
        }
    }
}

/// The times the rules use.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Now.
    pub now_ticks: u32,
    /// See [`crate::clock::SYN_WINDOW_MS`].
    pub syn_window_ticks: u32,
    /// Idle times of the packet's service.
    pub idle: Idle,
    /// Idle times beyond which an entry of any service has expired.
    pub longest_idle: Idle,
}

/// The tables around a decision.
pub trait World {
    /// The flow table.
    type Flows: FlowTable;

    /// The flow table.
    fn flows(&self) -> &Self::Flows;

    /// State of a member; [`MemberState::FREE`] for an id out of range.
    fn state(&self, member: u32) -> MemberState;

    /// Whether the member belongs to the packet's service: a tag may match an
    /// entry of another one.
    fn is_ours(&self, member: u32) -> bool;

    /// Whether packets of flows whose member serves nobody any more are to be
    /// told from others, and not moved.
    fn resets(&self) -> bool;

    /// Replaces the packet's slot if it is still `current`; whether it was.
    fn replace_slot(&self, current: SlotWord, new: SlotWord) -> bool;
}

/// Where the packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The member. One that doesn't serve, where there is no other or
    /// [`World::resets`] asks for it.
    pub member: u32,
    /// What happened to the flow table.
    pub entry: Entry,
}

/// What a decision did to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing was there and nothing was made.
    None,
    /// A live entry decided.
    Found,
    /// An entry was made.
    Inserted,
    /// An entry should have been made, but there was no room.
    Refused,
    /// Nobody had room for another connection: the packet has no member.
    NoRoom,
    /// The service takes no new flow now, for the reason that stands in the
    /// member's place.
    Limited,
}

/// Whether a packet without an entry belongs to a flow of before the slot's
/// last change, as far as its kind tells.
#[inline(always)]
fn is_old(slot: SlotWord, kind: Kind, times: Times) -> bool {
    match kind {
        Kind::Syn => false,
        Kind::Datagram => slot.age(times.now_ticks) <= (times.idle.open_units + 1) << UNIT_SHIFT,
        Kind::Data | Kind::Fin | Kind::Rst => true,
    }
}

/// Whether a live entry decides on a packet of this kind.
#[inline(always)]
fn keeps(entry: FlowWord, state: MemberState, kind: Kind) -> bool {
    kind != Kind::Syn
        || state.takes_new()
        || (!entry.is_closing() && (entry.is_confirmed() || !state.is_down()))
}

/// Puts an entry in the place of the flow's expired one, so that no flow has
/// two, or in a free place.
#[inline(always)]
fn put<W: World>(
    world: &W,
    stale: Option<Found<<W::Flows as FlowTable>::Bucket>>,
    key: FlowKey,
    entry: FlowWord,
    place: Place,
    times: Times,
) -> bool {
    let flows = world.flows();
    match stale {
        Some(found) => flows.exchange(found.bucket, found.word, found.entry, entry, place),
        None => flow::insert(
            flows,
            key,
            entry,
            place,
            times.now_ticks,
            times.longest_idle,
        ),
    }
}

/// Keeps the slot tracked for a flow that got no entry. False where that failed
/// and the flow would be reset for it: the packet is to go to the base, which
/// doesn't serve, and its client will ask again.
#[inline(always)]
fn press<W: World>(world: &W, slot: SlotWord, base_serves: bool, times: Times) -> bool {
    if !base_serves {
        // From here on what has no entry is the current member's. If it is
        // another one's slot by now, this flow would be taken for one of the base.
        let rebased = slot.pressed(times.now_ticks).rebased();
        return world.replace_slot(slot, rebased) || !world.resets();
    }
    // Within the window the slot's time is recent enough as it is, and the
    // window must not be cut short for the other flows.
    if slot.is_pressed() || slot.age(times.now_ticks) >= times.syn_window_ticks {
        let pressed = slot.pressed(times.now_ticks);
        if pressed != slot {
            world.replace_slot(slot, pressed);
        }
    }
    true
}

/// Decides on a packet in a tracked slot. `slot` is the word as read once; all
/// of the decision rests on that one value.
#[inline(always)]
pub fn decide<W: World>(
    world: &W,
    slot: SlotWord,
    key: FlowKey,
    kind: Kind,
    times: Times,
) -> Decision {
    let flows = world.flows();
    let found = flow::find(flows, key, |entry| world.is_ours(entry.member()));
    let mut stale = None;
    if let Some(found) = found {
        let entry = found.entry;
        let state = world.state(entry.member());
        let live = entry.is_live(times.now_ticks, times.idle);
        if live && state.serves() && keeps(entry, state, kind) {
            flow::touch(flows, &found, times.now_ticks, kind.mark());
            return Decision {
                member: entry.member(),
                entry: Entry::Found,
            };
        }
        if live && !state.serves() && kind != Kind::Syn && world.resets() {
            return Decision {
                member: entry.member(),
                entry: Entry::None,
            };
        }
        stale = Some(found);
    }

    let base = world.state(slot.base());
    let miss = if base.serves() {
        slot.base()
    } else {
        slot.current()
    };
    if !base.serves() && kind != Kind::Syn && world.resets() {
        return Decision {
            member: slot.base(),
            entry: Entry::None,
        };
    }
    let wanted = if !is_old(slot, kind, times) {
        let just_changed = !slot.is_pressed() && slot.age(times.now_ticks) < times.syn_window_ticks;
        if kind == Kind::Syn && just_changed && base.serves() && !base.is_down() {
            slot.base()
        } else {
            slot.current()
        }
    } else if kind != Kind::Rst && miss == slot.base() {
        miss
    } else {
        return Decision {
            member: miss,
            entry: Entry::None,
        };
    };

    // Where all old flows are known, whoever isn't is the slot's.
    if stale.is_none() && slot.base() == slot.current() {
        return Decision {
            member: wanted,
            entry: Entry::None,
        };
    }
    let entry = FlowWord::new(key.tag, wanted, times.now_ticks, kind.mark());
    if put(world, stale, key, entry, Place::Free, times) {
        return Decision {
            member: wanted,
            entry: Entry::Inserted,
        };
    }
    if !press(world, slot, base.serves(), times) {
        return Decision {
            member: slot.base(),
            entry: Entry::Refused,
        };
    }
    Decision {
        member: miss,
        entry: Entry::Refused,
    }
}

/// Where a packet in a tracked slot belongs that is no sign of life of its flow,
/// such as an ICMP error about it. Changes nothing.
#[inline(always)]
pub fn peek<W: World>(world: &W, slot: SlotWord, key: FlowKey, times: Times) -> u32 {
    let found = flow::find(world.flows(), key, |entry| world.is_ours(entry.member()));
    // One that doesn't serve: the packet of the flow would be told so.
    if let Some(found) = found
        && found.entry.is_live(times.now_ticks, times.idle)
        && (world.state(found.entry.member()).serves() || world.resets())
    {
        return found.entry.member();
    }
    if world.state(slot.base()).serves() || world.resets() {
        slot.base()
    } else {
        slot.current()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{BUCKET_WORDS, Place, memory::MemoryTable};

    const IDLE: Idle = Idle {
        open_units: 20,
        half_units: 9,
    };

    struct Small {
        flows: MemoryTable,
        states: Vec<MemberState>,
        slot_changes: Cell<u32>,
        resets: bool,
    }

    impl World for Small {
        type Flows = MemoryTable;

        fn flows(&self) -> &MemoryTable {
            &self.flows
        }

        fn state(&self, member: u32) -> MemberState {
            self.states[member as usize]
        }

        fn is_ours(&self, member: u32) -> bool {
            member != 5
        }

        fn resets(&self) -> bool {
            self.resets
        }

        fn replace_slot(&self, _: SlotWord, _: SlotWord) -> bool {
            self.slot_changes.set(self.slot_changes.get() + 1);
            true
        }
    }

    fn words(flows: &MemoryTable) -> Vec<u64> {
        let of = |bucket| (0..BUCKET_WORDS).map(move |word| (bucket, word));
        (0..flows.buckets())
            .flat_map(of)
            .map(|(bucket, word)| flows.load(bucket, word))
            .collect()
    }

    proptest! {
        #[test]
        fn a_peek_names_the_member_that_a_packet_of_the_flow_would_go_to_and_changes_nothing(
            states in proptest::collection::vec(0u64..8, 6), entries in 0usize..20,
            // Tag, member, tick, whether a SYN was all.
            seeds in proptest::collection::vec((0u32..3, 1u32..6, 0u32..200, any::<bool>()), 20),
            (current, base, changed) in (1u32..6, 1u32..6, 0u32..200),
            (tag, now, pressed, resets) in (0u32..3, 200u32..400, any::<bool>(), any::<bool>()),
        ) {
            let world = Small {
                flows: MemoryTable::new(2),
                states: states.into_iter().map(MemberState).collect(),
                slot_changes: Cell::new(0),
                resets,
            };
            for (tag, member, ticks, half) in seeds.into_iter().take(entries) {
                let key = FlowKey { tag, home: tag % 2 };
                let mark = if half { Mark::Half } else { Mark::Open };
                let entry = FlowWord::new(tag, member, ticks, mark);
                flow::insert(&world.flows, key, entry, Place::Free, ticks, IDLE);
            }
            let mut slot = SlotWord::tracked(current, base, changed);
            if pressed {
                slot = slot.pressed(changed);
            }
            let times = Times { now_ticks: now, syn_window_ticks: 4, idle: IDLE, longest_idle: IDLE };
            let key = FlowKey { tag, home: tag % 2 };
            let before = words(&world.flows);
            let peeked = peek(&world, slot, key, times);
            prop_assert_eq!(before, words(&world.flows));
            prop_assert_eq!(world.slot_changes.get(), 0);
            // An RST never makes an entry: where it goes is where the flow is.
            let decided = decide(&world, slot, key, Kind::Rst, times);
            prop_assert_eq!(peeked, decided.member);
        }
    }
}
