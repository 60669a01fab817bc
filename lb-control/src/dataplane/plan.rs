//! The way from what the maps hold to what they should hold. Pure.
//!
//! The order makes every prefix of a plan right: whatever a packet is led to
//! exists by then. Members come before the slots that name them, slots before
//! the service that has them, and deletions last. Ids are given back by the
//! sweep alone ([`super::sweep`]).

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{
        Config, LinkEntry, MemberEntry, PoolEntry, ReplyEntry, ReplyKey, ServerKey, ServiceEntry,
        ServiceKey, VipEntry, VipKey, owner, service_flag,
    },
    member::MemberState,
    slot::SlotWord,
};

use super::{
    desired::{DesiredState, MemberLimits, Table},
    state::{LocalPrefix, MapSnapshot, MemberKey, PortBlock, SourcePrefix},
};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Writes the fields of `CONFIG` that differ, each atomically.
    SetConfig(Box<Config>),
    /// Says that VIPs without a VRRP instance are ours.
    OwnAlways,
    /// Writes an entry of `LINKS`; `None` frees it.
    SetLink(u16, Option<LinkEntry>),
    /// Names a service id; `None` frees it.
    SetServiceName(u32, Option<String>),
    /// Writes the record of a member that no packet can reach yet.
    WriteMember(u32, Box<MemberEntry>),
    /// Changes what a member may be given.
    SetMemberState(u32, MemberState),
    /// Changes where a member's frames go.
    SetNextHop(u32, u64),
    /// Changes how long the packets towards a member may be.
    SetMtu(u32, u16),
    /// Changes what a member's connections are held against.
    SetLimits(u32, MemberLimits),
    /// Writes a word of a service's list of members.
    SetListed(u32, u32),
    /// Frees a member that nothing names.
    FreeMember(u32),
    /// Changes a slot.
    Slot(SlotOp),
    /// Adds or replaces a service of one port.
    PutService(ServiceKey, ServiceEntry),
    /// Removes one.
    RemoveService(ServiceKey),
    /// Adds or replaces a service of a block of ports.
    PutRange(PortBlock, ServiceEntry),
    /// Removes one.
    RemoveRange(PortBlock),
    /// Adds or replaces a VIP.
    PutVip(VipKey, VipEntry),
    /// Removes one.
    RemoveVip(VipKey),
    /// Adds or replaces a prefix of sources.
    PutSource(SourcePrefix, u32),
    /// Removes one.
    RemoveSource(SourcePrefix),
    /// Says which member a service has on a server.
    PutServer(ServerKey, u32),
    /// Removes that.
    RemoveServer(ServerKey),
    /// Adds or replaces a source of replies.
    PutReply(ReplyKey, ReplyEntry),
    /// Removes one.
    RemoveReply(ReplyKey),
    /// Adds or replaces an address of full NAT's pool. Its ports are given out
    /// by [`super::bindings`].
    PutPool(VipKey, PoolEntry),
    /// Removes one whose ports are all taken back.
    RemovePool(VipKey),
    /// Adds a prefix of clients on a backend's link.
    PutLocal(LocalPrefix, u32),
    /// Removes one.
    RemoveLocal(LocalPrefix),
}

/// A change of one slot. The data path may write to the slot between the plan
/// and its execution (its time, when an insertion is refused), so it is stated
/// such that it can be repeated on what is found then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotOp {
    /// Its index in `SLOTS`.
    pub index: u32,
    /// What stood there when the plan was made; the default in the slots of a
    /// new service, which hold whatever their last owner left.
    pub seen: SlotWord,
    /// What is done.
    pub change: SlotChange,
}

impl SlotOp {
    /// Whether the slot is one of a new service.
    pub fn is_first(&self) -> bool {
        self.seen == SlotWord::default()
    }
}

