use super::*;
use crate::{
    daemon::testing::{self, Directory},
    status::request::AdminAction,
};

const DEAD_AFTER: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(300);

struct Case {
    verdicts: BTreeMap<BackendKey, Known>,
    admin: AdminStore,
    now: Now,
    _directory: Directory,
}

impl Case {
    fn new(name: &str) -> Self {
        let directory = Directory::new(name);
        Self {
            verdicts: BTreeMap::new(),
            admin: AdminStore::open(&directory.0).unwrap().0,
            now: testing::now(1_000),
            _directory: directory,
        }
    }

    fn verdict(&mut self, backend: &str, state: HealthState, seconds: u64) {
        self.verdicts.insert(
            testing::key(backend),
            Known {
                state,
                for_time: Duration::from_secs(seconds),
                ..Known::default()
            },
        );
    }

    fn decide(&mut self, backend: &str, action: AdminAction, at: u64) {
        self.admin
            .decide(&testing::key(backend), action, at)
            .unwrap();
    }

    fn compute(&self, starting: bool) -> Conditions {
        let mut model = testing::model(&["a", "b"]);
        model.dataplane.dead_after = DEAD_AFTER;
        model.dataplane.drain_timeout = DRAIN;
        let before = Conditions::default();
        conditions(
            &model,
            &self.verdicts,
            &self.admin,
            starting,
            self.now,
            &before,
        )
    }

    fn of(&self, backend: &str, starting: bool) -> Condition {
        self.compute(starting).backends[&testing::key(backend)].condition
    }
}

#[test]
fn a_backend_that_fails_serves_its_flows_for_dead_after_and_then_nobody() {
    let mut case = Case::new("dead-after");
    case.verdict("a", HealthState::Down, 59);
    case.verdict("b", HealthState::Up, 1);
    assert_eq!(case.of("a", false), Condition::Failing);
    assert_eq!(
        case.compute(false).next,
        Some(case.now.instant + Duration::from_secs(1))
    );
    case.verdict("a", HealthState::Down, 60);
    assert_eq!(case.of("a", false), Condition::Dead);
    assert_eq!(case.compute(false).next, None);
}

#[test]
fn a_new_backend_gets_no_flows_before_its_first_result_unless_its_pool_has_none_at_all() {
    let mut case = Case::new("unknown");
    case.verdict("a", HealthState::Unknown, 1);
    assert_eq!(
        case.of("a", false),
        Condition::Up,
        "the whole pool is unknown"
    );
    case.verdict("b", HealthState::Up, 1);
    assert_eq!(case.of("a", false), Condition::Draining);
    assert_eq!(
        case.of("a", true),
        Condition::Up,
        "the daemon has just started"
    );
    case.verdicts.remove(&testing::key("a"));
    assert_eq!(
        case.of("a", false),
        Condition::Draining,
        "its checks have not begun"
    );
}

#[test]
fn a_drained_backend_serves_its_flows_until_the_time_out() {
    let mut case = Case::new("drain");
    case.verdict("a", HealthState::Up, 1);
    case.decide("a", AdminAction::Drain, 1_000 - 299);
    assert_eq!(case.of("a", false), Condition::Draining);
    assert_eq!(
        case.compute(false).next,
        Some(case.now.instant + Duration::from_secs(1))
    );
    case.now.unix += 1;
    assert_eq!(case.of("a", false), Condition::Disabled);
}

#[test]
fn an_operator_can_disable_what_is_up_and_cannot_enable_what_is_dead() {
    let mut case = Case::new("disable");
    case.verdict("a", HealthState::Up, 1);
    case.decide("a", AdminAction::Disable, 1);
    assert_eq!(case.of("a", false), Condition::Disabled);
    case.verdict("b", HealthState::Down, 1_000);
    case.decide("b", AdminAction::Enable, 1);
    assert_eq!(case.of("b", false), Condition::Dead);
}

#[test]
fn an_operators_weight_replaces_the_configured_one() {
    let mut case = Case::new("weight");
    assert_eq!(case.compute(false).backends[&testing::key("a")].weight, 100);
    case.decide("a", AdminAction::Weight { weight: 7 }, 1);
    assert_eq!(case.compute(false).backends[&testing::key("a")].weight, 7);
    case.decide("a", AdminAction::Clear, 1);
    assert_eq!(case.compute(false).backends[&testing::key("a")].weight, 100);
}

