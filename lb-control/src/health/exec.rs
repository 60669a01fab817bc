//! The exec check: a program's exit status is the result, as in keepalived's
//! `MISC_CHECK`.

use std::process::ExitStatus;

use tokio::sync::Semaphore;

use super::{
    CheckKey, Found, Verdict,
    load::Load,
    probe::{Failure, Outcome},
    program,
    trace::Trace,
};
use crate::model::Exec;

/// The step of a probe that may not start its program yet. When it runs out of time
/// there, that says nothing of the backend.
pub(super) const WAITING: &str = "waiting for other programs to end";

/// Runs the program, in a process group of its own, which is killed when this is
/// dropped before the program has ended.
///
/// # Errors
/// The program can't be run.
pub async fn probe(key: &CheckKey, exec: &Exec, programs: &Semaphore, trace: &Trace) -> Outcome {
    trace.step(WAITING);
    let _permit = programs
        .acquire()
        .await
        .map_err(|error| Failure::Ours(error.to_string()))?;
    trace.step("running the program");
    let address = key.target.ip().to_string();
    let port = key.target.port().to_string();
    let (pool, backend) = (&key.backend.pool, &key.backend.backend);
    let filled = |argument: &String| {
        argument
            .replace("{address}", &address)
            .replace("{port}", &port)
            .replace("{backend}", backend)
            .replace("{pool}", pool)
    };
    let first = exec.command.iter().take(1).cloned();
    let argv: Vec<String> = first
        .chain(exec.command.iter().skip(1).map(filled))
        .collect();
    let environment = [
        ("LB_POOL", pool.as_str()),
        ("LB_BACKEND", backend),
        ("LB_ADDRESS", &address),
        ("LB_PORT", &port),
    ];
    let ended = program::run(&argv, &exec.user, &environment).await;
    let (status, output) = ended.map_err(Failure::Ours)?;
    Ok(judge(status, exec.dynamic, &output))
}

/// 0 passes. 1 fails, and so does everything else unless the check is `dynamic`:
/// then 2 and more pass, and are 2 more than the weight in percent.
fn judge(status: ExitStatus, dynamic: bool, output: &str) -> Found {
    let shown = |words: String| match output {
        "" => words,
        line => format!("{words}: {line}"),
    };
    let Some(code) = status.code() else {
        return Found::new(Verdict::WrongAnswer, shown(status.to_string()));
    };
    let words = shown(format!("exit status {code}"));
    match code {
        0 => Found::new(Verdict::Pass, words),
        2 if dynamic => Found::new(Verdict::Drain, words),
        3.. if dynamic => Found {
            load: u8::try_from(code - 2).ok().map(Load::Weight),
            ..Found::new(Verdict::Pass, words)
        },
        _ => Found::new(Verdict::WrongAnswer, words),
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
