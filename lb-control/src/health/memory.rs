//! The states of the backends over a restart of the daemon, in a small file.
//!
//! They are a head start and no more: the next results decide. What is old, of
//! another boot or makes no sense is not used, and nobody is told to wait.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{BackendKey, HealthState, Remembered};

/// Name of the file in the state directory.
const FILE: &str = "health.json";

/// Version of the file's format.
const VERSION: u32 = 1;

/// A file older than this many seconds is not used: longer than a planned
/// restart, and shorter than most things that happen to servers.
pub const OLDEST: u64 = 60;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// Changes with every boot of the machine.
    boot_id: String,
    /// Seconds since the Unix epoch.
    written_at: u64,
    backends: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    pool: String,
    backend: String,
    #[serde(flatten)]
    known: Remembered,
}

/// The id of this boot; empty where the kernel doesn't tell.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Writes what is known at `now`, in seconds since the Unix epoch.
///
/// # Errors
/// The file can't be written.
pub fn write(
    directory: &Path,
    boot_id: &str,
    now: u64,
    known: BTreeMap<BackendKey, Remembered>,
) -> io::Result<()> {
    let backends = known.into_iter().map(|(key, known)| Entry {
        pool: key.pool,
        backend: key.backend,
        known,
    });
    let text = serde_json::to_vec(&File {
        version: VERSION,
        boot_id: boot_id.to_owned(),
        written_at: now,
        backends: backends.collect(),
    })?;
    // Not synced: after a crash of the machine it is of another boot.
    let path = directory.join(FILE);
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, &path)
}

/// What an earlier daemon wrote, or why that is not used.
///
/// # Errors
/// One sentence; none where there is no file.
pub fn read(
    directory: &Path,
    boot_id: &str,
    now: u64,
) -> Result<BTreeMap<BackendKey, Remembered>, Option<String>> {
    let path = directory.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(Some(format!("{}: {error}", path.display()))),
    };
    let refuse = |why: String| Err(Some(format!("{}: {why}", path.display())));
    let file: File = match serde_json::from_slice(&text) {
        Ok(file) => file,
        Err(error) => return refuse(format!("makes no sense: {error}")),
    };
    if file.version != VERSION {
        return refuse(format!("is of format {}, not {VERSION}", file.version));
    }
    if file.boot_id != boot_id || boot_id.is_empty() {
        return refuse("is of another boot of this machine".to_owned());
    }
    match now.checked_sub(file.written_at) {
        Some(age) if age <= OLDEST => {}
        Some(age) => return refuse(format!("is {age} s old, which is more than {OLDEST} s")),
        None => return refuse("is of the future".to_owned()),
    }
    let backends = file.backends.into_iter();
    Ok(backends
        .filter(|entry| entry.known.state != HealthState::Unknown)
        .map(|entry| {
            let key = BackendKey {
                pool: entry.pool,
                backend: entry.backend,
            };
            (key, entry.known)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("lbctl-memory-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn known() -> BTreeMap<BackendKey, Remembered> {
        let key = BackendKey {
            pool: "web".into(),
            backend: "a".into(),
        };
        let known = Remembered {
            state: HealthState::Overloaded,
            for_time: Duration::from_secs(7),
            address: [192, 0, 2, 1].into(),
            reason: "no answer".into(),
        };
        BTreeMap::from([(key, known)])
    }

    #[test]
    fn what_was_written_is_read_back_within_its_time_and_boot() {
        let directory = Directory::new("back");
        write(&directory.0, "boot", 1000, known()).unwrap();
        for now in [1000, 1000 + OLDEST] {
            assert_eq!(read(&directory.0, "boot", now), Ok(known()));
        }
    }

    #[test]
    fn what_is_old_of_another_boot_of_the_future_or_broken_is_not_used() {
        let directory = Directory::new("stale");
        assert_eq!(read(&directory.0, "boot", 1000), Err(None));
        write(&directory.0, "boot", 1000, known()).unwrap();
        let why = |boot: &str, now| read(&directory.0, boot, now).unwrap_err().unwrap();
        assert!(why("boot", 1001 + OLDEST).contains("61 s old"));
        assert!(why("another", 1000).contains("another boot"));
        assert!(why("boot", 999).contains("future"));
        write(&directory.0, "", 1000, known()).unwrap();
        assert!(why("", 1000).contains("another boot"));
        fs::write(directory.0.join(FILE), "{\"version\": 1").unwrap();
        assert!(why("boot", 1000).contains("makes no sense"));
    }
}
