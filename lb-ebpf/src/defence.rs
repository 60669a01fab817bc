//! What a service takes in: from whom, and how much of it.

use lb_common::{
    abi::{CORE_LIMIT_RESETS, Config, LimitKey, RESETS_PER_SECOND, ServiceEntry, source},
    counter::DropReason,
    net::{Addr, family},
    track::Kind,
};

use crate::{clock, maps, parse::Parsed};

/// Whether a service with the flag `GUARDED` takes the packet.
#[inline(never)]
pub fn admit(config: &Config, service: &ServiceEntry, parsed: &Parsed) -> Result<(), DropReason> {
    let address = parsed.source();
    if is_denied(service, address) {
        return Err(DropReason::Denied);
    }
    if !parsed.is_tcp() || parsed.kind() != Kind::Syn {
        return Ok(());
    }
    match limit(config, service, address, parsed.family()) {
        0 => Ok(()),
        reason if reason == DropReason::SourceLimit as u32 => Err(DropReason::SourceLimit),
        _ => Err(DropReason::CoreLimit),
    }
}

/// Takes a token for a new flow of a source: zero, or a [`DropReason`].
#[inline(always)]
pub fn limit(config: &Config, service: &ServiceEntry, address: Addr, family: u8) -> u32 {
    // The source's first: one that opens too many takes nothing from the rest.
    let now = clock::jiffies();
    if service.source_cost != 0 {
        let key = LimitKey {
            service: service.id,
            source: client(address, family),
        };
        if !maps::take_from_source(&key, |bucket| {
            bucket.take(now, service.source_cost, config.second_steps)
        }) {
            return DropReason::SourceLimit as u32;
        }
    }
    if service.core_cost != 0 && !take(service.id, now, service.core_cost, config) {
        return DropReason::CoreLimit as u32;
    }
    0
}

/// Whether a service takes nothing from this client.
#[inline(always)]
pub fn is_denied(service: &ServiceEntry, address: Addr) -> bool {
    maps::source_is(service.sources, address, source::DENIED)
}

/// Whether this core may make another reset now.
#[inline(always)]
pub fn may_reset(config: &Config) -> bool {
    let cost = config.second_steps / RESETS_PER_SECOND;
    take(CORE_LIMIT_RESETS, clock::jiffies(), cost, config)
}

#[inline(always)]
fn take(row: u32, now: u64, cost: u32, config: &Config) -> bool {
    maps::take_from_core(row, |bucket| bucket.take(now, cost, config.second_steps))
}

/// What counts as one source: a host, or in IPv6 the network that a host
/// chooses its addresses from (RFC 4291 §2.5.4).
#[inline(always)]
fn client(address: Addr, family: u8) -> Addr {
    if family == family::V4 {
        return address;
    }
    let [first, second, _, _] = address.0;
    Addr([first, second, 0, 0])
}
