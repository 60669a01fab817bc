//! A balancer under test: `lbctl run` in a namespace, with pins, socket and
//! configuration of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cleanup::{Bpffs, Leftover, TempDir, Undo},
    config::Config,
    netns::Netns,
    process::{Process, wait_ok, workspace_program},
};

/// Time the daemon has to become ready, and to answer a command.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running (or killed) `lbctl run`. On drop the daemon is killed, its data
/// path detached and its BPF file system unmounted, in this order.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    // Dropped in this order: detach, unmount, remove.
    _detach: Undo,
    bpffs: Bpffs,
    dir: TempDir,
    ns: Netns,
    lbctl: PathBuf,
    starts: u32,
    environment: Vec<(String, String)>,
}

impl Daemon {
    /// Starts it and waits until it answers `lbctl status`.
    ///
    /// A missing `dataplane.pin_dir` becomes a directory in a BPF file system
    /// mounted for this daemon alone.
    pub fn start(ns: &Netns, config: &Config) -> Result<Self> {
        let mut daemon = Self::prepare(ns, config)?;
        daemon.launch()?;
        Ok(daemon)
    }

    /// Everything but the start, for tests of a start that has to fail.
    pub fn prepare(ns: &Netns, config: &Config) -> Result<Self> {
        Self::prepare_program(lbctl_path()?, ns, config)
    }

    /// As [`Self::prepare`], with another program than [`lbctl_path`]: an
    /// older or a newer release.
    pub fn prepare_program(lbctl: PathBuf, ns: &Netns, config: &Config) -> Result<Self> {
        let dir = TempDir::new()?;
        let bpffs = Bpffs::mount(&dir)?;
        let detach = Undo::new(Leftover::Run {
            netns: Some(ns.name().into()),
            argv: vec![
                lbctl.display().to_string(),
                "detach".into(),
                "-c".into(),
                dir.join("lb.yaml").display().to_string(),
                "--state-dir".into(),
                dir.join("state").display().to_string(),
            ],
        });
        let daemon = Self {
            process: None,
            _detach: detach,
            bpffs,
            dir,
            ns: ns.clone(),
            lbctl,
            starts: 0,
            environment: vec![],
        };
        daemon.write_config(config)?;
        Ok(daemon)
    }

    /// Writes the configuration file; a running daemon does not notice until
    /// [`Self::reload`].
    pub fn write_config(&self, config: &Config) -> Result<()> {
        let mut config = config.clone();
        if !config.dataplane.iter().any(|(k, _)| k == "pin_dir") {
            config.set_dataplane("pin_dir", self.pin_dir().display());
        }
        self.write_yaml(&config.to_yaml())
    }

    /// Writes this text as the configuration file.
    pub fn write_yaml(&self, text: &str) -> Result<()> {
        fs::write(self.config_path(), text).context("writing the configuration")
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("lb.yaml")
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("lb.sock")
    }

