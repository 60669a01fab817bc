//! Harness for the suites that need root.
pub mod program;
