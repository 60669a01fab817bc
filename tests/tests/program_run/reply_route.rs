//! Replies of NAT's backends, routed by the kernel's tables of a namespace:
//! translated and sent, left to the kernel, or dropped.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::abi::{MemberStats, NeighbourRequest, feature};
use lb_common::net::Addr;
use lb_tests::{
    netns::Netns,
    packet::{Mac, Packet, assert_same_frame, protocol, tcp_flags, verify},
    program::{Outcome, action},
};

use crate::lab::{Backend, Case, Lab, Observed, Service, backend_mac, ip};

/// The balancer's interfaces: servers, clients, and one that isn't managed.
pub const SERVERS: (&str, Mac) = ("in0", Mac([2, 0, 0, 0, 1, 1]));
pub const CLIENTS: (&str, Mac) = ("out0", Mac([2, 0, 0, 0, 1, 2]));
const UNMANAGED: (&str, Mac) = ("un0", Mac([2, 0, 0, 0, 1, 3]));

/// The next hop of clients that is resolved, on every interface.
pub const NEXT_HOP: Mac = Mac([2, 0, 0, 0, 2, 0xfe]);

/// Routes by what is behind them; `.254` and `::fe` are resolved next hops,
/// `.253` and `::fd` are not.
const SETUP: &str = "\
link add in0 address 02:00:00:00:01:01 type veth peer name in1
link add out0 address 02:00:00:00:01:02 type veth peer name out1
link add un0 address 02:00:00:00:01:03 type veth peer name un1
link set in0 up
link set in1 up
link set out0 up
link set out1 up
link set un0 up
link set un1 up
address add 10.1.0.1/24 dev in0
address add 203.0.113.1/24 dev out0
address add 100.64.0.1/24 dev un0
address add fd00:1::1/64 dev in0 nodad
address add 2001:db8:f::1/64 dev out0 nodad
address add 2001:db8:a::1/64 dev un0 nodad
neighbour add 10.1.0.254 lladdr 02:00:00:00:02:fe dev in0 nud permanent
neighbour add 203.0.113.254 lladdr 02:00:00:00:02:fe dev out0 nud permanent
neighbour add 100.64.0.254 lladdr 02:00:00:00:02:fe dev un0 nud permanent
neighbour add fd00:1::fe lladdr 02:00:00:00:02:fe dev in0 nud permanent
neighbour add 2001:db8:f::fe lladdr 02:00:00:00:02:fe dev out0 nud permanent
neighbour add 2001:db8:a::fe lladdr 02:00:00:00:02:fe dev un0 nud permanent
route add 198.51.100.0/24 via 203.0.113.254
route add 198.51.101.0/24 via 203.0.113.253
route add 198.51.102.0/24 via 100.64.0.254
route add 198.51.103.0/24 via 10.1.0.254
route add blackhole 198.51.104.0/24
route add unreachable 198.51.105.0/24
route add prohibit 198.51.106.0/24
route add 2001:db8:c::/64 via 2001:db8:f::fe
route add 2001:db8:c:1::/64 via 2001:db8:f::fd
route add 2001:db8:c:2::/64 via 2001:db8:a::fe
route add 2001:db8:c:3::/64 via fd00:1::fe
route add blackhole 2001:db8:c:4::/64
route add unreachable 2001:db8:c:5::/64
route add prohibit 2001:db8:c:6::/64
";

/// Clients by the third or fourth number of their prefix, see [`SETUP`].
#[derive(Clone, Copy, Debug)]
pub enum Behind {
    Resolved = 0,
    Unresolved = 1,
    UnmanagedLink = 2,
    ServersLink = 3,
    Blackhole = 4,
    Unreachable = 5,
    Prohibit = 6,
    Nothing = 7,
}

pub fn client(v4: bool, behind: Behind) -> SocketAddr {
    let n = behind as u16;
    let address = if v4 {
        ip(&format!("198.51.{}.7", 100 + n))
    } else {
        ip(&format!("2001:db8:c:{n}::7"))
    };
    (address, 40_001).into()
}

