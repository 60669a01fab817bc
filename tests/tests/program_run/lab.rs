//! A loaded data path, filled with services, that observes what each frame
//! changes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{
    abi::{LinkEntry, ServiceEntry, feature, map, method, service_flag},
    slot::SlotWord,
};
use lb_tests::{
    packet::{Mac, Packet, assert_same_frame, protocol, verify},
    program::{self, INGRESS, Pooled, Sizes, action},
};

/// The balancer's ingress interface.
pub const OWN_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// The router that packets of clients come from.
pub const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Another interface of the balancer's, and its MAC address.
pub const OTHER_LINK: u32 = 77;
pub const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x77]);

/// Everything a forwarded packet's treatment may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub method: u8,
    pub v4: bool,
    pub protocol: u8,
}

impl Case {
    /// Method × family × protocol.
    pub fn all() -> Vec<Self> {
        let mut all = vec![];
        for method in [method::L2_DSR, method::NAT] {
            for v4 in [true, false] {
                for protocol in [protocol::TCP, protocol::UDP] {
                    all.push(Self {
                        method,
                        v4,
                        protocol,
                    });
                }
            }
        }
        all
    }

    pub fn is_nat(self) -> bool {
        self.method == method::NAT
    }

    pub fn client(self) -> SocketAddr {
        client(self.v4)
    }

    /// One for each method, so that all cases go into one program.
    pub fn vip(self) -> SocketAddr {
        at(match (self.v4, self.is_nat()) {
            (true, false) => "192.0.2.10:80",
            (true, true) => "192.0.2.20:80",
            (false, false) => "[2001:db8::10]:80",
            (false, true) => "[2001:db8::20]:80",
        })
    }

    pub fn backend(self) -> SocketAddr {
        backend(self.v4)
    }

    /// A packet of a client to the service, with a payload.
    pub fn packet(self) -> Packet {
        self.between(self.client(), self.vip())
    }

    /// A packet of the case's protocol between any two ends.
    pub fn between(self, source: SocketAddr, destination: SocketAddr) -> Packet {
        match self.protocol {
            protocol::TCP => Packet::tcp(source, destination),
            _ => Packet::udp(source, destination),
        }
        .macs(ROUTER_MAC, OWN_MAC)
        .payload(*b"a payload of odd length, 37 bytes lon")
    }

    /// A service of one backend for the case.
    pub fn spec(self) -> Spec {
        Spec::new(self.vip(), self.protocol, self.method).backend(self.backend(), 0x11)
    }

    /// What the balancer makes of `packet`, which must have the TTL 64.
    pub fn forwarded(self, packet: &Packet) -> Vec<u8> {
        self.forwarded_to(packet, self.backend(), 0x11)
    }

    /// As [`Self::forwarded`], to the backend with MAC `number`.
    pub fn forwarded_to(self, packet: &Packet, backend: SocketAddr, number: u8) -> Vec<u8> {
        let packet = packet.clone().macs(OWN_MAC, backend_mac(number));
        if self.is_nat() {
            packet.destination(backend).ttl(63).build()
        } else {
            packet.build()
        }
    }
}

pub fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address and a port")
}

pub fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

pub fn client(v4: bool) -> SocketAddr {
    at(if v4 {
        "198.51.100.7:40001"
    } else {
        "[2001:db8:c::7]:40001"
    })
}

pub fn backend(v4: bool) -> SocketAddr {
    at(if v4 {
        "10.1.0.11:8080"
    } else {
        "[fd00:1::11]:8080"
    })
}

pub fn backend_mac(number: u8) -> Mac {
    Mac([2, 0, 0, 1, 0, number])
}

/// A service to set up.
#[derive(Clone, Debug)]
pub struct Spec {
    pub vip: SocketAddr,
    pub protocol: u8,
    pub method: u8,
    pub backends: Vec<Backend>,
    pub owner: u16,
    pub reply_flows: bool,
    /// Leading bits of the port that count: 16 is one port.
    pub port_bits: u32,
}

/// A backend of a service; port 0 keeps the packet's.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pub address: SocketAddr,
    pub mac: Mac,
    pub link: u32,
}

impl Spec {
    pub fn new(vip: SocketAddr, protocol: u8, method: u8) -> Self {
        Self {
            vip,
            protocol,
            method,
            backends: vec![],
            owner: 0,
            reply_flows: false,
            port_bits: 16,
        }
    }

    /// Adds a backend at [`backend_mac`], on the ingress link.
    pub fn backend(mut self, address: SocketAddr, mac: u8) -> Self {
        self.backends.push(Backend {
            address,
            mac: backend_mac(mac),
            link: INGRESS,
        });
        self
    }

