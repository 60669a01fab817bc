//! `cargo xtask test`: builds and runs the suites and sums them up.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    follow::{follow, seconds},
    libtest::{Counts, Reader},
    process, setup,
    suites::{self, Suite},
    vm,
};

/// A binary that takes longer is stopped, or a hanging test would hang CI.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// As [`LIMIT`], for complete matrices under emulation.
const FULL_MACHINE_LIMIT: Duration = Duration::from_secs(90 * 60);

/// A suite's name, counts and time.
type Row = (String, Counts, Duration);

/// Runs the suites called `names`, or all; of those in the test machine only
/// tests that have one of `tests` in their names, if there are any. The last line on standard output is
/// `N passed, N failed, N skipped`. Whether nothing failed; a suite that executed
/// no test counts as a failure.
pub fn run(names: &[String], full: bool, tests: &[String]) -> Result<bool> {
    if !process::is_root() {
        bail!(
            "the suites make network namespaces and load BPF programs: run `cargo xtask test` as root"
        );
    }
    setup::run()?;
    setup::machine()?;
    process::step("building lbctl and the tests");
    let start = Instant::now();
    let built = match suites::build() {
        Ok(built) => built,
        Err(error) => {
            eprintln!("error: {error:#}");
            close(Counts::ONE_FAILURE);
            return Ok(false);
        }
    };
    eprintln!("built in {}", seconds(start.elapsed()));
    let suites = suites::select(built.suites, names)?;
    let (inside, outside): (Vec<_>, Vec<_>) = suites
        .iter()
        .partition(|suite| !suite.machine.is_empty() && suites.len() > 1);
    // The machine takes a core: what is sensitive to time waits until it is done.
    let (later, beside): (Vec<_>, Vec<_>) = outside.into_iter().partition(|suite| suite.serial);
    let (waiting, alone): (Vec<_>, Vec<_>) = later.into_iter().partition(|suite| suite.waits);
    let run_shown = |suite: &Suite| {
        process::step(&suite.name);
        let mut show = |line: &str| println!("{line}");
        timed(suite, &built.lbctl, full, tests, &mut show)
    };
    let mut results = thread::scope(|scope| {
        // What runs in the test machine runs beside the others, and is shown
        // when they are through.
        let inside: Vec<_> = inside
            .into_iter()
            .map(|suite| {
                let lbctl = &built.lbctl;
                let run = move || {
                    let mut lines = Vec::new();
                    let mut keep = |line: &str| lines.push(line.to_owned());
                    let result = timed(suite, lbctl, full, tests, &mut keep);
                    (result, lines)
                };
                (suite, scope.spawn(run))
            })
            .collect();
        let mut results: Vec<_> = beside.into_iter().map(run_shown).collect();
        for (suite, handle) in inside {
            process::step(&suite.name);
            let (result, lines) = handle.join().unwrap_or_else(|_| {
                let failed = (suite.name.clone(), Counts::ONE_FAILURE, Duration::ZERO);
                (failed, vec!["its thread panicked".to_owned()])
            });
            lines.iter().for_each(|line| println!("{line}"));
            results.push(result);
        }
        results
    });
    if let [suite] = waiting[..] {
        results.push(run_shown(suite));
    } else {
        results.extend(run_two_at_once(&waiting, |suite, show| {
            timed(suite, &built.lbctl, full, tests, show)
        }));
    }
    results.extend(alone.into_iter().map(run_shown));
    let total = print_table(&results);
    close(total);
    Ok(total.failed == 0)
}

