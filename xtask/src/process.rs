//! Running other programs.
//!
//! Everything but the answer to a question goes to standard error, so that the
//! standard output of a task holds only its result.

use std::{
    io,
    os::fd::AsFd,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Says what is being done now.
pub fn step(text: impl std::fmt::Display) {
    eprintln!("==> {text}");
}

/// Runs `command` with its output on standard error and no standard input;
/// fails unless it exits with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .context("duplicating standard error")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(stderr))
        .status()
        .with_context(|| format!("starting {}", display(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", display(command));
    }
    Ok(())
}

/// Standard output of `command`; `None` when it can't be started or fails.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it.
pub fn display(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Whether this process is root.
pub fn is_root() -> bool {
    answer(Command::new("id").arg("-u")).is_some_and(|uid| uid == "0")
}
