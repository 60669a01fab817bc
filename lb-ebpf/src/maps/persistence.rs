//! Sources and the servers they have.

use lb_common::abi::{PersistEntry, PersistKey, ServerKey};

use super::{PERSISTENCE, SERVERS, WORK};

/// Room for the packet's source.
#[inline(always)]
pub fn key() -> Option<&'static mut PersistKey> {
    // SAFETY: as in `super::work`.
    WORK.get_ptr_mut(0)
        .map(|scratch| unsafe { &mut (*scratch).persist })
}

/// The server that a source has.
#[inline(always)]
pub fn entry(key: &PersistKey) -> Option<PersistEntry> {
    // SAFETY: a copy is made at once. Its words are right one by one; the element
    // may be given to another source meanwhile, whose server is as good as any.
    unsafe { PERSISTENCE.get(key) }.copied()
}

/// Notes the server that a source has; whether there was room.
#[inline(always)]
pub fn put(key: &PersistKey, entry: &PersistEntry) -> bool {
    PERSISTENCE.insert(key, entry, 0).is_ok()
}

/// Sets the time of a source's entry, if it has one.
#[inline(always)]
pub fn touch(key: &PersistKey, ticks: u32) {
    if let Some(at) = PERSISTENCE.get_ptr_mut(key) {
        // SAFETY: an aligned field of a valid element. If it is another source's
        // by now, that one is forgotten a little later.
        unsafe { (&raw mut (*at).last_ticks).write_volatile(ticks) };
    }
}

/// The member of a service on a server; zero: it has none there.
#[inline(always)]
pub fn member_on(key: &ServerKey) -> u32 {
    // SAFETY: as in `super::service`.
    unsafe { SERVERS.get(key) }.copied().unwrap_or(0)
}