/// What is done to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotChange {
    /// Every flow belongs to this member.
    Stable(u32),
    /// New flows go to this member, old ones stay; see [`SlotWord::changed`].
    To {
        /// The member.
        member: u32,
        /// Whether the slot's base still serves its old flows.
        base_serves: bool,
        /// Whether the slot's present member does.
        current_serves: bool,
        /// Whether flows of a member that serves no more are reset.
        resets: bool,
    },
    /// New flows go to this member; which flows are old is another node's to say.
    Follow(u32),
    /// The base stopped serving.
    Rebase,
    /// Its service's flows won't all have entries any more: those that have one
    /// stay where they are.
    Watch,
}

impl SlotChange {
    /// The slot after the change, at `now_ticks`.
    pub const fn applied(self, word: SlotWord, now_ticks: u32) -> SlotWord {
        match self {
            Self::Stable(member) => SlotWord::stable(member),
            Self::To {
                member,
                base_serves,
                current_serves,
                resets,
            } => {
                // Flows that have no entry are the base's also when it serves
                // no more.
                let base_stays = base_serves || resets;
                let new = word.changed(member, base_stays, now_ticks);
                let has_old_flows = if word.is_tracked() && base_stays {
                    true
                } else {
                    current_serves || resets
                };
                if has_old_flows { new } else { new.rebased() }
            }
            Self::Follow(member) if word.is_tracked() => word.led_to(member),
            Self::Follow(member) => SlotWord::stable(member),
            Self::Rebase => word.rebased(),
            Self::Watch => word.watched(now_ticks),
        }
    }
}

/// The steps from `snapshot` to `desired`.
pub fn plan(desired: &DesiredState, snapshot: &MapSnapshot) -> Vec<MapOp> {
    let mut ops = Vec::new();
    config_first(desired, snapshot, &mut ops);
    for (index, link) in &desired.links {
        if snapshot.links.get(index) != Some(link) {
            ops.push(MapOp::SetLink(*index, Some(*link)));
        }
    }
    for (id, name) in &desired.service_names {
        if snapshot.service_names.get(id) != Some(name) {
            ops.push(MapOp::SetServiceName(*id, Some(name.clone())));
        }
    }
    upserts(&desired.pools, &snapshot.pools, MapOp::PutPool, &mut ops);
    members(desired, snapshot, &mut ops);
    upserts(
        &desired.replies,
        &snapshot.replies,
        MapOp::PutReply,
        &mut ops,
    );
    limits(desired, snapshot, &mut ops);
    lists(desired, snapshot, &mut ops);
    let live = snapshot.slot_ranges();
    let full: BTreeSet<u32> = snapshot
        .entries()
        .filter(|entry| entry.flags & service_flag::FULL_TRACKING != 0)
        .map(|entry| entry.id)
        .collect();
    for (id, table) in &desired.tables {
        let watch = full.contains(id) && !table.full;
        match snapshot.slots.get(id).filter(|_| live.contains_key(id)) {
            Some(words) => changed_slots(desired, snapshot, (table, watch), words, &mut ops),
            None => new_slots(table, &mut ops),
        }
    }
    unused_sources(desired, snapshot, &mut ops);
    upserts(
        &desired.servers,
        &snapshot.servers,
        MapOp::PutServer,
        &mut ops,
    );
    upserts(
        &desired.sources,
        &snapshot.sources,
        MapOp::PutSource,
        &mut ops,
    );
    upserts(
        &desired.services,
        &snapshot.services,
        MapOp::PutService,
        &mut ops,
    );
    upserts(&desired.ranges, &snapshot.ranges, MapOp::PutRange, &mut ops);
    upserts(&desired.vips, &snapshot.vips, MapOp::PutVip, &mut ops);
    upserts(&desired.local, &snapshot.local, MapOp::PutLocal, &mut ops);

    removals(
        &desired.local,
        &snapshot.local,
        MapOp::RemoveLocal,
        &mut ops,
    );
    removals(
        &desired.services,
        &snapshot.services,
        MapOp::RemoveService,
        &mut ops,
    );
    removals(
        &desired.ranges,
        &snapshot.ranges,
        MapOp::RemoveRange,
        &mut ops,
    );
    removals(
        &desired.servers,
        &snapshot.servers,
        MapOp::RemoveServer,
        &mut ops,
    );
    removals(&desired.vips, &snapshot.vips, MapOp::RemoveVip, &mut ops);
    removals(&desired.pools, &snapshot.pools, MapOp::RemovePool, &mut ops);
    withdrawn_members(desired, snapshot, &mut ops);
    let used = sets_in_use(snapshot);
    for prefix in snapshot.sources.keys() {
        if used.contains(&prefix.key.set) && !desired.sources.contains_key(prefix) {
            ops.push(MapOp::RemoveSource(*prefix));
        }
    }
    removals(
        &desired.replies,
        &snapshot.replies,
        MapOp::RemoveReply,
        &mut ops,
    );
    for index in snapshot.links.keys() {
        if !desired.links.contains_key(index) {
            ops.push(MapOp::SetLink(*index, None));
        }
    }
    for id in snapshot.service_names.keys() {
        if !desired.service_names.contains_key(id) {
            ops.push(MapOp::SetServiceName(*id, None));
        }
    }
    if with_both(desired, snapshot) != desired.config {
        ops.push(MapOp::SetConfig(Box::new(desired.config)));
    }
    ops
}

