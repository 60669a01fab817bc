//! The data path's maps and programs: what the maps should hold, the way
//! there, and what they tell.
//!
//! [`desired`] computes from the configuration and what is known of the
//! backends what the maps should hold; [`plan`] is the difference to what they
//! hold, as steps in an order that is right at every point; [`apply`] takes the
//! steps on a [`store::MapStore`]. [`plane::Plane`] drives all of it on the
//! running data path. May import `model`, `scheduler` and `lb_common`.

pub mod allocate;
pub mod apply;
mod attach;
mod aya_maps;
pub mod bindings;
#[cfg(test)]
mod bindings_tests;
mod bpf;
mod bpffs;
pub mod clock;
pub mod desired;
pub mod error;
#[cfg(test)]
mod fake;
pub mod links;
mod load;
mod log;
mod mapping;
pub mod neighbours;
pub mod object;
pub mod owners;
pub mod plan;
pub mod plane;
pub mod ports;
pub mod probes;
mod recount;
mod shape;
pub mod state;
pub mod stats;
pub mod store;
pub mod sweep;
#[cfg(test)]
mod sweep_tests;
#[cfg(test)]
mod tests;
