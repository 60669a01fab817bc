//! The test machine: Debian's Linux 6.1 under emulation, which `cargo xtask
//! vm-test` boots and runs a suite of its own in.

use std::env;

use anyhow::{Result, ensure};

use crate::check;

/// Set in the machine.
const VARIABLE: &str = "LB_TEST_MACHINE";

/// Whether this is the test machine.
pub fn is_here() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// How much longer than elsewhere everything may take here: an emulated
/// processor takes many times as long, and has the real ones not for itself.
pub(crate) fn patience() -> u32 {
    if is_here() { 20 } else { 1 }
}

/// As [`check`], for tests of what only the machine's kernel can do.
///
/// # Panics
/// When the test fails, and outside of the machine.
#[track_caller]
pub fn in_machine(test: impl FnOnce() -> Result<()>) {
    check(|| {
        ensure!(
            is_here(),
            "this test is for the test machine: `cargo xtask vm-test`"
        );
        test()
    });
}
