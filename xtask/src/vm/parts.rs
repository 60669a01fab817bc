//! What the test machine is made of: Debian's packages, unpacked below cargo's
//! target directory and installed nowhere. So nothing of the system changes,
//! and what is installed there can't be in their way.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, setup::apt, workspace};

/// The kernel's packages carry the ABI's number in their names.
const KERNEL: (&str, &str) = ("linux-image-6.1.0-", "-amd64");

/// Unpacked together with what they need and the system lacks.
const PROGRAMS: [&str; 2] = ["qemu-system-x86", "ipvsadm"];

/// Unpacked alone: it needs nothing.
const BUSYBOX: &str = "busybox-static";

/// Changes when what [`unpack`] leaves does.
const LAYOUT: &str = "1";

/// The unpacked parts.
#[derive(Clone, Debug)]
pub struct Parts {
    root: PathBuf,
}

impl Parts {
    /// The parts, if they are there.
    pub fn find() -> Result<Option<Self>> {
        let root = directory()?;
        let complete = fs::read_to_string(root.join("layout")).is_ok_and(|found| found == LAYOUT);
        Ok(complete.then_some(Self { root }))
    }

    /// The kernel, as a boot loader starts it.
    pub fn kernel(&self) -> Result<PathBuf> {
        only(&self.root.join("boot"), |name| name.starts_with("vmlinuz-"))
    }

    /// The directory of the kernel's modules, with `modules.dep` in it.
    pub fn modules(&self) -> Result<PathBuf> {
        only(&self.root.join("lib/modules"), |_| true)
    }

    /// The kernel's version: `6.1.0-56-amd64`.
    pub fn version(&self) -> Result<String> {
        let modules = self.modules()?;
        let name = modules.file_name().context("a directory without a name")?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// A shell and its tools in one file that needs no library.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// Directory of the programs that tests in the machine may call.
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// qemu with the libraries and the firmware that came with it.
    pub fn qemu(&self) -> Command {
        // Whatever else is tested at the same time comes first. Ends with this
        // process, however that ends.
        let mut command = Command::new("nice");
        command.args(["-n", "5", "setpriv", "--pdeathsig", "KILL"]);
        if self.qemu_path().exists() {
            command
                .arg(self.qemu_path())
                .env("LD_LIBRARY_PATH", self.libraries());
            for share in ["usr/share/seabios", "usr/share/qemu"] {
                command.arg("-L").arg(self.root.join(share));
            }
        } else {
            // It was installed before, so nothing of it was unpacked.
            command.arg("qemu-system-x86_64");
        }
        command
    }

    fn qemu_path(&self) -> PathBuf {
        self.root.join("usr/bin/qemu-system-x86_64")
    }

    fn libraries(&self) -> String {
        let directories = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        directories
            .map(|directory| self.root.join(directory).display().to_string())
            .join(":")
    }
}

/// Where the parts are, or belong.
pub fn directory() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("machine"))
}

/// Fetches and unpacks the parts unless they are there.
pub fn ensure() -> Result<Parts> {
    if let Some(parts) = Parts::find()? {
        return Ok(parts);
    }
    ensure!(
        apt::is_debian() && cfg!(target_arch = "x86_64"),
        "the test machine is made of Debian's packages for amd64: this is no such system"
    );
    let kernel = match newest_kernel() {
        Some(kernel) => kernel,
        None => {
            process::step("updating the package lists");
            apt::update()?;
            newest_kernel().context(
                "the package sources offer no linux-image-6.1.0-*-amd64; Debian 12 has it in bookworm (main) and bookworm-security",
            )?
        }
    };
    let root = directory()?;
    let mut packages = apt::to_be_installed(&PROGRAMS)?;
    packages.extend([kernel.clone(), BUSYBOX.to_owned()]);
    process::step(format!(
        "fetching {} packages for the test machine and unpacking them into {}: {kernel}, {BUSYBOX}, {} and what these need",
        packages.len(),
        root.display(),
        PROGRAMS.join(", ")
    ));
    // Only what is whole gets the name.
    let unfinished = root.with_extension("unfinished");
    remove(&unfinished)?;
    remove(&root)?;
    fs::create_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
    unpack(&unfinished, &packages)?;
    fs::rename(&unfinished, &root)?;
    let parts = Parts { root };
    wrap(&parts, "sbin/ipvsadm")?;
    fs::write(parts.root.join("layout"), LAYOUT)?;
    Ok(parts)
}

fn unpack(root: &Path, packages: &[String]) -> Result<()> {
    let archives = root.join("archives");
    fs::create_dir(&archives)?;
    apt::download(packages, &archives)?;
    for archive in fs::read_dir(&archives)? {
        process::run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(archive?.path())
                .arg(root),
        )?;
    }
    fs::remove_dir_all(&archives)?;
    let modules = only(&root.join("lib/modules"), |_| true)?;
    let version = modules.file_name().context("a directory without a name")?;
    process::run(
        Command::new(root.join("bin/busybox"))
            .args(["depmod", "-b"])
            .arg(root)
            .arg(version),
    )
}

/// A script in [`Parts::programs`] that starts a program with its libraries.
fn wrap(parts: &Parts, program: &str) -> Result<()> {
    let path = parts.root.join(program);
    if !path.exists() {
        return Ok(());
    }
    fs::create_dir_all(parts.programs())?;
    let script = parts
        .programs()
        .join(path.file_name().context("a program without a name")?);
    let text = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
        super::quoted(&parts.libraries()),
        super::quoted(&path.display().to_string())
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn newest_kernel() -> Option<String> {
    let (start, end) = KERNEL;
    let offered = process::answer(Command::new("apt-cache").args(["pkgnames", start]))?;
    newest(&offered, start, end)
}

/// The name with the highest number between `start` and `end`.
fn newest(offered: &str, start: &str, end: &str) -> Option<String> {
    offered
        .lines()
        .filter_map(|name| {
            let number = name.strip_prefix(start)?.strip_suffix(end)?;
            Some((number.parse::<u32>().ok()?, name.to_owned()))
        })
        .max()
        .map(|(_, name)| name)
}

/// The one entry of a directory that is asked for.
fn only(directory: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| is_it(&entry.file_name().to_string_lossy()));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!(
            "{}: not exactly one; remove {} and run `cargo xtask setup` again",
            directory.display(),
            self::directory()?.display()
        ),
    }
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_that_with_the_highest_number() {
        let offered = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\n\
            linux-image-6.1.0-57-cloud-amd64\nlinux-image-6.1.0-58-amd64-dbg\n\
            linux-image-6.1.0-10-amd64\n";
        assert_eq!(
            newest(offered, KERNEL.0, KERNEL.1).as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(newest("", KERNEL.0, KERNEL.1), None);
    }
}