    /// Where it keeps operators' decisions and what it changed in the kernel.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where its maps and links are pinned.
    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs.path().join("lb")
    }

    /// Starts the daemon, which must not be running, and waits until it is ready.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the daemon is already running");
        self.starts += 1;
        let mut command = self.ns.command(&self.lbctl);
        command
            .args(["run", "-c"])
            .arg(self.config_path())
            .arg("--socket")
            .arg(self.socket())
            .arg("--state-dir")
            .arg(self.state_dir())
            .envs(self.environment.iter().cloned());
        let label = format!("lbctl run (start {}) in {}", self.starts, self.ns.name());
        let process = self.process.insert(Process::spawn(&label, command)?);
        // An end before readiness is final; anything else may come right.
        let pid_alive = || process.ensure_running();
        let (ns, lbctl, socket) = (&self.ns, &self.lbctl, self.dir.join("lb.sock"));
        let status = wait_ok("lbctl to become ready", READY_WITHIN, || {
            if let Err(died) = pid_alive() {
                return Ok(Err(died));
            }
            ctl(ns, lbctl, &socket, &["status"]).map(Ok)
        });
        match status {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(e),
            Err(e) => {
                let log = self.log();
                Err(e.context(format!("log of the daemon:\n{log}")))
            }
        }
    }

    /// Has a variable in its environment from its next start on.
    pub fn set_environment(&mut self, name: &str, value: impl std::fmt::Display) {
        self.environment.push((name.into(), value.to_string()));
    }

    /// SIGKILL; the data path stays.
    pub fn kill9(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the daemon is not running")?;
        process.kill9()
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        let mut process = self.process.take().context("the daemon is not running")?;
        process.signal(libc::SIGTERM)?;
        process.wait(READY_WITHIN)
    }

    /// SIGKILL, start, wait until ready.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.kill9()?;
        }
        self.launch()
    }

    /// `lbctl reload`.
    pub fn reload(&self) -> Result<()> {
        self.ctl(&["reload"]).map(drop)
    }

    /// SIGHUP.
    pub fn sighup(&self) -> Result<()> {
        self.process()?.signal(libc::SIGHUP)
    }

    /// The daemon's process.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the daemon is not running")
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs `lbctl ARGS --socket …`: its standard output, or an error when it
    /// fails.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        ctl(&self.ns, &self.lbctl, &self.socket(), args)
    }

    /// As [`Self::ctl`], whatever the exit status.
    pub fn ctl_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.ns.command(&self.lbctl);
        command.args(args).arg("--socket").arg(self.socket());
        command.output().context("running lbctl")
    }

    /// Runs `lbctl ARGS --output json` and parses the answer.
    pub fn ctl_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut args = args.to_vec();
        args.extend(["--output", "json"]);
        let text = self.ctl(&args)?;
        serde_json::from_str(&text)
            .with_context(|| format!("lbctl {} did not print JSON:\n{text}", args.join(" ")))
    }

    /// Runs a start that has to fail, beside a daemon that may be running: its
    /// exit status and what it wrote. An error when it runs for 20 s.
    pub fn refused_start(&self) -> Result<(i32, String)> {
        let argv = [
            "timeout".into(),
            "20".into(),
            self.lbctl.to_string_lossy(),
            "run".into(),
            "-c".into(),
            self.config_path().to_string_lossy().into_owned().into(),
            "--socket".into(),
            self.socket().to_string_lossy().into_owned().into(),
            "--state-dir".into(),
            self.state_dir().to_string_lossy().into_owned().into(),
        ];
        let output = self.ns.output(&argv)?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // What timeout(1) says of a program it had to end.
        let code = output.status.code().filter(|code| *code != 124);
        Ok((code.with_context(|| format!("it started: {text}"))?, text))
    }

    /// Runs `lbctl detach -c FILE`, as the drop does.
    pub fn detach(&self) -> Result<()> {
        let (config, state) = (self.config_path(), self.state_dir());
        let argv = [
            self.lbctl.to_string_lossy(),
            "detach".into(),
            "-c".into(),
            config.to_string_lossy(),
            "--state-dir".into(),
            state.to_string_lossy(),
        ];
        self.ns.exec(&argv).map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Before the fields: a running daemon would attach again.
        self.process = None;
    }
}

fn ctl(ns: &Netns, lbctl: &Path, socket: &Path, args: &[&str]) -> Result<String> {
    let (lbctl, socket) = (lbctl.to_string_lossy(), socket.to_string_lossy());
    let mut argv: Vec<&str> = vec![&lbctl];
    argv.extend(args);
    argv.extend(["--socket", &socket]);
    ns.exec(&argv)
}

/// The program under test: `$LBCTL`, or the one cargo built beside the tests.
pub fn lbctl_path() -> Result<PathBuf> {
    workspace_program("lbctl", "LBCTL", "cargo build -p lb-control")
}
