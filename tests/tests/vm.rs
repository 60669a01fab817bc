//! What runs in the test machine alone: Debian's Linux 6.1 under emulation,
//! with the kernel modules that the host may lack. `cargo xtask vm-test` boots
//! it and runs this in it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::program;
use lb_tests::{
    check,
    program::{Program, Sizes},
};

/// Runs a test, but not outside of the machine.
fn in_machine(test: impl FnOnce() -> Result<()>) {
    check(|| {
        ensure!(
            std::env::var_os("LB_TEST_MACHINE").is_some(),
            "this runs in the test machine: `cargo xtask vm-test`"
        );
        test()
    });
}

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
            let verified = loaded
                .verified_instructions_of(name)
                .with_context(|| (*name).to_owned())?;
            println!("program {name}: {verified} verified instructions");
        }
        Ok(())
    });
}