    pub fn owner(mut self, owner: u16) -> Self {
        self.owner = owner;
        self
    }

    pub fn reply_flows(mut self) -> Self {
        self.reply_flows = true;
        self
    }

    /// Makes it a service of all ports that share `bits` leading bits.
    pub fn port_bits(mut self, bits: u32) -> Self {
        self.port_bits = bits;
        self
    }
}

/// A service that was set up.
#[derive(Clone, Debug)]
pub struct Service {
    pub id: u32,
    pub members: Vec<u32>,
    pub entry: ServiceEntry,
}

/// What became of a frame, and what was counted for it: (service, name), once
/// for each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub action: u32,
    pub frame: Vec<u8>,
    pub drops: Vec<(u32, &'static str)>,
    pub events: Vec<(u32, &'static str)>,
}

type Counters = BTreeMap<(u32, &'static str), u64>;

/// See the module's description.
pub struct Lab {
    pub program: Pooled,
    next_slot: u32,
    next_service: u32,
    next_member: u32,
    drops: Counters,
    events: Counters,
}

impl Lab {
    pub fn new() -> Result<Self> {
        Self::sized(Sizes::default())
    }

    /// In a program of these sizes.
    pub fn sized(sizes: Sizes) -> Result<Self> {
        Self::of(Pooled::take(sizes)?)
    }

    /// In a program that nothing was done with, with the links [`INGRESS`] and
    /// [`OTHER_LINK`], and features as if there were ranges and NAT.
    pub fn of(mut program: Pooled) -> Result<Self> {
        program.add_link(INGRESS, OWN_MAC.0)?;
        program.add_link(OTHER_LINK, OTHER_MAC.0)?;
        program.configure(|c| {
            c.features = feature::RANGES | feature::REPLIES;
            c.sample_mask = u32::MAX;
        })?;
        Ok(Self {
            program,
            next_slot: 0,
            next_service: 1,
            next_member: 1,
            drops: Counters::new(),
            events: Counters::new(),
        })
    }

    /// With a service of one backend for every case that the filter leaves.
    pub fn with_cases(filter: impl Fn(&Case) -> bool) -> Result<(Self, Vec<(Case, Service)>)> {
        let mut lab = Self::new()?;
        let mut services = vec![];
        for case in Case::all().into_iter().filter(filter) {
            services.push((case, lab.service(&case.spec())?));
        }
        Ok((lab, services))
    }

    /// Sets up a service: VIP, key, members, slots, and the keys of replies.
    pub fn service(&mut self, spec: &Spec) -> Result<Service> {
        let id = self.next_service;
        self.next_service += 1;
        let mut members = vec![];
        for backend in &spec.backends {
            let member = self.next_member;
            self.next_member += 1;
            let entry = program::member(
                id,
                spec.method,
                spec.protocol,
                backend.address.ip(),
                backend.address.port(),
                (spec.vip.ip(), spec.vip.port()),
                (
                    backend.mac.0,
                    u16::try_from(LinkEntry::place(backend.link, [0; 2]))?,
                ),
            );
            self.program.set_member(member, entry)?;
            if spec.method == method::NAT {
                let named = if spec.reply_flows { 0 } else { member };
                self.program.add_reply(
                    backend.address.ip(),
                    backend.address.port(),
                    spec.protocol,
                    named,
                )?;
            }
            members.push(member);
        }
        let (first_slot, slots) = (self.next_slot, 101);
        self.next_slot += slots;
        if !members.is_empty() {
            for (slot, member) in (first_slot..first_slot + slots).zip(members.iter().cycle()) {
                self.program.set_slot(slot, SlotWord::stable(*member))?;
            }
        }
        let mut flags = 0;
        if spec.reply_flows {
            flags |= service_flag::REPLY_FLOWS;
        }
        if spec.method == method::FULL_NAT {
            flags |= service_flag::FULL_NAT;
        }
        let entry = ServiceEntry {
            id,
            slot_offset: first_slot,
            slot_size: slots,
            owner: spec.owner,
            flags,
            idle_units: 20,
            ..ServiceEntry::default()
        };
        self.program.add_vip(spec.vip.ip(), spec.owner)?;
        self.add_key(spec, entry)?;
        Ok(Service { id, members, entry })
    }

    /// Another port or block of ports of a service.
    pub fn add_key(&mut self, spec: &Spec, entry: ServiceEntry) -> Result<()> {
        let (vip, port) = (spec.vip.ip(), spec.vip.port());
        if spec.port_bits == 16 {
            self.program.add_service(vip, port, spec.protocol, entry)
        } else {
            self.program
                .add_range(vip, (port, spec.port_bits), spec.protocol, entry)
        }
    }

    /// Sets an owner word.
    pub fn set_owner(&mut self, index: u32, word: u64) -> Result<()> {
        Ok(self
            .program
            .array::<u64>(map::OWNERS)?
            .set(index, word, 0)?)
    }

    /// Runs a frame as if it came in by [`INGRESS`].
    pub fn run(&mut self, frame: &[u8]) -> Observed {
        let outcome = self.program.run(frame).expect("the program runs");
        self.observe(outcome)
    }

    /// What was counted since the last observation.
    pub fn observe(&mut self, outcome: program::Outcome) -> Observed {
        let (mut drops, mut events) = (Counters::new(), Counters::new());
        for service in 0..self.next_service {
            let row = self.program.drops(service).expect("drops can be read");
            drops.extend(row.into_iter().map(|(name, n)| ((service, name), n)));
            let row = self.program.events(service).expect("events can be read");
            events.extend(row.into_iter().map(|(name, n)| ((service, name), n)));
        }
        let observed = Observed {
            action: outcome.action,
            frame: outcome.frame,
            drops: difference(&self.drops, &drops),
            events: difference(&self.events, &events),
        };
        (self.drops, self.events) = (drops, events);
        observed
    }

    /// The frame leaves as `expected`, and nothing but that is counted.
    #[track_caller]
    pub fn forwards(&mut self, what: &str, frame: &[u8], expected: &[u8], action: u32) {
        let got = self.run(frame);
        assert_eq!(got.drops, [], "{what}: dropped");
        assert_same_frame(what, expected, &got.frame);
        assert_eq!(got.action, action, "{what}: action");
        assert_eq!(got.events, [], "{what}: events");
    }

    /// As [`Self::forwards`], out of the ingress link, with right checksums.
    #[track_caller]
    pub fn bounces(&mut self, what: &str, frame: &[u8], expected: &[u8]) {
        self.forwards(what, frame, expected, action::TX);
        if let Err(e) = verify(expected) {
            panic!("{what}: {e:#}");
        }
    }

    /// The frame is answered with `expected`, which has right checksums.
    #[track_caller]
    pub fn answers(&mut self, what: &str, frame: &[u8], expected: &[u8], event: &'static str) {
        let got = self.run(frame);
        assert_same_frame(what, expected, &got.frame);
        assert_eq!(got.action, action::TX, "{what}: action");
        assert_eq!(got.drops, [], "{what}: dropped");
        assert_eq!(got.events, [(0, event)], "{what}: events");
        if let Err(e) = verify(&got.frame) {
            panic!("{what}: {e:#}");
        }
    }

    /// The frame is dropped as it is, for exactly one reason.
    #[track_caller]
    pub fn drops(&mut self, what: &str, frame: &[u8], service: u32, reason: &'static str) {
        let got = self.run(frame);
        assert_eq!(got.drops, [(service, reason)], "{what}: reason");
        assert_eq!(got.action, action::DROP, "{what}: action");
        assert_same_frame(what, frame, &got.frame);
        assert_eq!(got.events, [], "{what}: events");
    }

    /// The kernel gets the frame as it is, and nothing is counted.
    #[track_caller]
    pub fn passes(&mut self, what: &str, frame: &[u8]) {
        self.passes_counting(what, frame, &[]);
    }

    /// The kernel gets the frame as it is, and these events are counted.
    #[track_caller]
    pub fn passes_counting(&mut self, what: &str, frame: &[u8], events: &[(u32, &'static str)]) {
        let got = self.run(frame);
        assert_eq!(got.drops, [], "{what}: dropped");
        assert_eq!(got.action, action::PASS, "{what}: action");
        assert_same_frame(what, frame, &got.frame);
        assert_eq!(got.events, events, "{what}: events");
    }

    /// Changes a member's record.
    pub fn change_member(
        &mut self,
        id: u32,
        change: impl FnOnce(&mut lb_common::abi::MemberEntry),
    ) -> Result<()> {
        let mut entry = self.program.member(id)?;
        change(&mut entry);
        self.program.set_member(id, entry)
    }

    /// Puts every slot of a service to one word.
    pub fn set_slots(&mut self, service: &Service, word: SlotWord) -> Result<()> {
        let first = service.entry.slot_offset;
        for slot in first..first + service.entry.slot_size {
            self.program.set_slot(slot, word)?;
        }
        Ok(())
    }
}

fn difference(old: &Counters, new: &Counters) -> Vec<(u32, &'static str)> {
    let mut all = vec![];
    for (key, count) in new {
        let before = old.get(key).copied().unwrap_or(0);
        let times = usize::try_from(count - before).expect("few");
        all.extend(std::iter::repeat_n(*key, times));
    }
    all
}
