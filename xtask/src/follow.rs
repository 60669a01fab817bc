//! The output of a running program, line by line.

use std::{
    io::{BufRead as _, BufReader},
    process::Child,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Pause between two looks at a silent program.
const LOOK: Duration = Duration::from_millis(200);

/// Hands every line of the child's standard output to `line` until it ends;
/// whether it ended well. A child that outstays `limit` is killed.
pub fn follow(mut child: Child, limit: Duration, mut line: impl FnMut(&str)) -> Result<bool> {
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
        if ended.is_none() && start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("stopped after {}", seconds(limit));
        }
    }
    let status = match ended {
        Some(status) => status,
        None => child.wait()?,
    };
    Ok(status.success())
}

/// A time as people read it.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