/// What follows step by step, each with what was before.
struct Story {
    model: Model,
    known: BTreeMap<BackendKey, Known>,
    admin: AdminStore,
    now: Now,
    conditions: Conditions,
    _directory: Directory,
}

impl Story {
    fn new(name: &str, backends: &[&str], adapt: impl FnOnce(&mut Model)) -> Self {
        let directory = Directory::new(name);
        let mut model = testing::model(backends);
        model.dataplane.dead_after = DEAD_AFTER;
        adapt(&mut model);
        let mut story = Self {
            model,
            known: BTreeMap::new(),
            admin: AdminStore::open(&directory.0).unwrap().0,
            now: testing::now(1_000),
            conditions: Conditions::default(),
            _directory: directory,
        };
        for backend in backends {
            story.say(backend, HealthState::Up, None);
        }
        story.step();
        story
    }

    fn say(&mut self, backend: &str, state: HealthState, verdict: Option<Verdict>) {
        let known = self.known.entry(testing::key(backend)).or_default();
        known.state = state;
        known.verdict = verdict;
        known.for_time = Duration::ZERO;
    }

    fn overload(&mut self, backend: &str) {
        self.say(backend, HealthState::Overloaded, Some(Verdict::Slow));
    }

    fn step(&mut self) {
        let (known, admin) = (&self.known, &self.admin);
        self.conditions = conditions(&self.model, known, admin, false, self.now, &self.conditions);
    }

    fn later(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.unix += seconds;
        self.step();
    }

    fn of(&self, backend: &str) -> BackendCondition {
        self.conditions.backends[&testing::key(backend)]
    }

    fn condition(&self, backend: &str) -> Condition {
        self.of(backend).condition
    }

    fn why(&self, backend: &str) -> String {
        let why = self.conditions.why.get(&testing::key(backend));
        why.cloned().unwrap_or_default().join("; ")
    }
}

fn slow_start(model: &mut Model) {
    model.pools.get_mut("web").unwrap().policy.slow_start = Duration::from_secs(30);
}

#[test]
fn every_health_and_every_decision_give_the_condition_the_table_says() {
    use Condition::{Dead, Disabled, Draining, Failing, Overloaded, Up};
    let actions = [
        AdminAction::Enable,
        AdminAction::Drain,
        AdminAction::Disable,
    ];
    // By health: enabled, drained, disabled. Another backend is up.
    let table = [
        (HealthState::Unknown, 1, [Draining, Draining, Disabled]),
        (HealthState::Up, 1, [Up, Draining, Disabled]),
        (
            HealthState::Overloaded,
            1_000,
            [Overloaded, Draining, Disabled],
        ),
        (HealthState::Down, 59, [Failing, Failing, Disabled]),
        (HealthState::Down, 60, [Dead, Dead, Disabled]),
    ];
    for (health, seconds, expected) in table {
        for (action, expected) in actions.into_iter().zip(expected) {
            let mut case = Case::new("table");
            case.verdict("a", health, seconds);
            case.verdict("b", HealthState::Up, 1);
            case.decide("a", action, 1_000);
            assert_eq!(case.of("a", false), expected, "{health}, {action:?}");
        }
    }
}

#[test]
fn a_backend_that_comes_back_gets_its_share_step_by_step_and_it_is_told_when() {
    let mut story = Story::new("ramp", &["a", "b"], slow_start);
    assert_eq!(
        story.of("a").factors,
        Factors::default(),
        "not at the start"
    );
    story.say("a", HealthState::Down, Some(Verdict::Refused));
    story.later(5);
    story.say("a", HealthState::Up, None);
    story.later(5);
    assert_eq!(story.of("a").factors.slow_start, Factor::of(0.1));
    assert_eq!(story.of("b").factors, Factors::default());
    let next = story.now.instant + Duration::from_secs(6);
    assert_eq!(story.conditions.next, Some(next));
    story.later(12);
    assert_eq!(story.of("a").factors.slow_start, Factor::of(0.4));
    assert_eq!(story.why("a"), "slow start 40 %");
    story.later(18);
    assert_eq!(story.of("a").factors, Factors::default());
    assert_eq!(
        (story.why("a"), story.conditions.next),
        (String::new(), None)
    );
}

