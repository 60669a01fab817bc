//! The packages that the tree needs, and their installation.

use anyhow::{Result, bail};

use super::apt;
use crate::process;

/// A Debian package.
#[derive(Clone, Copy)]
pub struct Package {
    /// Debian's name of it.
    pub package: &'static str,
    /// A program in it, by which it is recognised on other systems.
    pub program: &'static str,
    /// What it is needed for.
    pub why: &'static str,
}

const fn package(package: &'static str, program: &'static str, why: &'static str) -> Package {
    Package {
        package,
        program,
        why,
    }
}

/// What the build and the tests run.
pub const TOOLS: &[Package] = &[
    package("gcc", "cc", "links host programs"),
    package("libc6-dev", "ldd", "links host programs"),
    package("iproute2", "ip", "builds the namespaces of the tests"),
    package("procps", "sysctl", "sets forwarding in namespaces"),
    package("ethtool", "ethtool", "sets offloads of veths"),
    package("nftables", "nft", "loses and filters packets in tests"),
    package("iputils-ping", "ping", "client of the tests"),
    package("iputils-arping", "arping", "client of the tests"),
    package("nginx-light", "nginx", "backend of the tests and the demo"),
    package("prometheus", "promtool", "checks the metrics"),
    package("bpftool", "bpftool", "shows programs and maps in tests"),
    package("tcpdump", "tcpdump", "keeps the packets of a failed test"),
    package("iperf3", "iperf3", "client and backend of the tests"),
    package("dnsutils", "dig", "client of the tests"),
    package("curl", "curl", "client of the tests"),
    package("traceroute", "traceroute", "client of the tests"),
    package("socat", "socat", "client and backend of the tests"),
    package("snmpd", "snmpd", "tells its load in the tests"),
    package("keepalived", "keepalived", "speaks VRRP in the tests"),
    package(
        "faketime",
        "faketime",
        "steps a daemon's clock in the tests",
    ),
];

/// A rustc with a precompiled `core` for BPF.
pub const DEBIAN_RUST: &[Package] = &[
    package("rustc-web", "rustc", "compiles the data path"),
    package("cargo-web", "cargo", "compiles the data path"),
    package(
        "libstd-rust-web-dev-bpf",
        "rustc",
        "is `core` for the BPF target",
    ),
    DEBIAN_CLIPPY,
];

/// Clippy of [`DEBIAN_RUST`].
pub const DEBIAN_CLIPPY: Package =
    package("rust-web-clippy", "clippy-driver", "lints the data path");

/// Those of `packages` that are missing: by dpkg, or on other systems by their
/// programs.
pub fn missing(packages: &[Package]) -> Vec<Package> {
    if apt::is_debian() {
        let names: Vec<_> = packages.iter().map(|package| package.package).collect();
        let missing = apt::missing(&names);
        packages
            .iter()
            .copied()
            .filter(|package| missing.contains(&package.package))
            .collect()
    } else {
        packages
            .iter()
            .copied()
            .filter(|package| !is_in_path(package.program))
            .collect()
    }
}

/// Installs those of `packages` that are missing. `purpose` is what they are
/// together.
pub fn ensure(packages: &[Package], purpose: &str) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    process::step(format!("missing: {purpose}"));
    for package in &missing {
        eprintln!("    {:<26} {}", package.package, package.why);
    }
    let names: Vec<_> = missing.iter().map(|package| package.package).collect();
    if !apt::is_debian() {
        let programs: Vec<_> = missing.iter().map(|package| package.program).collect();
        bail!(
            "this is no Debian; install what carries these programs and run setup again: {}",
            programs.join(" ")
        );
    }
    if !process::is_root() {
        bail!(
            "installing needs root; as root, run: apt-get install --no-install-recommends {}",
            names.join(" ")
        );
    }
    process::step("updating the package lists");
    apt::update()?;
    let unknown: Vec<_> = names
        .iter()
        .copied()
        .filter(|name| !apt::offers(name))
        .collect();
    if !unknown.is_empty() {
        bail!(
            "the package sources do not offer {}; Debian 12 has them in bookworm (main) and bookworm-security",
            unknown.join(", ")
        );
    }
    process::step(format!("installing {}", names.join(" ")));
    apt::install(&names)
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
