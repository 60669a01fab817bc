//! The daemon: puts the parts together and keeps them going. The only module
//! that sees all others.

pub mod admin;
pub mod conditions;
pub mod controller;
pub mod lock;
mod names;
mod reload;
mod retry;

#[cfg(test)]
mod testing;