#[test]
fn a_backend_that_is_added_or_enabled_again_ramps_too_and_a_new_pool_does_not() {
    let mut story = Story::new("ramp-new", &["a", "b"], slow_start);
    story.model = testing::model(&["a", "b", "c"]);
    slow_start(&mut story.model);
    story.say("c", HealthState::Up, None);
    let key = testing::key("a");
    story
        .admin
        .decide(&key, AdminAction::Disable, 1_000)
        .unwrap();
    story.step();
    assert_eq!(story.of("c").factors.slow_start, Factor::of(0.1));
    story
        .admin
        .decide(&key, AdminAction::Enable, 1_001)
        .unwrap();
    story.later(1);
    assert_eq!(story.of("a").factors.slow_start, Factor::of(0.1));
    let pool = story.model.pools["web"].clone();
    story.model.pools.insert("another".into(), pool);
    story.step();
    let of_another = story
        .conditions
        .backends
        .iter()
        .find(|(key, _)| key.pool == "another");
    assert_eq!(of_another.unwrap().1.factors, Factors::default());
}

#[test]
fn beyond_max_ejected_overloaded_backends_go_on_and_the_reason_is_told() {
    let mut story = Story::new("ejected", &["a", "b", "c", "d"], slow_start);
    story.overload("a");
    story.overload("b");
    story.step();
    assert_eq!(story.condition("b"), Condition::Overloaded);
    story.overload("c");
    story.known.get_mut(&testing::key("a")).unwrap().for_time = Duration::from_secs(9);
    story.known.get_mut(&testing::key("b")).unwrap().for_time = Duration::from_secs(9);
    story.step();
    assert_eq!(story.condition("c"), Condition::Up);
    assert_eq!(story.of("c").factors, Factors::default(), "it never left");
    assert_eq!(story.why("c"), "overloaded, kept in by max_ejected");
    assert_eq!(story.conditions.pools["web"].kept_in, ["c"]);
}

#[test]
fn when_nobody_is_up_overloaded_backends_share_the_load_and_dead_ones_do_not() {
    let mut story = Story::new("nobody", &["a", "b", "c"], |_| ());
    story.overload("a");
    story.overload("b");
    story.say("c", HealthState::Down, Some(Verdict::Refused));
    story.step();
    let of = |backend| story.condition(backend);
    assert_eq!(
        [of("a"), of("b"), of("c")],
        [Condition::Up, Condition::Up, Condition::Failing]
    );
    assert!(story.why("a").contains("nobody is up"));
}

#[test]
fn what_an_operator_took_out_does_not_count_towards_the_limits() {
    let mut story = Story::new("operator", &["a", "b", "c", "d"], |_| ());
    for backend in ["c", "d"] {
        let key = testing::key(backend);
        story
            .admin
            .decide(&key, AdminAction::Disable, 1_000)
            .unwrap();
    }
    story.overload("a");
    story.step();
    assert_eq!(story.condition("a"), Condition::Overloaded);
    let found = &story.conditions.pools["web"];
    assert_eq!((found.backends, found.up, found.overloaded), (2, 1, 1));
}

#[test]
fn a_report_of_load_and_a_slow_answer_make_a_smaller_share() {
    let mut story = Story::new("feedback", &["a", "b", "c"], |model| {
        model.services[0].balance.scheduler = Scheduler::ResponseTime;
    });
    for (backend, ms) in [("a", 10), ("b", 10), ("c", 20)] {
        let known = story.known.get_mut(&testing::key(backend)).unwrap();
        known.response = Some(Duration::from_millis(ms));
    }
    story.known.get_mut(&testing::key("a")).unwrap().free = Some(0.3);
    story.step();
    assert_eq!(story.why("a"), "load leaves 30 %");
    assert_eq!(story.why("c"), "response time 0.50");
    assert_eq!(story.why("b"), "");
    assert_eq!(story.of("c").factors.response, Factor::of(0.5));
}