/// Runs suites by `run`, two at once; what each prints is shown when it is through.
fn run_two_at_once(
    suites: &[&Suite],
    run: impl Fn(&Suite, &mut dyn FnMut(&str)) -> Row + Sync,
) -> Vec<Row> {
    let left = Mutex::new(suites.iter());
    let results = Mutex::new(Vec::new());
    let lane = || {
        loop {
            let Some(suite) = lock(&left).next() else {
                return;
            };
            let mut lines = Vec::new();
            let result = run(suite, &mut |line| lines.push(line.to_owned()));
            let mut results = lock(&results);
            process::step(&suite.name);
            lines.iter().for_each(|line| println!("{line}"));
            results.push(result);
        }
    };
    thread::scope(|scope| {
        scope.spawn(lane);
        lane();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a suite.
fn timed(
    suite: &Suite,
    lbctl: &Path,
    full: bool,
    tests: &[String],
    show: &mut dyn FnMut(&str),
) -> Row {
    let start = Instant::now();
    let mut counts = run_suite(suite, lbctl, full, tests, show);
    if suite.required && counts.passed + counts.failed == 0 {
        let name = &suite.name;
        show(&format!(
            "{name}: no test was executed, which counts as a failure"
        ));
        counts += Counts::ONE_FAILURE;
    }
    (suite.name.clone(), counts, start.elapsed())
}

fn run_suite(
    suite: &Suite,
    lbctl: &Path,
    full: bool,
    tests: &[String],
    show: &mut dyn FnMut(&str),
) -> Counts {
    if suite.name == suites::DOC {
        return run_command(suites::doc_command(), show);
    }
    if !suite.machine.is_empty() {
        return run_in_machine(suite, lbctl, full, tests, show);
    }
    let mut counts = Counts::default();
    for binary in &suite.binaries {
        let mut command = Command::new(&binary.path);
        command
            .current_dir(&binary.directory)
            .env("CARGO_MANIFEST_DIR", &binary.directory)
            .env("LBCTL", lbctl)
            .env_remove("LB_TEST_FULL");
        if full {
            command.env("LB_TEST_FULL", "1");
        }
        if suite.serial {
            command.arg("--test-threads=1");
        }
        counts += run_command(command, show);
    }
    counts
}

/// Runs the suite's harnesses in the test machine, one after the other.
fn run_in_machine(
    suite: &Suite,
    lbctl: &Path,
    full: bool,
    tests: &[String],
    show: &mut dyn FnMut(&str),
) -> Counts {
    let jobs: Vec<_> = suite
        .machine
        .iter()
        .map(|guest| {
            let directory = guest.binary.directory.display().to_string();
            let mut environment = vec![
                ("CARGO_MANIFEST_DIR".to_owned(), directory.clone()),
                ("LBCTL".to_owned(), lbctl.display().to_string()),
                ("LB_TEST_MACHINE".to_owned(), "1".to_owned()),
            ];
            // The figures that tests print are results, too.
            let mut argv = vec![
                guest.binary.path.display().to_string(),
                "--show-output".to_owned(),
            ];
            if guest.serial {
                argv.push("--test-threads=1".to_owned());
            }
            if full {
                environment.push(("LB_TEST_FULL".to_owned(), "1".to_owned()));
            }
            if !tests.is_empty() {
                argv.extend(tests.iter().cloned());
            } else if !full {
                argv.extend(guest.filters.iter().cloned());
            }
            vm::Job {
                argv,
                directory,
                environment,
            }
        })
        .collect();
    let limit = if full { FULL_MACHINE_LIMIT } else { LIMIT * 2 };
    let mut reader = Reader::default();
    let success = vm::run(&jobs, limit, |line| {
        show(line);
        reader.line(line);
    });
    if let Err(error) = &success {
        show(&format!("{}: {error:#}", suite.name));
    }
    reader.finish(success.unwrap_or(false))
}

/// Runs one harness, passes its output on and counts.
fn run_command(mut command: Command, show: &mut dyn FnMut(&str)) -> Counts {
    let name = process::display(&command);
    let mut reader = Reader::default();
    let success = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))
        .and_then(|child| {
            follow(child, LIMIT, |line| {
                show(line);
                reader.line(line);
            })
        });
    if let Err(error) = &success {
        show(&format!("{name}: {error:#}"));
    }
    reader.finish(success.unwrap_or(false))
}

fn print_table(results: &[Row]) -> Counts {
    let mut total = Counts::default();
    println!(
        "\n{:<24} {:>8} {:>8} {:>8} {:>10}",
        "suite", "passed", "failed", "skipped", "time"
    );
    for (name, counts, time) in results {
        let Counts {
            passed,
            failed,
            skipped,
        } = counts;
        println!(
            "{name:<24} {passed:>8} {failed:>8} {skipped:>8} {:>10}",
            seconds(*time)
        );
        total += *counts;
    }
    println!();
    total
}

/// The line that CI reads: the only one of its shape.
fn close(
    Counts {
        passed,
        failed,
        skipped,
    }: Counts,
) {
    println!("{passed} passed, {failed} failed, {skipped} skipped");
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;

    use super::*;

    #[test]
    fn suites_that_wait_run_two_at_once_and_never_three() {
        let suites = ["a", "b", "c", "d"].map(|name| Suite {
            name: name.to_owned(),
            binaries: Vec::new(),
            serial: true,
            waits: true,
            required: false,
            machine: Vec::new(),
        });
        let suites: Vec<_> = suites.iter().collect();
        // How many run, and the most that did.
        let (running, changed) = (Mutex::new((0, 0)), Condvar::new());
        let rows = run_two_at_once(&suites, |suite, show| {
            show("a line");
            let mut now = lock(&running);
            now.0 += 1;
            now.1 = now.1.max(now.0);
            changed.notify_all();
            // The first waits for a second, which comes if there are two lanes.
            let limit = Duration::from_secs(20);
            let waited = changed.wait_timeout_while(now, limit, |now| now.1 < 2);
            let (mut now, waited) = waited.unwrap();
            now.0 -= 1;
            assert!(!waited.timed_out(), "{} runs alone", suite.name);
            (suite.name.clone(), Counts::default(), Duration::ZERO)
        });
        assert_eq!(lock(&running).1, 2);
        let mut names: Vec<_> = rows.iter().map(|row| row.0.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }
}
