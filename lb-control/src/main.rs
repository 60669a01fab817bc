//! `lbctl`.

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use lb_control::{
    cli::{self, Cli, Command, Failure, exit},
    daemon::{self, detach, run},
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Check { file } => cli::check::check(&file),
        _ => cli::finish(dispatch(cli)),
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Run(args) => {
            log_to_stderr();
            run::run(&run::Options {
                config: args.config,
                socket: cli.socket,
                state_dir: args.state_dir,
            })
        }
        Command::SyncKey => print_sync_key(),
        Command::Detach(args) => {
            log_to_stderr();
            detach::detach(&args.resolve_pin_dir()?, &args.state_dir)
        }
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(exit::REFUSED, error.to_string()))?
            .block_on(cli::talk(&cli.socket, command)),
    }
}

fn print_sync_key() -> Result<(), Failure> {
    let key = daemon::sync_key().map_err(|error| Failure::new(exit::REFUSED, error))?;
    println!("{key}");
    Ok(())
}

/// Levels from `RUST_LOG`, or else what an operator wants to know.
fn log_to_stderr() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,datapath=debug"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
}
