//! The data path's maps and programs: what the maps should hold, the way
//! there, and what they tell.
//!
//! [`desired`] computes from the configuration and what is known of the
//! backends what the maps should hold; [`plan`] is the difference to what they
//! hold, as steps in an order that is right at every point; [`apply`] takes the
//! steps on a [`store::MapStore`]. May import `model`, `scheduler` and
//! `lb_common`.

pub mod allocate;
pub mod apply;
pub mod desired;
pub mod plan;
pub mod ports;
pub mod state;
pub mod store;
