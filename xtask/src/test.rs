//! `cargo xtask test`: builds and runs the suites and sums them up.

use std::{
    path::Path,
    process::{Command, Stdio},
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
    let mut results = Vec::new();
    for suite in suites::select(built.suites, names)? {
        process::step(&suite.name);
        let start = Instant::now();
        let mut counts = run_suite(&suite, &built.lbctl, full, tests);
        if suite.required && counts.passed + counts.failed == 0 {
            println!(
                "{}: no test was executed, which counts as a failure",
                suite.name
            );
            counts += Counts::ONE_FAILURE;
        }
        results.push((suite.name, counts, start.elapsed()));
    }
    let total = print_table(&results);
    close(total);
    Ok(total.failed == 0)
}

fn run_suite(suite: &Suite, lbctl: &Path, full: bool, tests: &[String]) -> Counts {
    if suite.name == suites::DOC {
        return run_command(suites::doc_command());
    }
    if !suite.machine.is_empty() {
        return run_in_machine(suite, lbctl, full, tests);
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
        counts += run_command(command);
    }
    counts
}

/// Runs the suite's harnesses in the test machine, one after the other.
fn run_in_machine(suite: &Suite, lbctl: &Path, full: bool, tests: &[String]) -> Counts {
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
    let limit = if full { FULL_MACHINE_LIMIT } else { LIMIT };
    let mut reader = Reader::default();
    let success = vm::run(&jobs, limit, |line| {
        println!("{line}");
        reader.line(line);
    });
    if let Err(error) = &success {
        println!("{}: {error:#}", suite.name);
    }
    reader.finish(success.unwrap_or(false))
}

/// Runs one harness, passes its output on and counts.
fn run_command(mut command: Command) -> Counts {
    let name = process::display(&command);
    let mut reader = Reader::default();
    let success = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))
        .and_then(|child| {
            follow(child, LIMIT, |line| {
                println!("{line}");
                reader.line(line);
            })
        });
    if let Err(error) = &success {
        println!("{name}: {error:#}");
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
