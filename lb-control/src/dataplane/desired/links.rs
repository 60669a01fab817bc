//! The devices that packets come in by and go out by.

use std::collections::BTreeMap;

use lb_common::abi::{LINK_PROBES, LINKS, LinkEntry, link_flag};

use super::{DesiredError, Link};
use crate::dataplane::state::MapSnapshot;

/// `LINKS` by index. Entries that are there already keep their place.
pub(super) fn links(
    wanted: &[Link],
    snapshot: &MapSnapshot,
) -> Result<BTreeMap<u16, LinkEntry>, DesiredError> {
    let mut links = BTreeMap::new();
    for (link, entry) in wanted.iter().flat_map(|l| entries(l).map(move |e| (l, e))) {
        let index = place(&entry, snapshot, &links).ok_or_else(|| DesiredError::TooManyLinks {
            link: link.name.clone(),
            limit: LINKS,
        })?;
        links.insert(index, entry);
    }
    Ok(links)
}

/// The ways in which the device is met: as what the kernel's routing names, and
/// as what frames come in by. A plain interface is the same in both.
fn entries(link: &Link) -> impl Iterator<Item = LinkEntry> {
    let mut flags = 0;
    if link.is_bridge {
        flags |= link_flag::BRIDGE;
    }
    if link.is_blocked {
        flags |= link_flag::BLOCKED;
    }
    let entry = LinkEntry {
        match_ifindex: link.ifindex,
        match_tags: [0; 2],
        device: link.ifindex,
        ifindex: link.egress,
        tags: link.tags,
        mac: link.mac,
        flags,
        mtu: link.mtu,
    };
    let ways = link
        .ways
        .iter()
        .map(move |&(ifindex, tags, egress)| LinkEntry {
            match_ifindex: ifindex,
            match_tags: tags,
            ifindex: egress,
            tags,
            ..entry
        });
    let key = |entry: &LinkEntry| (entry.match_ifindex, entry.match_tags);
    std::iter::once(entry).chain(ways.filter(move |way| key(way) != key(&entry)))
}

fn place(
    entry: &LinkEntry,
    snapshot: &MapSnapshot,
    links: &BTreeMap<u16, LinkEntry>,
) -> Option<u16> {
    let first = LinkEntry::place(entry.match_ifindex, entry.match_tags);
    let mut places = (0..LINK_PROBES).map(|n| ((first + n) % LINKS) as u16);
    let same = |there: &LinkEntry| {
        (there.match_ifindex, there.match_tags) == (entry.match_ifindex, entry.match_tags)
    };
    places
        .clone()
        .find(|i| snapshot.links.get(i).is_some_and(same))
        .or_else(|| places.find(|i| !snapshot.links.contains_key(i) && !links.contains_key(i)))
}
