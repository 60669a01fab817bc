//! Harness for the suites that need root.
