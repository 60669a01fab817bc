//! Persistence by source: a source's new flows go to the server that it has.
//!
//! An entry is made or confirmed when a flow is seen to be alive: by a packet
//! that follows up its first one, never by a SYN. So spoofed SYNs leave nothing
//! behind. It names the server and not a member, since services of one group
//! share it, and each has members of its own.
//!
//! Precedence: a live flow's own member, then this, then the scheduler. A server
//! that has no room for a connection keeps its source, which comes back when it
//! has; one that takes no new flows loses it to the next flow that is alive.

use crate::abi::PersistEntry;

/// What the rules go by: one source, within one service.
pub trait Source {
    /// The source's entry.
    fn entry(&self) -> Option<PersistEntry>;

    /// Makes or replaces it; whether there was room.
    fn put(&self, entry: PersistEntry) -> bool;

    /// Sets its time.
    fn touch(&self, now_ticks: u32);

    /// The service's member on that server, if it has one that takes new flows;
    /// zero: it has none.
    fn member_on(&self, backend: u64) -> u32;
}

/// Whether an entry's source was seen within `idle_ticks`.
#[inline(always)]
pub const fn is_live(entry: &PersistEntry, now_ticks: u32, idle_ticks: u32) -> bool {
    entry.backend != 0 && now_ticks.wrapping_sub(entry.last_ticks) <= idle_ticks
}

/// The member that a new flow of the source goes to; zero: whoever is chosen.
#[inline(always)]
pub fn remembered<S: Source>(source: &S, now_ticks: u32, idle_ticks: u32) -> u32 {
    match source.entry() {
        Some(entry) if is_live(&entry, now_ticks, idle_ticks) => source.member_on(entry.backend),
        _ => 0,
    }
}

/// A flow of the source is alive, and its member, on server `backend`, takes new
/// ones. False: there was no room to note that.
#[inline(always)]
pub fn remember<S: Source>(source: &S, backend: u64, now_ticks: u32, idle_ticks: u32) -> bool {
    if let Some(entry) = source.entry()
        && is_live(&entry, now_ticks, idle_ticks)
        && (entry.backend == backend || source.member_on(entry.backend) != 0)
    {
        source.touch(now_ticks);
        return true;
    }
    source.put(PersistEntry {
        backend,
        last_ticks: now_ticks,
        reserved: 0,
    })
}

/// Number of the backends of this name, in whatever pool.
pub fn backend(name: &str) -> u64 {
    number(b'b', name).max(1)
}

/// Number of a group of services.
pub fn group(name: &str) -> u32 {
    (number(b'g', name) as u32).max(1)
}

