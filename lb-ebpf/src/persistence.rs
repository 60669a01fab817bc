//! Persistence by source: which server the packet's source has.
//!
//! The key stands in per-core memory: the program `lb_schedule` has no stack left.

use lb_common::{
    abi::{Config, PersistEntry, PersistKey, ServerKey, ServiceEntry, source},
    counter::Event,
    load::Room,
    member::MemberState,
    net::{Addr, family},
    persist::{self, Source},
};

use crate::{clock, maps, parse::Parsed, schedule::lb_admit, stats};

/// Whether a source is many clients', who are not kept together.
#[inline(always)]
pub fn is_proxy(service: &ServiceEntry, address: Addr) -> bool {
    maps::source_is(service.proxies, address, source::PROXY)
}

/// The source of the packet at hand, in a service.
struct Client {
    service: &'static ServiceEntry,
    key: &'static PersistKey,
}

impl Client {
    /// `None` where the source isn't kept together.
    #[inline(always)]
    fn new(service: &'static ServiceEntry) -> Option<Self> {
        let parsed = Parsed::resume(maps::work()?);
        if is_proxy(service, parsed.source()) {
            return None;
        }
        let prefix = if parsed.family() == family::V4 {
            service.persist_v4
        } else {
            service.persist_v6
        };
        let key = maps::persistence::key()?;
        key.group = service.group;
        key.family = parsed.family().into();
        key.source = parsed.source().masked(parsed.family(), prefix);
        Some(Self { service, key })
    }
}

impl Source for Client {
    #[inline(always)]
    fn entry(&self) -> Option<PersistEntry> {
        maps::persistence::entry(self.key)
    }

    #[inline(always)]
    fn put(&self, entry: PersistEntry) -> bool {
        maps::persistence::put(self.key, &entry)
    }

    #[inline(always)]
    fn touch(&self, now_ticks: u32) {
        maps::persistence::touch(self.key, now_ticks);
    }

    #[inline(always)]
    fn member_on(&self, backend: u64) -> u32 {
        let key = ServerKey {
            backend,
            service: self.service.id,
            reserved: 0,
        };
        let id = maps::persistence::member_on(&key);
        let takes_new = maps::member(id).is_some_and(|member| {
            member.service == self.service.id && MemberState(member.state).takes_new()
        });
        if takes_new { id } else { 0 }
    }
}

/// The service and the configuration that a global function works with.
#[inline(always)]
fn at_hand() -> Option<(&'static ServiceEntry, &'static Config)> {
    Some((maps::chooser()?, maps::config()?))
}

/// The member on the source's server; zero: there is none. Global like
/// `lb_choose`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_remembered() -> u32 {
    let Some((service, config)) = at_hand() else {
        return 0;
    };
    let Some(client) = Client::new(service) else {
        return 0;
    };
    persist::remembered(&client, clock::ticks(config), service.persist_ticks)
}

/// Notes that a flow of the source is alive at this member. Global like
/// `lb_choose`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_remember(member: u32) -> u32 {
    let Some((service, config)) = at_hand() else {
        return 0;
    };
    let backend = maps::load_of(member).backend;
    // Nobody is led to a member that takes no new flows.
    if backend == 0 || !maps::member_state(member).takes_new() {
        return 0;
    }
    let Some(client) = Client::new(service) else {
        return 0;
    };
    if !persist::remember(
        &client,
        backend,
        clock::ticks(config),
        service.persist_ticks,
    ) {
        stats::event(service.id, Event::PersistenceFull);
    }
    0
}

/// A place at the member on the source's server; zero: there is none.
#[inline(always)]
pub fn rejoin(service: &ServiceEntry, by: u64) -> u32 {
    if service.group == 0 {
        return 0;
    }
    maps::set_chooser(service);
    let held = lb_remembered();
    if held == 0 || lb_admit(held, by) != Room::Taken as u32 {
        return 0;
    }
    stats::event(service.id, Event::Persistent);
    held
}

/// Notes that a flow of the source is alive at this member.
#[inline(always)]
pub fn remember(service: &ServiceEntry, member: u32) {
    if service.group != 0 {
        maps::set_chooser(service);
        lb_remember(member);
    }
}
