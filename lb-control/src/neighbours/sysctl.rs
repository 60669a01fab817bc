//! The kernel's forwarding settings that NAT needs: planned from what is set,
//! applied with a record of what was there before, put back from it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::model::Model;

/// A setting that has to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its path below `/proc/sys`: `net/ipv4/conf/eth0/forwarding`. With
    /// slashes, since names of interfaces may contain dots.
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

impl ProcSys {
    fn path(key: &str) -> PathBuf {
        Path::new("/proc/sys").join(key)
    }
}

impl Settings for ProcSys {
    fn read(&self, key: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(Self::path(key)) {
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, key: &str, value: &str) -> io::Result<()> {
        fs::write(Self::path(key), value)
    }
}

const FORWARD_REPLIES: &str =
    "replies of NAT are routed to the clients, which the kernel refuses without forwarding";
const NO_REDIRECTS: &str =
    "with one-armed NAT the kernel would tell the servers by ICMP redirects to bypass the balancer";
const NO_REDIRECTS_ALL: &str = "the kernel sends redirects where this or the interface's own \
     setting is 1, so both have to be 0";
const FORWARD_V6_ALL: &str = "IPv6 is forwarded only where this is 1 as well; the kernel then \
     copies it to every interface, and ignores router advertisements where accept_ra is 1";

/// What has to change for the services of the model; empty without NAT. In the
/// order in which it has to be applied.
///
/// # Errors
/// Where a setting can't be read, or doesn't exist: the interface is missing
/// or IPv6 is disabled.
pub fn plan_sysctls(model: &Model, settings: &dyn Settings) -> Result<Vec<Change>, SysctlError> {
    let nat = |v4: bool| {
        model
            .services
            .iter()
            .any(|service| service.forwarding.translates() && service.address.is_ipv4() == v4)
    };
    let mut wanted: Vec<(String, &str, &str)> = Vec::new();
    let mut want = |key: String, value, why| wanted.push((key, value, why));
    if nat(true) {
        want(
            "net/ipv4/conf/all/send_redirects".to_owned(),
            "0",
            NO_REDIRECTS_ALL,
        );
        for interface in &model.interfaces {
            let of = |setting| format!("net/ipv4/conf/{}/{setting}", interface.name);
            want(of("forwarding"), "1", FORWARD_REPLIES);
            want(of("send_redirects"), "0", NO_REDIRECTS);
        }
    }
    if nat(false) {
        // First: it overwrites those of the interfaces.
        want(
            "net/ipv6/conf/all/forwarding".to_owned(),
            "1",
            FORWARD_V6_ALL,
        );
        for interface in &model.interfaces {
            let key = format!("net/ipv6/conf/{}/forwarding", interface.name);
            want(key, "1", FORWARD_REPLIES);
        }
    }
    let mut changes = Vec::new();
    for (key, wants, why) in wanted {
        let was = settings
            .read(&key)
            .and_then(|value| {
                value.ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::NotFound,
                        "no such setting (is the interface there, and IPv6 enabled?)",
                    )
                })
            })
            .map_err(failed(|| format!("reading {}", dotted(&key))))?;
        if was != wants {
            changes.push(Change {
                key,
                was,
                wants: wants.to_owned(),
                why: why.to_owned(),
            });
        }
    }
    Ok(changes)
}

/// Applies the changes, former values recorded in `record` first (JSON). A
/// record that is there already keeps what it says: a value that an earlier
/// run set is not what the operator had.
pub fn apply(
    changes: &[Change],
    settings: &mut dyn Settings,
    record: &Path,
) -> Result<(), SysctlError> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut recorded = read_record(record)?;
    let known: BTreeSet<String> = recorded.iter().map(|change| change.key.clone()).collect();
    recorded.extend(
        changes
            .iter()
            .filter(|change| !known.contains(&change.key))
            .cloned(),
    );
    write_record(record, &recorded)?;
    for change in changes {
        settings
            .write(&change.key, &change.wants)
            .map_err(failed(|| {
                format!("setting {} to {}", dotted(&change.key), change.wants)
            }))?;
    }
    Ok(())
}

/// Puts recorded values back, except those that somebody else changed since,
/// and deletes the record. Returns the keys that were put back. No record: none.
pub fn restore(settings: &mut dyn Settings, record: &Path) -> Result<Vec<String>, SysctlError> {
    let recorded = read_record(record)?;
    // Read all before writing any: the kernel copies `all/forwarding` of IPv6
    // to every interface.
    let mut ours = Vec::new();
    for change in &recorded {
        let value = settings
            .read(&change.key)
            .map_err(failed(|| format!("reading {}", dotted(&change.key))))?;
        // An interface that is gone took its settings with it.
        if value.as_ref() == Some(&change.wants) {
            ours.push(change);
        }
    }
    for change in &ours {
        settings
            .write(&change.key, &change.was)
            .map_err(failed(|| {
                format!("setting {} back to {}", dotted(&change.key), change.was)
            }))?;
    }
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SysctlError {
            what: format!("deleting {}", record.display()),
            source: error,
        }),
        _ => Ok(ours.iter().map(|change| change.key.clone()).collect()),
    }
}

/// What to tell an operator who keeps these settings himself
/// (`manage_sysctls: false`). Empty without changes.
pub fn explain(changes: &[Change]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let mut text = "NAT needs other settings of the kernel, and manage_sysctls is false. \
         Set them, for instance in /etc/sysctl.d/, or set manage_sysctls to true:"
        .to_owned();
    for change in changes {
        text.push_str(&format!(
            "\n  {} = {}    # is {}: {}",
            dotted(&change.key),
            change.wants,
            change.was,
            change.why
        ));
    }
    text
}

/// The key as `sysctl` accepts it: with dots, or with slashes where a part
/// contains a dot itself.
fn dotted(key: &str) -> String {
    if key.contains('.') {
        key.to_owned()
    } else {
        key.replace('/', ".")
    }
}

fn failed(what: impl Fn() -> String) -> impl Fn(io::Error) -> SysctlError {
    move |source| SysctlError {
        what: what(),
        source,
    }
}

fn read_record(record: &Path) -> Result<Vec<Change>, SysctlError> {
    let what = || format!("reading {}", record.display());
    match fs::read(record) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(io::Error::from)
            .map_err(failed(what)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(what)(error)),
    }
}

/// By a rename, so that a crash leaves the old or the new record.
fn write_record(record: &Path, changes: &[Change]) -> Result<(), SysctlError> {
    let new = record.with_extension("new");
    serde_json::to_vec_pretty(changes)
        .map_err(io::Error::from)
        .and_then(|bytes| fs::write(&new, bytes))
        .and_then(|()| fs::rename(&new, record))
        .map_err(failed(|| format!("writing {}", record.display())))
}

#[cfg(test)]
#[path = "sysctl_tests.rs"]
mod tests;
