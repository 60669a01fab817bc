//! `cargo xtask build`: `lbctl`, with the data path inside.

use std::process::Command;

use anyhow::Result;

use crate::{process, setup, workspace};

/// Builds the default members after `setup`.
pub fn run(release: bool) -> Result<()> {
    setup::run()?;
    let mut command = workspace::cargo();
    command.args(["build", "--package", "lb-control"]);
    with_profile(&mut command, release);
    process::run(&mut command)
}

/// Adds the profile's option.
pub fn with_profile(command: &mut Command, release: bool) {
    if release {
        command.arg("--release");
    }
}
