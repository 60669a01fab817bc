//! Persistence by source: which server a source's new flows go to.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::{
    abi::{
        MemberLoad, PersistEntry, PersistKey, ServerKey, ServiceEntry, map, method, service_flag,
        source,
    },
    member::MemberState,
    persist,
    schedule::scheduler,
    slot::SlotWord,
};
use lb_tests::{
    packet::{Packet, protocol, tcp_flags},
    program::{Sizes, action},
};

use crate::lab::{Lab, OWN_MAC, ROUTER_MAC, Service, Spec, at, ip};

/// Ticks after which a source has no server any more.
const TIMEOUT: u32 = 400;

/// HTTP and HTTPS of one shop: the same three servers, which are other members.
struct Shop {
    lab: Lab,
    services: Vec<(SocketAddr, Service)>,
    /// Changes with each flow.
    next_port: u16,
}

fn servers(v4: bool, port: u16) -> Vec<SocketAddr> {
    let host = |n: u8| {
        if v4 {
            ip(&format!("10.1.0.{n}"))
        } else {
            ip(&format!("fd00:1::{n}"))
        }
    };
    (11..14).map(|n| SocketAddr::new(host(n), port)).collect()
}

fn shop_of(methods: &[u8], v4: bool, change: impl Fn(&mut ServiceEntry)) -> Result<Shop> {
    let mut lab = Lab::sized(Sizes {
        buckets: 1024,
        ..Sizes::default()
    })?;
    let vip = if v4 { "203.0.113.10" } else { "2001:db8::10" };
    let mut services = vec![];
    for (n, method) in (0u16..).zip(methods) {
        let vip = SocketAddr::new(ip(vip), 80 + n);
        let mut spec = Spec::new(vip, protocol::TCP, *method);
        // Not in the same order: members are nothing that services have in common.
        let mut all = servers(v4, if *method == method::NAT { 8080 + n } else { 0 });
        all.rotate_left(usize::from(n));
        for (i, address) in (0u8..).zip(all) {
            spec = spec.backend(address, 0x11 + (i + u8::try_from(n)?) % 3);
        }
        let mut service = lab.service(&spec)?;
        service.entry.flags |= service_flag::FULL_TRACKING;
        service.entry.scheduler = scheduler::ROUND_ROBIN;
        service.entry.cycle = 3;
        service.entry.group = persist::group("shop");
        service.entry.persist_ticks = TIMEOUT;
        service.entry.persist_v4 = 32;
        service.entry.persist_v6 = 128;
        change(&mut service.entry);
        lab.add_key(&spec, service.entry)?;
        for (i, member) in (0u16..).zip(&service.members) {
            let backend = persist::backend(["a", "b", "c"][usize::from((i + n) % 3)]);
            let key = ServerKey {
                backend,
                service: service.id,
                reserved: 0,
            };
            let mut known = lab.program.hash::<ServerKey, u32>(map::SERVERS)?;
            known.insert(key, *member, 0)?;
            let mut loads = lab.program.array::<MemberLoad>(map::LOADS)?;
            let load = MemberLoad {
                backend,
                weight: 1,
                ..MemberLoad::default()
            };
            loads.set(*member, load, 0)?;
        }
        services.push((vip, service));
    }
    Ok(Shop {
        lab,
        services,
        next_port: 1024,
    })
}

fn shop() -> Result<Shop> {
    shop_of(&[method::L2_DSR, method::L2_DSR], true, |_| {})
}

impl Shop {
    fn send(&mut self, service: usize, client: SocketAddr, flags: u8) -> Result<u8> {
        let frame = Packet::tcp(client, self.services[service].0)
            .macs(ROUTER_MAC, OWN_MAC)
            .flags(flags)
            .build();
        let outcome = self.lab.program.run(&frame)?;
        ensure!(outcome.action == action::TX, "action {}", outcome.action);
        Ok(outcome.frame[5] - 0x11)
    }

