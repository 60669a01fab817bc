//! Two links and a network between them that loses, doubles, delays and changes
//! what it carries.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    link::{Config, Event, Link, Random},
    settings::Key,
};

pub const KEY: Key = Key::new([7; 32]);

/// A linear congruential generator (Knuth's MMIX), its upper half.
#[derive(Clone)]
pub struct Numbers(pub u64);

impl Random for Numbers {
    fn next(&mut self) -> u64 {
        let mut next = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 32
        };
        next() << 32 | next()
    }
}

impl Numbers {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the network does to datagrams.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    /// Percent that are lost.
    pub loss: u64,
    /// Percent that come twice.
    pub double: u64,
    /// Percent with a changed byte.
    pub corrupt: u64,
    /// Up to so many milliseconds late, each another.
    pub jitter_ms: u64,
}

pub struct Network {
    pub now: Instant,
    pub links: [Link; 2],
    /// What each side's reader was told.
    pub events: [Vec<Event>; 2],
    pub urgent: [Vec<Vec<u8>>; 2],
    pub weather: Weather,
    /// Paths that carry nothing.
    pub cut: Vec<usize>,
    /// Paths that carry nothing that this side sends.
    pub cut_from: Vec<(usize, usize)>,
    /// A reader that takes nothing.
    pub is_reader_slow: [bool; 2],
    /// All that was sent: by whom, path, datagram.
    pub sent: Vec<(usize, usize, Vec<u8>)>,
    on_the_way: BTreeMap<(Instant, u64), (usize, usize, Vec<u8>)>,
    numbers: Numbers,
    count: u64,
}

pub fn config(side: usize, epoch: u64, paths: usize) -> Config {
    let names = ["lb1", "lb2"];
    Config {
        node: names[side].into(),
        peer: names[1 - side].into(),
        key: KEY,
        epoch,
        paths,
        keepalive: Duration::from_millis(100),
    }
}

impl Network {
    pub fn new(seed: u64, paths: usize) -> Self {
        let now = Instant::now();
        let link = |side: usize| {
            let numbers = Numbers(seed * 2 + side as u64);
            Link::new(
                config(side, 100 + side as u64, paths),
                Box::new(numbers),
                now,
            )
        };
        Self {
            now,
            links: [link(0), link(1)],
            events: Default::default(),
            urgent: Default::default(),
            weather: Weather::default(),
            cut: Vec::new(),
            cut_from: Vec::new(),
            is_reader_slow: [false; 2],
            sent: Vec::new(),
            on_the_way: BTreeMap::new(),
            numbers: Numbers(seed),
            count: 0,
        }
    }

    /// Side `side` forgets everything and starts again.
    pub fn restart(&mut self, side: usize, epoch: u64) {
        let paths = self.links[side].paths().len();
        let numbers = Numbers(epoch << 20);
        self.links[side] = Link::new(config(side, epoch, paths), Box::new(numbers), self.now);
        self.events[side].clear();
    }

    /// Lets `time` pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until `is_done`, for a minute at most.
    pub fn run_until(&mut self, is_done: impl Fn(&Self) -> bool) {
        let end = self.now + Duration::from_secs(60);
        self.drain();
        while !is_done(self) {
            assert!(self.step(end), "it did not happen within a minute");
        }
    }

    pub fn up(seed: u64, paths: usize) -> Self {
        let mut network = Self::new(seed, paths);
        network.run_until(|n| n.are_up());
        network
    }

    pub fn are_up(&self) -> bool {
        self.links.iter().all(Link::is_up)
    }

    /// The messages that a side's reader had, of all streams.
    pub fn messages(&self, side: usize) -> Vec<u32> {
        let messages = self.events[side].iter().filter_map(|event| match event {
            Event::Message(bytes) => Some(u32::from_be_bytes(bytes[..4].try_into().unwrap())),
            _ => None,
        });
        messages.collect()
    }

    /// Whatever happens next, up to `end`. False if that is reached.
    fn step(&mut self, end: Instant) -> bool {
        self.drain();
        let timers = self.links.iter().map(Link::poll_timeout);
        let arrival = self.on_the_way.keys().next().map(|(at, _)| *at);
        let next = timers.chain(arrival).min().unwrap_or(end);
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        while let Some(entry) = self.on_the_way.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (to, path, datagram) = entry.remove();
            if !self.cut.contains(&path) {
                self.links[to].handle_datagram(self.now, path, &datagram);
            }
        }
        for link in &mut self.links {
            link.handle_timeout(self.now);
        }
        true
    }

    /// What the links have to say.
    pub fn drain(&mut self) {
        for side in 0..2 {
            while let Some(message) = self.links[side].poll_urgent() {
                self.urgent[side].push(message);
            }
            while !self.is_reader_slow[side]
                && let Some(event) = self.links[side].poll_event()
            {
                self.events[side].push(event);
            }
            while let Some((path, datagram)) = self.links[side].poll_transmit(self.now) {
                self.sent.push((side, path, datagram.clone()));
                self.carry(1 - side, path, datagram);
            }
        }
    }

    fn carry(&mut self, to: usize, path: usize, datagram: Vec<u8>) {
        if self.cut_from.contains(&(1 - to, path)) {
            return;
        }
        let copies = 1 + u64::from(self.numbers.percent(self.weather.double));
        for _ in 0..copies {
            if self.numbers.percent(self.weather.loss) {
                continue;
            }
            let mut datagram = datagram.clone();
            if self.numbers.percent(self.weather.corrupt) {
                let at = self.numbers.below(datagram.len() as u64) as usize;
                datagram[at] ^= 1 << self.numbers.below(8);
            }
            let late = self.numbers.below(self.weather.jitter_ms + 1);
            let at = self.now + Duration::from_millis(1 + late);
            self.count += 1;
            self.on_the_way
                .insert((at, self.count), (to, path, datagram));
        }
    }
}
