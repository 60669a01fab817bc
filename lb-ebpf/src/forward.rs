//! How a packet reaches the member.

pub mod l2;
pub mod nat;
