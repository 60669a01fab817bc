//! Counting.

use lb_common::counter::{DROP_ROW, Event};

use crate::maps;

/// A packet from a client to `member`; `connections` new ones with it.
#[inline(always)]
pub fn forwarded(member: u32, bytes: u64, connections: u64) {
    maps::with_stats(member, |row| {
        row.packets += 1;
        row.bytes += bytes;
        row.connections += connections;
    });
}

/// A translated reply of `member`.
#[inline(always)]
pub fn replied(member: u32, bytes: u64) {
    maps::with_stats(member, |row| {
        row.reply_packets += 1;
        row.reply_bytes += bytes;
    });
}

/// A packet that nobody gets; `reason` is a `DropReason`'s number.
#[inline(always)]
pub fn dropped(service: u32, reason: u32) {
    maps::count_drop(service * DROP_ROW + reason);
}

/// Something else worth counting.
#[inline(always)]
pub fn event(service: u32, event: Event) {
    maps::count_event(event.index(service));
}
