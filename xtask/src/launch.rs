//! `cargo xtask demo` and `bench`: a binary of the tests crate, built optimised,
//! in place of this process.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, setup, workspace};

/// Builds `binary`, `lbctl` and the servers' `lb-conns`, and becomes `binary`: its exit
/// status, signals and output are those of the task. It finds `lbctl` by the variable
/// `LBCTL`, and `lb-conns` beside itself.
pub fn run(binary: &str, arguments: &[OsString]) -> Result<()> {
    setup::run()?;
    process::step(format!("building {binary} and lbctl, optimised"));
    process::run(workspace::cargo().args([
        "build",
        "--release",
        "--package",
        workspace::TESTS_CRATE,
        "--package",
        "lb-control",
        "--bin",
        binary,
        "--bin",
        "lb-conns",
        "--bin",
        "lbctl",
    ]))?;
    let directory = workspace::target_dir()?.join("release");
    let error = Command::new(directory.join(binary))
        .args(arguments)
        .env("LBCTL", directory.join("lbctl"))
        .exec();
    Err(error).with_context(|| format!("starting {binary}"))
}
