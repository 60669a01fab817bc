//! Totals that only grow, and rates, from the data path's raw counters.
//!
//! A raw counter belongs to a member id, and ids are given to another backend
//! once nothing names them any more; the totals here belong to a service and a
//! backend and go on. Sans-IO: the caller says when a sample was taken.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use crate::status::{Rates, Totals};

/// Whose counters they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterKey {
    /// The service's name.
    pub service: String,
    /// The pool's name.
    pub pool: String,
    /// The backend's name.
    pub backend: String,
}

/// One member's raw counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawCounters {
    /// The member's id.
    pub member: u32,
    /// Whose they are now.
    pub key: CounterKey,
    /// Their values since the id was given out.
    pub counters: Totals,
}

#[derive(Debug, Default)]
struct Series {
    totals: Totals,
    at_last_tick: Totals,
    rates: Rates,
}

impl Series {
    fn tick(&mut self, seconds: f64) {
        let per_second = |now: u64, before: u64| {
            if seconds > 0.0 {
                now.saturating_sub(before) as f64 / seconds
            } else {
                0.0
            }
        };
        let (now, before) = (&self.totals, &self.at_last_tick);
        self.rates = Rates {
            connections_per_second: per_second(now.connections, before.connections),
            packets_per_second: per_second(now.packets, before.packets),
            bytes_per_second: per_second(now.bytes, before.bytes),
            reply_packets_per_second: per_second(now.reply_packets, before.reply_packets),
            reply_bytes_per_second: per_second(now.reply_bytes, before.reply_bytes),
        };
        self.at_last_tick = self.totals;
    }
}

/// The totals of every service and backend seen in the daemon's life.
#[derive(Debug, Default)]
pub struct Ledger {
    raw: HashMap<u32, (CounterKey, Totals)>,
    backends: BTreeMap<CounterKey, Series>,
    services: BTreeMap<String, Series>,
    last: Option<Instant>,
}

impl Ledger {
    /// Adds what the counters grew by since the last call, and computes the
    /// rates over the time between. The first call has no rates.
    pub fn observe(&mut self, samples: &[RawCounters], now: Instant) {
        let mut raw = HashMap::with_capacity(samples.len());
        for sample in samples {
            let before = self
                .raw
                .get(&sample.member)
                .filter(|(key, _)| *key == sample.key)
                .map(|(_, totals)| *totals)
                .unwrap_or_default();
            let grown = growth(&sample.counters, &before);
            add(
                &mut self.backends.entry(sample.key.clone()).or_default().totals,
                &grown,
            );
            add(
                &mut self
                    .services
                    .entry(sample.key.service.clone())
                    .or_default()
                    .totals,
                &grown,
            );
            raw.insert(sample.member, (sample.key.clone(), sample.counters));
        }
        self.raw = raw;
        let seconds = self.last.map_or(0.0, |last| {
            now.saturating_duration_since(last).as_secs_f64()
        });
        for series in self.backends.values_mut() {
            series.tick(seconds);
        }
        for series in self.services.values_mut() {
            series.tick(seconds);
        }
        self.last = Some(now);
    }

    /// Totals and rates of a service; zero for one never seen.
    pub fn service(&self, service: &str) -> (Totals, Rates) {
        self.services
            .get(service)
            .map(|series| (series.totals, series.rates))
            .unwrap_or_default()
    }

    /// Totals and rates of a backend in a service; zero for one never seen.
    pub fn backend(&self, key: &CounterKey) -> (Totals, Rates) {
        self.backends
            .get(key)
            .map(|series| (series.totals, series.rates))
            .unwrap_or_default()
    }
}