    fn client(&mut self, host: IpAddr) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::new(host, self.next_port)
    }

    /// A connection's first packets: number of its server.
    fn connect(&mut self, service: usize, host: &str) -> Result<u8> {
        let client = self.client(ip(host));
        let server = self.send(service, client, tcp_flags::SYN)?;
        assert_eq!(self.send(service, client, tcp_flags::ACK)?, server);
        Ok(server)
    }

    fn entries(&mut self) -> Result<Vec<(PersistKey, PersistEntry)>> {
        let entries = self
            .lab
            .program
            .hash::<PersistKey, PersistEntry>(map::PERSISTENCE)?;
        entries.iter().map(|entry| Ok(entry?)).collect()
    }

    /// Changes what each of a server's members may be given.
    fn set(&mut self, server: u8, state: MemberState) -> Result<()> {
        for n in 0..self.services.len() {
            let members = &self.services[n].1.members;
            let member = members[(usize::from(server) + 3 - n) % 3];
            self.lab.change_member(member, |m| m.state = state.0)?;
        }
        Ok(())
    }
}

#[test]
fn a_sources_connections_go_to_one_server_in_all_services_of_the_group() -> Result<()> {
    for v4 in [true, false] {
        let mut shop = shop_of(&[method::L2_DSR, method::L2_DSR], v4, |_| {})?;
        let host = |n: u32| {
            if v4 {
                format!("198.51.100.{n}")
            } else {
                format!("2001:db8:c::{n:x}")
            }
        };
        let mut used = [0; 3];
        for n in 1..40 {
            let first = shop.connect(0, &host(n))?;
            used[usize::from(first)] += 1;
            for service in [0, 1, 1, 0] {
                assert_eq!(shop.connect(service, &host(n))?, first, "{}", host(n));
            }
        }
        assert!(used.iter().all(|n| *n == 13), "turns are as ever: {used:?}");
        assert_eq!(shop.entries()?.len(), 39);
        let led = shop.lab.program.events(shop.services[1].1.id)?;
        assert_eq!(led["persistent"], 78);
    }
    Ok(())
}

#[test]
fn every_method_keeps_a_source_with_its_server() -> Result<()> {
    let mut shop = shop_of(&[method::L2_DSR, method::NAT], true, |_| {})?;
    for n in 1..20 {
        let host = format!("198.51.100.{n}");
        let first = shop.connect(1, &host)?;
        for service in [0, 1, 0, 1] {
            assert_eq!(shop.connect(service, &host)?, first);
        }
    }
    Ok(())
}

#[test]
fn forged_packets_leave_no_source_behind() -> Result<()> {
    let mut shop = shop()?;
    for n in 0..300u32 {
        let [_, _, high, low] = n.to_be_bytes();
        for (net, flags) in [
            (1, tcp_flags::SYN),
            (2, tcp_flags::ACK),
            (3, tcp_flags::RST),
            (4, tcp_flags::FIN | tcp_flags::ACK),
        ] {
            let client = shop.client([100, net, high, low].into());
            shop.send(0, client, flags)?;
        }
    }
    assert_eq!(shop.entries()?, []);
    // The flow's second packet, and no SYN.
    let client = at("198.51.100.7:4000");
    shop.send(0, client, tcp_flags::SYN)?;
    shop.lab.program.set_ticks(8)?;
    shop.send(0, client, tcp_flags::SYN)?;
    assert_eq!(shop.entries()?, []);
    shop.send(0, client, tcp_flags::ACK)?;
    assert_eq!(shop.entries()?.len(), 1);
    Ok(())
}

#[test]
fn a_source_is_a_prefix_and_proxies_are_none() -> Result<()> {
    let mut shop = shop_of(&[method::L2_DSR, method::L2_DSR], true, |entry| {
        entry.persist_v4 = 24;
        entry.proxies = 77;
    })?;
    let proxies = (ip("198.51.0.0"), 16);
    shop.lab.program.add_source(77, proxies, source::PROXY)?;
    let first = shop.connect(0, "192.0.2.1")?;
    for host in 2..60 {
        assert_eq!(shop.connect(1, &format!("192.0.2.{host}"))?, first);
    }
    assert_eq!(shop.entries()?.len(), 1);
    let mut used = [0; 3];
    for _ in 0..30 {
        used[usize::from(shop.connect(0, "198.51.100.7")?)] += 1;
    }
    assert_eq!(used, [10; 3], "as if there were no persistence");
    assert_eq!(shop.entries()?.len(), 1);
    Ok(())
}

