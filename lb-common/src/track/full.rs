//! Full tracking: every flow has an entry, and the scheduler decides on new
//! ones. `miss` is the slot's member, as under just-enough tracking: whoever
//! has no entry goes there, so a flow without one stays where it is, too.
//!
//! - A packet with a live entry goes to the entry's member while that serves. A
//!   SYN on the entry of a connection that was closing opens another one there,
//!   if there is room for it.
//! - A SYN without an entry goes to the member that the scheduler chooses, with
//!   a half-open entry that lives for one unit to two. If no entry can be made,
//!   or there are too many half-open ones, it goes to `miss` uncounted; if that
//!   has no room, nowhere.
//! - Any other packet without an entry goes to `miss`. While the slot has old
//!   flows to tell from new ones, these get an entry for good; in other slots
//!   one that isn't sure of its flow, lives as briefly as a half-open one and is
//!   counted from the flow's next packet on. So stray packets leave nothing.
//! - Nobody takes new flows: they go to the slot's member while that serves.

use super::{Decision, Entry, Kind, Times, World, is_old, keeps, press, put};
use crate::{
    flow::{self, FlowKey, FlowWord, Mark, Place},
    load::{self, Room},
    schedule::{Choice, Members},
    slot::SlotWord,
};

/// The service of the packet.
pub trait Service: World + Members {
    /// Chooses a member for a new flow; see [`crate::schedule::choose`].
    fn choose(&self, hash: u64, home: u32, by: u64) -> Choice;

    /// Whether the member has fewer connections than it may.
    fn has_room(&self, member: u32) -> bool;

    /// Takes a place for one more connection, if there is room: a
    /// [`Room`] as a number; see [`load::admit`].
    fn admit(&self, member: u32, by: u64) -> u32;
}

/// What is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The packet's slot, read once.
    pub slot: SlotWord,
    /// The flow's hash, for the choice.
    pub hash: u64,
    /// What the flow is known by.
    pub key: FlowKey,
    /// What the packet means.
    pub kind: Kind,
}

/// Decides on a packet of a service with full tracking.
#[inline(always)]
pub fn decide<W: Service>(world: &W, question: Question, times: Times) -> Decision {
    let Question {
        slot,
        hash,
        key,
        kind,
    } = question;
    let flows = world.flows();
    let found = flow::find(flows, key, |entry| world.is_ours(entry.member()));
    let mut stale = None;
    if let Some(found) = found {
        let entry = found.entry;
        let state = world.state(entry.member());
        let unsure = kind == Kind::Syn && entry.is_unsure();
        if entry.is_live(times.now_ticks, times.idle)
            && state.serves()
            && keeps(entry, state, kind)
            && !unsure
        {
            let new = entry.seen(times.now_ticks, kind.mark()).full();
            let opens_again = kind == Kind::Syn && entry.is_closing();
            let place = if opens_again {
                Place::Reserved
            } else {
                Place::Free
            };
            if !opens_again || world.admit(entry.member(), load::OPEN) == Room::Taken as u32 {
                if new != entry
                    && !flow::exchange(flows, found.bucket, found.word, entry, new, place)
                    && opens_again
                {
                    load::give_back(world, entry.member(), load::OPEN);
                }
                return Decision {
                    member: entry.member(),
                    entry: Entry::Found,
                };
            }
        }
        stale = Some(found);
    }

    let base_serves = world.state(slot.base()).serves();
    let miss = if base_serves {
        slot.base()
    } else {
        slot.current()
    };
    let has_old_flows = slot.is_tracked() && slot.base() != slot.current() && base_serves;
    let opens = !is_old(slot, kind, times) || (kind == Kind::Datagram && !has_old_flows);
    let mark = kind.mark();
    if opens {
        let by = if mark == Mark::Half {
            load::HALF
        } else {
            load::OPEN
        };
        let mut choice = world.choose(hash, slot.current(), by);
        if choice == Choice::NOBODY && world.state(slot.current()).serves() {
            let room = world.admit(slot.current(), by);
            choice = if room == Room::Taken as u32 {
                Choice(slot.current())
            } else if room == Room::Full as u32 {
                Choice::FULL
            } else {
                Choice::CROWDED
            };
        }
        if choice.is_member() {
            let entry = FlowWord::new(key.tag, choice.0, times.now_ticks, mark).full();
            if put(world, stale, key, entry, Place::Reserved, times) {
                return Decision {
                    member: choice.0,
                    entry: Entry::Inserted,
                };
            }
            load::give_back(world, choice.0, by);
        }
        if choice == Choice::NOBODY {
            return Decision {
                member: miss,
                entry: Entry::None,
            };
        }
        if choice == Choice::FULL || !world.has_room(miss) {
            return Decision {
                member: 0,
                entry: Entry::NoRoom,
            };
        }
    } else {
        let entry = FlowWord::new(key.tag, miss, times.now_ticks, mark).full();
        let entry = if has_old_flows && kind != Kind::Rst {
            entry
        } else if mark == Mark::Open {
            entry.unsure()
        } else {
            return Decision {
                member: miss,
                entry: Entry::None,
            };
        };
        if put(world, stale, key, entry, Place::Free, times) {
            return Decision {
                member: miss,
                entry: Entry::Inserted,
            };
        }
    }
    if slot.is_tracked() {
        press(world, slot, times);
    }
    Decision {
        member: miss,
        entry: Entry::Refused,
    }
}

#[cfg(test)]
#[path = "full_tests.rs"]
mod tests;