pub struct Router {
    pub ns: Netns,
    pub lab: Lab,
    pub servers: u32,
    pub clients: u32,
    pub services: Vec<(Case, Service)>,
}

impl Router {
    /// NAT services of all families and protocols, their replies recognised by
    /// port or by flow.
    pub fn new(by_flow: bool) -> Result<Self> {
        let ns = Netns::new("fib")?;
        ns.sysctl("net/ipv4/ip_forward", "1")?;
        ns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        ns.feed(&["ip", "-batch", "-"], SETUP)?;
        let index = |name: &str| -> Result<u32> {
            let name = std::ffi::CString::new(name)?;
            // SAFETY: a string that ends with zero.
            let index = ns.run(|| unsafe { libc::if_nametoindex(name.as_ptr()) })?;
            (index != 0).then_some(index).context("no such interface")
        };
        let (servers, clients) = (index(SERVERS.0)?, index(CLIENTS.0)?);
        index(UNMANAGED.0)?;
        let mut lab = Lab::new()?;
        lab.program.add_link(servers, SERVERS.1.0)?;
        lab.program.add_link(clients, CLIENTS.1.0)?;
        let mut services = vec![];
        for case in Case::all().into_iter().filter(|c| c.is_nat()) {
            let mut spec = case.spec();
            spec.backends = vec![Backend {
                address: case.backend(),
                mac: backend_mac(0x11),
                link: servers,
            }];
            spec.reply_flows = by_flow;
            services.push((case, lab.service(&spec)?));
        }
        Ok(Self {
            ns,
            lab,
            servers,
            clients,
            services,
        })
    }

    pub fn run(&mut self, ifindex: u32, frame: &[u8]) -> Result<Observed> {
        let program = &self.lab.program;
        let outcome: Outcome = self.ns.run(|| program.run_on(ifindex, frame))??;
        Ok(self.lab.observe(outcome))
    }

    /// A client's packet, as it must be forwarded.
    #[track_caller]
    fn request(&mut self, case: Case, client: SocketAddr) -> Result<()> {
        let packet = case.between(client, case.vip()).macs(NEXT_HOP, CLIENTS.1);
        let got = self.run(self.clients, &packet.build())?;
        let expected = packet
            .macs(SERVERS.1, backend_mac(0x11))
            .destination(case.backend())
            .ttl(63);
        assert_same_frame("request", &expected.build(), &got.frame);
        assert_eq!(got.action, action::REDIRECT);
        Ok(())
    }

    pub fn reply(&mut self, packet: &Packet) -> Result<Observed> {
        self.run(self.servers, &packet.build())
    }

