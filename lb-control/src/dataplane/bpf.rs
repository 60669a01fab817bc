//! The few bpf(2) calls that aya has no wrapper for, or whose wrapper hides
//! what the operator needs to know.
//!
//! aya's XDP attach falls back to netlink without a word where the kernel
//! refuses a link; such an attachment can't be pinned and would end with the
//! daemon. So links are made here, and a refusal is a refusal.

use aya::Pod;
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// Commands of enum bpf_cmd, uapi/linux/bpf.h.
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// `BPF_XDP` of enum bpf_attach_type.
const ATTACH_XDP: u32 = 37;

/// Flags of an XDP attachment (uapi/linux/if_link.h).
pub(super) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// See [`XDP_FLAGS_SKB_MODE`].
pub(super) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a `repr(C)` prefix of `union bpf_attr` with its
    // size beside it; all pointers in it are to live memory of the lengths it
    // states (each caller below).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Attaches an XDP program to an interface; the attachment lives as long as
/// the descriptor or a pin of it.
pub(super) fn create_xdp_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: i32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    bpf(
        LINK_CREATE,
        &mut Attributes {
            program: program.as_raw_fd(),
            ifindex,
            attach_type: ATTACH_XDP,
            flags,
        },
    )
    .map(owned)
}

/// Replaces the program of a link, atomically for packets.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: i32,
        program: i32,
        flags: u32,
        old_program: u32,
    }
    bpf(
        LINK_UPDATE,
        &mut Attributes {
            link: link.as_raw_fd(),
            program: program.as_raw_fd(),
            flags: 0,
            old_program: 0,
        },
    )
    .map(|_| ())
}

#[repr(C)]
struct ObjectAttributes {
    path: u64,
    fd: i32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins an object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(
        OBJ_PIN,
        &mut ObjectAttributes {
            path: path.as_ptr() as u64,
            fd: object.as_raw_fd(),
            flags: 0,
        },
    )
    .map(|_| ())
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf(
        OBJ_GET,
        &mut ObjectAttributes {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )
    .map(owned)
}

/// Attributes of the calls that read many entries.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: i32,
    elem_flags: u64,
    flags: u64,
}

/// Keys and values of a hash map with room for `capacity`, in one call. Entries
/// that come or go meanwhile may be there or not.
pub(super) fn read_hash<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    capacity: u32,
) -> io::Result<Vec<(K, V)>> {
    let mut keys = vec![K::default(); capacity as usize];
    let mut values = vec![V::default(); capacity as usize];
    let mut next = 0u32;
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: capacity,
        map: map.as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    match bpf(MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(_) => {}
        // The end of the map.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    let found = attributes.count.min(capacity) as usize;
    Ok(keys.into_iter().zip(values).take(found).collect())
}

/// The first `count` values of an array map in as few calls as the kernel
/// needs; `words_per_value` is that of one entry, over all CPUs.
pub(super) fn read_array(
    map: BorrowedFd<'_>,
    count: u32,
    words_per_value: usize,
) -> io::Result<Vec<u64>> {
    let mut values = vec![0u64; count as usize * words_per_value];
    let mut keys = vec![0u32; count as usize];
    let (mut cursor, mut done) = (0u32, 0u32);
    while done < count {
        let mut next = 0u32;
        let mut attributes = BatchAttributes {
            in_batch: if done == 0 {
                0
            } else {
                std::ptr::from_ref(&cursor) as u64
            },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys
                .get_mut(done as usize..)
                .map_or(0, |k| k.as_mut_ptr() as u64),
            values: values
                .get_mut(done as usize * words_per_value..)
                .map_or(0, |v| v.as_mut_ptr() as u64),
            count: count - done,
            map: map.as_raw_fd(),
            elem_flags: 0,
            flags: 0,
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut attributes);
        done += attributes.count.min(count - done);
        cursor = next;
        match result {
            Ok(_) if attributes.count > 0 => {}
            Ok(_) => break,
            // The end of the map.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(values)
}