#[test]
fn proxies_are_placed_by_flow_where_others_are_placed_by_source() -> Result<()> {
    let mut shop = shop_of(&[method::L2_DSR], true, |entry| {
        entry.flags = service_flag::BY_SOURCE;
        entry.group = 0;
        entry.prefix_v4 = 24;
        entry.proxies = 77;
    })?;
    let proxies = (ip("198.51.0.0"), 16);
    shop.lab.program.add_source(77, proxies, source::PROXY)?;
    let mut used = [[0; 3]; 2];
    for (host, used) in ["192.0.2.1", "198.51.100.7"].iter().zip(&mut used) {
        for _ in 0..60 {
            used[usize::from(shop.connect(0, host)?)] += 1;
        }
    }
    assert_eq!(used[0].iter().max(), Some(&60), "{used:?}");
    assert!(used[1].iter().all(|n| *n > 5), "{used:?}");
    Ok(())
}

#[test]
fn an_idle_source_has_no_server_any_more_and_one_that_talks_keeps_it() -> Result<()> {
    let mut shop = shop()?;
    let idle = shop.connect(0, "198.51.100.1")?;
    let talks = at("198.51.100.2:4000");
    let server = shop.send(0, talks, tcp_flags::SYN)?;
    shop.send(0, talks, tcp_flags::ACK)?;
    // A packet in each unit of time, on a connection that lives on.
    for ticks in (0..=TIMEOUT + 8).step_by(8) {
        shop.lab.program.set_ticks(ticks)?;
        assert_eq!(shop.send(0, talks, tcp_flags::ACK)?, server);
    }
    // Two turns of another source, or `idle` might have the next one by chance.
    for _ in 0..2 {
        if shop.connect(1, "198.51.100.1")? != idle {
            assert_eq!(shop.connect(1, "198.51.100.2")?, server);
            return Ok(());
        }
        shop.lab.program.set_ticks(2 * TIMEOUT + 24)?;
        shop.connect(1, "198.51.100.3")?;
    }
    panic!("the idle source still has its server");
}

#[test]
fn a_source_whose_server_takes_no_new_flows_gets_another_and_stays_there() -> Result<()> {
    let mut shop = shop()?;
    let host = "198.51.100.1";
    let old = at("198.51.100.1:4000");
    let first = shop.send(0, old, tcp_flags::SYN)?;
    shop.send(0, old, tcp_flags::ACK)?;
    shop.set(first, MemberState::DRAINING)?;
    for n in 0..2 {
        let entry = shop.services[n].1.entry;
        let others: Vec<u32> = (0u8..3)
            .filter(|server| *server != first)
            .map(|server| shop.services[n].1.members[(usize::from(server) + 3 - n) % 3])
            .collect();
        for (slot, member) in (entry.slot_offset..entry.slot_offset + 3).zip(others.iter().cycle())
        {
            shop.lab.program.set_slot(slot, SlotWord::stable(*member))?;
        }
    }
    let second = shop.connect(1, host)?;
    assert_ne!(second, first);
    for service in [0, 1, 0] {
        assert_eq!(shop.connect(service, host)?, second);
    }
    // What is open stays, and doesn't draw the source back.
    shop.lab.program.set_ticks(16)?;
    assert_eq!(shop.send(0, old, tcp_flags::ACK)?, first);
    assert_eq!(shop.connect(0, host)?, second);
    shop.set(first, MemberState::UP)?;
    assert_eq!(shop.connect(0, host)?, second, "also when it is back");
    Ok(())
}

#[test]
fn a_full_server_keeps_its_sources_until_it_has_room() -> Result<()> {
    let mut shop = shop()?;
    let host = "198.51.100.1";
    let first = shop.connect(0, host)?;
    let service = shop.services[0].1.clone();
    let member = service.members[usize::from(first)];
    let list = 100_000;
    for (index, member) in (list..).zip(&service.members) {
        shop.lab
            .program
            .set_slot(index, SlotWord(u64::from(*member)))?;
    }
    let spec = Spec::new(shop.services[0].0, protocol::TCP, method::L2_DSR);
    let entry = ServiceEntry {
        list_offset: list,
        list_sizes: [3, 0, 0, 0],
        ..service.entry
    };
    shop.lab.add_key(&spec, entry)?;
    let limit = |shop: &mut Shop, max| -> Result<()> {
        let mut loads = shop.lab.program.array::<MemberLoad>(map::LOADS)?;
        let load = loads.get(&member, 0)?;
        Ok(loads.set(member, MemberLoad { max, ..load }, 0)?)
    };
    limit(&mut shop, 1)?;
    assert_ne!(shop.connect(0, host)?, first);
    limit(&mut shop, 100)?;
    assert_eq!(shop.connect(0, host)?, first, "it comes back");
    Ok(())
}
