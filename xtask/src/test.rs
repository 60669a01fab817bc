//! `cargo xtask test`: builds and runs the suites and sums them up.

use std::{
    path::Path,
    process::{Command, Stdio},
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
    let (alone, beside): (Vec<_>, Vec<_>) = outside.into_iter().partition(|suite| suite.serial);
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
    results.extend(alone.into_iter().map(run_shown));
    let total = print_table(&results);
    close(total);
    Ok(total.failed == 0)
}

/// Runs a suite; its name, counts and time.
fn timed(
    suite: &Suite,
    lbctl: &Path,
    full: bool,
    tests: &[String],
    show: &mut dyn FnMut(&str),
) -> (String, Counts, Duration) {
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

fn print_table(results: &[(String, Counts, Duration)]) -> Counts {
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
