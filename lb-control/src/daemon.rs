//! The daemon: puts the parts together and keeps them going. The only module
//! that sees all others.

pub mod admin;
pub mod claims;
pub mod conditions;
pub mod controller;
mod datapath;
pub mod detach;
mod fifo;
mod flows;
pub mod lock;
mod names;
mod notifier;
mod observe;
mod persistence;
mod preview;
mod probe_way;
mod probes;
mod reload;
mod replication;
mod retry;
pub mod run;
mod scripts;
mod settings;
mod shares;
mod sync;
#[cfg(test)]
mod testing;
mod trackers;
mod vrrp;

/// A fresh key for `sync.key_file`, in hexadecimal.
///
/// # Errors
/// The system has no random numbers; in words.
pub fn sync_key() -> Result<String, String> {
    let key = crate::sync::Key::generate().map_err(|error| error.to_string())?;
    Ok(key.to_hexadecimal())
}
