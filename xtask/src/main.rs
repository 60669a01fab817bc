//! `cargo xtask`: everything a developer or CI does with the tree.
//!
//! This file only dispatches; each subcommand is the module of its name.

mod build;
mod follow;
mod launch;
mod libtest;
mod lint;
mod process;
mod setup;
mod suites;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Everything a developer or CI does with the tree"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build and the tests need; does nothing the second time
    Setup {
        /// Only report what is there and what is missing
        #[arg(long)]
        check: bool,
    },
    /// Build lbctl with the data path inside
    Build {
        /// Optimised
        #[arg(long)]
        release: bool,
    },
    /// fmt, clippy on host and BPF code, tidy, and the documentation, all without warnings
    Lint,
    /// Check the rules of the tree that the compiler does not know
    Tidy,
    /// Run every test suite (as root)
    Test {
        /// Only the suite of this name; may be repeated
        #[arg(long, value_name = "NAME")]
        suite: Vec<String>,
        /// Complete matrices instead of a representative part
        #[arg(long)]
        full: bool,
    },
    /// Run the suite `vm` alone: Linux 6.1 under emulation, and what this kernel can't do
    VmTest {
        /// Everything that is run there, not a representative part
        #[arg(long)]
        full: bool,
        /// Only tests with one of these in their names
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Balance real HTTP over three servers in network namespaces and show what happens
    Demo {
        /// Passed to lb-demo (try `-- --help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measure the data path, or take-over times beside keepalived (`bench failover`)
    Bench {
        /// Passed to lb-bench (try `-- --help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup { check: false } => setup::run().and_then(|()| setup::machine()),
        Task::Setup { check: true } => setup::check(),
        Task::Build { release } => build::run(release),
        Task::Lint => lint::run(),
        Task::Tidy => tidy::run(),
        Task::Test { suite, full } => return exit(test::run(&suite, full, &[])),
        Task::VmTest { full, names } => {
            return exit(test::run(&[suites::MACHINE.to_owned()], full, &names));
        }
        Task::Demo { args } => launch::run("lb-demo", &args),
        Task::Bench { args } => launch::run("lb-bench", &args),
    };
    exit(done.map(|()| true))
}

/// The exit status of a task that says whether all is well; when it isn't, it
/// has said so, and its closing line stays the last one.
fn exit(done: Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
