use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn address(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

fn settings(priority: u8) -> Settings {
    Settings {
        version: Version::V3,
        vrid: 51,
        priority,
        interval: SECOND,
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        addresses: vec![address(100)],
        source: address(10),
    }
}

fn advertisement(priority: u8) -> Advertisement {
    Advertisement {
        version: Version::V3,
        vrid: 51,
        priority,
        interval: SECOND,
        addresses: vec![address(100)],
    }
}

/// A machine and its time.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self {
            machine: Machine::new(settings),
            now: Instant::now(),
        }
    }

    /// In this state, with nothing left to do.
    fn at(state: State, settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        match state {
            State::Initialize => {}
            State::Backup => bench.machine.start(bench.now),
            State::Active => {
                bench.machine.start(bench.now);
                bench.wait(bench.machine.down_interval());
            }
            State::Fault => {
                bench.machine.start(bench.now);
                bench.machine.broken("no carrier");
            }
        }
        bench.actions();
        assert_eq!(bench.machine.state(), state);
        bench
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.machine.timeout(self.now);
    }

    fn hear(&mut self, advertisement: &Advertisement, from: IpAddr) -> Vec<Oddity> {
        self.machine.received(self.now, advertisement, from)
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.next_action()).collect()
    }

    /// When it wants to be called next, from now.
    fn due(&self) -> Option<Duration> {
        let due = self.machine.poll_timeout()?;
        Some(due.saturating_duration_since(self.now))
    }
}

fn changed(from: State, to: State, reason: Reason) -> Action {
    Action::Changed { from, to, reason }
}

