//! A pool's backends together.

use serde::{Deserialize, Serialize};

/// The backends of a pool by what their checks say, of those that an operator
/// lets take part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolHealth {
    /// Its name.
    pub pool: String,
    /// How many there are.
    pub backends: usize,
    /// Up.
    pub up: usize,
    /// Overloaded.
    pub overloaded: usize,
    /// Down.
    pub down: usize,
    /// Backends that `max_ejected` keeps in although checks speak against them.
    pub kept_in: Vec<String>,
    /// Nobody is up, and the overloaded ones share the load.
    pub overloaded_share: bool,
    /// Every backend is down: what `when_all_down` does about it.
    pub all_down: Option<String>,
}
