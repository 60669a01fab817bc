//! Named network namespaces.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    cleanup::{self, Leftover, NETNS_DIR, Undo},
    process::{Process, require_program},
};

/// A network namespace; clones share it, the last one dropped removes it.
///
/// Commands enter it by setns(2) between fork and exec, not by `ip netns
/// exec`, which would hide `/sys/fs/bpf` from them.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
    _undo: Undo,
}

/// Counters of one interface, as `/proc/net/dev` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received by the interface.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames dropped on reception.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames dropped while sending.
    pub tx_dropped: u64,
}

impl Netns {
    /// Makes a namespace called `lb<pid>-<n>-<role>` with its loopback up, no
    /// duplicate address detection and no router advertisements.
    pub fn new(role: &str) -> Result<Self> {
        cleanup::sweep();
        require_root()?;
        let name = format!("{}{}-{role}", cleanup::prefix(), cleanup::unique());
        require_program("ip")?;
        let ((), undo) = Undo::make(|| {
            output(Command::new("ip").args(["netns", "add", &name]))?;
            Ok(((), Leftover::Netns(name.clone())))
        })?;
        let path = Path::new(NETNS_DIR).join(&name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let ns = Self(Arc::new(Inner {
            name,
            file,
            _undo: undo,
        }));
        for conf in ["all", "default"] {
            ns.sysctl(&format!("net/ipv6/conf/{conf}/accept_dad"), "0")?;
            ns.sysctl(&format!("net/ipv6/conf/{conf}/accept_ra"), "0")?;
        }
        ns.exec(&["ip", "link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that names it, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.0.name)
    }

    /// A command that will run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let inner = Arc::clone(&self.0);
        let enter = move || enter(&inner.file);
        // SAFETY: the closure only calls setns(2), which is safe between fork
        // and exec.
        unsafe { command.pre_exec(enter) };
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command in it to its end. Its standard output, or an error with
    /// everything it wrote when it can't be run or fails.
    pub fn exec<S: AsRef<str>>(&self, argv: &[S]) -> Result<String> {
        let (program, args) = argv.split_first().context("empty command")?;
        require_program(program.as_ref())?;
        let mut command = self.command(program.as_ref());
        command.args(args.iter().map(AsRef::as_ref));
        let output = output(&mut command).with_context(|| format!("in {}", self.name()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Self::exec`], whatever the exit status.
    pub fn output<S: AsRef<str>>(&self, argv: &[S]) -> Result<Output> {
        let (program, args) = argv.split_first().context("empty command")?;
        require_program(program.as_ref())?;
        let mut command = self.command(program.as_ref());
        command.args(args.iter().map(AsRef::as_ref));
        command
            .output()
            .with_context(|| format!("{} in {}", program.as_ref(), self.name()))
    }

    /// Runs lines of a program that reads commands from standard input, such
    /// as `ip -batch -` or `nft -f -`.
    pub fn feed(&self, argv: &[&str], input: &str) -> Result<()> {
        use std::io::Write as _;
        let (program, args) = argv.split_first().context("empty command")?;
        require_program(program)?;
        let mut command = self.command(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| argv.join(" "))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{} in {}: {}\n{}input was:\n{input}",
            argv.join(" "),
            self.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Starts a command in it that runs until it is dropped; `label` names it
    /// in messages.
    pub fn spawn<S: AsRef<str>>(&self, label: &str, argv: &[S]) -> Result<Process> {
        let (program, args) = argv.split_first().context("empty command")?;
        require_program(program.as_ref())?;
        let mut command = self.command(program.as_ref());
        command.args(args.iter().map(AsRef::as_ref));
        Process::spawn(&format!("{label} in {}", self.name()), command)
    }

    /// Runs a closure in it, on a thread of its own, and returns its value.
    ///
    /// `/proc/sys/net` is the namespace's there; for `/proc/net` use
    /// `/proc/thread-self/net`; `/sys/class/net` stays the caller's.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&self.0.file).map(|()| f()));
            match thread.join() {
                Ok(result) => result.with_context(|| format!("entering {}", self.name())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread in it that outlives the call.
    pub fn thread<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<io::Result<T>> {
        let ns = self.clone();
        std::thread::spawn(move || enter(&ns.0.file).map(|()| f()))
    }

    /// Sets a kernel parameter, named by its path below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("{} = {value} in {}", path.display(), self.name()))
    }

    /// Reads a kernel parameter, named by its path below `/proc/sys`.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        let value = self
            .run(|| std::fs::read_to_string(&path))?
            .with_context(|| format!("{} in {}", path.display(), self.name()))?;
        Ok(value.trim().to_owned())
    }

    /// Counters of one of its interfaces.
    pub fn counters(&self, interface: &str) -> Result<Counters> {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        for line in table.lines() {
            let Some((name, values)) = line.split_once(':') else {
                continue;
            };
            if name.trim() != interface {
                continue;
            }
            let v: Vec<u64> = values
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            ensure!(
                v.len() >= 12,
                "/proc/net/dev has a line that is too short: {line}"
            );
            return Ok(Counters {
                rx_bytes: v[0],
                rx_packets: v[1],
                rx_dropped: v[3],
                tx_bytes: v[8],
                tx_packets: v[9],
                tx_dropped: v[11],
            });
        }
        bail!("no interface {interface} in {}", self.name())
    }
}

fn enter(file: &File) -> io::Result<()> {
    // SAFETY: setns has no memory effects; the descriptor is open.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn require_root() -> Result<()> {
    // SAFETY: geteuid can't fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        return Err(anyhow!(
            "root is needed to make network namespaces; run this as root"
        ));
    }
    Ok(())
}

/// Runs a command to its end; an error with all of its output when it fails.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let shown = || {
        let args: Vec<_> = command_line(command);
        args.join(" ")
    };
    let line = shown();
    let output = command.output().with_context(|| line.clone())?;
    ensure!(
        output.status.success(),
        "{line}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn command_line(command: &Command) -> Vec<String> {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|s| s.to_string_lossy().into_owned())
        .collect()
}
