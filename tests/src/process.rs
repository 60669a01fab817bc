//! Child processes with logs, and waiting for things to happen.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    cleanup::{Leftover, TempDir, Undo},
    evidence, machine,
};

/// Most of a log that is printed when a test fails, in bytes.
const LOG_SHOWN_BYTES: u64 = 16 * 1024;

/// A child in a process group of its own, killed with all of its group and
/// waited for on drop. What it writes goes to a log that is printed when the
/// test fails.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    exited: bool,
    undo: Undo,
    log: PathBuf,
    dir: Arc<TempDir>,
}

impl Process {
    /// Starts it with its output going to a log. Standard input stays what the
    /// command says.
    pub fn spawn(label: &str, mut command: Command) -> Result<Self> {
        let dir = Arc::new(TempDir::new()?);
        let log = dir.join("log");
        let file = File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        Self::start(label, command, dir, log)
    }

    /// As [`Self::spawn`], but standard output is a pipe for the caller.
    pub fn spawn_piped(label: &str, mut command: Command) -> Result<Self> {
        let dir = Arc::new(TempDir::new()?);
        let log = dir.join("log");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        Self::start(label, command, dir, log)
    }

    fn start(label: &str, mut command: Command, dir: Arc<TempDir>, log: PathBuf) -> Result<Self> {
        // A group of its own: Ctrl-C reaches us first, and a master's workers
        // die with it.
        command.process_group(0);
        let (child, undo) = Undo::make(|| {
            let child = command
                .spawn()
                .with_context(|| format!("starting {label}"))?;
            let leftover = Leftover::ProcessGroup(child.id().cast_signed());
            Ok((child, leftover))
        })?;
        Ok(Self {
            label: label.to_owned(),
            child,
            exited: false,
            undo,
            log,
            dir,
        })
    }

    /// What it is called in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its process id, which is also its process group.
    pub fn pid(&self) -> libc::pid_t {
        self.child.id().cast_signed()
    }

    /// Whether it is still running.
    ///
    /// Does not wait for it, so its process id stays its own.
    pub fn is_running(&self) -> bool {
        if self.exited {
            return false;
        }
        // SAFETY: siginfo_t is plain data for which zero is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: info is a valid place for the answer.
        let rc = unsafe { libc::waitid(libc::P_PID, self.child.id(), &raw mut info, options) };
        // SAFETY: waitid filled it in, or it is zero.
        rc == 0 && unsafe { info.si_pid() } == 0
    }

    /// An error with its log when it is no longer running.
    pub fn ensure_running(&self) -> Result<()> {
        ensure!(
            self.is_running(),
            "{} has exited; its log:\n{}",
            self.label,
            self.log()
        );
        Ok(())
    }

    /// Sends a signal to it alone; for the whole group see [`Self::signal_group`].
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        self.send(self.pid(), signal)
    }

    /// Sends a signal to it and everything it started.
    pub fn signal_group(&self, signal: libc::c_int) -> Result<()> {
        self.send(-self.pid(), signal)
    }

    fn send(&self, target: libc::pid_t, signal: libc::c_int) -> Result<()> {
        ensure!(!self.exited, "{} has exited", self.label);
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        let rc = unsafe { libc::kill(target, signal) };
        ensure!(
            rc == 0,
            "signal {signal} to {}: {}",
            self.label,
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// SIGKILL to it and everything it started; returns when it is gone.
    pub fn kill9(&mut self) -> Result<()> {
        if !self.exited {
            self.signal_group(libc::SIGKILL)?;
            self.reap()?;
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + timeout;
        while self.is_running() {
            ensure!(
                Instant::now() < until,
                "{} still runs after {timeout:?}; its log:\n{}",
                self.label,
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
        self.reap()
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        if !self.exited {
            // What it started may have outlived it; its number is safe to use
            // until it has been waited for.
            let _ = self.signal_group(libc::SIGKILL);
        }
        let status = self.child.wait()?;
        self.exited = true;
        self.undo.disarm();
        Ok(status)
    }

    /// Its standard input, when that is a pipe.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Takes its standard output, when that is a pipe.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Writes one line to its standard input.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let label = self.label.clone();
        let stdin = self
            .stdin()
            .with_context(|| format!("{label} has no piped input"))?;
        writeln!(stdin, "{line}").with_context(|| format!("writing to {label}"))
    }

    /// The end of what it has written so far.
    pub fn log(&self) -> String {
        log_end(&self.log)
    }

    /// The whole log's path, valid while this lives.
    pub fn log_path(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill9();
        let (label, log, dir) = (self.label.clone(), self.log.clone(), Arc::clone(&self.dir));
        evidence::offer(Box::new(move || {
            eprintln!("--- log of {label}\n{}", log_end(&log));
            drop(dir);
        }));
    }
}

fn log_end(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(size.saturating_sub(LOG_SHOWN_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|e| format!("({}: {e})", path.display()))
}

/// Waits until something is true. `what` completes "waited 3s for …".
pub fn wait_for(
    what: impl Display,
    timeout: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    wait_ok(what, timeout, || {
        if condition() {
            Ok(())
        } else {
            Err(anyhow!("not yet"))
        }
    })
}

/// Waits until something succeeds, and returns its value; the error tells the
/// last failure. In the test machine it may take longer than `timeout`. What is
/// waited for has most of the processor's time, however long an attempt takes.
pub fn wait_ok<T>(
    what: impl Display,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let timeout = timeout * machine::patience();
    let until = Instant::now() + timeout;
    loop {
        let begun = Instant::now();
        match attempt() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() >= until => {
                return Err(e.context(format!("waited {timeout:?} for {what}")));
            }
            Err(_) if machine::is_here() => thread::sleep(begun.elapsed() * 3),
            Err(_) => {}
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// An error that names a program that isn't installed.
pub fn require_program(program: &str) -> Result<()> {
    if program.contains('/') {
        ensure!(Path::new(program).exists(), "{program} does not exist");
        return Ok(());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    ensure!(
        found,
        "the program {program} is missing; `cargo xtask setup` installs it"
    );
    Ok(())
}

/// The path of a program of this workspace: `variable` if it is set, else
/// beside the running program in cargo's target directory.
pub fn workspace_program(name: &str, variable: &str, build: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(
            path.exists(),
            "{variable} names {}, which does not exist",
            path.display()
        );
        return Ok(path);
    }
    let exe = fs::canonicalize(std::env::current_exe()?)?;
    let dir = exe
        .parent()
        .context("the running program has no directory")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "{} does not exist; build it with `{build}`, or set {variable}",
            path.display()
        );
    }
    Ok(path)
}

/// Where cargo puts the programs of the profile that the running one was
/// built with.
pub(crate) fn programs_dir() -> Result<PathBuf> {
    let exe = fs::canonicalize(std::env::current_exe()?)?;
    let dir = exe
        .parent()
        .context("the running program has no directory")?;
    let is_test = dir.ends_with("deps") || dir.ends_with("examples");
    Ok(if is_test {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    }
    .to_owned())
}