/// Counters by service and name that only grow, like [`Ledger`].
#[derive(Debug, Default)]
pub struct Counts {
    seen: HashMap<(String, &'static str), (u64, u64)>,
}

impl Counts {
    /// Adds what the counters grew by since the last call. An empty service
    /// stands for none; equal keys are added up.
    pub fn observe(&mut self, samples: impl IntoIterator<Item = (String, &'static str, u64)>) {
        let mut raw: HashMap<(String, &'static str), u64> = HashMap::new();
        for (service, name, count) in samples {
            *raw.entry((service, name)).or_default() += count;
        }
        for (_, (before, _)) in self
            .seen
            .iter_mut()
            .filter(|(key, _)| !raw.contains_key(*key))
        {
            *before = 0;
        }
        for (key, now) in raw {
            let (before, total) = self.seen.entry(key).or_default();
            *total = total.saturating_add(now.checked_sub(*before).unwrap_or(now));
            *before = now;
        }
    }

    /// The total of a service's counter.
    pub fn total(&self, service: &str, name: &'static str) -> u64 {
        self.seen
            .get(&(service.to_owned(), name))
            .map_or(0, |(_, total)| *total)
    }

    /// The total of a counter over all services, present and past.
    pub fn sum(&self, name: &'static str) -> u64 {
        self.seen
            .iter()
            .filter(|((_, of), _)| *of == name)
            .map(|(_, (_, total))| *total)
            .sum()
    }
}

/// What a set of counters grew by. A counter that is lower than before was
/// reset in between, and everything it shows is new.
fn growth(now: &Totals, before: &Totals) -> Totals {
    let grown = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
    Totals {
        connections: grown(now.connections, before.connections),
        packets: grown(now.packets, before.packets),
        bytes: grown(now.bytes, before.bytes),
        reply_packets: grown(now.reply_packets, before.reply_packets),
        reply_bytes: grown(now.reply_bytes, before.reply_bytes),
    }
}

fn add(sum: &mut Totals, more: &Totals) {
    sum.connections = sum.connections.saturating_add(more.connections);
    sum.packets = sum.packets.saturating_add(more.packets);
    sum.bytes = sum.bytes.saturating_add(more.bytes);
    sum.reply_packets = sum.reply_packets.saturating_add(more.reply_packets);
    sum.reply_bytes = sum.reply_bytes.saturating_add(more.reply_bytes);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(backend: &str) -> CounterKey {
        CounterKey {
            service: "shop".into(),
            pool: "web".into(),
            backend: backend.into(),
        }
    }

    fn raw(member: u32, backend: &str, packets: u64) -> RawCounters {
        RawCounters {
            member,
            key: key(backend),
            counters: Totals {
                packets,
                bytes: packets * 100,
                ..Totals::default()
            },
        }
    }

    #[test]
    fn what_an_adopted_data_path_had_counted_is_in_the_totals_and_not_in_the_rates() {
        let mut ledger = Ledger::default();
        ledger.observe(&[raw(1, "a", 1_000)], Instant::now());
        let (totals, rates) = ledger.service("shop");
        assert_eq!(totals.packets, 1_000);
        assert_eq!(rates, Rates::default());
    }

    #[test]
    fn rates_are_per_second_of_the_time_between_two_samples() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.observe(&[raw(1, "a", 1_000), raw(2, "b", 0)], start);
        ledger.observe(
            &[raw(1, "a", 1_500), raw(2, "b", 100)],
            start + Duration::from_secs(2),
        );
        assert_eq!(ledger.backend(&key("a")).1.packets_per_second, 250.0);
        assert_eq!(ledger.service("shop").1.packets_per_second, 300.0);
        assert_eq!(ledger.service("shop").1.bytes_per_second, 30_000.0);
    }

    #[test]
    fn totals_stay_when_a_member_retires_and_go_on_when_it_comes_back() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        ledger.observe(&[raw(1, "a", 1_000)], start);
        ledger.observe(&[], start + second);
        assert_eq!(ledger.service("shop").0.packets, 1_000);
        ledger.observe(&[raw(7, "a", 10)], start + second * 2);
        assert_eq!(ledger.service("shop").0.packets, 1_010);
        assert_eq!(ledger.backend(&key("a")).0.packets, 1_010);
    }

    #[test]
    fn an_id_given_to_another_backend_starts_from_zero() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.observe(&[raw(1, "a", 1_000)], start);
        ledger.observe(&[raw(1, "b", 1_200)], start + Duration::from_secs(1));
        assert_eq!(ledger.backend(&key("a")).0.packets, 1_000);
        assert_eq!(ledger.backend(&key("b")).0.packets, 1_200);
        assert_eq!(ledger.service("shop").0.packets, 2_200);
    }

    #[test]
    fn counts_go_on_over_the_end_of_a_service() {
        let mut counts = Counts::default();
        counts.observe([
            ("shop".into(), "no_backend", 5),
            ("mail".into(), "no_backend", 1),
        ]);
        counts.observe([("mail".into(), "no_backend", 2)]);
        counts.observe([
            ("shop".into(), "no_backend", 3),
            ("mail".into(), "no_backend", 2),
        ]);
        assert_eq!(counts.total("shop", "no_backend"), 8);
        assert_eq!(counts.total("mail", "no_backend"), 2);
        assert_eq!(counts.sum("no_backend"), 10);
        assert_eq!(counts.total("shop", "truncated"), 0);
    }

    #[test]
    fn a_counter_that_was_reset_never_takes_a_total_down() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.observe(&[raw(1, "a", 1_000)], start);
        ledger.observe(&[raw(1, "a", 5)], start + Duration::from_secs(1));
        assert_eq!(ledger.service("shop").0.packets, 1_005);
    }
}