    /// The packet stays as it is, and the kernel gets it.
    #[track_caller]
    pub fn untouched(&mut self, packet: &Packet, events: &[(u32, &'static str)]) -> Result<()> {
        let got = self.reply(packet)?;
        assert_same_frame("untouched", &packet.build(), &got.frame);
        assert_eq!(got.action, action::PASS);
        assert_eq!((got.drops, &got.events[..]), (vec![], events));
        Ok(())
    }
}

/// A backend's packet to a client.
pub fn reply_to(case: Case, client: SocketAddr) -> Packet {
    case.between(case.backend(), client)
        .macs(backend_mac(0x11), SERVERS.1)
}

/// The test with both ways of recognising replies, for all families and
/// protocols; under the second the client sent a packet first.
pub fn both_ways(
    behind: Behind,
    test: impl Fn(&mut Router, Case, &Service, SocketAddr) -> Result<()>,
) -> Result<()> {
    for by_flow in [false, true] {
        let mut router = Router::new(by_flow)?;
        for (case, service) in router.services.clone() {
            let client = client(case.v4, behind);
            if by_flow {
                router.request(case, client)?;
            }
            test(&mut router, case, &service, client)
                .with_context(|| format!("{case:?}, by flow: {by_flow}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_reply_leaves_from_the_vip_by_the_clients_link() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, client| {
        let packet = reply_to(case, client);
        let got = router.reply(&packet)?;
        let expected = packet
            .clone()
            .source(case.vip())
            .macs(CLIENTS.1, NEXT_HOP)
            .ttl(63)
            .build();
        assert_same_frame(&format!("{case:?}"), &expected, &got.frame);
        assert_eq!(got.action, action::REDIRECT);
        assert_eq!((got.drops, got.events), (vec![], vec![]));
        verify(&got.frame)?;
        let stats = router.lab.program.stats(service.members[0])?;
        let expected = MemberStats {
            packets: stats.packets,
            bytes: stats.bytes,
            reply_packets: 1,
            reply_bytes: packet.build().len() as u64,
            ..MemberStats::default()
        };
        assert_eq!(stats, expected);
        assert_eq!(router.lab.program.neighbour_requests()?, []);
        Ok(())
    })
}

#[test]
fn a_reply_that_goes_back_by_its_link_is_bounced() -> Result<()> {
    both_ways(Behind::ServersLink, |router, case, _, client| {
        let packet = reply_to(case, client);
        let got = router.reply(&packet)?;
        let expected = packet
            .source(case.vip())
            .macs(SERVERS.1, NEXT_HOP)
            .ttl(63)
            .build();
        assert_same_frame(&format!("{case:?}"), &expected, &got.frame);
        assert_eq!(got.action, action::TX);
        Ok(())
    })
}

#[test]
fn replies_of_every_shape_are_translated() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, _, client| {
        let plain = reply_to(case, client);
        let mut all = vec![plain.clone().padding(9), plain.clone().tos(0xb8)];
        for length in [0, 1, 2, 3, 1399, 1400] {
            all.push(plain.clone().payload(vec![0x5a; length]));
        }
        all.push(if case.v4 {
            plain.clone().ip_options(&[1; 40])
        } else {
            plain.clone().hop_by_hop().hop_by_hop()
        });
        if case.protocol == protocol::TCP {
            all.push(plain.clone().flags(tcp_flags::SYN | tcp_flags::ACK));
            all.push(plain.clone().flags(tcp_flags::RST));
            all.push(plain.clone().tcp_options(&[1; 12]));
        } else {
            all.push(plain.clone().no_udp_checksum());
        }
        for packet in all {
            let got = router.reply(&packet)?;
            let expected = packet
                .source(case.vip())
                .macs(CLIENTS.1, NEXT_HOP)
                .ttl(63)
                .build();
            assert_same_frame(&format!("{case:?}"), &expected, &got.frame);
            assert_eq!(got.action, action::REDIRECT);
        }
        Ok(())
    })
}

#[test]
fn a_reply_to_an_unresolved_next_hop_is_left_to_the_kernel() -> Result<()> {
    both_ways(Behind::Unresolved, |router, case, service, client| {
        let packet = reply_to(case, client);
        let got = router.reply(&packet)?;
        // The kernel routes it, and uses up the hop.
        let expected = packet.source(case.vip()).build();
        assert_same_frame(&format!("{case:?}"), &expected, &got.frame);
        assert_eq!(got.action, action::PASS);
        assert_eq!(got.drops, []);
        assert_eq!(got.events, [(service.id, "reply_unresolved")]);
        let next_hop = ip(if case.v4 {
            "203.0.113.253"
        } else {
            "2001:db8:f::fd"
        });
        let (address, family) = Addr::from_ip(next_hop);
        let expected = NeighbourRequest {
            address,
            ifindex: router.clients,
            family: family.into(),
        };
        assert_eq!(router.lab.program.neighbour_requests()?, [expected]);
        Ok(())
    })
}

#[test]
fn a_reply_by_a_link_that_is_not_managed_is_left_to_the_kernel() -> Result<()> {
    both_ways(Behind::UnmanagedLink, |router, case, service, client| {
        let packet = reply_to(case, client);
        let got = router.reply(&packet)?;
        let expected = packet.source(case.vip()).build();
        assert_same_frame(&format!("{case:?}"), &expected, &got.frame);
        assert_eq!(got.action, action::PASS);
        assert_eq!(got.events, [(service.id, "reply_unresolved")]);
        assert_eq!(router.lab.program.neighbour_requests()?, []);
        Ok(())
    })
}

#[test]
fn a_reply_that_the_routes_refuse_is_dropped() -> Result<()> {
    for behind in [Behind::Blackhole, Behind::Unreachable, Behind::Prohibit] {
        both_ways(behind, |router, case, service, client| {
            let packet = reply_to(case, client);
            let got = router.reply(&packet)?;
            assert_eq!(got.drops, [(service.id, "no_route")], "{behind:?}");
            assert_eq!(got.action, action::DROP);
            assert_same_frame("dropped", &packet.build(), &got.frame);
            assert_eq!(
                router.lab.program.stats(service.members[0])?.reply_packets,
                0
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// What the kernel does with it is its own matter.
#[test]
fn a_reply_without_a_route_is_passed_untouched() -> Result<()> {
    both_ways(Behind::Nothing, |router, case, _, client| {
        router.untouched(&reply_to(case, client), &[])
    })
}

#[test]
fn an_answer_to_the_balancer_itself_is_passed_untouched() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, _| {
        let own: [IpAddr; 2] = if case.v4 {
            [ip("10.1.0.1"), ip("203.0.113.1")]
        } else {
            [ip("fd00:1::1"), ip("2001:db8:f::1")]
        };
        let by_flow = service.entry.flags != 0;
        for own in own {
            // A health check of ours is in no table of flows.
            let events = [(0, "reply_unmatched")];
            let events = if by_flow { &events[..] } else { &[] };
            router.untouched(&reply_to(case, (own, 40_001).into()), events)?;
        }
        Ok(())
    })
}

#[test]
fn without_forwarding_replies_are_left_to_the_kernel_and_counted() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, client| {
        router.ns.sysctl("net/ipv4/ip_forward", "0")?;
        router.ns.sysctl("net/ipv6/conf/all/forwarding", "0")?;
        let events = [(service.id, "forwarding_off")];
        router.untouched(&reply_to(case, client), &events)
    })
}

/// Which tells the backend, and not the client.
#[test]
fn a_reply_without_hops_left_is_left_to_the_kernel() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, _, client| {
        for ttl in [0, 1] {
            router.untouched(&reply_to(case, client).ttl(ttl), &[])?;
        }
        let got = router.reply(&reply_to(case, client).ttl(2))?;
        assert_eq!(got.action, action::REDIRECT);
        Ok(())
    })
}

#[test]
fn what_a_backend_sends_of_its_own_is_passed_untouched() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, service, client| {
        let mut other_port = case.backend();
        other_port.set_port(22);
        let mut other_host = case.backend();
        other_host.set_ip(ip(if case.v4 { "10.1.0.12" } else { "fd00:1::12" }));
        for source in [other_port, other_host] {
            router.untouched(&reply_to(case, client).source(source), &[])?;
        }
        if service.entry.flags != 0 {
            // Another client port than that of the flow.
            let mut stranger = client;
            stranger.set_port(40_002);
            let events = [(0, "reply_unmatched")];
            router.untouched(&reply_to(case, stranger), &events)?;
        }
        let echo = Packet::echo_reply(case.backend().ip(), client.ip(), 1, 1)
            .macs(backend_mac(0x11), SERVERS.1);
        router.untouched(&echo, &[])
    })
}

