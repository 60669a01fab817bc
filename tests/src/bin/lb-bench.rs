//! Benchmarks, see [`lb_tests::bench`].

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use lb_tests::bench::{self, Options};

fn main() -> Result<ExitCode> {
    bench::run(&Options::parse())
}
