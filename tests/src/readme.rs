//! The commands that the README gives for servers: the tests run the same.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::topology::Host;

/// Runs what is to be done on each server according to the first block of
/// commands below a heading, with addresses of the host's own. It fails when
/// an address to be replaced isn't there.
pub fn on_server(host: &Host, heading: &str, addresses: &[(&str, String)]) -> Result<()> {
    let text = read()?;
    let below = text
        .split(&format!("\n{heading}\n"))
        .nth(1)
        .with_context(|| format!("the README has no heading {heading:?}"))?;
    let block = below
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .with_context(|| format!("no commands below {heading:?}"))?;
    run(host, block, addresses)
}

/// As [`on_server`], for a command within the text, by how it begins.
pub fn command(host: &Host, beginning: &str, addresses: &[(&str, String)]) -> Result<()> {
    let text = read()?;
    let mut pieces = text.split('`');
    let found = pieces
        .find(|piece| piece.starts_with(beginning))
        .with_context(|| format!("the README has no command {beginning:?}"))?;
    run(host, found, addresses)
}

fn read() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn run(host: &Host, commands: &str, addresses: &[(&str, String)]) -> Result<()> {
    let mut commands = commands.to_owned();
    for (address, own) in addresses {
        ensure!(commands.contains(address), "no {address} in:\n{commands}");
        commands = commands.replace(address, own);
    }
    for line in commands.lines().filter(|line| !line.starts_with('#')) {
        let line = line.split(" #").next().unwrap_or_default();
        host.ns.exec(&["sh", "-c", line])?;
    }
    Ok(())
}
