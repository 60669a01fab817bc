//! What the kernel's verifier has to look at, which decides whether the
//! program loads at all on other kernels (the limit is a million).

use anyhow::Result;
use lb_common::abi::program;
use lb_tests::program::{Program, Sizes};

/// A quarter above what it was when this was written.
const BUDGETS: [(&str, u32); 5] = [
    (program::LB, 170_000),
    (program::CLOCK, 100),
    (program::TAILS[program::NEIGHBOUR as usize], 10_000),
    (program::TAILS[program::ICMP as usize], 10_000),
    (program::TAILS[program::REPLY as usize], 100_000),
];

#[test]
fn the_verifier_looks_at_fewer_instructions_than_the_budget() -> Result<()> {
    let loaded = Program::load(Sizes::default())?;
    for (name, budget) in BUDGETS {
        let verified = loaded.verified_instructions_of(name)?;
        println!("program {name}: {verified} verified instructions, budget {budget}");
        assert!(
            verified <= budget,
            "program {name}: {verified} verified instructions, budget {budget}"
        );
    }
    Ok(())
}