fn became_active(priority: u8, reason: Reason) -> Vec<Action> {
    vec![
        changed(State::Backup, State::Active, reason),
        Action::Own(true),
        Action::Advertise(priority),
        Action::Announce,
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Start,
    Stop,
    Broken,
    Mended,
    Timer,
    Leaving,
    Lower,
    EqualFromLower,
    EqualFromHigher,
    Higher,
}

const EVENTS: [Event; 10] = [
    Event::Start,
    Event::Stop,
    Event::Broken,
    Event::Mended,
    Event::Timer,
    Event::Leaving,
    Event::Lower,
    Event::EqualFromLower,
    Event::EqualFromHigher,
    Event::Higher,
];

const STATES: [State; 4] = [
    State::Initialize,
    State::Backup,
    State::Active,
    State::Fault,
];

fn apply(bench: &mut Bench, event: Event) {
    let (low, high) = (address(1), address(200));
    match event {
        Event::Start => bench.machine.start(bench.now),
        Event::Stop => bench.machine.stop(),
        Event::Broken => bench.machine.broken("no carrier"),
        Event::Mended => bench.machine.mended(bench.now),
        Event::Timer => {
            if let Some(due) = bench.due() {
                bench.wait(due);
            }
        }
        Event::Leaving => drop(bench.hear(&advertisement(LEAVING), high)),
        Event::Lower => drop(bench.hear(&advertisement(100), high)),
        Event::EqualFromLower => drop(bench.hear(&advertisement(150), low)),
        Event::EqualFromHigher => drop(bench.hear(&advertisement(150), high)),
        Event::Higher => drop(bench.hear(&advertisement(200), low)),
    }
}

/// Priority 150, interval 1 s: skew is 106/256 s, the down interval 3 s more.
const SKEW: Duration = Duration::from_nanos(1_000_000_000 * 106 / 256);

/// What RFC 9568 §6.4 has for every state and event: the next state, the actions
/// and the time until the timer fires.
fn expected(state: State, event: Event) -> (State, Vec<Action>, Option<Duration>) {
    let down = Some(SECOND * 3 + SKEW);
    let leave = |to, reason| {
        let actions = vec![
            Action::Own(false),
            Action::Advertise(LEAVING),
            changed(State::Active, to, reason),
        ];
        (to, actions, None)
    };
    let yielded = || {
        let reason = |from| Reason::Better(from);
        let from = match event {
            Event::Higher => address(1),
            _ => address(200),
        };
        let actions = vec![
            Action::Own(false),
            changed(State::Active, State::Backup, reason(from)),
        ];
        (State::Backup, actions, down)
    };
    let broken = || Reason::Broken("no carrier".into());
    match (state, event) {
        (State::Initialize, Event::Start) => (
            State::Backup,
            vec![changed(state, State::Backup, Reason::Started)],
            down,
        ),
        (State::Initialize, _) => (state, vec![], None),
        (State::Fault, Event::Mended) => (
            State::Backup,
            vec![changed(state, State::Backup, Reason::Mended)],
            down,
        ),
        (State::Fault, Event::Stop) => (
            State::Initialize,
            vec![changed(state, State::Initialize, Reason::Stopped)],
            None,
        ),
        (State::Fault, _) => (state, vec![], None),
        (State::Backup, Event::Stop) => (
            State::Initialize,
            vec![changed(state, State::Initialize, Reason::Stopped)],
            None,
        ),
        (State::Backup, Event::Broken) => (
            State::Fault,
            vec![changed(state, State::Fault, broken())],
            None,
        ),
        (State::Backup, Event::Timer) => (
            State::Active,
            became_active(150, Reason::Silence),
            Some(SECOND),
        ),
        (State::Backup, Event::Leaving) => (state, vec![], Some(SKEW)),
        (State::Backup, _) => (state, vec![], down),
        (State::Active, Event::Stop) => leave(State::Initialize, Reason::Stopped),
        (State::Active, Event::Broken) => leave(State::Fault, broken()),
        (State::Active, Event::Higher | Event::EqualFromHigher) => yielded(),
        (State::Active, Event::Timer | Event::Leaving) => {
            (state, vec![Action::Advertise(150)], Some(SECOND))
        }
        // Both were active: hosts may believe the other one.
        (State::Active, Event::Lower | Event::EqualFromLower) => {
            let actions = vec![Action::Advertise(150), Action::Announce];
            (state, actions, Some(SECOND))
        }
        (State::Active, Event::Start | Event::Mended) => (state, vec![], Some(SECOND)),
    }
}

#[test]
fn every_event_in_every_state_leads_where_the_rfc_says() {
    for state in STATES {
        for event in EVENTS {
            let mut bench = Bench::at(state, settings(150));
            apply(&mut bench, event);
            let got = (bench.machine.state(), bench.actions(), bench.due());
            assert_eq!(got, expected(state, event), "{state:?}, {event:?}");
        }
    }
}

#[test]
fn who_has_the_addresses_itself_is_active_at_once() {
    let mut bench = Bench::new(settings(OWNER));
    bench.machine.start(bench.now);
    assert_eq!(
        bench.actions(),
        [
            changed(State::Initialize, State::Active, Reason::OwnsAddresses),
            Action::Own(true),
            Action::Advertise(OWNER),
            Action::Announce,
        ]
    );
    // Another one that has them, too, is an error of the configuration.
    let odd = bench.hear(&advertisement(OWNER), address(200));
    assert_eq!(odd, [Oddity::TwoOwners]);
    assert_eq!(bench.machine.state(), State::Active);
    bench.machine.set_priority(100);
    assert_eq!(bench.machine.priority(), OWNER);
}

#[test]
fn a_backup_counts_by_the_interval_of_who_is_active() {
    let mut bench = Bench::at(State::Backup, settings(100));
    let mut fast = advertisement(200);
    fast.interval = Duration::from_millis(100);
    assert_eq!(bench.hear(&fast, address(1)), [Oddity::Interval]);
    let skew = Duration::from_millis(100) * 156 / 256;
    assert_eq!(bench.machine.skew(), skew);
    assert_eq!(bench.due(), Some(Duration::from_millis(300) + skew));
    assert_eq!(bench.machine.active_peer(), Some((address(1), 200)));
    // Its own advertisements have its own interval again.
    bench.wait(bench.due().unwrap());
    assert_eq!(bench.machine.state(), State::Active);
    assert_eq!(bench.due(), Some(SECOND));
}

#[test]
fn without_preemption_a_lower_priority_stays_active() {
    let patient = Settings {
        preempt: false,
        ..settings(150)
    };
    let mut bench = Bench::at(State::Backup, patient);
    for _ in 0..10 {
        bench.wait(SECOND);
        bench.hear(&advertisement(100), address(1));
    }
    assert_eq!(bench.machine.state(), State::Backup);
    bench.wait(SECOND * 4);
    assert_eq!(bench.actions(), became_active(150, Reason::Silence));
}

#[test]
fn preemption_waits_for_its_delay() {
    let patient = Settings {
        preempt_delay: SECOND * 5,
        ..settings(150)
    };
    let mut bench = Bench::at(State::Backup, patient);
    for second in 1..=12 {
        bench.wait(SECOND);
        bench.hear(&advertisement(100), address(1));
        // Three and a skew after the last one that it listened to.
        assert_eq!(
            bench.machine.state() == State::Active,
            second > 7,
            "after {second} s"
        );
    }
}

#[test]
fn nothing_is_claimed_before_the_startup_delay_is_over() {
    let late = Settings {
        startup_delay: SECOND * 10,
        ..settings(150)
    };
    let mut bench = Bench::at(State::Backup, late);
    bench.wait(SECOND * 4);
    assert_eq!((bench.actions(), bench.due()), (vec![], Some(SECOND * 6)));
    bench.wait(SECOND * 6);
    assert_eq!(bench.actions(), became_active(150, Reason::Silence));
}

#[test]
fn who_leaves_is_followed_after_the_skew_alone() {
    let mut bench = Bench::at(State::Backup, settings(150));
    bench.hear(&advertisement(200), address(1));
    bench.hear(&advertisement(LEAVING), address(1));
    bench.wait(SKEW);
    assert_eq!(bench.actions(), became_active(150, Reason::PeerLeft));
}

#[test]
fn an_active_one_that_overslept_lets_go_and_listens() {
    let mut bench = Bench::at(State::Active, settings(150));
    // Nobody could have claimed yet.
    bench.wait(Duration::from_millis(2_990));
    assert_eq!(bench.actions(), [Action::Advertise(150)]);
    bench.wait(SECOND * 3);
    let overslept = Reason::Overslept(SECOND * 3);
    assert_eq!(
        bench.actions(),
        [
            Action::Own(false),
            changed(State::Active, State::Backup, overslept)
        ]
    );
    assert_eq!(bench.due(), Some(SECOND * 3 + SKEW));
}

#[test]
fn a_backup_that_overslept_listens_once_more() {
    let mut bench = Bench::at(State::Backup, settings(150));
    bench.wait(SECOND * 60);
    assert_eq!(
        (bench.machine.state(), bench.actions()),
        (State::Backup, vec![])
    );
    assert_eq!(bench.due(), Some(SECOND * 3 + SKEW));
    bench.wait(SECOND * 4);
    assert_eq!(bench.machine.state(), State::Active);
}

#[test]
fn another_priority_is_told_at_once() {
    let mut bench = Bench::at(State::Active, settings(150));
    bench.machine.set_priority(50);
    assert_eq!(bench.actions(), [Action::Advertise(50)]);
    bench.machine.set_priority(50);
    assert_eq!(bench.actions(), []);
    // 0 and 255 have meanings of their own.
    bench.machine.set_priority(0);
    assert_eq!(bench.machine.priority(), 1);
    bench.machine.set_priority(255);
    assert_eq!(bench.machine.priority(), 254);
    bench.actions();
    bench.hear(&advertisement(200), address(200));
    assert_eq!(bench.machine.state(), State::Active);
}

#[test]
fn version_2_is_stricter_and_its_skew_is_of_a_second() {
    let old = Settings {
        version: Version::V2,
        interval: SECOND * 5,
        ..settings(150)
    };
    let mut bench = Bench::at(State::Backup, old);
    assert_eq!(bench.machine.skew(), SKEW);
    assert_eq!(bench.machine.down_interval(), SECOND * 15 + SKEW);
    let mut heard = advertisement(200);
    assert_eq!(bench.hear(&heard, address(1)), [Oddity::Version]);
    heard.version = Version::V2;
    let before = bench.due();
    assert_eq!(bench.hear(&heard, address(1)), [Oddity::Interval]);
    assert_eq!((bench.due(), bench.machine.active_peer()), (before, None));
    heard.interval = SECOND * 5;
    assert_eq!(bench.hear(&heard, address(1)), []);
    assert_eq!(bench.machine.active_peer(), Some((address(1), 200)));
}

#[test]
fn other_addresses_are_odd_and_taken() {
    let mut bench = Bench::at(State::Backup, settings(100));
    for addresses in [vec![], vec![address(101)], vec![address(100), address(101)]] {
        let mut heard = advertisement(200);
        heard.addresses = addresses;
        assert_eq!(bench.hear(&heard, address(1)), [Oddity::Addresses]);
        assert_eq!(bench.machine.active_peer(), Some((address(1), 200)));
    }
}

/// What it hears first, once awake, was sent by whoever has taken over: an answer
/// would be a claim.
#[test]
fn an_active_one_that_overslept_lets_go_before_it_hears() {
    let mut bench = Bench::at(State::Active, settings(150));
    bench.now += SECOND * 10;
    bench.hear(&advertisement(100), address(1));
    assert_eq!(
        bench.actions(),
        [
            Action::Own(false),
            changed(State::Active, State::Backup, Reason::Overslept(SECOND * 10))
        ]
    );
}

#[test]
fn a_sync_group_takes_its_members_along() {
    let mut bench = Bench::at(State::Active, settings(150));
    bench.machine.yield_with_group(bench.now);
    assert_eq!(
        bench.actions(),
        [
            Action::Own(false),
            Action::Advertise(LEAVING),
            changed(State::Active, State::Backup, Reason::Group)
        ]
    );
    assert_eq!(bench.due(), Some(SECOND * 3 + SKEW));
    bench.machine.claim_with_group(bench.now);
    assert_eq!(bench.actions(), became_active(150, Reason::Group));
    for state in [State::Initialize, State::Fault] {
        let mut bench = Bench::at(state, settings(150));
        bench.machine.claim_with_group(bench.now);
        bench.machine.yield_with_group(bench.now);
        assert_eq!((bench.machine.state(), bench.actions()), (state, vec![]));
    }
}

#[test]
fn who_is_held_by_its_group_claims_with_it_alone() {
    let mut bench = Bench::at(State::Backup, settings(150));
    let group = Hold {
        why: Why::Group,
        until: None,
    };
    bench.machine.hold(bench.now, Some(group));
    for _ in 0..3 {
        let due = bench.due().unwrap();
        assert_eq!(due, SECOND * 3 + SKEW);
        bench.wait(due);
        assert_eq!(
            (bench.machine.state(), bench.actions()),
            (State::Backup, vec![])
        );
    }
    bench.machine.claim_with_group(bench.now);
    assert_eq!(bench.actions(), became_active(150, Reason::Group));
    // Who hears somebody better is in the way of the others; who hears nobody, or
    // somebody worse, is not.
    let mut bench = Bench::at(State::Backup, settings(150));
    assert!(!bench.machine.is_in_the_way());
    bench.hear(&advertisement(100), address(1));
    assert!(!bench.machine.is_in_the_way());
    bench.hear(&advertisement(200), address(1));
    assert!(bench.machine.is_in_the_way());
}
