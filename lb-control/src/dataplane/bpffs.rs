//! The BPF file system and the directory of the pins.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::error::{Kind, PlaneError};

/// Where distributions mount it.
const USUAL: &str = "/sys/fs/bpf";

/// Whether a path is in a BPF file system.
fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: all zeros is a value of this plain structure.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string with its zero, and room for the answer.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.f_type == libc::BPF_FS_MAGIC as libc::__fsword_t)
}

fn mount(at: &Path) -> io::Result<()> {
    let target = CString::new(at.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: strings with their zeros; no data.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes sure that `dir` exists in a BPF file system; mounts one at
/// `/sys/fs/bpf` where `dir` is below that and there is none.
pub(super) fn prepare(dir: &Path) -> Result<(), PlaneError> {
    let refused = |reason: String| {
        Kind::NoBpfFs {
            path: dir.to_owned(),
            reason,
        }
        .remedy("mount one (`mount -t bpf bpf DIR`) and set dataplane.pin_dir to a directory in it")
    };
    if dir
        .file_name()
        .is_none_or(|name| name.as_bytes().contains(&b'.'))
    {
        return Err(refused(
            "names in a BPF file system have no dots, and the directory needs a name".into(),
        ));
    }
    let existing = nearest_existing(dir);
    if !is_bpffs(&existing).map_err(|e| refused(e.to_string()))? {
        let usual = Path::new(USUAL);
        if !dir.starts_with(usual) || !usual.is_dir() {
            return Err(refused(format!(
                "{} is on another file system",
                existing.display()
            )));
        }
        mount(usual).map_err(|e| refused(format!("mount at {USUAL}: {e}")))?;
        tracing::info!("mounted a BPF file system at {USUAL}: there was none");
    }
    fs::create_dir_all(dir).map_err(|e| refused(e.to_string()))
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}
