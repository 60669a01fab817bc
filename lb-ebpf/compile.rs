//! Builds one binary of this crate for the BPF target; included by the build
//! scripts of the crates that carry an object.

use std::{env, ffi::OsString, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};

/// The rustup toolchain that `cargo xtask setup` links to what it found: one
/// with a precompiled `core` for BPF, or a nightly with rust-src.
const TOOLCHAIN: &str = "lb-bpf";

const TARGET: &str = "bpfel-unknown-none";

/// Leaves the ELF object of `binary` in `OUT_DIR` under the same name.
pub fn compile(binary: &str) -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for input in [
        "lb-ebpf",
        "lb-common/src",
        "lb-common/Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR isn't set")?);
    let target_dir = out_dir.join("ebpf-target");

    // aya_build::build_ebpf does the same, but leaves no way to choose the
    // instruction set: the 64-bit compare-and-exchange of the flow and slot
    // tables needs v3 (Linux 5.12).
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH isn't set")?;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Ctarget-cpu=v3".into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    let mut cargo = Command::new("rustup");
    cargo
        .args([
            "run",
            TOOLCHAIN,
            "cargo",
            "build",
            "--package",
            "lb-ebpf",
            "--bin",
            binary,
            "--release",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir(&root)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            OsString::from(flags.join("\x1f")),
        )
        // In the many units of an incremental build less is inlined, and the
        // verifier has half as much again to look at.
        .env("CARGO_INCREMENTAL", "0");
    // Set by the cargo that runs this script, for its own toolchain.
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
    ] {
        cargo.env_remove(name);
    }
    if has_precompiled_core()? {
        // A stable compiler accepts unstable features of these crates alone.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,lb_ebpf");
    } else {
        cargo.args(["-Z", "build-std=core"]);
    }
    let status = cargo.status().context("can't run rustup")?;
    ensure!(
        status.success(),
        "building {binary} for BPF failed ({status}); `cargo xtask setup` installs what it needs"
    );
    fs::copy(
        target_dir.join(TARGET).join("release").join(binary),
        out_dir.join(binary),
    )
    .with_context(|| format!("{binary} was built, but isn't where it should be"))?;
    Ok(())
}

/// Whether the toolchain brings `core` for BPF, as Debian's does.
fn has_precompiled_core() -> anyhow::Result<bool> {
    let output = Command::new("rustup")
        .args([
            "run",
            TOOLCHAIN,
            "rustc",
            "--print",
            "target-libdir",
            "--target",
            TARGET,
        ])
        .env_remove("RUSTC")
        .output()
        .context("can't run rustup")?;
    ensure!(
        output.status.success(),
        "the toolchain `{TOOLCHAIN}` isn't there; run `cargo xtask setup`"
    );
    let directory = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    Ok(directory.read_dir().is_ok_and(|mut entries| {
        entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libcore-")))
    }))
}
