//! The exec check: a program's exit status is the result, as in keepalived's
//! `MISC_CHECK`.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, Command},
    sync::Semaphore,
};

use super::{
    CheckKey, Found, Verdict,
    load::Load,
    probe::{Failure, Outcome},
    trace::Trace,
};
use crate::model::Exec;

/// Bytes of its output that are kept; the rest is read and thrown away.
const MOST_OUTPUT: usize = 4096;

/// The step of a probe that may not start its program yet. When it runs out of time
/// there, that says nothing of the backend.
pub(super) const WAITING: &str = "waiting for other programs to end";

/// Programs of checks find others here.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    let mut command = command(key, exec)?;
    let mut child = command
        .spawn()
        .map_err(|error| Failure::Ours(format!("{}: {error}", program(exec))))?;
    let group = Group::of(&child);
    let output = first_line(&mut child).await;
    let status = child.wait().await?;
    group.has_ended();
    Ok(judge(status, exec.dynamic, &output))
}

fn program(exec: &Exec) -> &str {
    exec.command.first().map_or("", String::as_str)
}

fn command(key: &CheckKey, exec: &Exec) -> Result<Command, Failure> {
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
    let mut command = Command::new(program(exec));
    command
        .args(exec.command.iter().skip(1).map(filled))
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LB_POOL", pool)
        .env("LB_BACKEND", backend)
        .env("LB_ADDRESS", &address)
        .env("LB_PORT", &port)
        .current_dir(Path::new("/"))
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let user = User::from_name(&exec.user)
        .map_err(|error| Failure::Ours(format!("user {:?}: {error}", exec.user)))?
        .ok_or_else(|| Failure::Ours(format!("there is no user {:?}", exec.user)))?;
    // Nobody else's groups: the standard library drops those of root's.
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    Ok(command)
}

/// The first line that it prints. Returns when it closes its output, which is at
/// its end unless it leaves others behind.
async fn first_line(child: &mut Child) -> String {
    let Some(mut stdout) = child.stdout.take() else {
        return String::new();
    };
    let (mut kept, mut buffer) = (Vec::new(), [0; MOST_OUTPUT]);
    while let Ok(length @ 1..) = stdout.read(&mut buffer).await {
        let room = MOST_OUTPUT - kept.len();
        kept.extend(buffer.iter().take(length.min(room)));
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(100).collect()
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

/// The processes of a program, which end with it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }

    /// Its leader was waited for: the number may be another's soon.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Whoever has ended meanwhile doesn't need it.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
