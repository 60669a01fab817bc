//! `cargo xtask bench`: what a packet and a lookup table cost. How it is
//! measured, and what the figures don't show, stands in docs/benchmarks.md.
//! `cargo xtask bench failover` is in the module `failover`.

mod builder;
mod case;
mod driver;
mod failover;
mod figures;
#[allow(dead_code)] // The other side uses the rest.
#[path = "../../lb-ebpf/src/bench/layout.rs"]
mod layout;
mod lru;
mod report;
mod subject;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use case::Field;
use driver::Driver;
use report::Report;

/// Measures the data path and the table builder. Needs root.
#[derive(Clone, Debug, Parser)]
#[command(name = "lb-bench", args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Fewer and shorter rounds: under a minute, figures to glance at
    #[arg(long)]
    quick: bool,
    /// Print all figures as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Exit with 1 if a target is missed
    #[arg(long)]
    check: bool,
    /// Rounds, each of which measures every case once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
}

/// What is measured instead of the data path.
#[derive(Clone, Debug, Subcommand)]
enum What {
    Failover(failover::Options),
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Every case once in each.
    rounds: u32,
    /// Packets in a round of a case.
    packets: u32,
    /// Packets before them that aren't measured, to warm the caches.
    warm_up: u32,
    /// Flows pushed through a table that is to be churned.
    churn: u64,
    /// Runs of the table builder.
    builds: usize,
}

impl Effort {
    fn of(options: &Options) -> Self {
        let mut effort = if options.quick {
            Self {
                rounds: 5,
                packets: 200_000,
                warm_up: 60_000,
                churn: 1 << 21,
                builds: 7,
            }
        } else {
            Self {
                rounds: 15,
                packets: 1_000_000,
                warm_up: 200_000,
                churn: 1 << 23,
                builds: 31,
            }
        };
        effort.rounds = options.rounds.unwrap_or(effort.rounds);
        effort
    }
}

/// Measures, prints, and says whether all went as it should.
pub fn run(options: &Options) -> Result<ExitCode> {
    if let Some(What::Failover(options)) = &options.what {
        return failover::run(options);
    }
    let effort = Effort::of(options);
    let processor = pin()?;
    progress("loading the programs and filling their tables");
    let mut driver = Driver::load()?;
    let mut field = Field::new(&mut driver, &effort)?;
    for round in 1..=effort.rounds {
        progress(&format!("round {round} of {}", effort.rounds));
        for case in &mut field.cases {
            case.measure(&mut driver, &effort)?;
        }
    }
    field.verify()?;
    progress("building lookup tables");
    let tables = builder::measure(effort.builds)?;
    progress("");

    let programs = field.sizes(&driver)?;
    let report = Report::new(processor, effort, &field.cases, programs, tables)?;
    print!("{report}");
    if options.json {
        println!("{}", report.json()?);
    }
    let missed = options.check && !report.all_met();
    Ok(ExitCode::from(u8::from(missed)))
}

/// Keeps this thread on one processor, the last it may use: the first has
/// most of the interrupts. Returns its number.
fn pin() -> Result<usize> {
    // SAFETY: zero is a valid set; the calls get its true size.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    ensure!(
        result == 0,
        "can't read the processors this process may use"
    );
    // SAFETY: every number is below the size of the set.
    let allowed = |n: &usize| unsafe { libc::CPU_ISSET(*n, &set) };
    let last = (0..libc::CPU_SETSIZE as usize).rev().find(allowed);
    let Some(last) = last else {
        anyhow::bail!("this process may use no processor");
    };
    // SAFETY: as above.
    let result = unsafe {
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(last, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(result == 0, "can't stay on processor {last}");
    Ok(last)
}

/// Says on a terminal what is going on; the next text replaces it.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }
}
