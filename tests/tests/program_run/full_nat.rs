//! Full NAT, byte by byte, both ways.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    abi::{MemberLoad, MemberStats, feature, map, method, service_flag},
    binding::Use,
    member::MemberState,
};
use lb_tests::{
    packet::{Packet, View, assert_same_frame, protocol, tcp_flags, verify},
    program::action,
};

use crate::{
    lab::{Backend, Case, Lab, Observed, Service, Spec, at, backend_mac, ip},
    reply_route::{Behind, CLIENTS, NEXT_HOP, Router, SERVERS, client},
};

/// First port of the pool's addresses.
pub const FIRST: u16 = 2000;

const OPEN: u32 = feature::OPEN_POOL_V4 | feature::OPEN_POOL_V6;
const POOLS: u32 = feature::POOL_V4 | feature::POOL_V6 | OPEN;

pub fn cases() -> Vec<Case> {
    let mut all = vec![];
    for v4 in [true, false] {
        for protocol in [protocol::TCP, protocol::UDP] {
            all.push(Case {
                method: method::FULL_NAT,
                v4,
                protocol,
            });
        }
    }
    all
}

pub fn vip(v4: bool) -> SocketAddr {
    at(if v4 {
        "192.0.2.30:80"
    } else {
        "[2001:db8::30]:80"
    })
}

pub fn pool(v4: bool, port: u16) -> SocketAddr {
    let address = ip(if v4 { "10.1.0.99" } else { "fd00:1::99" });
    (address, port).into()
}

/// A backend with the MAC address `number`.
pub fn backend(v4: bool, number: u8) -> Backend {
    let address = if v4 {
        ip(&format!("10.1.0.{number}"))
    } else {
        ip(&format!("fd00:1::{number}"))
    };
    Backend {
        address: (address, 8080).into(),
        mac: backend_mac(number),
        link: 0,
    }
}

/// A TCP packet with these flags; a UDP packet as it is.
pub fn with_flags(packet: Packet, flags: u8) -> Packet {
    let view = packet.build();
    let view = View::parse(&view).expect("a frame that can be taken apart");
    match view.protocol {
        protocol::TCP => packet.flags(flags),
        _ => packet,
    }
}

/// The data path between clients and servers, with a service of one case.
pub struct World {
    pub router: Router,
    pub case: Case,
    pub service: Service,
    pub client: SocketAddr,
}

impl World {
    pub fn new(case: Case, ports: u16) -> Result<Self> {
        Self::with_backends(case, ports, &[0x11])
    }

    pub fn with_backends(case: Case, ports: u16, backends: &[u8]) -> Result<Self> {
        let mut router = Router::new(false)?;
        let lab = &mut router.lab;
        let mut spec = Spec::new(vip(case.v4), case.protocol, case.method);
        spec.backends = backends
            .iter()
            .map(|number| Backend {
                link: router.servers,
                ..backend(case.v4, *number)
            })
            .collect();
        let service = lab.service(&spec)?;
        lab.program.add_pool(pool(true, 0).ip(), 1, FIRST, ports)?;
        lab.program
            .add_pool(pool(false, 0).ip(), 1000, FIRST, ports)?;
        lab.program.configure(|c| c.features |= POOLS)?;
        Ok(Self {
            router,
            case,
            service,
            client: client(case.v4, Behind::Resolved),
        })
    }

    /// The client of another flow.
    pub fn client(&self, n: u16) -> SocketAddr {
        (self.client.ip(), self.client.port() + n).into()
    }

    /// A first packet of a flow.
    pub fn request(&self, client: SocketAddr) -> Packet {
        let packet = self.case.between(client, vip(self.case.v4));
        with_flags(packet.macs(NEXT_HOP, CLIENTS.1), tcp_flags::SYN)
    }

    pub fn send(&mut self, packet: &Packet) -> Result<Observed> {
        self.router.run(self.router.clients, &packet.build())
    }

