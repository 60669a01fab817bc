//! The controller: configuration, health, the desired state of the BPF maps
//! and the way there. `lbctl` is a thin `main` over it.

<<<<<<< HEAD
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unreachable
    )
)]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod health;
pub mod metrics;
pub mod model;
pub mod neighbours;
pub mod object;
pub mod rates;
pub mod scheduler;
pub mod status;