/// Sets of sources that packets go by.
fn sets_in_use(snapshot: &MapSnapshot) -> BTreeSet<u32> {
    let sets = snapshot.entries();
    sets.flat_map(|entry| [entry.sources, entry.proxies])
        .collect()
}

/// What a plan that was not completed left behind makes room first. The sets in
/// use stay as they are until no service names them.
fn unused_sources(desired: &DesiredState, snapshot: &MapSnapshot, ops: &mut Vec<MapOp>) {
    let used = sets_in_use(snapshot);
    for prefix in snapshot.sources.keys() {
        if !used.contains(&prefix.key.set) && !desired.sources.contains_key(prefix) {
            ops.push(MapOp::RemoveSource(*prefix));
        }
    }
}

/// The configuration under which both the old and the new services work.
fn with_both(desired: &DesiredState, snapshot: &MapSnapshot) -> Config {
    Config {
        features: desired.config.features | snapshot.config.features,
        longest_idle_units: desired
            .config
            .longest_idle_units
            .max(snapshot.config.longest_idle_units),
        ..desired.config
    }
}

fn config_first(desired: &DesiredState, snapshot: &MapSnapshot, ops: &mut Vec<MapOp>) {
    let both = with_both(desired, snapshot);
    if both != snapshot.config {
        ops.push(MapOp::SetConfig(Box::new(both)));
    }
    if snapshot.always_owned != owner::FOREVER {
        ops.push(MapOp::OwnAlways);
    }
}

fn upserts<K: Ord + Copy, V: PartialEq + Copy>(
    desired: &BTreeMap<K, V>,
    present: &BTreeMap<K, V>,
    op: impl Fn(K, V) -> MapOp,
    ops: &mut Vec<MapOp>,
) {
    ops.extend(
        desired
            .iter()
            .filter(|(key, value)| present.get(key) != Some(value))
            .map(|(key, value)| op(*key, *value)),
    );
}

fn removals<K: Ord + Copy, V>(
    desired: &BTreeMap<K, V>,
    present: &BTreeMap<K, V>,
    op: impl Fn(K) -> MapOp,
    ops: &mut Vec<MapOp>,
) {
    ops.extend(
        present
            .keys()
            .filter(|key| !desired.contains_key(key))
            .map(|key| op(*key)),
    );
}

/// Members of services that packets can't reach any more after this plan are
/// withdrawn only when its keys are gone.
fn is_withdrawn_late(desired: &DesiredState, entry: &MemberEntry) -> bool {
    !desired.tables.contains_key(&entry.service)
}

fn members(desired: &DesiredState, snapshot: &MapSnapshot, ops: &mut Vec<MapOp>) {
    for (id, new) in &desired.members {
        let Some(old) = snapshot
            .members
            .get(id)
            .filter(|old| MemberKey::of(old) == MemberKey::of(new))
        else {
            ops.push(MapOp::WriteMember(*id, Box::new(*new)));
            continue;
        };
        if old.next_hop != new.next_hop {
            ops.push(MapOp::SetNextHop(*id, new.next_hop));
        }
        if old.mtu != new.mtu {
            ops.push(MapOp::SetMtu(*id, new.mtu));
        }
        if old.state != new.state && !is_withdrawn_late(desired, new) {
            ops.push(MapOp::SetMemberState(*id, MemberState(new.state)));
        }
    }
}

