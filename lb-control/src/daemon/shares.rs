//! What is made of the backends' weights: pure functions from state and time to
//! factors, and to the moment they change next.

mod feedback;
mod slow_start;

pub use feedback::{Feedback, LOAD_DEAD_BAND, RESPONSE_DEAD_BAND, relative_speed};
pub use slow_start::ramp;
