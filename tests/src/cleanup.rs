//! What has to be undone, whatever happens: on drop, after a panic, on
//! SIGINT or SIGTERM ([`on_interrupt`]) and, after SIGKILL, by the next
//! process that starts ([`sweep`]).

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{fd::RawFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, Once, OnceLock, PoisonError, RwLock,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// Where `ip netns` keeps named namespaces.
pub const NETNS_DIR: &str = "/var/run/netns";

/// Something that outlives the process unless it is undone.
#[derive(Debug)]
pub(crate) enum Leftover {
    /// A process group led by a child that has not been waited for.
    ProcessGroup(libc::pid_t),
    /// A named network namespace.
    Netns(String),
    /// A mounted file system.
    Mount(PathBuf),
    /// A directory with everything in it.
    Directory(PathBuf),
    /// A command to run, in a namespace when one is given.
    Run {
        netns: Option<String>,
        argv: Vec<String>,
    },
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static LEFTOVERS: Mutex<BTreeMap<u64, Leftover>> = Mutex::new(BTreeMap::new());

fn leftovers() -> MutexGuard<'static, BTreeMap<u64, Leftover>> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held while something is made that has to be undone, and while it is undone;
/// held alone, and for good, by whoever undoes everything: nothing is made and
/// forgotten, or left half undone.
static MAKING: RwLock<()> = RwLock::new(());

/// Undoes its [`Leftover`] when dropped.
#[derive(Debug)]
pub(crate) struct Undo(u64);

impl Undo {
    /// Makes something, with what undoes it. `make` must make nothing else in
    /// this way.
    pub(crate) fn make<T>(make: impl FnOnce() -> Result<(T, Leftover)>) -> Result<(T, Self)> {
        let _making = MAKING.read().unwrap_or_else(PoisonError::into_inner);
        let (made, leftover) = make()?;
        Ok((made, Self::new(leftover)))
    }

    pub(crate) fn new(leftover: Leftover) -> Self {
        let id = unique();
        leftovers().insert(id, leftover);
        Self(id)
    }

    /// Forgets it: there is nothing to undo any more.
    pub(crate) fn disarm(&self) {
        leftovers().remove(&self.0);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // After an interrupt this is somebody else's work, who exits when all
        // is done: wait for that.
        let _undoing = MAKING.read().unwrap_or_else(PoisonError::into_inner);
        let leftover = leftovers().remove(&self.0);
        if let Some(leftover) = leftover {
            undo(&leftover);
        }
    }
}

/// A number no other call in this process gets.
pub(crate) fn unique() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn undo(leftover: &Leftover) {
    let result = match leftover {
        Leftover::ProcessGroup(pgid) => {
            // SAFETY: kill has no memory effects; the leader is our child and
            // not yet waited for, so the number still means this group.
            unsafe { libc::kill(-pgid, libc::SIGKILL) };
            wait_for_end(*pgid);
            Ok(())
        }
        Leftover::Netns(name) => delete_netns(name),
        Leftover::Mount(path) => unmount(path),
        Leftover::Directory(path) => {
            fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
        }
        Leftover::Run { netns, argv } => run(netns.as_deref(), argv),
    };
    if let Err(e) = result {
        eprintln!("clean-up: {e:#}");
    }
}

/// Waits up to two seconds for a killed child to be gone, so that what is
/// undone next finds it gone; leaves the reaping to its owner.
fn wait_for_end(pid: libc::pid_t) {
    for _ in 0..400 {
        // SAFETY: siginfo_t is plain data for which zero is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: info is a valid place for the answer.
        let rc = unsafe { libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, options) };
        // SAFETY: waitid filled it in, or it is zero.
        if rc != 0 || unsafe { info.si_pid() } != 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(netns: Option<&str>, argv: &[String]) -> Result<()> {
    let mut command = match netns {
        Some(name) => {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net={NETNS_DIR}/{name}"))
                .arg("--")
                .args(argv);
            command
        }
        None => {
            let (program, args) = argv.split_first().context("empty command")?;
            let mut command = Command::new(program);
            command.args(args);
            command
        }
    };
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| argv.join(" "))?;
    ensure!(
        output.status.success(),
        "{}: {}: {}",
        argv.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn unmount(path: &Path) -> Result<()> {
    let c_path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: a valid C string, which the call only reads.
    let rc = unsafe { libc::umount2(c_path.as_ptr(), libc::MNT_DETACH) };
    ensure!(
        rc == 0,
        "unmounting {}: {}",
        path.display(),
        io::Error::last_os_error()
    );
    Ok(())
}

fn delete_netns(name: &str) -> Result<()> {
    let path = Path::new(NETNS_DIR).join(name);
    unmount(&path)?;
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
}

/// A directory under the system's temporary one, removed on drop.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    _undo: Undo,
}

impl TempDir {
    /// Makes a new one; its name carries the process id and has no dots.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{}tmp{}", prefix(), unique()));
        let ((), undo) = Undo::make(|| {
            fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
            Ok(((), Leftover::Directory(path.clone())))
        })?;
        Ok(Self { path, _undo: undo })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// A BPF file system, mounted for as long as this lives.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
    _undo: Undo,
}

impl Bpffs {
    /// Mounts one on a new directory.
    ///
    /// The directory must be in a [`TempDir`] and called `bpf`, so that
    /// [`sweep`] finds it.
    pub fn mount(dir: &TempDir) -> Result<Self> {
        let path = dir.join("bpf");
        fs::create_dir(&path)?;
        let target = CString::new(path.as_os_str().as_encoded_bytes())?;
        let ((), undo) = Undo::make(|| {
            // SAFETY: valid C strings, which the call only reads; no data.
            let rc = unsafe {
                libc::mount(
                    c"bpf".as_ptr(),
                    target.as_ptr(),
                    c"bpf".as_ptr(),
                    0,
                    std::ptr::null(),
                )
            };
            ensure!(
                rc == 0,
                "mounting a BPF file system on {}: {} (root and CONFIG_BPF_SYSCALL are needed)",
                path.display(),
                io::Error::last_os_error()
            );
            Ok(((), Leftover::Mount(path.clone())))
        })?;
        Ok(Self { path, _undo: undo })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How the names of everything this process makes begin.
pub fn prefix() -> String {
    format!("lb{}-", std::process::id())
}

/// The process that made something of this name, when it is one of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("lb")?.split_once('-')?.0.parse().ok()
}

fn is_leftover(name: &str) -> bool {
    owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Removes what dead processes left behind: namespaces, the processes in
/// them, mounts and temporary directories. Runs once per process; every
/// namespace made calls it.
pub fn sweep() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep_now);
}

/// As [`sweep`], however often it ran before.
pub fn sweep_now() {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| is_leftover(n))
            .collect()
    };
    // Tests start in parallel: another sweeper may have been first, so
    // failures here mean nothing.
    for name in names(Path::new(NETNS_DIR)) {
        kill_inside(&name);
        let _ = delete_netns(&name);
    }
    let tmp = std::env::temp_dir();
    for name in names(&tmp) {
        let bpffs = tmp.join(&name).join("bpf");
        if bpffs.exists() {
            let _ = unmount(&bpffs);
        }
        let _ = fs::remove_dir_all(tmp.join(&name));
    }
}

/// Kills the processes in a namespace that a dead process of ours left behind.
fn kill_inside(name: &str) {
    let Ok(namespace) = fs::metadata(Path::new(NETNS_DIR).join(name)) else {
        return;
    };
    let own = fs::metadata("/proc/self/ns/net")
        .map(|m| (m.dev(), m.ino()))
        .ok();
    let wanted = (namespace.dev(), namespace.ino());
    // A name whose mount is gone is a plain file; never match our own.
    if own == Some(wanted) {
        return;
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<libc::pid_t>().ok())
        else {
            continue;
        };
        let inside =
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| (m.dev(), m.ino()) == wanted);
        if inside {
            // SAFETY: kill has no memory effects.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn wake(_signal: libc::c_int) {
    let fd: RawFd = WAKE.load(Ordering::Relaxed);
    // SAFETY: write is async-signal-safe; one byte from a valid buffer.
    unsafe { libc::write(fd, [0u8].as_ptr().cast(), 1) };
}

/// From now on SIGINT and SIGTERM undo everything and exit with status 130.
///
/// For programs people run by hand; a test harness does not need it.
pub fn on_interrupt() -> Result<()> {
    static PIPE: OnceLock<io::PipeReader> = OnceLock::new();
    let (reader, writer) = io::pipe()?;
    WAKE.store(
        std::os::fd::IntoRawFd::into_raw_fd(writer),
        Ordering::Relaxed,
    );
    ensure!(PIPE.set(reader).is_ok(), "on_interrupt() was called before");
    let mut reader = PIPE.get().context("just set")?;
    std::thread::spawn(move || {
        let mut byte = [0];
        if io::Read::read(&mut reader, &mut byte).is_ok() {
            let _nothing_is_made = MAKING.write();
            undo_everything();
            std::process::exit(130);
        }
    });
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only calls write(2).
        let old = unsafe { libc::signal(signal, wake as *const () as libc::sighandler_t) };
        ensure!(
            old != libc::SIG_ERR,
            "signal({signal}): {}",
            io::Error::last_os_error()
        );
    }
    Ok(())
}

/// Undoes everything, the newest first.
pub fn undo_everything() {
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        let Some((_, leftover)) = leftovers().pop_last() else {
            return;
        };
        undo(&leftover);
    }
}
