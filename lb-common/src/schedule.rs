//! Which member gets a new flow, under full tracking.
//!
//! The scheduler names one member; where that may take no more, the others of
//! its priority group are asked one after another, then the next group. All of
//! this is for new flows alone.

use crate::{
    hash::scale,
    load::{self, Meter, Room},
};

/// Values of `ServiceEntry::scheduler`.
pub mod scheduler {
    /// The slot of the flow's hash.
    pub const MAGLEV: u8 = 0;
    /// The slots in turn.
    pub const ROUND_ROBIN: u8 = 1;
    /// The least loaded of some slots' members.
    pub const LEAST_CONNECTIONS: u8 = 2;
}

/// Priority groups that a service may have.
pub const GROUPS: usize = 4;

/// Members of one group that are asked for room.
pub const LOOKS: u32 = 32;

/// Steps of the search for room: every group's looks, and the way from one
/// group to the next.
const STEPS: u32 = GROUPS as u32 * (LOOKS + 1);

/// How a service chooses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// See [`scheduler`].
    pub scheduler: u8,
    /// Slots in turn, from the first on; zero where there are no turns.
    pub cycle: u32,
    /// Slots of the table.
    pub slots: u32,
    /// Members listed in each priority group, the first group's first; all
    /// zero where there are no limits.
    pub groups: [u16; GROUPS],
}

/// The members of a service.
pub trait Members: Meter {
    /// Current member of slot `index` of the service's table.
    fn in_slot(&self, index: u32) -> u32;

    /// Member `index` of the service's list, the groups one after another.
    fn listed(&self, index: u32) -> u32;

    /// The number of this turn: each is given to one flow.
    fn turn(&self) -> u64;

    /// Asks a member for a place; see [`ask`].
    fn ask(&self, member: u32, by: u64) -> u32;

    /// What a member weighs under least connections; see [`weigh`].
    fn weigh(&self, member: u32) -> u64;

    /// The same number. The data path hides it from the verifier here.
    #[inline(always)]
    fn blur(&self, number: u64) -> u64 {
        number
    }
}

/// In the place of a [`Room`]: the member takes no new flows.
pub const NOT_ASKED: u32 = 0;

/// A [`Room`] or [`NOT_ASKED`], as a number: the member's place is taken, if it
/// `takes_new` flows and has room for another.
#[inline(always)]
pub fn ask<M: Meter>(meter: &M, takes_new: bool, member: u32, by: u64) -> u32 {
    if takes_new {
        load::admit(meter, member, by) as u32
    } else {
        NOT_ASKED
    }
}

/// In the place of a weighing: the member isn't to be compared.
const NOT_WEIGHED: u64 = u64::MAX;

/// A member's connections in the upper half, its weight in the lower; nothing
/// to compare where it takes no new flows or its backend has as many as it may.
#[inline(always)]
pub fn weigh<M: Meter>(meter: &M, takes_new: bool, member: u32, weight: u32) -> u64 {
    if !takes_new || !load::has_room(meter, member) {
        return NOT_WEIGHED;
    }
    let weight = if weight == 0 { 1 } else { weight };
    u64::from(meter.counts(member).total()) << 32 | u64::from(weight)
}

/// Who gets a new flow: a member, whose place is taken, or why nobody does.
/// One word, since the data path's verifier has no place for payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice(pub u32);

impl Choice {
    /// Nobody takes new flows.
    pub const NOBODY: Self = Self(0);
    /// Everybody who takes new flows has as many connections as it may.
    pub const FULL: Self = Self(u32::MAX);
    /// Somebody has room, but too many half-open connections.
    pub const CROWDED: Self = Self(u32::MAX - 1);

    /// The member's id, if it is one.
    #[inline(always)]
    pub const fn is_member(self) -> bool {
        self.0 != 0 && self.0 < Self::CROWDED.0
    }
}

