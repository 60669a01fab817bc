use std::net::SocketAddr;

use super::*;
use crate::model::CheckKind;

const SECOND: Duration = Duration::from_secs(1);

fn timing() -> Timing {
    Timing {
        interval: SECOND,
        timeout: SECOND,
        slow_after: None,
        fast_interval: None,
        rise: 2,
        fall: 3,
        overloaded_limit: SECOND * 60,
        hold_down_limit: SECOND * 300,
    }
}

fn key(name: &str) -> BackendKey {
    BackendKey {
        pool: "web".to_owned(),
        backend: name.to_owned(),
    }
}

fn check(name: &str, target: &str) -> (CheckKey, Timing) {
    let key = CheckKey {
        backend: key(name),
        kind: CheckKind::Tcp.into(),
        through: None,
        target: target.parse().unwrap(),
    };
    (key, timing())
}

fn backend(name: &str, targets: &[&str]) -> CheckedBackend {
    CheckedBackend {
        key: key(name),
        checks: targets.iter().map(|target| check(name, target)).collect(),
    }
}

/// A machine with a virtual clock.
struct Bench {
    machine: Machine,
    now: Instant,
    /// What a target answers.
    answers: HashMap<SocketAddr, Verdict>,
    changes: Vec<(String, HealthState)>,
}

impl Bench {
    fn new(backends: &[CheckedBackend]) -> Self {
        let now = Instant::now();
        let mut machine = Machine::new(now, 7, 10_000);
        machine.update(now, backends);
        Self {
            machine,
            now,
            answers: HashMap::new(),
            changes: Vec::new(),
        }
    }

    fn answer(&mut self, target: &str, outcome: Verdict) {
        self.answers.insert(target.parse().unwrap(), outcome);
    }

    fn update(&mut self, backends: &[CheckedBackend]) {
        self.machine.update(self.now, backends);
        self.drain();
    }

    /// Runs for `time`; probes take none. Returns the times of all probes.
    fn run(&mut self, time: Duration) -> Vec<(CheckId, Instant)> {
        let end = self.now + time;
        let mut probes = self.drain();
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
            probes.extend(self.drain());
        }
        self.now = end;
        probes
    }

    fn drain(&mut self) -> Vec<(CheckId, Instant)> {
        let mut probes = Vec::new();
        while let Some(action) = self.machine.next_action() {
            match action {
                Action::Changed(change) => self.changes.push((change.key.backend, change.state)),
                Action::Probe { id, key, .. } => {
                    probes.push((id, self.now));
                    if let Some(outcome) = self.answers.get(&key.target) {
                        self.machine.handle_result(
                            self.now,
                            id,
                            *outcome,
                            &format!("{outcome:?}"),
                            Duration::from_millis(3),
                        );
                    }
                }
            }
        }
        probes
    }

    fn state(&self, name: &str) -> HealthState {
        self.machine.snapshot(self.now)[&key(name)].state
    }
}

#[test]
fn a_backend_without_checks_is_up_at_once() {
    let mut bench = Bench::new(&[backend("a", &[])]);
    bench.run(Duration::ZERO);
    assert_eq!(bench.changes, [("a".to_owned(), HealthState::Up)]);
}

#[test]
fn a_backend_is_unknown_until_all_its_checks_have_a_result() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80", "192.0.2.1:443"])]);
    bench.answer("192.0.2.1:80", Verdict::Pass);
    bench.run(3 * SECOND);
    assert_eq!(bench.state("a"), HealthState::Unknown);
}

#[test]
fn a_backend_is_up_when_all_its_checks_pass() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80", "192.0.2.1:443"])]);
    bench.answer("192.0.2.1:80", Verdict::Pass);
    bench.answer("192.0.2.1:443", Verdict::Pass);
    bench.run(SECOND);
    assert_eq!(bench.changes, [("a".to_owned(), HealthState::Up)]);
}