#[test]
fn replies_are_looked_for_only_where_there_is_nat() -> Result<()> {
    both_ways(Behind::Resolved, |router, case, _, client| {
        router
            .lab
            .program
            .configure(|c| c.features = feature::RANGES)?;
        let done = router.untouched(&reply_to(case, client), &[]);
        router
            .lab
            .program
            .configure(|c| c.features = feature::RANGES | feature::REPLIES)?;
        done
    })
}

#[test]
fn a_reply_is_translated_until_the_flow_has_been_idle_for_too_long() -> Result<()> {
    let mut router = Router::new(true)?;
    router
        .lab
        .program
        .configure(|c| c.longest_idle_units = 20)?;
    for (case, _) in router.services.clone() {
        let client = client(case.v4, Behind::Resolved);
        router.lab.program.set_ticks(0)?;
        router.request(case, client)?;
        // Each reply is a sign of life.
        for ticks in [20 * 8, 40 * 8, 60 * 8] {
            router.lab.program.set_ticks(ticks)?;
            let got = router.reply(&reply_to(case, client))?;
            assert_eq!(got.action, action::REDIRECT, "{case:?} at {ticks}");
        }
        router.lab.program.set_ticks(81 * 8)?;
        let events = [(0, "reply_unmatched")];
        router.untouched(&reply_to(case, client), &events)?;
    }
    Ok(())
}