/// Chooses and takes a place for one connection, counted as `by`
/// ([`load::HALF`] or [`load::OPEN`]). `hash` is the flow's, `home` its slot's
/// member.
#[inline(always)]
pub fn choose<M: Members>(members: &M, policy: &Policy, hash: u64, home: u32, by: u64) -> Choice {
    let first = match policy.scheduler {
        scheduler::ROUND_ROBIN if policy.cycle != 0 => {
            members.in_slot((members.turn() % u64::from(policy.cycle)) as u32)
        }
        scheduler::LEAST_CONNECTIONS => least_loaded(members, policy.slots, hash, home),
        _ => home,
    };
    let room = members.ask(first, by);
    if room == Room::Taken as u32 {
        return Choice(first);
    }
    others(members, policy, hash, by, room)
}

/// The member of some slots that has the fewest connections for its weight.
#[inline(always)]
fn least_loaded<M: Members>(members: &M, slots: u32, hash: u64, home: u32) -> u32 {
    let mut best = Best {
        member: home,
        load: NOT_WEIGHED,
        draw: hash as u32 ^ (hash >> 32) as u32,
    };
    // No loop: Linux 6.1 takes those of one form only, which the compiler may
    // turn this one out of.
    best = best.or_another(members, slots);
    best = best.or_another(members, slots);
    best = best.or_another(members, slots);
    best = best.or_another(members, slots);
    best.member
}

/// The best of the members that were looked at.
#[derive(Clone, Copy)]
struct Best {
    member: u32,
    load: u64,
    /// What the next slot is drawn from.
    draw: u32,
}

impl Best {
    #[inline(always)]
    fn or_another<M: Members>(self, members: &M, slots: u32) -> Self {
        // A full-period generator (Numerical Recipes' constants), whose upper
        // bits are what `scale` uses.
        let draw = self
            .draw
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let member = members.in_slot(scale(draw, slots));
        let load = members.weigh(member);
        let best = members.blur(self.load);
        // connections / weight, without a division.
        let is_less = (load >> 32) * (best & 0xffff_ffff) < (best >> 32) * (load & 0xffff_ffff);
        if load != NOT_WEIGHED && (best == NOT_WEIGHED || is_less) {
            Self { member, load, draw }
        } else {
            Self {
                load: best,
                draw,
                ..self
            }
        }
    }
}

/// Asks the listed members, group by group, from a place that the hash tells.
/// `met` is what the first member said.
#[inline(always)]
fn others<M: Members>(members: &M, policy: &Policy, hash: u64, by: u64, met: u32) -> Choice {
    let mut met = met;
    let mut group = 0;
    let mut base = 0;
    let mut size = u32::from(policy.groups[0]);
    let mut at = scale(hash as u32, size);
    let mut looks = 0;
    let mut step = 0;
    while step < STEPS {
        step += 1;
        group = members.blur(u64::from(group)) as u32;
        looks = members.blur(u64::from(looks)) as u32;
        met = members.blur(u64::from(met)) as u32;
        base = members.blur(u64::from(base)) as u32;
        size = members.blur(u64::from(size)) as u32;
        at = members.blur(u64::from(at)) as u32;
        if looks >= size || looks >= LOOKS {
            group += 1;
            // SYNs that nobody follows up don't push clients to the next group.
            if met == Room::Crowded as u32 || group >= GROUPS as u32 {
                break;
            }
            base += size;
            size = u32::from(policy.groups[group as usize % GROUPS]);
            at = scale(hash as u32, size);
            looks = 0;
            continue;
        }
        looks += 1;
        let member = members.listed(base + at);
        at += 1;
        if at >= size {
            at = 0;
        }
        let room = members.ask(member, by);
        if room == Room::Taken as u32 {
            return Choice(member);
        }
        if room > met {
            met = room;
        }
    }
    if met == Room::Crowded as u32 {
        Choice::CROWDED
    } else if met == Room::Full as u32 {
        Choice::FULL
    } else {
        Choice::NOBODY
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
