use super::*;
use crate::{
    daemon::testing::{self, Directory},
    status::request::AdminAction,
};

const DEAD_AFTER: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(300);

struct Case {
    verdicts: BTreeMap<BackendKey, Verdict>,
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
            Verdict {
                state,
                for_time: Duration::from_secs(seconds),
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
        conditions(&model, &self.verdicts, &self.admin, starting, self.now)
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
