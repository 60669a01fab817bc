//! `lbctl detach`: removes everything that `lbctl run` has left in the kernel.

use std::path::Path;

use super::{
    lock::{DirectoryLock, LockError},
    settings,
};
use crate::{
    cli::{Failure, exit},
    dataplane::plane,
    neighbours::{
        probe_device,
        sysctl::{self, ProcSys},
    },
};

/// Removes the data path pinned in `pin_dir` and puts back the settings
/// recorded in `state_dir`. Prints what it did; doing it twice is no error.
///
/// # Errors
/// A daemon is running, or something can't be removed.
pub fn detach(pin_dir: &Path, state_dir: &Path) -> Result<(), Failure> {
    let refused = |error: LockError| Failure::new(exit::REFUSED, error.to_string());
    let _locks = [pin_dir, state_dir]
        .into_iter()
        .filter(|directory| directory.exists())
        .map(DirectoryLock::take)
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    let is_removed = probe_device::remove()
        .map_err(|error| Failure::new(exit::REFUSED, format!("the probes' device: {error}")))?;
    if is_removed {
        println!(
            "{}: removed, with its rules and routes",
            probe_device::OUTER
        );
    }
    let detached = plane::detach(pin_dir);
    for interface in &detached.interfaces {
        println!("{interface}: program removed");
    }
    println!(
        "{}: {} removed",
        pin_dir.display(),
        match detached.removed.len() {
            0 => "nothing pinned there, nothing".into(),
            1 => "1 pin".into(),
            n => format!("{n} pins"),
        }
    );
    let restored = sysctl::restore(&mut ProcSys, &settings::record(state_dir))
        .map_err(|error| Failure::new(exit::REFUSED, format!("kernel settings: {error}")))?;
    for key in restored {
        println!("{key}: put back");
    }
    Ok(())
}