    /// The packet leaves for backend `number` from this port of the pool.
    #[track_caller]
    pub fn forwards(&mut self, packet: &Packet, number: u8, port: u16, events: &[&'static str]) {
        let got = self.send(packet).expect("the program runs");
        assert_eq!(got.drops, []);
        let expected = packet
            .clone()
            .macs(SERVERS.1, backend_mac(number))
            .source(pool(self.case.v4, port))
            .destination(backend(self.case.v4, number).address)
            .ttl(63)
            .build();
        assert_same_frame("request", &expected, &got.frame);
        assert_eq!(got.action, action::REDIRECT);
        let events: Vec<_> = events.iter().map(|e| (self.service.id, *e)).collect();
        assert_eq!(got.events, events);
    }

    #[track_caller]
    pub fn drops(&mut self, packet: &Packet, reason: &'static str) {
        let got = self.send(packet).expect("the program runs");
        assert_eq!(got.drops, [(self.service.id, reason)]);
        assert_eq!(got.action, action::DROP);
        assert_same_frame("dropped", &packet.build(), &got.frame);
    }

    /// A packet of a backend to a port of the pool.
    pub fn answer(&self, number: u8, port: u16) -> Packet {
        let source = backend(self.case.v4, number).address;
        self.case
            .between(source, pool(self.case.v4, port))
            .macs(backend_mac(number), SERVERS.1)
            .payload(*b"an answer")
    }

    pub fn reply(&mut self, packet: &Packet) -> Result<Observed> {
        self.router.run(self.router.servers, &packet.build())
    }

    #[track_caller]
    pub fn replies(&mut self, packet: &Packet, client: SocketAddr) {
        let got = self.reply(packet).expect("the program runs");
        assert_eq!((got.drops, got.events), (vec![], vec![]));
        let expected = packet
            .clone()
            .macs(CLIENTS.1, NEXT_HOP)
            .source(vip(self.case.v4))
            .destination(client)
            .ttl(63)
            .build();
        assert_same_frame("reply", &expected, &got.frame);
        assert_eq!(got.action, action::REDIRECT);
    }

    #[track_caller]
    fn nobodys(&mut self, packet: &Packet) {
        let got = self.reply(packet).expect("the program runs");
        assert_eq!(got.drops, [(0, "no_binding")]);
        assert_same_frame("nobody's", &packet.build(), &got.frame);
    }

    fn count(&mut self, usage: Use) -> usize {
        let states = self.router.lab.program.binding_states().expect("states");
        states.iter().filter(|s| s.usage() == usage).count()
    }

    pub fn set_state(&mut self, member: usize, state: MemberState) -> Result<()> {
        let id = self.service.members[member];
        self.router.lab.change_member(id, |m| m.state = state.0)
    }
}

pub const OPENED: &[&str] = &["binding_opened"];

#[test]
fn both_directions_are_byte_exact_and_counted() -> Result<()> {
    for case in cases() {
        let mut world = World::new(case, 8)?;
        let (first, second) = (world.client, world.client(1));
        world.forwards(&world.request(first), 0x11, FIRST, OPENED);
        world.forwards(&world.request(second), 0x11, FIRST + 1, OPENED);
        world.replies(&world.answer(0x11, FIRST), first);
        world.replies(&world.answer(0x11, FIRST + 1), second);
        let more = with_flags(world.request(first), tcp_flags::ACK).payload(*b"more");
        world.forwards(&more, 0x11, FIRST, &[]);
        let stats = world.router.lab.program.stats(world.service.members[0])?;
        let expected = MemberStats {
            packets: 3,
            reply_packets: 2,
            bytes: (world.request(first).build().len() * 2 + more.build().len()) as u64,
            reply_bytes: (world.answer(0x11, FIRST).build().len() * 2) as u64,
            connections: stats.connections,
        };
        assert_eq!(stats, expected, "{case:?}");
    }
    Ok(())
}

#[test]
fn udps_checksum_is_right_for_every_sum_and_stays_zero_where_it_is() -> Result<()> {
    let case = cases()[1];
    let mut world = World::new(case, 8)?;
    world.forwards(&world.request(world.client), 0x11, FIRST, OPENED);
    let (request, answer) = (world.request(world.client), world.answer(0x11, FIRST));
    let (clients, servers) = (world.router.clients, world.router.servers);
    let program = &world.router.lab.program;
    world.router.ns.run(|| -> Result<()> {
        for word in 0..=u16::MAX {
            let packet = request.clone().payload(word.to_be_bytes());
            let got = program.run_on(clients, &packet.build())?;
            let expected = packet
                .macs(SERVERS.1, backend_mac(0x11))
                .source(pool(true, FIRST))
                .destination(backend(true, 0x11).address)
                .ttl(63);
            assert_same_frame("request", &expected.build(), &got.frame);
            let packet = answer.clone().payload(word.to_be_bytes());
            let got = program.run_on(servers, &packet.build())?;
            let expected = packet
                .macs(CLIENTS.1, NEXT_HOP)
                .source(vip(true))
                .destination(world.client)
                .ttl(63);
            assert_same_frame("reply", &expected.build(), &got.frame);
            verify(&got.frame)?;
        }
        Ok(())
    })??;
    world.forwards(&request.no_udp_checksum(), 0x11, FIRST, &[]);
    world.replies(&answer.no_udp_checksum(), world.client);
    Ok(())
}

#[test]
fn what_is_nobodys_answer_is_dropped() -> Result<()> {
    for case in cases() {
        let mut world = World::new(case, 8)?;
        world.nobodys(&world.answer(0x11, FIRST));
        world.forwards(&world.request(world.client), 0x11, FIRST, OPENED);
        let good = world.answer(0x11, FIRST);
        world.nobodys(&world.answer(0x12, FIRST));
        world.nobodys(&world.answer(0x11, FIRST + 1));
        world.nobodys(&world.answer(0x11, FIRST - 1));
        world.nobodys(&world.answer(0x11, FIRST + 8));
        let other_port = backend(case.v4, 0x11).address.ip();
        world.nobodys(&good.clone().source((other_port, 8081).into()));
        let other = Case {
            protocol: if case.protocol == protocol::TCP {
                protocol::UDP
            } else {
                protocol::TCP
            },
            ..case
        };
        let source = backend(case.v4, 0x11).address;
        let packet = other.between(source, pool(case.v4, FIRST));
        world.nobodys(&packet.macs(backend_mac(0x11), SERVERS.1));
        world.replies(&good, world.client);
    }
    Ok(())
}

#[test]
fn a_connection_that_nobody_knows_is_not_taken_up_and_takes_no_port() -> Result<()> {
    for case in cases().into_iter().filter(|c| c.protocol == protocol::TCP) {
        let mut world = World::new(case, 8)?;
        for flags in [
            tcp_flags::ACK,
            tcp_flags::SYN | tcp_flags::ACK,
            tcp_flags::FIN | tcp_flags::ACK,
            tcp_flags::RST,
        ] {
            world.drops(&world.request(world.client).flags(flags), "no_binding");
        }
        assert_eq!(world.count(Use::Free), 16);
    }
    Ok(())
}

#[test]
fn without_a_free_port_new_flows_are_dropped_and_old_ones_go_on() -> Result<()> {
    for case in cases() {
        let mut world = World::new(case, 4)?;
        for n in 0..4 {
            world.forwards(&world.request(world.client(n)), 0x11, FIRST + n, OPENED);
        }
        for n in 4..10 {
            world.drops(&world.request(world.client(n)), "no_source_port");
        }
        for n in 0..4 {
            world.forwards(&world.request(world.client(n)), 0x11, FIRST + n, &[]);
            world.replies(&world.answer(0x11, FIRST + n), world.client(n));
        }
        assert_eq!((world.count(Use::Used), world.count(Use::Free)), (4, 4));
    }
    Ok(())
}

/// Under full tracking the scheduler's choice gets the binding: no flow that is
/// given another source goes past `max_connections`, or is forgotten after.
#[test]
fn a_binding_takes_a_place_among_its_members_connections_and_gives_it_back() -> Result<()> {
    let methods = [method::FULL_NAT, method::NAT];
    for case in cases().into_iter().filter(|c| c.protocol == protocol::TCP) {
        for method in methods {
            let case = Case { method, ..case };
            let mut world = World::new(case, 8)?;
            let lab = &mut world.router.lab;
            let mut entry = world.service.entry;
            entry.flags |= service_flag::FULL_TRACKING;
            if method == method::NAT {
                entry.flags |= service_flag::LOCAL;
                lab.program.add_local(world.client.ip(), 24)?;
            } else {
                entry.flags |= service_flag::FULL_NAT;
            }
            let spec = Spec::new(vip(case.v4), case.protocol, method);
            lab.add_key(&spec, entry)?;
            let load = MemberLoad {
                counts: 0,
                max: 2,
                weight: 1,
                ..MemberLoad::default()
            };
            let member = world.service.members[0];
            lab.program
                .array::<MemberLoad>(map::LOADS)?
                .set(member, load, 0)?;

            let both = ["binding_opened", "flow_inserted"];
            for n in 0..2 {
                world.forwards(&world.request(world.client(n)), 0x11, FIRST + n, &both);
                // The SYN again, and what follows: the same.
                world.forwards(&world.request(world.client(n)), 0x11, FIRST + n, &[]);
                let ack = world.request(world.client(n)).flags(tcp_flags::ACK);
                world.forwards(&ack, 0x11, FIRST + n, &[]);
            }
            world.drops(&world.request(world.client(2)), "max_connections");
            assert_eq!(world.count(Use::Used), 2);

            let fin = tcp_flags::FIN | tcp_flags::ACK;
            world.forwards(&world.request(world.client(0)).flags(fin), 0x11, FIRST, &[]);
            world.forwards(&world.request(world.client(2)), 0x11, FIRST + 2, &both);
            world.drops(&world.request(world.client(3)), "max_connections");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_sent_takes_no_port() -> Result<()> {
    for case in cases() {
        let mut world = World::new(case, 4)?;
        // The client hears of it.
        let got = world.send(&world.request(world.client).ttl(1))?;
        assert_eq!(got.action, action::TX);
        assert_eq!(got.drops, [(world.service.id, "ttl_exceeded")]);
        assert_eq!(got.events, [(world.service.id, "icmp_error_sent")]);
        let id = world.service.members[0];
        world.router.lab.change_member(id, |m| m.next_hop = 0)?;
        world.drops(&world.request(world.client), "no_neighbour");
        world.set_state(0, MemberState::DEAD)?;
        world.drops(&world.request(world.client), "no_backend");
        assert_eq!(world.count(Use::Free), 8);
    }
    Ok(())
}

#[test]
fn a_flow_stays_with_its_member_while_that_serves_and_then_gets_another_port() -> Result<()> {
    for case in cases() {
        let mut world = World::with_backends(case, 4, &[0x11, 0x12])?;
        let service = world.service.clone();
        let slot = |member: usize| lb_common::slot::SlotWord::stable(service.members[member]);
        world.router.lab.set_slots(&service, slot(0))?;
        world.forwards(&world.request(world.client), 0x11, FIRST, OPENED);
        world.router.lab.set_slots(&service, slot(1))?;
        world.forwards(&world.request(world.client), 0x11, FIRST, &[]);
        world.set_state(0, MemberState::DRAINING)?;
        let data = with_flags(world.request(world.client), tcp_flags::ACK);
        world.forwards(&data, 0x11, FIRST, &[]);
        world.replies(&world.answer(0x11, FIRST), world.client);
        world.set_state(0, MemberState::DEAD)?;
        world.nobodys(&world.answer(0x11, FIRST));
        world.forwards(&world.request(world.client), 0x12, FIRST + 1, OPENED);
        assert_eq!((world.count(Use::Used), world.count(Use::Resting)), (1, 1));
        world.nobodys(&world.answer(0x11, FIRST));
        world.replies(&world.answer(0x12, FIRST + 1), world.client);
    }
    Ok(())
}

#[test]
fn a_closed_connections_port_is_reused_by_its_client_only_where_the_member_takes_new_ones()
-> Result<()> {
    for case in cases().into_iter().filter(|c| c.protocol == protocol::TCP) {
        let mut world = World::with_backends(case, 4, &[0x11, 0x12])?;
        let service = world.service.clone();
        let slot = |member: usize| lb_common::slot::SlotWord::stable(service.members[member]);
        world.router.lab.set_slots(&service, slot(0))?;
        let syn = world.request(world.client);
        let fin = syn.clone().flags(tcp_flags::FIN | tcp_flags::ACK);
        world.forwards(&syn, 0x11, FIRST, OPENED);
        world.forwards(&fin, 0x11, FIRST, &[]);
        let answer = world
            .answer(0x11, FIRST)
            .flags(tcp_flags::FIN | tcp_flags::ACK);
        world.replies(&answer, world.client);
        world.forwards(&syn, 0x11, FIRST, &[]);
        world.forwards(&fin, 0x11, FIRST, &[]);
        world.replies(&answer, world.client);
        world.router.lab.set_slots(&service, slot(1))?;
        world.set_state(0, MemberState::DRAINING)?;
        world.forwards(&syn, 0x12, FIRST + 1, OPENED);
    }
    Ok(())
}

#[test]
fn an_address_of_the_pool_answers_arp_and_echo_and_nothing_else() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.program.add_pool(ip("192.0.2.99"), 1, FIRST, 4)?;
    lab.program.add_pool(ip("2001:db8::99"), 9, FIRST, 4)?;
    for (from, to) in [
        ("198.51.100.7", "192.0.2.99"),
        ("2001:db8:c::7", "2001:db8::99"),
    ] {
        let ping = Packet::echo_request(ip(from), ip(to), 1, 2)
            .macs(crate::lab::ROUTER_MAC, crate::lab::OWN_MAC);
        let got = lab.run(&ping.build());
        assert_eq!(got.events, [(0, "echo_reply")]);
        assert_eq!((got.action, got.drops), (action::TX, vec![]));
    }
    Ok(())
}

#[test]
fn clients_on_a_backends_own_link_get_full_nat_under_nat() -> Result<()> {
    for case in Case::all().into_iter().filter(|c| c.is_nat()) {
        let mut lab = Lab::new()?;
        let service = lab.service(&case.spec())?;
        let entry = lb_common::abi::ServiceEntry {
            flags: service_flag::LOCAL,
            ..service.entry
        };
        lab.add_key(&case.spec(), entry)?;
        let (near, prefix) = if case.v4 {
            (at("10.1.0.50:40000"), (ip("10.1.0.0"), 24))
        } else {
            (at("[fd00:1::50]:40000"), (ip("fd00:1::"), 64))
        };
        lab.program.add_local(prefix.0, prefix.1)?;
        let from = |client| with_flags(case.between(client, case.vip()), tcp_flags::SYN);
        // Without a pool it is forwarded as ever, and counted.
        let got = lab.run(&from(near).build());
        assert_eq!(got.events, [(service.id, "local_client")]);
        assert_same_frame("no pool", &case.forwarded(&from(near)), &got.frame);

        lab.program.add_pool(pool(case.v4, 0).ip(), 1, FIRST, 4)?;
        lab.program.configure(|c| c.features |= POOLS)?;
        // A connection that is older than the pool goes on as it was.
        if case.protocol == protocol::TCP {
            let old = from(near).flags(tcp_flags::ACK);
            lab.bounces("old", &old.build(), &case.forwarded(&old));
        }
        let got = lab.run(&from(near).build());
        assert_eq!(got.events, [(service.id, "binding_opened")]);
        let expected = case.forwarded(&from(near).source(pool(case.v4, FIRST)));
        assert_same_frame("near", &expected, &got.frame);
        let far = from(case.client());
        lab.bounces("far", &far.build(), &case.forwarded(&far));
        let more = with_flags(from(near), tcp_flags::ACK);
        let rewritten = case.forwarded(&more.clone().source(pool(case.v4, FIRST)));
        lab.bounces("more", &more.build(), &rewritten);

        // The pool's last address leaves: no new flows, the old ones stay.
        lab.program.configure(|c| c.features &= !OPEN)?;
        lab.bounces("living", &more.build(), &rewritten);
        let (address, port) = (near.ip(), near.port() + 1);
        let new = from((address, port).into());
        let got = lab.run(&new.build());
        assert_eq!(got.events, [(service.id, "local_client")]);
        assert_same_frame("new", &case.forwarded(&new), &got.frame);
    }
    Ok(())
}

#[test]
fn two_cores_that_meet_the_same_flows_first_packet_give_it_one_port() -> Result<()> {
    const FLOWS: u16 = 1500;
    for case in cases() {
        let mut world = World::new(case, FLOWS)?;
        let frames: Vec<Vec<u8>> = (0..FLOWS / 2)
            .map(|n| world.request(world.client(n)).build())
            .collect();
        let barrier = std::sync::Barrier::new(2);
        let (ns, clients) = (&world.router.ns, world.router.clients);
        let program = &world.router.lab.program;
        let run = || -> Result<()> {
            ns.run(|| {
                for frame in &frames {
                    barrier.wait();
                    let outcome = program.run_on(clients, frame)?;
                    anyhow::ensure!(outcome.action == action::REDIRECT);
                }
                Ok(())
            })?
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(run);
            run().and(other.join().expect("no panic"))
        })?;
        let flows = usize::from(FLOWS / 2);
        assert_eq!(world.count(Use::Used), flows, "{case:?}");
        let rest = world.count(Use::Resting);
        println!("{case:?}: {rest} ports were taken twice and rest");
        let first = world.send(&world.request(world.client))?;
        assert_eq!(first.events.len(), flows, "each opened once");
        for n in 0..FLOWS / 2 {
            let got = world.send(&world.request(world.client(n)))?;
            assert_eq!((got.drops, got.events), (vec![], vec![]));
        }
    }
    Ok(())
}
