//! The devices that packets come in by and go out by.

use std::collections::BTreeMap;

use lb_common::abi::{LINK_PROBES, LINKS, LinkEntry};

use super::{DesiredError, Link};
use crate::dataplane::state::MapSnapshot;

/// `LINKS` by index. Entries that are there already keep their place.
pub(super) fn links(
    wanted: &[Link],
    snapshot: &MapSnapshot,
) -> Result<BTreeMap<u16, LinkEntry>, DesiredError> {
    let mut links = BTreeMap::new();
    for link in wanted {
        for entry in entries(link) {
            let index =
                place(&entry, snapshot, &links).ok_or_else(|| DesiredError::TooManyLinks {
                    link: link.name.clone(),
                    limit: LINKS,
                })?;
            links.insert(index, entry);
        }
    }
    Ok(links)
}

/// The device as what the kernel's routing names and, for a VLAN, as where
/// packets come in by.
fn entries(link: &Link) -> Vec<LinkEntry> {
    let named = LinkEntry {
        match_ifindex: link.ifindex,
        match_tags: [0; 2],
        device: link.ifindex,
        ifindex: link.port,
        tags: link.tags,
        mac: link.mac,
        flags: 0,
        mtu: link.mtu,
    };
    if link.tags == [0; 2] {
        return vec![named];
    }
    let met = LinkEntry {
        match_ifindex: link.port,
        match_tags: link.tags,
        ..named
    };
    vec![named, met]
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
