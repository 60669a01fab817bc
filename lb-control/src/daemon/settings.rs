//! The kernel's settings that NAT and VLANs need.

use std::path::{Path, PathBuf};

use crate::{
    model::Model,
    neighbours::{
        self,
        sysctl::{self, ProcSys},
    },
};

/// Where the former values are kept.
pub fn record(state_dir: &Path) -> PathBuf {
    state_dir.join("sysctls.json")
}

/// Sets what the services need, or refuses where the configuration says that
/// the operator does it.
///
/// # Errors
/// What is wrong, and how to put it right.
pub fn establish(model: &Model, state_dir: &Path) -> Result<(), String> {
    let mut settings = ProcSys;
    let names = model.interfaces.iter().map(|i| i.name.clone());
    let devices = neighbours::devices_of(names)
        .map_err(|error| format!("reading the network interfaces: {error}"))?;
    let changes = sysctl::plan_sysctls(model, &devices, &settings)
        .map_err(|error| format!("kernel settings: {error}"))?;
    if changes.is_empty() {
        return Ok(());
    }
    if !model.dataplane.manage_sysctls {
        return Err(sysctl::explain(&changes));
    }
    sysctl::apply(&changes, &mut settings, &record(state_dir))
        .map_err(|error| format!("kernel settings: {error}"))?;
    for change in &changes {
        tracing::info!(
            setting = change.key,
            was = change.was,
            now = change.wants,
            why = change.why,
            "kernel setting changed; `lbctl detach` puts it back"
        );
    }
    Ok(())
}