#[test]
fn one_failing_check_takes_a_backend_down_and_rise_passes_bring_it_back() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80", "192.0.2.1:443"])]);
    bench.answer("192.0.2.1:80", Verdict::Pass);
    bench.answer("192.0.2.1:443", Verdict::Pass);
    bench.run(SECOND);
    bench.answer("192.0.2.1:443", Verdict::Refused);
    bench.run(SECOND * 5);
    assert_eq!(bench.state("a"), HealthState::Down);
    assert_eq!(
        bench.machine.snapshot(bench.now)[&key("a")].reason,
        "Refused",
        "the reason is the failing check's"
    );
    bench.answer("192.0.2.1:443", Verdict::Pass);
    bench.run(SECOND * 4);
    assert_eq!(
        bench
            .changes
            .iter()
            .map(|(_, state)| *state)
            .collect::<Vec<_>>(),
        [HealthState::Up, HealthState::Down, HealthState::Up]
    );
}

#[test]
fn probes_that_could_not_be_made_are_counted_and_change_nothing() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80"])]);
    bench.answer("192.0.2.1:80", Verdict::Pass);
    bench.run(SECOND);
    bench.answer("192.0.2.1:80", Verdict::NotMade);
    bench.run(SECOND * 10);
    let health = bench.machine.snapshot(bench.now).remove(&key("a")).unwrap();
    assert_eq!(
        (health.state, health.results.failures()),
        (HealthState::Up, 0)
    );
    assert!(
        (9..=11).contains(&health.results.of(Verdict::NotMade)),
        "{:?}",
        health.results
    );
}

#[test]
fn a_reload_keeps_verdicts_drops_what_is_gone_and_starts_what_is_new() {
    let mut bench = Bench::new(&[
        backend("stays", &["192.0.2.1:80"]),
        backend("goes", &["192.0.2.2:80"]),
    ]);
    for target in ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"] {
        bench.answer(target, Verdict::Pass);
    }
    bench.run(SECOND);
    bench.changes.clear();
    bench.update(&[
        backend("stays", &["192.0.2.1:80"]),
        backend("new", &["192.0.2.3:80"]),
    ]);
    assert_eq!(bench.state("stays"), HealthState::Up);
    assert_eq!(bench.state("new"), HealthState::Unknown);
    assert_eq!(bench.changes, []);
    let passes = bench.machine.snapshot(bench.now)[&key("stays")]
        .results
        .of(Verdict::Pass);
    assert!(passes > 0, "counters are kept too");
    bench.run(SECOND);
    assert_eq!(bench.changes, [("new".to_owned(), HealthState::Up)]);
    assert_eq!(bench.machine.checks.len(), 2);
    assert_eq!(bench.machine.timers.len(), 2);
}

#[test]
fn another_check_port_does_not_make_a_server_unknown_but_another_address_does() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80"])]);
    bench.answer("192.0.2.1:80", Verdict::Pass);
    bench.run(SECOND);
    bench.update(&[backend("a", &["192.0.2.1:8080"])]);
    assert_eq!(bench.state("a"), HealthState::Up);
    bench.update(&[backend("a", &["192.0.2.99:8080"])]);
    assert_eq!(bench.state("a"), HealthState::Unknown);
    let last = bench.changes.last().cloned();
    assert_eq!(last, Some(("a".to_owned(), HealthState::Unknown)));
}

#[test]
fn the_result_of_a_check_that_is_gone_is_ignored() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80"])]);
    let (id, _) = bench.run(SECOND)[0];
    bench.update(&[]);
    bench
        .machine
        .handle_result(bench.now, id, Verdict::Refused, "late", SECOND);
    assert_eq!(bench.machine.next_action(), None);
    assert!(bench.machine.in_flight.is_empty());
}

#[test]
fn no_more_probes_run_than_the_cap_allows_and_the_others_wait_their_turn() {
    let backends: Vec<CheckedBackend> = (1..=9)
        .map(|n| backend(&format!("b{n}"), &[&format!("192.0.2.{n}:80")]))
        .collect();
    let now = Instant::now();
    let mut machine = Machine::new(now, 7, 4);
    machine.update(now, &backends);
    machine.handle_timeout(now + SECOND);
    let mut ids = Vec::new();
    while let Some(Action::Probe { id, .. }) = machine.next_action() {
        ids.push(id);
    }
    assert_eq!(ids.len(), 4);
    machine.handle_result(now + SECOND, ids[0], Verdict::NotMade, "", SECOND);
    assert!(matches!(machine.next_action(), Some(Action::Probe { .. })));
    assert_eq!(machine.next_action(), None);
}

