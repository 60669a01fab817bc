use super::{
    super::{Advertisement, Settings, Version},
    *,
};

const SECOND: Duration = Duration::from_secs(1);
const DEAF: Duration = Duration::from_millis(150);

fn address(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

fn machine(priority: u8, now: Instant) -> Machine {
    let mut machine = Machine::new(Settings {
        version: Version::V3,
        vrid: 51,
        priority,
        interval: SECOND,
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        addresses: vec![address(100)],
        source: address(10),
    });
    machine.start(now);
    actions(&mut machine);
    machine
}

fn active(priority: u8, now: &mut Instant) -> Machine {
    let mut machine = machine(priority, *now);
    *now += machine.down_interval();
    machine.timeout(*now);
    actions(&mut machine);
    assert_eq!(machine.state(), State::Active);
    machine
}

fn actions(machine: &mut Machine) -> Vec<Action> {
    std::iter::from_fn(|| machine.next_action()).collect()
}

fn hear(machine: &mut Machine, now: Instant, priority: u8, from: IpAddr) {
    let advertisement = Advertisement {
        version: Version::V3,
        vrid: 51,
        priority,
        interval: SECOND,
        addresses: vec![address(100)],
    };
    machine.received(now, &advertisement, from);
}

fn peer() -> Arc<str> {
    "lb2".into()
}

fn hold(why: Why, until: Option<Instant>) -> Option<Hold> {
    Some(Hold { why, until })
}

#[test]
fn who_is_held_waits_and_claims_when_the_time_is_over() {
    let mut now = Instant::now();
    let mut machine = machine(100, now);
    let until = now + SECOND * 5;
    machine.hold(now, hold(Why::PeerActive(peer()), Some(until)));
    assert_eq!(machine.waits(), None, "it has no reason to claim yet");
    now += machine.down_interval();
    machine.timeout(now);
    assert_eq!(actions(&mut machine), []);
    assert_eq!(machine.waits(), Some(&Why::PeerActive(peer())));
    assert_eq!(machine.poll_timeout(), Some(until));
    // Nothing more was heard: at that moment, and not later.
    machine.hold(until, None);
    machine.timeout(until);
    assert_eq!((machine.state(), machine.waits()), (State::Active, None));
}

#[test]
fn who_waits_for_a_peer_gives_its_successor_two_intervals() {
    let mut now = Instant::now();
    let mut machine = machine(100, now);
    machine.hold(now, hold(Why::PeerActive(peer()), Some(now + SECOND * 60)));
    now += machine.down_interval();
    machine.timeout(now);
    machine.hold(now, None);
    assert_eq!(machine.poll_timeout(), Some(now + SECOND * 2));
    // Whoever is heard by then ends it.
    hear(&mut machine, now, 150, address(3));
    assert_eq!(machine.poll_timeout(), Some(now + machine.down_interval()));
}

#[test]
fn the_isolated_one_claims_with_the_first_answer() {
    let mut now = Instant::now();
    let mut machine = machine(100, now);
    machine.hold(now, hold(Why::Isolated, None));
    assert!(machine.is_in_the_way(), "of its sync group");
    now += machine.down_interval();
    machine.timeout(now);
    assert_eq!(machine.waits(), Some(&Why::Isolated));
    now += Duration::from_millis(10);
    machine.hold(now, None);
    machine.timeout(now);
    assert_eq!(machine.state(), State::Active);
}

#[test]
fn who_has_left_by_the_peer_link_is_followed_after_the_skew_and_no_third_one_is() {
    let now = Instant::now();
    let mut machine = machine(100, now);
    hear(&mut machine, now, 150, address(2));
    machine.left(now, address(3));
    assert_eq!(machine.poll_timeout(), Some(now + machine.down_interval()));
    machine.left(now, address(2));
    assert_eq!(machine.poll_timeout(), Some(now + machine.skew()));
    let later = now + SECOND / 10;
    machine.left(later, address(2));
    // Said twice, it isn't later.
    assert_eq!(machine.poll_timeout(), Some(now + machine.skew()));
}

#[test]
fn a_hand_over_is_without_a_word_and_without_an_answer_to_the_lower_priority() {
    let mut now = Instant::now();
    let mut machine = active(150, &mut now);
    machine.begin_hand_over(&peer(), address(2), false);
    assert_eq!(actions(&mut machine), []);
    hear(&mut machine, now, 100, address(2));
    let expected = [
        Action::Own(false),
        Action::Changed {
            from: State::Active,
            to: State::Backup,
            reason: Reason::HandedOver(peer()),
        },
    ];
    assert_eq!(actions(&mut machine), expected);
    assert!(machine.has_handed_over() && !machine.preempts());
    // It follows the lower priority from then on.
    for _ in 0..10 {
        now += SECOND;
        hear(&mut machine, now, 100, address(2));
        machine.timeout(now);
    }
    assert_eq!(machine.state(), State::Backup);
    // Until a third one is active, which it takes over from as ever.
    hear(&mut machine, now, 120, address(3));
    assert!(!machine.has_handed_over() && machine.preempts());
}

#[test]
fn an_answer_is_as_good_as_an_advertisement_and_one_that_may_return_preempts() {
    let mut now = Instant::now();
    let mut machine = active(150, &mut now);
    machine.handed_over(now);
    assert_eq!(machine.state(), State::Active, "nothing was handed over");
    machine.begin_hand_over(&peer(), address(2), true);
    machine.handed_over(now);
    assert_eq!(machine.state(), State::Backup);
    assert!(machine.is_handed_over() && machine.preempts());
}

#[test]
fn a_hand_over_that_failed_is_told_at_once() {
    let mut now = Instant::now();
    let mut machine = active(150, &mut now);
    machine.begin_hand_over(&peer(), address(2), false);
    machine.keep(now);
    assert_eq!(actions(&mut machine), [Action::Advertise(150)]);
    machine.keep(now);
    assert_eq!(actions(&mut machine), []);
    // A lower priority is answered as ever, and announced.
    hear(&mut machine, now, 100, address(2));
    let expected = [Action::Advertise(150), Action::Announce];
    assert_eq!(actions(&mut machine), expected);
    hear(&mut machine, now, 100, address(2));
    assert_eq!(actions(&mut machine), [Action::Advertise(150)]);
}

#[test]
fn who_takes_over_is_deaf_to_the_other_one_for_a_moment() {
    let mut now = Instant::now();
    let mut machine = machine(100, now);
    machine.take_over(now, &peer(), address(2), DEAF, false);
    let expected = [
        Action::Changed {
            from: State::Backup,
            to: State::Active,
            reason: Reason::TookOver(peer()),
        },
        Action::Own(true),
        Action::Advertise(100),
        Action::Announce,
    ];
    assert_eq!(actions(&mut machine), expected);
    assert!(machine.has_taken());
    now += DEAF - Duration::from_millis(1);
    hear(&mut machine, now, 150, address(2));
    assert_eq!(
        (machine.state(), actions(&mut machine)),
        (State::Active, vec![])
    );
    now += Duration::from_millis(1);
    hear(&mut machine, now, 150, address(2));
    assert_eq!(
        (machine.state(), machine.has_taken()),
        (State::Backup, false)
    );
}

#[test]
fn only_a_backup_takes_over_and_only_an_active_one_lets_go() {
    let mut now = Instant::now();
    let mut broken = machine(100, now);
    broken.broken("no carrier");
    actions(&mut broken);
    broken.take_over(now, &peer(), address(2), DEAF, false);
    broken.let_go(now);
    broken.begin_hand_over(&peer(), address(2), false);
    broken.left(now, address(2));
    assert_eq!(
        (broken.state(), actions(&mut broken)),
        (State::Fault, vec![])
    );
    let mut machine = active(150, &mut now);
    machine.let_go(now);
    assert_eq!(machine.state(), State::Backup);
    assert_eq!(actions(&mut machine)[0], Action::Own(false));
}

#[test]
fn who_is_restrained_follows_a_lower_priority_and_claims_from_nobody() {
    let mut now = Instant::now();
    let mut machine = machine(150, now);
    machine.restrain(true);
    for _ in 0..5 {
        now += SECOND;
        hear(&mut machine, now, 100, address(2));
        machine.timeout(now);
    }
    assert_eq!(machine.state(), State::Backup);
    now += machine.down_interval();
    machine.timeout(now);
    assert_eq!(machine.state(), State::Active);
}
