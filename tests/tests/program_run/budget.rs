//! What the kernel's verifier has to look at, which decides whether the
//! program loads at all on other kernels (the limit is a million).

use anyhow::Result;
use lb_common::abi::program;
use lb_tests::{
    machine,
    program::{Program, Sizes},
};

/// A quarter above what it was when this was written: on this kernel, and on
/// Linux 6.1, whose verifier sees fewer states as equal.
const BUDGETS: [(&str, u32, u32); 5] = [
    (program::LB, 170_000, 500_000),
    (program::CLOCK, 100, 100),
    (program::TAILS[program::NEIGHBOUR as usize], 10_000, 10_000),
    (program::TAILS[program::ICMP as usize], 10_000, 10_000),
    (program::TAILS[program::REPLY as usize], 100_000, 100_000),
];

#[test]
fn the_verifier_looks_at_fewer_instructions_than_the_budget() -> Result<()> {
    let loaded = Program::load(Sizes::default())?;
    for (name, newer, linux_6_1) in BUDGETS {
        let budget = if machine::is_here() { linux_6_1 } else { newer };
        let verified = loaded.verified_instructions_of(name)?;
        println!("program {name}: {verified} verified instructions, budget {budget}");
        assert!(
            verified <= budget,
            "program {name}: {verified} verified instructions, budget {budget}"
        );
    }
    Ok(())
}
