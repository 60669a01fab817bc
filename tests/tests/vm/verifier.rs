//! The oldest kernel's verifier takes every program of the data path.

use std::fs;

use anyhow::ensure;
use lb_common::abi::program;
use lb_tests::{
    machine::in_machine,
    program::{Program, Sizes},
};

/// What Linux 6.1's verifier may have to look at: it sees fewer states as equal
/// than later ones do. Its limit is a million.
const BUDGET: u32 = 600_000;

#[test]
fn the_kernel_is_linux_6_1() {
    in_machine(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        println!("Linux {}", release.trim());
        ensure!(release.starts_with("6.1."), "it is {release}");
        Ok(())
    });
}

#[test]
fn the_verifier_accepts_every_program() {
    in_machine(|| {
        let loaded = Program::load(Sizes::default())?;
        for name in [program::LB, program::CLOCK].iter().chain(&program::TAILS) {
            let verified = loaded.verified_instructions_of(name)?;
            println!("program {name}: {verified} verified instructions, budget {BUDGET}");
            ensure!(
                verified <= BUDGET,
                "program {name}: {verified} verified instructions, budget {BUDGET}"
            );
        }
        Ok(())
    });
}
