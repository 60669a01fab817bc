//! One task that runs every check.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::{BackendHealth, BackendKey, HealthState};
use crate::model::Model;

/// A backend's state changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// Which backend.
    pub key: BackendKey,
    /// The state it left.
    pub was: HealthState,
    /// The state it has now.
    pub state: HealthState,
    /// The result that decided, in words.
    pub reason: String,
}

/// The running checks. Dropping it ends them.
#[derive(Debug)]
pub struct Health {}

impl Health {
    /// Starts the checks of the model on the current tokio runtime. The seed
    /// spreads the checks of different nodes; any number will do.
    ///
    /// Every change of a backend's state is sent once, in order.
    pub fn start(_model: &Model, _seed: u64) -> (Self, mpsc::UnboundedReceiver<HealthChange>) {
        unimplemented!()
    }

    /// Takes over another model. Verdicts of checks that stay the same are
    /// kept, new ones start, gone ones end (without a change being sent).
    pub fn update(&self, _model: &Model) {
        unimplemented!()
    }

    /// Every backend's state as of now.
    pub fn snapshot(&self) -> BTreeMap<BackendKey, BackendHealth> {
        unimplemented!()
    }
}