#[test]
fn ten_thousand_backends_are_checked_every_second_evenly_and_without_drift() {
    const BACKENDS: usize = 10_000;
    const SECONDS: usize = 30;
    let backends: Vec<CheckedBackend> = (0..BACKENDS)
        .map(|n| {
            let target = format!("10.0.{}.{}:80", n / 250, n % 250);
            backend(&format!("b{n}"), &[&target])
        })
        .collect();
    let mut bench = Bench::new(&backends);
    for backend in &backends {
        bench
            .answers
            .insert(backend.checks[0].0.target, Verdict::Pass);
    }
    let start = bench.now;
    let probes = bench.run(SECOND * SECONDS as u32);
    let expected = BACKENDS * SECONDS;
    assert!(
        probes.len().abs_diff(expected) <= BACKENDS / 2,
        "{} probes, expected about {expected}",
        probes.len()
    );
    // Poisson around 100 in each 10 ms: seven standard deviations.
    let mut buckets = vec![0_u32; SECONDS * 100];
    let mut per_check: HashMap<CheckId, Vec<Instant>> = HashMap::new();
    for (id, at) in probes {
        let bucket = (at - start).as_millis() as usize / 10;
        if let Some(count) = buckets.get_mut(bucket) {
            *count += 1;
        }
        per_check.entry(id).or_default().push(at);
    }
    // The first bucket has no checks whose jitter would have brought them here.
    let (low, high) = (buckets[20..].iter().min(), buckets.iter().max());
    assert!(low >= Some(&30) && high <= Some(&170), "{low:?} {high:?}");
    for times in per_check.values() {
        let turns = (times.len() - 1) as f64;
        let mean = (times[times.len() - 1] - times[0]).as_secs_f64() / turns;
        assert!(
            (mean - 1.0).abs() < 0.25 / turns,
            "a mean interval of {mean} s"
        );
        for pair in times.windows(2) {
            let gap = (pair[1] - pair[0]).as_secs_f64();
            assert!((0.79..=1.21).contains(&gap), "a gap of {gap} s");
        }
    }
}

#[test]
fn a_probe_that_outlasts_its_interval_is_followed_by_the_next_at_once() {
    let now = Instant::now();
    let mut machine = Machine::new(now, 7, 10);
    machine.update(now, &[backend("a", &["192.0.2.1:80"])]);
    let at = now + SECOND;
    machine.handle_timeout(at);
    let Some(Action::Probe { id, .. }) = machine.next_action() else {
        panic!("no probe");
    };
    let end = at + SECOND * 5 / 2;
    machine.handle_result(end, id, Verdict::Refused, "no answer", SECOND);
    let wait = machine.poll_timeout().unwrap() - end;
    assert!(wait <= SECOND / 10, "{wait:?}");
}

#[test]
fn a_check_with_a_long_interval_has_its_first_result_within_a_second() {
    let mut slow = backend("a", &["192.0.2.1:80"]);
    slow.checks[0].1.interval = SECOND * 60;
    let mut bench = Bench::new(&[slow]);
    assert_eq!(bench.run(SECOND).len(), 1);
}

#[test]
fn a_backend_is_overloaded_when_a_check_is_and_down_when_one_is_down() {
    let targets = ["192.0.2.1:80", "192.0.2.1:443"];
    let mut bench = Bench::new(&[backend("a", &targets)]);
    for target in targets {
        bench.answer(target, Verdict::Pass);
    }
    bench.run(SECOND);
    bench.answer(targets[0], Verdict::Slow);
    bench.run(SECOND * 5);
    assert_eq!(bench.state("a"), HealthState::Overloaded);
    let health = bench.machine.snapshot(bench.now).remove(&key("a")).unwrap();
    assert_eq!(health.verdict, Some(Verdict::Slow));
    bench.answer(targets[1], Verdict::Refused);
    bench.run(SECOND * 5);
    assert_eq!(bench.state("a"), HealthState::Down);
    bench.answer(targets[1], Verdict::Pass);
    bench.run(SECOND * 5);
    assert_eq!(bench.state("a"), HealthState::Overloaded);
}

#[test]
fn a_server_that_refuses_is_out_within_fall_intervals_and_one_time_out() {
    for (answer, state) in [
        (Verdict::Refused, HealthState::Down),
        (Verdict::Timeout, HealthState::Overloaded),
    ] {
        let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80"])]);
        bench.answer("192.0.2.1:80", Verdict::Pass);
        bench.run(SECOND * 10);
        bench.changes.clear();
        bench.answer("192.0.2.1:80", answer);
        // Three intervals with their jitter; these probes take no time.
        bench.run(SECOND * 32 / 10);
        assert_eq!(bench.changes, [("a".to_owned(), state)]);
    }
}

