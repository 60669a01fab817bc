//! Full tracking: every flow has an entry, and the scheduler decides on new
//! ones. `miss` is the slot's member, as under just-enough tracking: whoever
//! has no entry goes there, so a flow without one stays where it is, too.
//!
//! - A packet with a live entry goes to the entry's member while that serves. A
//!   SYN on the entry of a connection that was closing opens another one there,
//!   if there is room for it.
//! - A SYN without an entry goes to the member on its source's server, where there
//!   is persistence, else to the one that the scheduler chooses, with
//!   a half-open entry that lives for one unit to two. If no entry can be made,
//!   or there are too many half-open ones, it goes to `miss` uncounted; if that
//!   has no room, nowhere.
//! - Any other packet without an entry goes to `miss`. While the slot has old
//!   flows to tell from new ones, these get an entry for good; in other slots
//!   one that isn't sure of its flow, lives as briefly as a half-open one and is
//!   counted from the flow's next packet on. So stray packets leave nothing.
//! - Nobody takes new flows: they go to the slot's member while that serves.
//! - Where flows of a dead member are to be reset, packets of theirs go to that
//!   member, as under just-enough tracking.

use super::{Decision, Entry, Kind, Times, World, is_old, keeps, press};
use crate::{
    flow::{self, CONTROL, FlowKey, FlowTable, FlowWord, Found, Mark, Place},
    load::{self, Room},
    schedule::Choice,
    slot::SlotWord,
};

/// The service of the packet.
pub trait Service: World {
    /// The flow's entry; in the place of the home's control word where it has
    /// none. `None`: there is no such bucket.
    #[inline(always)]
    fn find(&self, key: FlowKey) -> Option<Found<<Self::Flows as FlowTable>::Bucket>> {
        let flows = self.flows();
        let bucket = flows.bucket(key.home)?;
        let found = flow::find(flows, key, |entry| self.is_ours(entry.member()));
        Some(found.unwrap_or(Found {
            bucket,
            word: CONTROL,
            entry: FlowWord::EMPTY,
        }))
    }

    /// Puts an entry in a free place; see [`flow::insert`].
    #[inline(always)]
    fn insert(&self, key: FlowKey, entry: FlowWord, place: Place, times: Times) -> bool {
        let (now, longest) = (times.now_ticks, times.longest_idle);
        flow::insert(self.flows(), key, entry, place, now, longest)
    }

    /// The member on the server that the packet's source has, whose place is
    /// taken then; zero: there is none, or it has no room. See [`crate::persist`].
    #[inline(always)]
    fn rejoin(&self, _by: u64) -> u32 {
        0
    }

    /// A flow of the packet's source is alive at this member.
    #[inline(always)]
    fn remember(&self, _member: u32) {}

    /// Chooses a member for a new flow; see [`crate::schedule::choose`].
    fn choose(&self, hash: u64, home: u32, by: u64) -> Choice;

    /// Whether the service takes a new flow now: zero, or a reason. It counts
    /// as one that was taken.
    #[inline(always)]
    fn limit(&self) -> u32 {
        0
    }

    /// Whether the member has fewer connections than it may.
    fn has_room(&self, member: u32) -> bool;

    /// Takes a place for one more connection, if there is room: a
    /// [`Room`] as a number; see [`load::admit`].
    fn admit(&self, member: u32, by: u64) -> u32;

    /// Gives back a place that [`Self::admit`] or [`Self::choose`] took.
    fn give_back(&self, member: u32, by: u64);

