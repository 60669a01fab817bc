//! One daemon for one set of pinned maps and one state directory.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// A directory that another daemon uses.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{} is in use by another daemon{}; stop it first",
        .directory.display(),
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The directory.
        directory: PathBuf,
        /// Its holder, where the kernel says.
        pid: Option<u32>,
    },
    /// It can't be locked.
    #[error("cannot lock {}: {source}", .directory.display())]
    Failed {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A locked directory; free again when this is dropped or the process ends,
/// however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Locks an existing directory. A BPF file system holds no files, so it is
    /// the directory itself that is locked.
    ///
    /// # Errors
    /// Another process holds it, or it can't be locked.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Failed {
            directory: directory.into(),
            source,
        };
        let file = File::open(directory).map_err(failed)?;
        // SAFETY: the descriptor is open for as long as `file` lives, and
        // flock touches no memory of ours.
        let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        if result == 0 {
            return Ok(Self { _file: file });
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock {
            Err(LockError::Held {
                directory: directory.into(),
                pid: holder(&file),
            })
        } else {
            Err(failed(error))
        }
    }
}

/// The process that holds a lock on this file, from `/proc/locks`.
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let name = format!(
        "{:02x}:{:02x}:{}",
        libc::major(device),
        libc::minor(device),
        metadata.ino()
    );
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &name)
}

/// `name` is `major:minor:inode`.
fn holder_in(locks: &str, name: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, file, ..] if *file == name => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
        let directory = std::env::temp_dir().join(format!("lbctl-lock-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let first = DirectoryLock::take(&directory).unwrap();
        let error = DirectoryLock::take(&directory).unwrap_err().to_string();
        assert!(error.contains("in use by another daemon"), "{error}");
        drop(first);
        // A child that another test has just forked holds it until it runs its program.
        let is_free = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            DirectoryLock::take(&directory).is_ok()
        });
        assert!(is_free);
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn the_holder_is_found_among_other_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1a:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 00:1a:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 33 00:1b:77 0 EOF\n";
        assert_eq!(holder_in(locks, "00:1a:77"), Some(22));
        assert_eq!(holder_in(locks, "00:1c:77"), None);
    }
}