fn withdrawn_members(desired: &DesiredState, snapshot: &MapSnapshot, ops: &mut Vec<MapOp>) {
    for (id, new) in &desired.members {
        if is_withdrawn_late(desired, new)
            && snapshot
                .members
                .get(id)
                .is_some_and(|o| o.state != new.state)
        {
            ops.push(MapOp::SetMemberState(*id, MemberState(new.state)));
        }
    }
}

fn new_slots(table: &Table, ops: &mut Vec<MapOp>) {
    for (index, member) in (table.offset..).zip(table.members.iter()) {
        ops.push(MapOp::Slot(SlotOp {
            index,
            seen: SlotWord::default(),
            change: SlotChange::Stable(*member),
        }));
    }
}

/// A member that is written anew has no limits, whatever its id had before.
fn limits(desired: &DesiredState, snapshot: &MapSnapshot, ops: &mut Vec<MapOp>) {
    for (id, limits) in &desired.limits {
        let is_new = !snapshot.members.contains_key(id);
        if is_new || snapshot.limits.get(id) != Some(limits) {
            ops.push(MapOp::SetLimits(*id, *limits));
        }
    }
}

fn lists(desired: &DesiredState, snapshot: &MapSnapshot, ops: &mut Vec<MapOp>) {
    let present: BTreeMap<u32, u32> = snapshot
        .entries()
        .map(|entry| (entry.id, entry.list_offset))
        .collect();
    for (id, (offset, members)) in &desired.lists {
        let words = snapshot
            .lists
            .get(id)
            .filter(|_| present.get(id) == Some(offset));
        for ((n, index), member) in (0..).zip(*offset..).zip(members) {
            if words.and_then(|words| words.get(n)) != Some(member) {
                ops.push(MapOp::SetListed(index, *member));
            }
        }
    }
}

/// With `watch` the service's flows all had entries, and won't have them any more.
fn changed_slots(
    desired: &DesiredState,
    snapshot: &MapSnapshot,
    (table, watch): (&Table, bool),
    words: &[SlotWord],
    ops: &mut Vec<MapOp>,
) {
    let serves = |member: u32| {
        desired
            .members
            .get(&member)
            .is_some_and(|m| MemberState(m.state).serves())
    };
    for ((index, &wanted), &seen) in (table.offset..).zip(table.members.iter()).zip(words) {
        let keeps = wanted == 0 || (table.keep && serves(seen.current()));
        let member = if keeps { seen.current() } else { wanted };
        let change = if table.stateless || strangers(snapshot, desired, seen, member) {
            if seen == SlotWord::stable(member) {
                continue;
            }
            SlotChange::Stable(member)
        } else if table.follows {
            if seen.current() == member {
                continue;
            }
            SlotChange::Follow(member)
        } else if member != seen.current() {
            SlotChange::To {
                member,
                base_serves: serves(seen.base()),
                current_serves: serves(seen.current()),
                resets: table.resets,
            }
        } else if !table.resets
            && seen.is_tracked()
            && seen.base() != member
            && !serves(seen.base())
        {
            SlotChange::Rebase
        } else if watch {
            SlotChange::Watch
        } else {
            continue;
        };
        ops.push(MapOp::Slot(SlotOp {
            index,
            seen,
            change,
        }));
    }
}

/// Whether the slot's members are of another VIP or protocol than its new
/// one: the service got another address, so none of its packets is of an old flow.
fn strangers(snapshot: &MapSnapshot, desired: &DesiredState, seen: SlotWord, member: u32) -> bool {
    let Some(new) = desired.members.get(&member) else {
        return false;
    };
    [seen.current(), seen.base()].iter().any(|old| {
        snapshot
            .members
            .get(old)
            .is_none_or(|old| (old.vip, old.protocol) != (new.vip, new.protocol))
    })
}
