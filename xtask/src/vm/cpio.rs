//! Archives that the kernel unpacks as its first file system (cpio in the
//! "newc" format; Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fmt::Write as _;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const END: &str = "TRAILER!!!";

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: Vec<String>,
}

impl Archive {
    /// Adds a file that may be executed, and the directories it is in. `path`
    /// starts at the root, without a slash.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        for (at, _) in path.match_indices('/') {
            let directory = &path[..at];
            if !self.directories.iter().any(|known| known == directory) {
                self.directories.push(directory.to_owned());
                self.entry(directory, DIRECTORY, &[]);
            }
        }
        self.entry(path, PROGRAM, content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(END, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let mut header = String::from("070701");
        let (size, name_size) = (content.len(), path.len() + 1);
        let fields: [usize; 13] = [
            self.entries as usize,
            mode as usize,
            0, // user
            0, // group
            1, // links
            0, // time
            size,
            0, // device
            0,
            0, // device of a special file
            0,
            name_size,
            0, // checksum, of another format
        ];
        for field in fields {
            // Writing to a string can't fail.
            let _ = write!(header, "{field:08X}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file("a/b/one", b"1");
        archive.file("a/two", b"");
        let text = String::from_utf8(archive.finish()).unwrap();
        let at = |name: &str| {
            let name = format!("{name}\0");
            let places: Vec<_> = text.match_indices(&name).map(|(at, _)| at).collect();
            places
        };
        assert_eq!(at("a").len(), 1);
        assert_eq!(at("a/b").len(), 1);
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/one"));
        assert!(at("a/b/one") < at("a/two") && at("a/two") < at(END));
    }

    #[test]
    fn every_entry_stands_on_a_multiple_of_four() {
        let mut archive = Archive::default();
        for length in 0..9 {
            archive.file(&"n".repeat(length + 1), &vec![b'x'; length]);
        }
        let bytes = archive.finish();
        let text = String::from_utf8(bytes).unwrap();
        let headers: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 10);
        assert!(headers.iter().all(|at| at % 4 == 0), "{headers:?}");
        assert_eq!(text.len() % 4, 0);
    }
}
