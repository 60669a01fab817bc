//! The TCP check.