#[test]
fn probes_come_fast_while_the_state_is_changing_and_no_longer() {
    let mut fast = backend("a", &["192.0.2.1:80"]);
    fast.checks[0].1.fast_interval = Some(SECOND / 10);
    let mut bench = Bench::new(&[fast]);
    bench.answer("192.0.2.1:80", Verdict::Pass);
    assert!((9..=11).contains(&bench.run(SECOND * 10).len()));
    bench.answer("192.0.2.1:80", Verdict::Refused);
    let probes = bench.run(SECOND * 3);
    // Two more at once after the first; then the state has changed.
    assert_eq!(bench.state("a"), HealthState::Down);
    assert!((4..=5).contains(&probes.len()), "{}", probes.len());
    let first_to_third = probes[2].1 - probes[0].1;
    assert!(first_to_third < SECOND / 4, "{first_to_third:?}");
}

#[test]
fn what_an_earlier_daemon_knew_holds_for_the_same_address_until_results_speak_against_it() {
    let known = |address: &str| {
        let known = Remembered {
            state: HealthState::Up,
            for_time: SECOND * 60,
            address: address.parse().unwrap(),
            reason: "connected".to_owned(),
        };
        BTreeMap::from([(key("a"), known)])
    };
    let now = Instant::now() + SECOND * 3600;
    for (address, state) in [
        ("192.0.2.1", HealthState::Up),
        ("192.0.2.2", HealthState::Unknown),
    ] {
        let mut machine = Machine::new(now, 7, 10);
        machine.remember(now, known(address));
        machine.update(now, &[backend("a", &["192.0.2.1:80"])]);
        let health = machine.snapshot(now).remove(&key("a")).unwrap();
        assert_eq!(health.state, state);
        if state == HealthState::Up {
            assert_eq!(health.in_state_for, SECOND * 60);
            assert_eq!(machine.to_remember(now), known(address));
        }
    }
    // One that was answering is overloaded first, over the restart too.
    let mut bench = Bench::new(&[]);
    bench.machine.remember(bench.now, known("192.0.2.1"));
    bench.answer("192.0.2.1:80", Verdict::Timeout);
    bench.update(&[backend("a", &["192.0.2.1:80"])]);
    bench.run(SECOND * 4);
    assert_eq!(bench.state("a"), HealthState::Overloaded);
}

#[test]
fn the_reason_is_the_last_result_that_speaks_for_the_state() {
    let mut bench = Bench::new(&[backend("a", &["192.0.2.1:80"])]);
    let mut after = |outcome, seconds| {
        bench.answer("192.0.2.1:80", outcome);
        bench.run(SECOND * seconds);
        let health = &bench.machine.snapshot(bench.now)[&key("a")];
        (health.state, health.reason.clone(), health.verdict)
    };
    let up = |words: &str, verdict| (HealthState::Up, words.to_owned(), verdict);
    assert_eq!(after(Verdict::Pass, 3), up("Pass", None));
    assert_eq!(after(Verdict::Refused, 1), up("Refused", None));
    let down = |words: &str, verdict| (HealthState::Down, words.to_owned(), Some(verdict));
    assert_eq!(
        after(Verdict::Refused, 5),
        down("Refused", Verdict::Refused)
    );
    assert_eq!(
        after(Verdict::WrongAnswer, 2),
        down("WrongAnswer", Verdict::WrongAnswer)
    );
    // One pass of the two that it takes.
    assert_eq!(
        after(Verdict::Pass, 1),
        down("WrongAnswer", Verdict::WrongAnswer)
    );
    assert_eq!(after(Verdict::Pass, 3), up("Pass", None));
    let overloaded = |words: &str, verdict| {
        let words = words.to_owned();
        (HealthState::Overloaded, words, Some(verdict))
    };
    assert_eq!(
        after(Verdict::Drain, 2),
        overloaded("Drain", Verdict::Drain)
    );
    // It is silent now; that takes its wish not back.
    assert_eq!(
        after(Verdict::Timeout, 5),
        overloaded("Timeout", Verdict::Drain)
    );
}
