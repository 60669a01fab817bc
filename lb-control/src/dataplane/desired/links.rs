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
        let entry = LinkEntry::plain(link.ifindex, link.mac, link.mtu);
        let index = place(&entry, snapshot, &links).ok_or_else(|| DesiredError::TooManyLinks {
            link: link.name.clone(),
            limit: LINKS,
        })?;
        links.insert(index, entry);
    }
    Ok(links)
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
