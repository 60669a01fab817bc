//! `cargo xtask test`: builds and runs the suites and sums them up.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    libtest::{Counts, Reader},
    process, setup,
    suites::{self, Suite},
};

/// A binary that takes longer is stopped, or a hanging test would hang CI.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Pause between two looks at a silent test binary.
const LOOK: Duration = Duration::from_millis(200);

/// Runs the suites called `names`, or all. The last line on standard output is
/// `N passed, N failed, N skipped`. Whether nothing failed; a suite that executed
/// no test counts as a failure.
pub fn run(names: &[String], full: bool) -> Result<bool> {
    if !process::is_root() {
        bail!(
            "the suites make network namespaces and load BPF programs: run `cargo xtask test` as root"
        );
    }
    setup::run()?;
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
        let mut counts = run_suite(&suite, &built.lbctl, full);
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

fn run_suite(suite: &Suite, lbctl: &Path, full: bool) -> Counts {
    if suite.name == suites::DOC {
        return run_command(suites::doc_command());
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
            follow(child, |line| {
                println!("{line}");
                reader.line(line);
            })
        });
    if let Err(error) = &success {
        println!("{name}: {error:#}");
    }
    reader.finish(success.unwrap_or(false))
}

/// Hands every line of the child's standard output to `line` until it ends;
/// whether it ended well. A child that outstays [`LIMIT`] is killed.
fn follow(mut child: Child, mut line: impl FnMut(&str)) -> Result<bool> {
    let stdout = child.stdout.take().context("it has no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout)
            .split(b'\n')
            .map_while(std::result::Result::ok)
        {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let start = Instant::now();
    let mut ended = None;
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => break,
            // A process that a test left behind may hold the pipe open.
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() {
            ended = child.try_wait()?;
        }
        if ended.is_none() && start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("stopped after {}", seconds(LIMIT));
        }
    }
    let status = match ended {
        Some(status) => status,
        None => child.wait()?,
    };
    Ok(status.success())
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

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
