//! What the data path and the controller share.
//!
//! This crate is the ABI: every map key and value, the reasons and counters,
//! the limits and the map names exist here once and are used by both sides.
//! It also holds the *decisions* taken on those values ([`track`], [`flow`],
//! [`checksum`], [`hash`]) so that the code the kernel runs is the code the
//! host tests run.
#![cfg_attr(not(test), no_std)]
