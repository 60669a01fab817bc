//! What a failed test shows: the logs of its processes and its captures.

use std::{cell::RefCell, path::PathBuf};

use crate::process;

/// One thing to show when the test turns out to have failed.
pub(crate) type Evidence = Box<dyn FnOnce()>;

thread_local! {
    static HELD: RefCell<Option<Vec<Evidence>>> = const { RefCell::new(None) };
}

/// Runs a test and panics with its error, after showing the logs of the
/// processes it started and writing its captures.
///
/// Values dropped on the way out of a test that returns an error can't know
/// that it failed; inside `check` they leave their evidence to it.
pub fn check(test: impl FnOnce() -> anyhow::Result<()>) {
    HELD.set(Some(Vec::new()));
    let result = test();
    let held = HELD.take().unwrap_or_default();
    if let Err(e) = result {
        for show in held {
            show();
        }
        panic!("{e:#}");
    }
}

/// Shows evidence now if the thread is panicking, or later if [`check`]'s test
/// fails.
pub(crate) fn offer(evidence: Evidence) {
    if std::thread::panicking() {
        evidence();
    } else {
        HELD.with_borrow_mut(|held| {
            if let Some(held) = held {
                held.push(evidence);
            }
        });
    }
}

/// Where files that outlive a failed test go: `$LB_TEST_ARTIFACTS`, or
/// `lb-tests` beside the programs cargo built.
pub(crate) fn artifacts_dir() -> PathBuf {
    std::env::var_os("LB_TEST_ARTIFACTS").map_or_else(
        || {
            process::programs_dir()
                .unwrap_or_else(|_| std::env::temp_dir())
                .join("lb-tests")
        },
        PathBuf::from,
    )
}
