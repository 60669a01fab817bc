//! bpf(2) where aya has no wrapper.

use std::io;

/// Runs a command; what the kernel returns.
///
/// `attributes` is a `repr(C)` beginning of the kernel's `union bpf_attr`
/// whose pointers are to live memory of the lengths that the command takes.
pub(crate) fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let attributes = std::ptr::from_mut(attributes);
    // SAFETY: the kernel reads and writes the attributes, which are as large as
    // said, and what they point to, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
