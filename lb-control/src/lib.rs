//! The controller: configuration, health, the desired state of the BPF maps
//! and the way there. `lbctl` is a thin `main` over it.

pub mod dataplane;
pub mod model;
pub mod object;
pub mod scheduler;
