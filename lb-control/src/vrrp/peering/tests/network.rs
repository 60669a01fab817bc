//! A virtual network and its clock.

use super::*;

/// What a message may take to arrive.
pub const DELAY: Duration = Duration::from_millis(2);

/// SplitMix64: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % limit
    }
}

#[derive(Clone, Debug)]
enum Packet {
    Advertisement(usize, Advertisement),
    Answer(IpAddr),
    Peer(usize, Vec<u8>),
}

pub struct Node {
    pub machine: Machine,
    pub peering: Peering,
    pub references: References,
    pub alive: bool,
    hung: bool,
    backlog: Vec<Packet>,
    owns_until: Option<Instant>,
    lease: Duration,
    since: Instant,
    /// Its cable carries frames.
    pub cable: bool,
    pub announced: usize,
    pub outcomes: Vec<Outcome>,
    pub reasons: Vec<Reason>,
    /// Messages of hand-overs that it sent.
    pub sent: Vec<(usize, Vec<u8>)>,
}

pub struct Network {
    pub nodes: Vec<Node>,
    pub now: Instant,
    pub random: Random,
    /// Of a thousand messages.
    pub lan_loss: u64,
    pub peer_loss: u64,
    /// Between the two switches; nodes are at them by turns.
    pub trunk: bool,
    /// No reference host answers.
    pub quiet: bool,
    /// The peer links of these are cut.
    pub unlinked: Vec<usize>,
    in_flight: BTreeMap<(Instant, u64), (usize, Packet)>,
    last: BTreeMap<(usize, usize), Instant>,
    number: u64,
    pub nobody: Duration,
    pub several: Duration,
    pub longest_nobody: Duration,
    present_nobody: Duration,
    has_link: bool,
    epochs: u64,
    pub sync_wait: Option<Duration>,
}

pub fn node_address(index: usize) -> IpAddr {
    [192, 0, 2, 1 + u8::try_from(index).unwrap()].into()
}

fn name(index: usize) -> PeerName {
    format!("lb{}", index + 1).into()
}

/// One at each switch.
pub const HOSTS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 201)),
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 202)),
];

pub const ID: RouterId = RouterId {
    vrid: 7,
    is_v4: true,
};

/// How a network is made.
#[derive(Clone, Copy)]
pub struct Make {
    pub priorities: &'static [u8],
    pub interval: Duration,
    pub references: bool,
    pub has_link: bool,
    pub preempt: bool,
    pub seed: u64,
}

pub const TWO: Make = Make {
    priorities: &[200, 100],
    interval: Duration::from_millis(100),
    references: true,
    has_link: true,
    preempt: true,
    seed: 1,
};

impl Network {
    pub fn new(make: Make) -> Self {
        let now = Instant::now();
        let nodes = make.priorities.iter().enumerate().map(|(index, priority)| {
            let settings = Settings {
                version: Version::V3,
                vrid: ID.vrid,
                priority: *priority,
                interval: make.interval,
                preempt: make.preempt,
                preempt_delay: Duration::ZERO,
                startup_delay: Duration::ZERO,
                addresses: vec![[192, 0, 2, 100].into()],
                source: node_address(index),
            };
            let hosts: &[IpAddr] = if make.references { &HOSTS } else { &[] };
            Node {
                machine: Machine::new(settings),
                peering: Peering::new(0),
                references: References::new(hosts, make.interval),
                alive: false,
                hung: false,
                backlog: Vec::new(),
                owns_until: None,
                lease: Duration::ZERO,
                since: now,
                cable: true,
                announced: 0,
                outcomes: Vec::new(),
                reasons: Vec::new(),
                sent: Vec::new(),
            }
        });
        let mut network = Self {
            nodes: nodes.collect(),
            now,
            random: Random(make.seed),
            lan_loss: 0,
            peer_loss: 0,
            trunk: true,
            quiet: false,
            unlinked: Vec::new(),
            in_flight: BTreeMap::new(),
            last: BTreeMap::new(),
            number: 0,
            nobody: Duration::ZERO,
            several: Duration::ZERO,
            longest_nobody: Duration::ZERO,
            present_nobody: Duration::ZERO,
            has_link: make.has_link,
            epochs: 0,
            sync_wait: None,
        };
        (0..make.priorities.len()).for_each(|index| network.revive(index));
        network
    }

    pub fn owners(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let owning = nodes.filter(|(_, node)| node.owns_until.is_some_and(|u| u > self.now));
        owning.map(|(index, _)| index).collect()
    }

    pub fn state(&self, index: usize) -> State {
        self.nodes[index].machine.state()
    }

