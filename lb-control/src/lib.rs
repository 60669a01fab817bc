//! The controller: configuration, health, the desired state of the BPF maps
//! and the way there. `lbctl` is a thin `main` over it.

// A balancer that panics takes its services with it.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]
// A test may make its first `Instant`, which it then moves by hand.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod health;
pub mod metrics;
pub mod model;
pub mod neighbours;
pub mod rates;
pub mod replication;
pub mod scheduler;
pub mod status;
pub mod sync;
pub mod vrrp;