/// FNV-1a, 64 bits, and a final mix (MurmurHash3's) so that its halves are good,
/// too. Names come from the operator's file, so nobody can look for collisions,
/// and the controller looks for them.
fn number(kind: u8, name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in core::iter::once(kind).chain(name.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use core::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use std::{format, vec::Vec};

    use super::*;

    const IDLE: u32 = 100;

    /// One source of a service with members 1, 2, … on servers 10, 20, …
    #[derive(Default)]
    struct One {
        entry: Cell<Option<PersistEntry>>,
        takes_new: RefCell<BTreeSet<u64>>,
        full: Cell<bool>,
    }

    impl Source for One {
        fn entry(&self) -> Option<PersistEntry> {
            self.entry.get()
        }

        fn put(&self, entry: PersistEntry) -> bool {
            if !self.full.get() {
                self.entry.set(Some(entry));
            }
            !self.full.get()
        }

        fn touch(&self, now_ticks: u32) {
            let entry = self.entry.get().map(|entry| PersistEntry {
                last_ticks: now_ticks,
                ..entry
            });
            self.entry.set(entry);
        }

        fn member_on(&self, backend: u64) -> u32 {
            if self.takes_new.borrow().contains(&backend) {
                (backend / 10) as u32
            } else {
                0
            }
        }
    }

    fn one(servers: impl IntoIterator<Item = u64>) -> One {
        One {
            takes_new: RefCell::new(servers.into_iter().collect()),
            ..One::default()
        }
    }

    #[test]
    fn a_source_keeps_its_server_until_it_was_idle_for_too_long() {
        let source = one([10, 20]);
        assert_eq!(remembered(&source, 5, IDLE), 0);
        assert!(remember(&source, 20, 5, IDLE));
        assert_eq!(remembered(&source, 105, IDLE), 2);
        assert_eq!(remembered(&source, 106, IDLE), 0);
        // Another of its flows, elsewhere: it stays, and is fresh again.
        assert!(remember(&source, 10, 105, IDLE));
        assert_eq!(remembered(&source, 205, IDLE), 2);
        assert!(remember(&source, 10, 206, IDLE));
        assert_eq!(remembered(&source, 206, IDLE), 1);
    }

    #[test]
    fn a_server_that_takes_no_new_flows_loses_its_sources_to_the_next_live_flow() {
        let source = one([10, 20]);
        assert!(remember(&source, 20, 5, IDLE));
        source.takes_new.borrow_mut().remove(&20);
        assert_eq!(remembered(&source, 6, IDLE), 0);
        // Back before anything else was alive: nothing has changed.
        source.takes_new.borrow_mut().insert(20);
        assert_eq!(remembered(&source, 7, IDLE), 2);
        source.takes_new.borrow_mut().remove(&20);
        assert!(remember(&source, 10, 8, IDLE));
        source.takes_new.borrow_mut().insert(20);
        assert_eq!(remembered(&source, 9, IDLE), 1);
    }

    #[test]
    fn the_clock_may_wrap() {
        let source = one([10]);
        assert!(remember(&source, 10, u32::MAX - 3, IDLE));
        assert_eq!(remembered(&source, 90, IDLE), 1);
        assert_eq!(remembered(&source, 97, IDLE), 0);
    }

    #[test]
    fn names_have_numbers_of_their_own() {
        let names: Vec<_> = (0..20_000).map(|n| format!("web-{n}")).collect();
        let backends: BTreeSet<_> = names.iter().map(|name| backend(name)).collect();
        assert_eq!(backends.len(), names.len());
        // Pinned maps hold them: another function would forget everybody.
        assert_eq!(backend("web-1"), 6_961_177_151_744_237_863);
        assert_ne!(u64::from(group("web-1")), backend("web-1") & 0xffff_ffff);
    }

    proptest! {
        /// Against a model that keeps the whole history.
        #[test]
        fn whoever_is_remembered_was_alive_within_the_time_and_takes_new_flows(
            steps in prop::collection::vec((0u32..60, 0u8..4, 1u64..4), 1..60),
        ) {
            let source = one([10, 20, 30]);
            let mut now = 0;
            // Server that the source is held to, and when it was last noted.
            let mut model: Option<(u64, u32)> = None;
            let mut up: BTreeMap<u64, bool> = [(10, true), (20, true), (30, true)].into();
            for (pass, what, server) in steps {
                now += pass;
                let server = server * 10;
                match what {
                    0 => {
                        let is_up = up.entry(server).or_default();
                        *is_up = !*is_up;
                        if *is_up {
                            source.takes_new.borrow_mut().insert(server);
                        } else {
                            source.takes_new.borrow_mut().remove(&server);
                        }
                    }
                    1 => source.full.set(!source.full.get()),
                    _ if up[&server] => {
                        let held = model.filter(|(held, last)| now - last <= IDLE && up[held]);
                        let noted = remember(&source, server, now, IDLE);
                        match held {
                            Some((held, _)) => model = Some((held, now)),
                            None if !source.full.get() => model = Some((server, now)),
                            None => prop_assert!(!noted, "there was no room"),
                        }
                    }
                    _ => {}
                }
                let expected = model
                    .filter(|(held, last)| now - last <= IDLE && up[held])
                    .map_or(0, |(held, _)| (held / 10) as u32);
                prop_assert_eq!(remembered(&source, now, IDLE), expected);
            }
        }
    }
}
