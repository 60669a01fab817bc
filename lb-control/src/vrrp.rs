//! VRRP: which of several balancers owns the virtual addresses (RFC 9568, RFC
//! 3768).
//!
//! [`codec`] reads and writes messages; [`machine`] decides, without a clock or a
//! socket, and [`peering`] what nodes with a link between them do better together;
//! [`trackers`] has the arithmetic of what is watched, [`notify`] what others are told;
//! [`thread`] runs all of it. May import [`crate::status`] only.

pub mod announce;
pub mod codec;
mod group;
mod link;
pub mod machine;
pub mod notify;
pub mod packet;
pub mod peering;
pub mod references;
mod references_socket;
pub mod report;
mod router;
mod schedule;
pub mod socket;
pub mod thread;
pub mod trackers;
mod words;

#[cfg(test)]
mod rfc_tests;
