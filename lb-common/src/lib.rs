//! What the data path and the controller share.
//!
//! This crate is the ABI: every map key and value, the reasons and counters,
//! the limits and the map names exist here once and are used by both sides.
//! It also holds the *decisions* taken on those values ([`track`], [`flow`],
//! [`checksum`], [`hash`]), so that the code that the kernel runs is the code
//! that the host's tests run.
//!
//! Depends on nothing; the `user` feature marks the map types as plain data
//! for aya.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod abi;
pub mod binding;
pub mod checksum;
pub mod clock;
pub mod counter;
pub mod flow;
pub mod hash;
pub mod limit;
pub mod load;
pub mod member;
pub mod net;
pub mod persist;
pub mod quic;
pub mod reset;
pub mod schedule;
pub mod slot;
pub mod track;
pub mod tunnel;
pub mod virtual_mac;
