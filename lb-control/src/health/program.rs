//! Runs a program: in a process group of its own, as another user, and with
//! nothing of the daemon's environment.

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
};

/// Bytes of its output that are kept; the rest is read and thrown away.
const MOST_OUTPUT: usize = 4096;

/// Programs find others here.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it and waits until it has ended and closed its output; gives the first line
/// of that, too. Its process group is killed when this is dropped before.
///
/// # Errors
/// It can't be run; in words.
pub async fn run(
    argv: &[String],
    user: &str,
    environment: &[(&str, &str)],
) -> Result<(ExitStatus, String), String> {
    let mut command = command(argv, user, environment)?;
    let mut child = spawn(command.stdout(Stdio::piped()), argv)?;
    let group = Group::of(&child);
    let output = first_line(&mut child).await;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    group.has_ended();
    Ok((status, output))
}

/// As [`run`], but for its output, which nobody wants: what it leaves behind when it
/// ends may live on.
///
/// # Errors
/// It can't be run; in words.
pub async fn run_without_output(
    argv: &[String],
    user: &str,
    environment: &[(&str, &str)],
) -> Result<ExitStatus, String> {
    let mut command = command(argv, user, environment)?;
    let mut child = spawn(command.stdout(Stdio::null()), argv)?;
    let group = Group::of(&child);
    let status = child.wait().await.map_err(|error| error.to_string())?;
    group.has_ended();
    Ok(status)
}

fn spawn(command: &mut Command, argv: &[String]) -> Result<Child, String> {
    let named = |error| format!("{}: {error}", program(argv));
    command.spawn().map_err(named)
}

fn program(argv: &[String]) -> &str {
    argv.first().map_or("", String::as_str)
}

fn command(argv: &[String], user: &str, environment: &[(&str, &str)]) -> Result<Command, String> {
    let mut command = Command::new(program(argv));
    command
        .args(argv.iter().skip(1))
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .envs(environment.iter().copied())
        .current_dir(Path::new("/"))
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let found = User::from_name(user)
        .map_err(|error| format!("user {user:?}: {error}"))?
        .ok_or_else(|| format!("there is no user {user:?}"))?;
    // Nobody else's groups: the standard library drops those of root's.
    command.uid(found.uid.as_raw()).gid(found.gid.as_raw());
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
