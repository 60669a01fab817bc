//! Source ports of probes that go the clients' way: which member gets what comes
//! from them.

use std::{
    collections::VecDeque,
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering::{Relaxed, Release},
    },
};

use lb_common::{
    abi::{PROBE_PORTS, ProbeEntry},
    net::Addr,
};

use super::{
    aya_maps::PROBE_WORDS,
    mapping::{Mapping, to_words},
};

/// The ports. Copies share them.
#[derive(Clone)]
pub struct ProbePorts(Arc<Inner>);

struct Inner {
    entries: Mapping,
    /// Those not in use, the one longest out of use first.
    free: Mutex<VecDeque<u32>>,
}

impl fmt::Debug for ProbePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbePorts")
    }
}

/// A port in use, by its place; free again when dropped.
#[derive(Debug)]
pub struct TakenPort {
    ports: ProbePorts,
    /// Its distance from the first port.
    pub place: u16,
}

impl ProbePorts {
    pub(super) fn new(entries: Mapping) -> Self {
        Self(Arc::new(Inner {
            entries,
            free: Mutex::new((0..PROBE_PORTS).collect()),
        }))
    }

    /// Takes a port: what is sent from it at `source` goes to `member`. `None`
    /// where none is left.
    pub fn take(&self, member: u32, source: IpAddr) -> Option<TakenPort> {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free.pop_front()?;
        drop(free);
        self.write(
            place,
            &ProbeEntry {
                address: Addr::from_ip(source).0,
                member,
                reserved: 0,
            },
        );
        Some(TakenPort {
            ports: self.clone(),
            place: u16::try_from(place).ok()?,
        })
    }

    /// The member last and, for what is to be nobody's, first: whoever reads it
    /// has the address that belongs to it.
    fn write(&self, place: u32, entry: &ProbeEntry) {
        let first = place as usize * PROBE_WORDS;
        let Some(words) = self.0.entries.range(first, PROBE_WORDS) else {
            return;
        };
        let new: [u64; PROBE_WORDS] = to_words(entry);
        if let Some(member) = words.last() {
            member.store(0, Release);
        }
        for (word, value) in words.iter().zip(new).take(PROBE_WORDS - 1) {
            word.store(value, Relaxed);
        }
        if let (Some(member), Some(value)) = (words.last(), new.last()) {
            member.store(*value, Release);
        }
    }
}

impl Drop for TakenPort {
    fn drop(&mut self) {
        let place = u32::from(self.place);
        self.ports.write(place, &ProbeEntry::default());
        let free = &self.ports.0.free;
        free.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(place);
    }
}
