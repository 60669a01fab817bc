//! What the kernel's verifier has to look at, which decides whether the
//! program loads at all on other kernels (the limit is a million).

use anyhow::Result;
use lb_common::abi::program;
use lb_tests::{
    machine,
    program::{Program, Sizes},
};

/// A quarter above what it was when this was written.
const BUDGETS: [(&str, u32); 16] = [
    (program::LB, 90_000),
    (program::CLOCK, 100),
    (program::TAILS[program::NEIGHBOUR as usize], 10_000),
    (program::TAILS[program::ICMP as usize], 52_000),
    (program::TAILS[program::REPLY as usize], 23_000),
    (program::TAILS[program::RESET as usize], 10_000),
    (program::TAILS[program::FULL_NAT as usize], 66_000),
    (program::TAILS[program::BINDING as usize], 32_000),
    (program::TAILS[program::HEAD as usize], 10_000),
    (program::TAILS[program::TRACKED as usize], 41_000),
    (program::TAILS[program::EXPECT as usize], 80_000),
    (program::TAILS[program::ICMP_ERROR as usize], 20_000),
    (program::TAILS[program::FRAGMENT as usize], 30_000),
    (program::TAILS[program::SCHEDULE as usize], 194_000),
    (program::PROBE, 37_000),
    (program::TAILS[program::PROBED as usize], 2_000),
];

/// Linux 6.1's verifier sees fewer states as equal.
const FACTOR_ON_6_1: u32 = 3;

#[test]
fn the_verifier_looks_at_fewer_instructions_than_the_budget() -> Result<()> {
    let loaded = Program::load(Sizes::default())?;
    let factor = if machine::is_here() { FACTOR_ON_6_1 } else { 1 };
    for (name, budget) in BUDGETS {
        let budget = budget * factor;
        let verified = loaded.verified_instructions_of(name)?;
        println!("program {name}: {verified} verified instructions, budget {budget}");
        assert!(
            verified <= budget,
            "program {name}: {verified} verified instructions, budget {budget}"
        );
    }
    Ok(())
}