    /// Its lease runs on.
    pub fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.alive = false;
        node.machine = Machine::new(node.machine.settings().clone());
    }

    pub fn revive(&mut self, index: usize) {
        self.epochs += 1;
        let node = &mut self.nodes[index];
        node.alive = true;
        node.owns_until = None;
        node.since = self.now;
        node.peering = Peering::new(self.epochs);
        node.peering.link(self.has_link);
        let wait = self.sync_wait.map(|wait| self.now + wait);
        node.peering.wait_for_sync(wait);
        node.machine.restrain(node.peering.waits_for_sync(self.now));
        node.references.forget();
        node.machine.start(self.now);
        self.step(index);
    }

    pub fn hang(&mut self, index: usize, hung: bool) {
        self.nodes[index].hung = hung;
        if !hung {
            for packet in std::mem::take(&mut self.nodes[index].backlog) {
                self.deliver(index, packet);
            }
            self.step(index);
        }
    }

    /// In order: it may hand over, and says in the end that it leaves.
    pub fn stop(&mut self, index: usize) {
        self.hand_over(index, None, true);
        while self.nodes[index].peering.is_handing_over() {
            self.run(Duration::from_millis(1));
        }
        self.nodes[index].machine.stop();
        self.step(index);
        self.nodes[index].alive = false;
    }

    pub fn hand_over(&mut self, index: usize, to: Option<usize>, leaving: bool) {
        let to = to.map(name);
        let view = self.view(index);
        let node = &mut self.nodes[index];
        node.peering.observe(vec![view]);
        node.peering
            .hand_over(self.now, &[], to.as_deref(), leaving, 1);
        self.step(index);
    }

    fn view(&self, index: usize) -> View {
        let node = &self.nodes[index];
        let (machine, references) = (&node.machine, &node.references);
        View::new(self.now, machine, references, true, node.alive, node.since)
    }

    /// As the thread does it.
    pub fn step(&mut self, index: usize) {
        self.act(index);
        self.cooperate(index);
        self.nodes[index].machine.timeout(self.now);
        let probes = self.nodes[index].references.probes(self.now);
        for host in probes {
            let place = HOSTS.iter().position(|h| *h == host).unwrap();
            if self.reaches(index, place) && !self.quiet {
                self.carry(place, index, Packet::Answer(host), self.lan_loss);
            }
        }
        self.act(index);
        self.cooperate(index);
    }

    fn cooperate(&mut self, index: usize) {
        for _ in 0..3 {
            let view = self.view(index);
            self.nodes[index].peering.observe(vec![view]);
            self.nodes[index].peering.tick(self.now);
            let mut has_changed = false;
            while let Some(effect) = self.nodes[index].peering.next_effect() {
                match effect {
                    Effect::Order(id, order) => {
                        assert_eq!(id, ID);
                        let node = &mut self.nodes[index];
                        match &order {
                            Order::Lease(more) => node.lease = *more,
                            Order::Own => self.own(index),
                            order => {
                                order.apply(self.now, &mut node.machine, &mut node.references);
                            }
                        }
                        has_changed |= self.act(index);
                    }
                    Effect::Tell(peer, bytes) => self.tell(index, peer, bytes),
                    Effect::Done(_, outcome) => self.nodes[index].outcomes.push(outcome),
                }
            }
            if !has_changed {
                break;
            }
        }
    }

    fn own(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let lease = node.machine.settings().interval * 3 + node.lease;
        node.owns_until = Some(self.now + lease);
    }

    fn act(&mut self, index: usize) -> bool {
        let mut has_acted = false;
        while let Some(action) = self.nodes[index].machine.next_action() {
            has_acted = true;
            match action {
                Action::Own(true) => self.own(index),
                Action::Own(false) => self.nodes[index].owns_until = None,
                Action::Advertise(priority) => {
                    if priority > 0 && self.state(index) == State::Active {
                        self.own(index);
                    }
                    self.advertise(index, priority);
                }
                Action::Announce => {
                    assert!(self.owners().contains(&index), "announced and not owned");
                    self.nodes[index].announced += 1;
                }
                Action::Changed { reason, .. } => {
                    self.nodes[index].since = self.now;
                    self.nodes[index].reasons.push(reason);
                }
            }
        }
        has_acted
    }

    /// Whether a node reaches what is at switch `place`.
    pub fn reaches(&self, index: usize, place: usize) -> bool {
        self.nodes[index].cable && (self.trunk || index % 2 == place % 2)
    }

    pub fn are_on_one_lan(&self, one: usize, other: usize) -> bool {
        self.reaches(one, other) && self.nodes[other].cable
    }

    pub fn are_linked(&self, one: usize, other: usize) -> bool {
        self.has_link && !self.unlinked.contains(&one) && !self.unlinked.contains(&other)
    }

    fn advertise(&mut self, from: usize, priority: u8) {
        let settings = self.nodes[from].machine.settings();
        let advertisement = Advertisement {
            version: settings.version,
            vrid: settings.vrid,
            priority,
            interval: settings.interval,
            addresses: settings.addresses.clone(),
        };
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            if self.are_on_one_lan(from, to) {
                let packet = Packet::Advertisement(from, advertisement.clone());
                self.carry(from, to, packet, self.lan_loss);
            }
        }
    }

    fn tell(&mut self, from: usize, peer: Option<PeerName>, bytes: Vec<u8>) {
        if !matches!(Message::decode(&bytes), Some(Message::Reports { .. })) {
            let to = peer.as_ref().map(|peer| self.index(peer)).unwrap_or(from);
            self.nodes[from].sent.push((to, bytes.clone()));
        }
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let is_meant = peer.as_ref().is_none_or(|peer| *peer == name(to));
            if is_meant && self.are_linked(from, to) {
                self.carry(from, to, Packet::Peer(from, bytes.clone()), self.peer_loss);
            }
        }
    }

    fn index(&self, peer: &PeerName) -> usize {
        (0..self.nodes.len()).find(|i| name(*i) == *peer).unwrap()
    }

    /// Says something again that was said once.
    pub fn replay(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.deliver(to, Packet::Peer(from, bytes));
        self.step(to);
    }

    /// A segment keeps the order, a peer link doesn't.
    fn carry(&mut self, from: usize, to: usize, packet: Packet, loss: u64) {
        if self.random.below(1000) >= loss {
            let most = u64::try_from(DELAY.as_micros()).unwrap();
            let delay = Duration::from_micros(100 + self.random.below(most - 100));
            let mut at = self.now + delay;
            if matches!(packet, Packet::Advertisement(..)) {
                let last = self.last.entry((from, to)).or_insert(at);
                at = at.max(*last);
                *last = at;
            }
            self.number += 1;
            self.in_flight.insert((at, self.number), (to, packet));
        }
    }

    fn deliver(&mut self, to: usize, packet: Packet) {
        if !self.nodes[to].alive {
            return;
        }
        let now = self.now;
        let node = &mut self.nodes[to];
        if node.hung {
            node.backlog.push(packet);
            return;
        }
        match packet {
            Packet::Advertisement(from, advertisement) => {
                node.machine
                    .received(now, &advertisement, node_address(from));
            }
            Packet::Answer(host) => node.references.answered(now, host),
            Packet::Peer(from, bytes) => node.peering.heard(now, &name(from), &bytes),
        }
    }

    fn due(&self, index: usize) -> Option<Instant> {
        let node = &self.nodes[index];
        let doubts = node.machine.doubts_from().filter(|at| *at > self.now);
        let doubts = doubts.filter(|_| !node.references.is_empty());
        let timers = [
            node.machine.poll_timeout(),
            node.peering.poll_timeout(),
            node.references.due(),
            doubts,
        ];
        let due = timers.into_iter().flatten().min();
        due.filter(|_| node.alive && !node.hung)
    }

    fn pass(&mut self, until: Instant) {
        // Leases end between two events.
        loop {
            let ends = self.nodes.iter().filter_map(|node| node.owns_until);
            let next = ends.filter(|end| *end > self.now && *end < until).min();
            self.account(next.unwrap_or(until));
            if next.is_none() {
                return;
            }
        }
    }

    fn account(&mut self, until: Instant) {
        let time = until.saturating_duration_since(self.now);
        match self.owners().len() {
            0 => {
                self.nobody += time;
                self.present_nobody += time;
                self.longest_nobody = self.longest_nobody.max(self.present_nobody);
            }
            1 => self.present_nobody = Duration::ZERO,
            _ => {
                self.several += time;
                self.present_nobody = Duration::ZERO;
            }
        }
        self.now = until.max(self.now);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = (0..self.nodes.len()).filter_map(|index| Some((self.due(index)?, index)));
            let timer = timer.min();
            let message = self.in_flight.keys().next().copied();
            let is_message = match (message, timer) {
                (Some((at, _)), Some((due, _))) => at <= due,
                (at, _) => at.is_some(),
            };
            if is_message {
                let Some((key, (to, packet))) = self.in_flight.pop_first() else {
                    break;
                };
                if key.0 > end {
                    self.in_flight.insert(key, (to, packet));
                    break;
                }
                self.pass(key.0);
                self.deliver(to, packet);
                if self.nodes[to].alive && !self.nodes[to].hung {
                    self.step(to);
                }
            } else {
                let Some((due, index)) = timer.filter(|(due, _)| *due <= end) else {
                    break;
                };
                self.pass(due.max(self.now));
                self.step(index);
            }
        }
        self.pass(end);
    }

    /// Until all that follows from what happened has followed.
    pub fn settle(&mut self) {
        let interval = self.nodes[0].machine.settings().interval;
        self.run((interval * 8).max(Duration::from_millis(1_500)));
    }

    /// Forgets what was so far.
    pub fn forget(&mut self) {
        self.nobody = Duration::ZERO;
        self.several = Duration::ZERO;
        self.longest_nobody = Duration::ZERO;
        self.present_nobody = Duration::ZERO;
    }

    /// What plain VRRP allows a take-over by this node, and what it takes to find
    /// out that a path is dead.
    pub fn bound(&self, next: usize) -> Duration {
        let machine = &self.nodes[next].machine;
        machine.settings().interval * 3 + machine.skew() + Duration::from_millis(100)
    }
}

/// One that has settled, with the first node as the owner.
pub fn settled(make: Make) -> Network {
    let mut network = Network::new(make);
    network.settle();
    assert_eq!(network.owners(), [0]);
    network.forget();
    network
}

pub const INTERVALS: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// Each case with every interval and several seeds.
pub fn each(check: impl Fn(Make)) {
    for interval in INTERVALS {
        for seed in 0..5 {
            check(Make {
                interval,
                seed,
                ..TWO
            });
        }
    }
}