    /// What is left where nobody takes new flows: the slot's member, while it
    /// serves.
    #[inline(always)]
    fn slots_own(&self, member: u32, by: u64) -> Choice {
        if !self.state(member).serves() {
            return Choice::NOBODY;
        }
        let room = self.admit(member, by);
        if room == Room::Taken as u32 {
            Choice(member)
        } else if room == Room::Full as u32 {
            Choice::FULL
        } else {
            Choice::CROWDED
        }
    }
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
    // Plain values of one shape, so that the data path's verifier goes on from
    // here once.
    let Some(Found {
        bucket,
        word,
        entry,
    }) = world.find(key)
    else {
        return nothing(slot.current());
    };
    let word = flows.blur(word);
    let entry = FlowWord(flows.hide(entry.0));
    if word != CONTROL {
        let state = world.state(entry.member());
        let decides = entry.is_live(times.now_ticks, times.idle)
            && state.serves()
            && keeps(entry, state, kind)
            && !(kind == Kind::Syn && entry.is_unsure());
        let opens_again = kind == Kind::Syn && entry.is_closing();
        if decides
            && (!opens_again || world.admit(entry.member(), load::OPEN) == Room::Taken as u32)
        {
            let new = entry.seen(times.now_ticks, kind.mark()).full();
            let place = if opens_again {
                Place::Reserved
            } else {
                Place::Free
            };
            if new != entry {
                let done = flows.exchange(bucket, word, entry, new, place);
                if !done && opens_again {
                    world.give_back(entry.member(), load::OPEN);
                }
                // A packet that follows up another one; forged ones would have to
                // come in pairs.
                if done && kind != Kind::Syn && kind != Kind::Rst && new.is_confirmed() {
                    world.remember(entry.member());
                }
            }
            return Decision {
                member: entry.member(),
                entry: Entry::Found,
            };
        }
        let is_dead = entry.is_live(times.now_ticks, times.idle) && !state.serves();
        if is_dead && kind != Kind::Syn && world.resets() {
            return nothing(entry.member());
        }
    }

    let is_true = |condition: bool| flows.hide(u64::from(condition)) != 0;
    let base_serves = is_true(world.state(slot.base()).serves());
    let miss = if base_serves {
        slot.base()
    } else {
        slot.current()
    };
    if !base_serves && kind != Kind::Syn && world.resets() {
        return nothing(slot.base());
    }
    let has_old_flows = is_true(slot.is_tracked() && slot.base() != slot.current() && base_serves);
    let opens = !is_old(slot, kind, times) || (kind == Kind::Datagram && !has_old_flows);
    let opens = is_true(opens);
    let mark = kind.mark();
    let by = if mark == Mark::Half {
        load::HALF
    } else {
        load::OPEN
    };
    let mut wanted = miss;
    if opens {
        let reason = world.limit();
        if reason != 0 {
            return Decision {
                member: reason,
                entry: Entry::Limited,
            };
        }
        let mut choice = Choice(world.rejoin(by));
        if choice == Choice::NOBODY {
            choice = world.choose(hash, slot.current(), by);
        }
        if choice == Choice::NOBODY {
            choice = world.slots_own(slot.current(), by);
        }
        if choice == Choice::NOBODY {
            return nothing(miss);
        }
        if choice == Choice::FULL {
            return NO_ROOM;
        }
        if choice == Choice::CROWDED {
            return refused(world, slot, base_serves, opens, times);
        }
        wanted = choice.0;
    }
    let mut new = FlowWord::new(key.tag, wanted, times.now_ticks, mark).full();
    let is_known = opens || (has_old_flows && kind != Kind::Rst);
    if !is_known {
        if mark != Mark::Open {
            return nothing(miss);
        }
        new = new.unsure();
    }
    let place = if opens { Place::Reserved } else { Place::Free };
    let new = FlowWord(flows.hide(new.0));
    let done = if word != CONTROL {
        flows.exchange(bucket, word, entry, new, place)
    } else {
        world.insert(key, new, place, times)
    };
    if done {
        return Decision {
            member: wanted,
            entry: Entry::Inserted,
        };
    }
    if opens {
        world.give_back(wanted, by);
    }
    refused(world, slot, base_serves, opens, times)
}

const NO_ROOM: Decision = Decision {
    member: 0,
    entry: Entry::NoRoom,
};

#[inline(always)]
const fn nothing(member: u32) -> Decision {
    Decision {
        member,
        entry: Entry::None,
    }
}

/// A flow gets no entry: it goes to the slot's own, if that may have another one.
#[inline(always)]
fn refused<W: Service>(
    world: &W,
    slot: SlotWord,
    base_serves: bool,
    opens: bool,
    times: Times,
) -> Decision {
    let mut miss = if base_serves {
        slot.base()
    } else {
        slot.current()
    };
    if opens && !world.has_room(miss) {
        return NO_ROOM;
    }
    if slot.is_tracked() && !press(world, slot, base_serves, times) {
        miss = slot.base();
    }
    Decision {
        member: miss,
        entry: Entry::Refused,
    }
}

#[cfg(test)]
#[path = "full_tests.rs"]
mod tests;
