//! The test machine: an old kernel under emulation, for what this system's own
//! kernel can't show.
//!
//! Debian's 6.1 boots under qemu without hardware virtualisation, takes this
//! system's files over 9p (for reading; what is written stays in its memory),
//! and runs test harnesses in them as they are. The console is qemu's standard
//! error, what the harnesses print its standard output.

mod cpio;
pub mod parts;

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use self::{cpio::Archive, parts::Parts};
use crate::follow::follow;

/// The machine's first process.
const INIT: &str = include_str!("vm/init.sh");

/// Modules that [`INIT`] needs before it has the host's files.
const FIRST_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Modules that tests need.
const TEST_MODULES: [&str; 12] = [
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "ipip",
    "sit",
    "ip6_tunnel",
    "fou",
    "fou6",
    "ip_vs",
    "ip_vs_rr",
    "nf_tables",
];

/// What the machine writes last, with the exit status.
const MARK: &str = "test machine: exit status";

/// Lines of the console that are shown when something went wrong.
const CONSOLE_LINES: usize = 60;

/// A program to run in the machine.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The directory it is run in.
    pub directory: String,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
}

/// Boots the machine, runs the jobs one after the other and hands every line
/// they print to `line`. Whether all of them exited with 0. The machine is
/// stopped after `limit`.
pub fn run(jobs: &[Job], limit: Duration, mut line: impl FnMut(&str)) -> Result<bool> {
    let parts = Parts::find()?
        .context("the test machine's parts are not there; `cargo xtask setup` fetches them")?;
    let mut command = parts.qemu();
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", "3G", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(parts.kernel()?)
        .args(["-initrd", "/dev/stdin", "-append"])
        .arg("console=ttyS0 quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on")
        .args(["-serial", "file:/dev/stderr"])
        .args(["-serial", "file:/dev/stdout"])
        .args([
            "-virtfs",
            "local,path=/,security_model=none,readonly=on,mount_tag=host,multidevs=remap",
        ])
        .stdin(first_files(&parts, jobs)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting qemu")?;
    let stderr = child.stderr.take().context("qemu has no standard error")?;
    let console = thread::spawn(move || last_lines(stderr));
    let mut status = None;
    let ended = follow(child, limit, |text| {
        let text = text.trim_end_matches('\r');
        match text.strip_prefix(MARK) {
            Some(number) => status = number.trim().parse::<i32>().ok(),
            None => line(text),
        }
    });
    let console = console.join().unwrap_or_default();
    let outcome = ended.and_then(|_| status.context("the test machine ended before its time"));
    if !matches!(outcome, Ok(0)) {
        line("--- the end of the test machine's console");
        console.iter().for_each(|text| line(text));
        line("---");
    }
    Ok(outcome? == 0)
}

/// Everything the machine needs until it has the host's files, as a file that
/// has no name any more.
fn first_files(parts: &Parts, jobs: &[Job]) -> Result<File> {
    let mut archive = Archive::default();
    archive.file("init", INIT.as_bytes());
    archive.file("settings.sh", settings(parts)?.as_bytes());
    archive.file("run.sh", script(jobs).as_bytes());
    archive.file("bin/busybox", &read(&parts.busybox())?);
    let modules = parts.modules()?;
    let dependencies = String::from_utf8_lossy(&read(&modules.join("modules.dep"))?).into_owned();
    let inside = format!("lib/modules/{}", parts.version()?);
    for module in with_dependencies(&dependencies, &FIRST_MODULES)? {
        archive.file(&format!("{inside}/{module}"), &read(&modules.join(module))?);
    }
    archive.file(&format!("{inside}/modules.dep"), dependencies.as_bytes());

    let path = parts::directory()?.join(format!("first-files-{}", std::process::id()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    fs::remove_file(&path)?;
    file.write_all(&archive.finish())?;
    Ok(file)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// Shell variables for [`INIT`].
fn settings(parts: &Parts) -> Result<String> {
    let values = [
        ("FIRST_MODULES", FIRST_MODULES.join(" ")),
        ("TEST_MODULES", TEST_MODULES.join(" ")),
        ("MODULES", parts.modules()?.display().to_string()),
        ("PROGRAMS", parts.programs().display().to_string()),
        ("MARK", MARK.to_owned()),
    ];
    Ok(values
        .map(|(name, value)| format!("{name}={}\n", quoted(&value)))
        .concat())
}

/// Runs all jobs, whatever becomes of them, and fails when one failed.
fn script(jobs: &[Job]) -> String {
    let mut script = String::from("failed=0\n");
    for job in jobs {
        let mut line = format!("( cd {} && exec env", quoted(&job.directory));
        for (name, value) in &job.environment {
            line += &format!(" {name}={}", quoted(value));
        }
        for argument in &job.argv {
            line += &format!(" {}", quoted(argument));
        }
        script += &format!("{line} ) || failed=1\n");
    }
    script + "exit $failed\n"
}

/// The text as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Paths of the named modules and all they need, from `modules.dep`.
fn with_dependencies<'a>(dependencies: &'a str, names: &[&str]) -> Result<BTreeSet<&'a str>> {
    let mut found = BTreeSet::new();
    for name in names {
        let end = format!("/{name}.ko");
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(module, _)| module.ends_with(&end));
        let (module, needed) = line.with_context(|| format!("the kernel has no module {name}"))?;
        found.insert(module);
        // Those that the needed ones need are listed, too.
        found.extend(needed.split_whitespace());
    }
    ensure!(!found.is_empty(), "no modules");
    Ok(found)
}

fn last_lines(stream: impl std::io::Read) -> VecDeque<String> {
    let mut last = VecDeque::new();
    let lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    for line in lines {
        if last.len() == CONSOLE_LINES {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    last
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_module_comes_with_all_it_needs() {
        let dependencies = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko\n\
            kernel/net/9p/9pnet.ko:\nkernel/other/not9p.ko:\n";
        assert_eq!(
            with_dependencies(dependencies, &["9p"])
                .unwrap()
                .into_iter()
                .collect::<Vec<_>>(),
            [
                "kernel/fs/9p/9p.ko",
                "kernel/fs/netfs/netfs.ko",
                "kernel/net/9p/9pnet.ko"
            ]
        );
        assert!(with_dependencies(dependencies, &["overlay"]).is_err());
    }

    #[test]
    fn a_job_that_fails_does_not_keep_the_next_from_running() {
        let job = |argv: &[&str]| Job {
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            directory: "/".into(),
            environment: vec![("NAME".into(), "it's".into())],
        };
        let jobs = [
            job(&["false"]),
            job(&["sh", "-c", "echo \"$NAME $0\"", "a  b"]),
        ];
        let output = Command::new("sh")
            .args(["-c", &script(&jobs)])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's a  b\n");
        assert_eq!(output.status.code(), Some(1));
    }
}
