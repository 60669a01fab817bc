//! Where things are in the tree, and how cargo is called on it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The crate that is built for the BPF target and never for the host.
pub const BPF_CRATE: &str = "lb-ebpf";

/// The crate with the suites that need root.
pub const TESTS_CRATE: &str = "lb-tests";

/// The BPF target of a little-endian host.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// Name of the rustup toolchain that builds the BPF crate. `setup` links it,
/// lb-control's build script uses it.
pub const BPF_TOOLCHAIN: &str = "lb-bpf";

/// The crates whose unstable features are accepted by a stable compiler. The
/// value "1" would make aya-build ask for `-Z build-std`, which needs rust-src.
pub const BPF_BOOTSTRAP: &str = "aya_ebpf,lb_ebpf";

/// The directory of the root `Cargo.toml`.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// `cargo` of the host toolchain, in the root directory.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program of the toolchain that builds the BPF crate, in the root directory.
pub fn bpf_tool(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", BPF_TOOLCHAIN, program])
        .current_dir(root())
        .env("RUSTC_BOOTSTRAP", BPF_BOOTSTRAP)
        // Cargo set these for the host toolchain that runs this program.
        .env_remove("CARGO")
        .env_remove("RUSTC");
    command
}

/// What `cargo metadata` says about the workspace's own crates.
pub fn metadata() -> Result<Value> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .context("starting cargo metadata")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("reading cargo metadata's answer")
}

/// Cargo's target directory.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let path = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(PathBuf::from(path))
}

/// Path below the root of every file that belongs to the tree, ignored ones
/// left out. Also works on an unpacked archive without git.
pub fn files() -> Result<Vec<String>> {
    let listed = crate::process::answer(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root()),
    );
    if let Some(listed) = listed {
        // A file that was deleted and not yet committed is still listed.
        return Ok(listed
            .lines()
            .filter(|path| root().join(path).is_file())
            .map(str::to_owned)
            .collect());
    }
    let mut found = Vec::new();
    walk(root(), &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(&path, found)?;
        } else if let Ok(path) = path.strip_prefix(root()) {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
