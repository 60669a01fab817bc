//! A FIFO that is written without ever waiting for its reader.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// All of it, at once (POSIX: up to PIPE_BUF bytes are never mixed).
    Line,
    /// Nobody has read for so long that there is no room.
    Nothing,
    /// There is no FIFO to be had.
    Failed,
}

/// See the module's description.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    open: Option<File>,
    /// The last line went wrong, which was logged.
    told: bool,
}

impl Fifo {
    /// At this path, where it is created if it isn't there.
    pub fn new(path: PathBuf) -> Self {
        let mut fifo = Self {
            path,
            open: None,
            told: false,
        };
        let opened = fifo.reopen();
        fifo.tell(opened.err().map(|error| error.to_string()));
        fifo
    }

    /// Writes a line, or not. What goes wrong is logged once until it goes right.
    pub fn write(&mut self, line: &str) -> Wrote {
        let (wrote, why) = match self.try_write(line) {
            Ok(()) => (Wrote::Line, None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                (Wrote::Nothing, Some("nobody reads it".to_owned()))
            }
            Err(error) => (Wrote::Failed, Some(error.to_string())),
        };
        self.tell(why);
        wrote
    }

    fn tell(&mut self, why: Option<String>) {
        if let Some(why) = why.as_ref().filter(|_| !self.told) {
            tracing::warn!(fifo = %self.path.display(), why, "lines for `notify.fifo` are dropped");
        }
        self.told = why.is_some();
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        self.open = Some(self.open()?);
        Ok(())
    }

    fn try_write(&mut self, line: &str) -> io::Result<()> {
        if !self.is_still_there() {
            self.reopen()?;
        }
        let mut file = self.open.as_ref().ok_or(ErrorKind::NotFound)?;
        match file.write(line.as_bytes())? {
            length if length == line.len() => Ok(()),
            _ => Err(ErrorKind::WriteZero.into()),
        }
    }

    /// Whether the path still names what is open: somebody may have made another.
    fn is_still_there(&self) -> bool {
        let same = |file: &File| {
            let (open, named) = (file.metadata().ok()?, fs::metadata(&self.path).ok()?);
            Some((open.dev(), open.ino()) == (named.dev(), named.ino()))
        };
        self.open.as_ref().and_then(same).unwrap_or(false)
    }

    /// For reading as well: then it opens without a reader, and keeps what was
    /// written until there is one.
    fn open(&self) -> io::Result<File> {
        let not_one = || io::Error::other("there is something else than a FIFO");
        match fs::symlink_metadata(&self.path) {
            Ok(found) if found.file_type().is_fifo() => {}
            Ok(_) => return Err(not_one()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                mkfifo(&self.path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            }
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&self.path)?;
        if file.metadata()?.file_type().is_fifo() {
            Ok(file)
        } else {
            Err(not_one())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::daemon::testing::Directory;

    #[test]
    fn it_is_made_and_keeps_lines_for_a_reader_that_comes_later() {
        let directory = Directory::new("fifo-late");
        let path = directory.0.join("vrrp.fifo");
        let mut fifo = Fifo::new(path.clone());
        assert_eq!(fifo.write("one\n"), Wrote::Line);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fifo.write("two\n"), Wrote::Line);
        let mut read = [0; 8];
        File::open(&path).unwrap().read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one\ntwo\n");
    }

    #[test]
    fn when_nobody_reads_lines_are_dropped_and_never_waited_for() {
        let directory = Directory::new("fifo-full");
        let path = directory.0.join("vrrp.fifo");
        let mut fifo = Fifo::new(path.clone());
        // More than any pipe holds by default (64 KiB).
        let results: Vec<_> = (0..200).map(|_| fifo.write(&"x".repeat(4096))).collect();
        assert_eq!(results.first(), Some(&Wrote::Line));
        assert_eq!(results.last(), Some(&Wrote::Nothing));
        assert!(fifo.told);
        // A reader makes room.
        let mut reader = File::open(&path).unwrap();
        reader.read_exact(&mut [0; 4096]).unwrap();
        assert_eq!(fifo.write("again\n"), Wrote::Line);
        assert!(!fifo.told);
    }

    #[test]
    fn another_one_in_its_place_is_found_and_anything_else_refused() {
        let directory = Directory::new("fifo-else");
        let path = directory.0.join("vrrp.fifo");
        let mut fifo = Fifo::new(path.clone());
        assert_eq!(fifo.write("one\n"), Wrote::Line);
        fs::remove_file(&path).unwrap();
        assert_eq!(fifo.write("two\n"), Wrote::Line);
        let mut read = [0; 4];
        File::open(&path).unwrap().read_exact(&mut read).unwrap();
        assert_eq!(&read, b"two\n");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(fifo.write("three\n"), Wrote::Failed);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = directory.0.join("missing/vrrp.fifo");
        assert_eq!(Fifo::new(nowhere).write("four\n"), Wrote::Failed);
    }
}
