//! The data path behind the controller's trait.

use super::controller::{Applied, DataPath};
use crate::{
    dataplane::{desired::Runtime, plane::Plane},
    model::Model,
};

impl DataPath for Plane {
    fn apply(&mut self, model: &Model, runtime: &Runtime) -> Result<Applied, String> {
        let summary = Plane::apply(self, model, runtime).map_err(|error| error.to_string())?;
        Ok(Applied {
            slots_moved: summary.slots_moved as u64,
            operations: summary.ops as u64,
        })
    }
}
