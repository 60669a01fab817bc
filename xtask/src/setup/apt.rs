//! apt-get and dpkg, used so that no service is started and nothing removed.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// Services that packages of ours bring, and that nobody asked to run.
const SERVICES: [&str; 3] = ["nginx", "prometheus", "iperf3"];

/// Whether packages can be installed with apt-get here.
pub fn is_debian() -> bool {
    Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg-query").exists()
}

/// Those of `packages` that are not installed.
pub fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    // dpkg-query fails when it doesn't know one of them, and lists the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(packages)
        .output();
    let listed = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    not_installed(packages, &listed)
}

fn not_installed<'a>(packages: &[&'a str], listed: &str) -> Vec<&'a str> {
    let installed: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect()
}

/// Updates the package lists.
pub fn update() -> Result<()> {
    process::run(&mut apt_get(&["update"]))
}

/// Whether the package lists offer `package`.
pub fn offers(package: &str) -> bool {
    process::answer(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
        .is_some_and(|shown| !shown.is_empty())
}

/// Installs `packages`. Their services are neither started now nor at boot,
/// unless they were there before.
pub fn install(packages: &[&str]) -> Result<()> {
    let new_services: Vec<_> = SERVICES
        .into_iter()
        .filter(|service| !is_service(service))
        .collect();
    let policy = ServicePolicy::forbid()?;
    process::run(
        apt_get(&["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages),
    )?;
    drop(policy);
    for service in new_services
        .into_iter()
        .filter(|service| is_service(service))
    {
        // Without systemd there is nothing to disable.
        let _ = process::answer(Command::new("systemctl").args(["--quiet", "disable", service]));
    }
    Ok(())
}

/// `packages` and what they need, as far as the system lacks it. Nothing is
/// installed.
pub fn to_be_installed(packages: &[&str]) -> Result<Vec<String>> {
    let output = apt_get(&["install", "--simulate", "--no-install-recommends"])
        .args(packages)
        .output()
        .context("starting apt-get")?;
    ensure!(
        output.status.success(),
        "apt-get can't install {}: {}",
        packages.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(simulated(&String::from_utf8_lossy(&output.stdout)))
}

/// The packages of lines such as `Inst kmod (30+20221128-1 Debian:12 [amd64])`.
fn simulated(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Fetches the archives of `packages` into a directory.
pub fn download(packages: &[String], directory: &Path) -> Result<()> {
    // apt's own user could not write there.
    process::run(
        apt_get(&["-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(directory),
    )
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "-q",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_SUSPEND", "1");
    command
}

fn is_service(name: &str) -> bool {
    ["/lib/systemd/system", "/etc/init.d"]
        .iter()
        .any(|directory| {
            let directory = Path::new(directory);
            directory.join(name).exists() || directory.join(format!("{name}.service")).exists()
        })
}

/// The script that Debian's maintainer scripts ask before they start a
/// service; removed on drop. A script that somebody else put there stays.
struct ServicePolicy {
    ours: Option<PathBuf>,
}

impl ServicePolicy {
    fn forbid() -> Result<Self> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        // When this process is killed the script must not outlive it as a ban.
        let script = format!(
            "#!/bin/sh\n# Of `cargo xtask setup`, while it runs.\n\
             [ -d /proc/{} ] && exit 101\nrm -f \"$0\"\nexit 0\n",
            std::process::id()
        );
        match fs::File::create_new(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(Self { ours: None });
            }
            Err(error) => {
                return Err(error).with_context(|| format!("creating {}", path.display()));
            }
        }
        let policy = Self {
            ours: Some(path.clone()),
        };
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if let Some(path) = &self.ours {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_counts_as_installed_only_when_dpkg_says_installed() {
        let listed = "curl installed\nsocat config-files\nbpftool unpacked\n";
        assert_eq!(
            not_installed(&["curl", "socat", "bpftool", "unknown"], listed),
            ["socat", "bpftool", "unknown"]
        );
    }

    #[test]
    fn only_what_would_be_installed_is_fetched() {
        let output = "Reading package lists...\nRemv qemu-utils [1:10.0.2]\n\
            Inst libpopt0 (1.19 Debian:12 [amd64])\nInst kmod [29] (30 Debian:12 [amd64])\n\
            Conf libpopt0 (1.19 Debian:12 [amd64])\n";
        assert_eq!(simulated(output), ["libpopt0", "kmod"]);
    }

    #[test]
    fn a_package_is_not_taken_for_another_whose_name_it_ends_with() {
        assert_eq!(not_installed(&["nginx"], "libnginx installed\n"), ["nginx"]);
    }
}
