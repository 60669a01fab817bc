//! VRRP: which of several balancers owns the virtual addresses (RFC 9568, RFC
//! 3768).
//!
//! [`codec`] reads and writes messages; [`machine`] decides, without a clock or a
//! socket, and [`peering`] what nodes with a link between them do better together;
//! [`thread`] runs all of it. May import [`crate::status`] only.

pub mod announce;
pub mod codec;
pub mod machine;
pub mod peering;
pub mod references;
mod references_socket;
pub mod report;
mod router;
pub mod socket;
pub mod thread;
mod words;

#[cfg(test)]
mod rfc_tests;
