//! The kernel's forwarding settings that NAT needs.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use crate::model::Model;

/// A setting that has to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its path below `/proc/sys`: `net/ipv4/conf/eth0/forwarding`.
    pub key: String,
    /// What it is now.
    pub was: String,
    /// What it has to be.
    pub wants: String,
    /// Why, in words.
    pub why: String,
}

/// A setting can't be read, written or recorded.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct SysctlError {
    /// What was tried on which file.
    pub what: String,
    /// The system's answer.
    pub source: io::Error,
}

/// Access to the settings, by path below `/proc/sys`.
pub trait Settings {
    /// The value, trimmed; `None` where there is no such setting.
    fn read(&self, key: &str) -> io::Result<Option<String>>;
    /// Sets it.
    fn write(&mut self, key: &str, value: &str) -> io::Result<()>;
}

/// `/proc/sys` of the calling thread's network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcSys;

/// What has to change for the services of the model; empty without NAT.
pub fn plan_sysctls(_model: &Model, _settings: &dyn Settings) -> Result<Vec<Change>, SysctlError> {
    unimplemented!()
}

/// Applies the changes, former values recorded in `record` first (JSON).
pub fn apply(
    _changes: &[Change],
    _settings: &mut dyn Settings,
    _record: &Path,
) -> Result<(), SysctlError> {
    unimplemented!()
}

/// Puts recorded values back, except those that somebody else changed since,
/// and deletes the record. Returns the keys that were put back. No record: none.
pub fn restore(_settings: &mut dyn Settings, _record: &Path) -> Result<Vec<String>, SysctlError> {
    unimplemented!()
}

/// What to tell an operator who keeps these settings himself
/// (`manage_sysctls: false`).
pub fn explain(_changes: &[Change]) -> String {
    unimplemented!()
}
