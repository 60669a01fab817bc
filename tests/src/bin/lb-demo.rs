//! `cargo xtask demo`: a balancer at work before your eyes, see
//! [`lb_tests::demo`].

use std::process::ExitCode;

use lb_tests::{cleanup, demo};

const USAGE: &str = "\
usage: lb-demo [--json]
  --json  also print everything as one JSON object on the last line";

fn main() -> ExitCode {
    let mut json = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("lb-demo: unknown argument {other:?}\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    if let Err(error) = cleanup::on_interrupt() {
        eprintln!("lb-demo: {error:#}");
        return ExitCode::FAILURE;
    }
    let report = demo::run();
    if json {
        println!("{}", report.to_json());
    }
    if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
