use std::{cell::RefCell, collections::VecDeque};

use super::*;
use crate::daemon::testing::{self, Directory};

/// Remembers what it was told; fails when it is told to.
#[derive(Default)]
struct Fake {
    failures: VecDeque<&'static str>,
    applied: Vec<(Model, Runtime)>,
}

impl DataPath for Fake {
    fn apply(&mut self, model: &Model, runtime: &Runtime) -> Result<Applied, String> {
        if let Some(error) = self.failures.pop_front().filter(|error| !error.is_empty()) {
            return Err(error.into());
        }
        self.applied.push((model.clone(), runtime.clone()));
        Ok(Applied {
            slots_moved: 1,
            operations: 1,
        })
    }
}

thread_local! {
    static FILE: RefCell<Result<Model, Vec<String>>> = const { RefCell::new(Err(Vec::new())) };
}

fn load(_: &Path) -> Result<Model, Vec<String>> {
    FILE.with_borrow(Clone::clone)
}

struct Case {
    controller: Controller<Fake>,
    file: PathBuf,
    now: Now,
    _directory: Directory,
}

impl Case {
    fn new(name: &str, adopted: bool) -> Self {
        let directory = Directory::new(name);
        let file = directory.0.join("lb.yaml");
        std::fs::write(&file, "one").unwrap();
        FILE.set(Ok(testing::model(&["a", "b"])));
        let now = testing::now(1_000);
        let candidate = read(load, &file).unwrap();
        let admin = AdminStore::open(&directory.0).unwrap().0;
        let controller =
            Controller::new(Fake::default(), adopted, &file, candidate, admin, load, now);
        Self {
            controller,
            file,
            now,
            _directory: directory,
        }
    }

    fn all_up(&mut self) {
        for backend in ["a", "b"] {
            self.controller.verdicts.insert(
                testing::key(backend),
                Known {
                    state: HealthState::Up,
                    ..Known::default()
                },
            );
        }
    }

    fn reconcile(&mut self) {
        self.controller.reconcile(self.now);
    }

    fn later(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.unix += seconds;
    }

    /// As the daemon does it.
    fn reload(&mut self) -> Result<Applied, Refusal> {
        let result = self
            .controller
            .candidate(&self.file)
            .and_then(|candidate| self.controller.take_over(candidate, self.now));
        self.controller.reloaded(&result, self.now);
        result
    }

    fn applies(&self) -> usize {
        self.controller.data_path.applied.len()
    }
}

#[test]
fn nothing_is_applied_twice_unless_something_changed() {
    let mut case = Case::new("idempotent", false);
    case.all_up();
    case.reconcile();
    case.reconcile();
    assert_eq!(case.applies(), 1);
    case.controller.look_again();
    case.reconcile();
    assert_eq!(case.applies(), 2);
}

#[test]
fn an_adopted_data_path_is_left_alone_until_the_first_results_or_their_time_out() {
    let mut case = Case::new("hold", true);
    case.reconcile();
    assert_eq!(case.applies(), 0);
    case.later(1);
    case.all_up();
    case.reconcile();
    assert_eq!(case.applies(), 1);

    let mut case = Case::new("hold-time-out", true);
    case.later(3);
    case.reconcile();
    assert_eq!(case.applies(), 1);
}

#[test]
fn a_reload_of_an_invalid_file_changes_nothing_and_tells_every_error() {
    let mut case = Case::new("invalid", false);
    case.all_up();
    case.reconcile();
    FILE.set(Err(vec!["line 3: no".into(), "line 9: no".into()]));
    let refusal = case.reload().unwrap_err();
    assert_eq!(refusal.errors, ["line 3: no", "line 9: no"]);
    assert_eq!(case.applies(), 1);
    assert_eq!(case.controller.model, testing::model(&["a", "b"]));
    assert_eq!(
        (
            case.controller.reloads.succeeded,
            case.controller.reloads.failed
        ),
        (0, 1)
    );
    let last = case.controller.reloads.last.clone().unwrap();
    assert!(!last.ok);
    assert_eq!(last.errors.len(), 2);
}

#[test]
fn a_reload_that_cannot_be_done_while_running_says_what_to_do() {
    let mut case = Case::new("obstacle", false);
    let mut model = testing::model(&["a", "b"]);
    model.dataplane.max_slots += 1;
    model.services[0].table_size = 2_003;
    model.services[0].table_size_is_explicit = true;
    FILE.set(Ok(model));
    let errors = case.reload().unwrap_err().errors;
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors[0].contains("max_slots") && errors[0].contains("lbctl detach"),
        "{errors:?}"
    );
    assert!(
        errors[1].contains("service shop") && errors[1].contains("1009"),
        "{errors:?}"
    );
    assert_eq!(case.applies(), 0);
}

#[test]
fn a_reload_the_data_path_refuses_puts_the_old_configuration_back() {
    let mut case = Case::new("rollback", false);
    case.all_up();
    case.reconcile();
    FILE.set(Ok(testing::model(&["a", "b", "c"])));
    case.controller.data_path.failures = VecDeque::from(["no room"]);
    assert_eq!(case.reload().unwrap_err().errors, ["no room"]);
    assert_eq!(case.controller.model, testing::model(&["a", "b"]));
    let (model, _) = case.controller.data_path.applied.last().unwrap();
    assert_eq!(*model, testing::model(&["a", "b"]));
    assert_eq!(case.controller.applies.error, None);
}

#[test]
fn a_reload_takes_over_and_keeps_decisions_and_verdicts() {
    let mut case = Case::new("reload", false);
    case.all_up();
    case.controller
        .decide(
            &AdminRequest {
                pool: "web".into(),
                backend: "a".into(),
                action: AdminAction::Disable,
            },
            case.now,
        )
        .unwrap();
    FILE.set(Ok(testing::model(&["a", "b", "c"])));
    case.reload().unwrap();
    let (model, runtime) = case.controller.data_path.applied.last().unwrap();
    assert_eq!(model.pools["web"].backends.len(), 3);
    use crate::dataplane::desired::Condition::{Disabled, Up};
    assert_eq!(runtime.backends[&testing::key("a")].condition, Disabled);
    assert_eq!(runtime.backends[&testing::key("b")].condition, Up);
    assert_eq!(case.controller.reloads.succeeded, 1);
}

#[test]
fn a_failed_change_is_repeated_after_a_pause_and_told_about_meanwhile() {
    let mut case = Case::new("retry", false);
    case.all_up();
    case.controller.data_path.failures = VecDeque::from(["busy", "busy"]);
    case.reconcile();
    assert_eq!(case.controller.applies.error.as_deref(), Some("busy"));
    assert!(!case.controller.is_applied());
    case.reconcile();
    assert_eq!(
        case.controller.data_path.failures.len(),
        1,
        "before the pause is over"
    );
    case.later(1);
    case.reconcile();
    case.later(2);
    case.reconcile();
    assert!(case.controller.is_applied());
    assert_eq!(case.controller.applies.failed, 2);
    assert_eq!(case.controller.applies.error, None);
}

#[test]
fn a_decision_about_a_backend_that_is_not_there_suggests_one() {
    let mut case = Case::new("stranger", false);
    let request = AdminRequest {
        pool: "wbe".into(),
        backend: "a".into(),
        action: AdminAction::Drain,
    };
    let refusal = case.controller.decide(&request, case.now).unwrap_err();
    assert_eq!(refusal.errors, ["no pool \"wbe\"; did you mean \"web\"?"]);
}