#[test]
fn replies_of_an_any_port_service_keep_their_port() -> Result<()> {
    let mut router = Router::new(true)?;
    for case in Case::all().into_iter().filter(|c| c.is_nat()) {
        let anywhere = |address: SocketAddr, port| SocketAddr::new(address.ip(), port);
        let vip = ip(if case.v4 {
            "192.0.2.99"
        } else {
            "2001:db8::99"
        });
        let backend = ip(if case.v4 { "10.1.0.99" } else { "fd00:1::99" });
        let mut spec = case.spec().reply_flows().port_bits(0);
        spec.vip = (vip, 0).into();
        spec.backends = vec![Backend {
            address: (backend, 0).into(),
            mac: backend_mac(0x99),
            link: router.servers,
        }];
        router.lab.service(&spec)?;
        let client = client(case.v4, Behind::Resolved);
        for port in [1, 80, 65_535] {
            let vip = anywhere(spec.vip, port);
            let request = case.between(client, vip).macs(NEXT_HOP, CLIENTS.1);
            let got = router.run(router.clients, &request.build())?;
            assert_eq!(got.action, action::REDIRECT);
            let backend = (backend, port).into();
            let sent = request
                .macs(SERVERS.1, backend_mac(0x99))
                .destination(backend)
                .ttl(63);
            assert_same_frame("request", &sent.build(), &got.frame);
            let reply = reply_to(case, client).source(backend);
            let got = router.reply(&reply)?;
            let sent = reply.source(vip).macs(CLIENTS.1, NEXT_HOP).ttl(63);
            assert_same_frame("reply", &sent.build(), &got.frame);
            assert_eq!(got.action, action::REDIRECT);
        }
    }
    Ok(())
}

/// Two services that share a backend and its port: the flow tells them apart.
#[test]
fn replies_of_a_shared_backend_leave_from_the_vip_that_was_asked() -> Result<()> {
    let mut router = Router::new(true)?;
    for case in Case::all().into_iter().filter(|c| c.is_nat()) {
        let mut second = case.vip();
        second.set_port(81);
        let mut spec = case.spec().reply_flows();
        spec.vip = second;
        spec.backends = vec![Backend {
            address: case.backend(),
            mac: backend_mac(0x11),
            link: router.servers,
        }];
        router.lab.service(&spec)?;
        let mut client = client(case.v4, Behind::Resolved);
        for (port, vip) in [(1001, case.vip()), (1002, second), (1003, case.vip())] {
            client.set_port(port);
            let request = case.between(client, vip).macs(NEXT_HOP, CLIENTS.1);
            let got = router.run(router.clients, &request.build())?;
            assert_eq!(got.action, action::REDIRECT);
        }
        for (port, vip) in [(1001, case.vip()), (1002, second), (1003, case.vip())] {
            client.set_port(port);
            let reply = reply_to(case, client);
            let got = router.reply(&reply)?;
            let sent = reply.source(vip).macs(CLIENTS.1, NEXT_HOP).ttl(63);
            assert_same_frame("reply", &sent.build(), &got.frame);
        }
    }
    Ok(())
}
