//! The oldest kernel's verifier takes every program of the data path. (What
//! it has to look at is the suite `program_run`'s, which runs here, too.)

use std::fs;

use anyhow::ensure;
use lb_common::abi::program;
use lb_tests::{
    machine::in_machine,
    program::{Program, Sizes},
};

#[test]
fn the_kernel_is_linux_6_1() {
    in_machine(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        println!("Linux {}", release.trim());
        ensure!(release.starts_with("6.1."), "it is {release}");
        Ok(())
    });
}

/// The log makes the programs longer.
#[test]
fn the_verifier_accepts_every_program_with_the_debug_log_on() {
    in_machine(|| {
        let loaded = Program::load_logging(Sizes::default(), 5)?;
        for name in [program::LB, program::CLOCK].iter().chain(&program::TAILS) {
            let verified = loaded.verified_instructions_of(name)?;
            println!("program {name} with its log: {verified} verified instructions");
        }
        Ok(())
    });
}
