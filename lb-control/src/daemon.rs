//! The daemon: puts the parts together and keeps them going. The only module
//! that sees all others.

pub mod admin;
pub mod claims;
pub mod conditions;
pub mod controller;
mod datapath;
pub mod detach;
mod fifo;
mod flows;
pub mod lock;
mod names;
mod notifier;
mod observe;
mod persistence;
mod preview;
mod probe_way;
mod probes;
mod reload;
mod retry;
pub mod run;
mod scripts;
mod settings;
mod shares;
#[cfg(test)]
mod testing;
mod trackers;
mod vrrp;
