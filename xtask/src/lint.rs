//! `cargo xtask lint`: what must hold before any test is run.

use std::{env, process::Command};

use anyhow::{Result, bail};

use crate::{process, setup, tidy, workspace};

/// A lint's name and what runs it.
type Lint = (&'static str, fn() -> Result<()>);

/// Runs every lint, also after one has failed, and names those that did.
pub fn run() -> Result<()> {
    setup::run()?;
    let lints: [Lint; 6] = [
        ("fmt", fmt),
        ("tidy", tidy::run),
        ("clippy (host)", clippy_host),
        ("clippy (BPF)", clippy_bpf),
        ("doc (host)", doc_host),
        ("doc (BPF)", doc_bpf),
    ];
    let mut failed = Vec::new();
    for (name, lint) in lints {
        process::step(name);
        if let Err(error) = lint() {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lints failed: {}", failed.join(", "));
    }
    process::step("no lint failed");
    Ok(())
}

fn fmt() -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy_host() -> Result<()> {
    process::run(workspace::cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        workspace::BPF_CRATE,
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn clippy_bpf() -> Result<()> {
    process::run(bpf_cargo("clippy")?.args(["--", "-D", "warnings"]))
}

fn doc_host() -> Result<()> {
    process::run(
        workspace::cargo()
            .args([
                "doc",
                "--no-deps",
                "--document-private-items",
                "--workspace",
                "--exclude",
            ])
            .arg(workspace::BPF_CRATE)
            .env("RUSTDOCFLAGS", rustdoc_flags()),
    )
}

fn doc_bpf() -> Result<()> {
    process::run(
        bpf_cargo("doc")?
            .args(["--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", rustdoc_flags()),
    )
}

/// Denies warnings beside whatever flags the caller's environment holds.
fn rustdoc_flags() -> String {
    format!(
        "{} -D warnings",
        env::var("RUSTDOCFLAGS").unwrap_or_default()
    )
}

/// `cargo subcommand` of the BPF toolchain for the BPF crate and its target.
/// A directory of its own keeps it from waiting for, or undoing, host builds.
fn bpf_cargo(subcommand: &str) -> Result<Command> {
    let mut command = workspace::bpf_tool("cargo");
    command
        .arg(subcommand)
        .args([
            "--package",
            workspace::BPF_CRATE,
            "--target",
            workspace::BPF_TARGET,
        ])
        .arg("--target-dir")
        .arg(workspace::target_dir()?.join("bpf-lint"));
    if setup::core_is_source()? {
        command.args(["-Z", "build-std=core"]);
    }
    Ok(command)
}
