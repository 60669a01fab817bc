//! Which member gets a new flow, under full tracking.
//!
//! The scheduler names one member; where that may take no more, the others of
//! its priority group are asked one after another, then the next group. All of
//! this is for new flows alone.

use crate::{
    hash::scale,
    load::{self, Counts, Meter, Room},
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

/// Slots whose members are compared under least connections.
pub const CANDIDATES: u32 = 4;

/// Members of one group that are asked for room.
pub const LOOKS: u32 = 64;

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

    /// Whether the member is this service's and takes new flows.
    fn takes_new(&self, member: u32) -> bool;

    /// Whether the member is this service's and serves flows.
    fn serves(&self, member: u32) -> bool;

    /// A member's counts and weight.
    fn load(&self, member: u32) -> (Counts, u32);
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
    let mut met = Choice::NOBODY;
    if members.takes_new(first) {
        match load::admit(members, first, by) {
            Room::Taken => return Choice(first),
            Room::Full => met = Choice::FULL,
            Room::Crowded => met = Choice::CROWDED,
        }
    }
    others(members, policy, hash, by, met)
}

/// The member of some slots that has the fewest connections for its weight.
#[inline(always)]
fn least_loaded<M: Members>(members: &M, slots: u32, hash: u64, home: u32) -> u32 {
    let mut best = home;
    let mut best_load = u64::MAX;
    let mut best_weight = 1;
    let mut draw = hash as u32 ^ (hash >> 32) as u32;
    let mut n = 0;
    while n < CANDIDATES {
        // A full-period generator (Numerical Recipes' constants), whose upper
        // bits are what `scale` uses.
        draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        n += 1;
        let member = members.in_slot(scale(draw, slots));
        if !members.takes_new(member) {
            continue;
        }
        let (counts, weight) = members.load(member);
        let max = members.max(member);
        if max != 0 && counts.total() >= max {
            continue;
        }
        // load / weight, without a division.
        let load = u64::from(counts.total());
        let weight = u64::from(weight.max(1));
        if best_load == u64::MAX || load * best_weight < best_load * weight {
            (best, best_load, best_weight) = (member, load, weight);
        }
    }
    best
}

/// Asks the listed members, group by group, from a place that the hash tells.
#[inline(always)]
fn others<M: Members>(members: &M, policy: &Policy, hash: u64, by: u64, met: Choice) -> Choice {
    let mut met = met;
    let mut base = 0;
    let mut group = 0;
    while group < GROUPS {
        let size = u32::from(policy.groups[group]);
        let mut at = scale(hash as u32, size);
        let mut looks = 0;
        while looks < LOOKS && looks < size {
            looks += 1;
            let member = members.listed(base + at);
            at += 1;
            if at >= size {
                at = 0;
            }
            if !members.takes_new(member) {
                continue;
            }
            match load::admit(members, member, by) {
                Room::Taken => return Choice(member),
                Room::Full if met == Choice::NOBODY => met = Choice::FULL,
                Room::Full => {}
                Room::Crowded => met = Choice::CROWDED,
            }
        }
        // SYNs that nobody follows up don't push clients to the next group.
        if met == Choice::CROWDED {
            return met;
        }
        base += size;
        group += 1;
    }
    met
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
