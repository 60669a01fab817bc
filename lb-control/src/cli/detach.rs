//! `lbctl detach`: where the data path is that it removes.

use std::path::PathBuf;

use super::{DEFAULT_PIN_DIR, DetachArgs, Failure, exit};
use crate::config;

impl DetachArgs {
    /// Where the maps are pinned: as told, as the configuration says, or the
    /// usual place.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn resolve_pin_dir(&self) -> Result<PathBuf, Failure> {
        match (&self.pin_dir, &self.config) {
            (Some(directory), _) => Ok(directory.clone()),
            (None, Some(file)) => config::load(file)
                .map(|model| model.dataplane.pin_dir)
                .map_err(|errors| {
                    let hint = "with --pin-dir DIR no configuration is needed";
                    let errors = errors.to_string();
                    Failure {
                        code: exit::REFUSED,
                        errors: errors.lines().chain([hint]).map(str::to_owned).collect(),
                    }
                }),
            (None, None) => Ok(DEFAULT_PIN_DIR.into()),
        }
    }
}
