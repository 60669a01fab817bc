//! Offloads of network cards, through ethtool's ioctl: above all whether a card
//! takes VLAN tags off the frames it receives, the feature `rxvlan` of ethtool(8).

use std::{
    ffi::{CStr, c_char},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// ETHTOOL_STXCSUM: checksums of packets that are sent.
pub(super) const SET_TX_CHECKSUM: u32 = 0x17;
/// ETHTOOL_SGRO: packets that are received are put together.
pub(super) const SET_GRO: u32 = 0x2c;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
/// ETH_FLAG_RXVLAN of linux/ethtool.h.
const RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The key of this setting of an interface.
pub fn key(interface: &str) -> String {
    format!("ethtool/{interface}/rxvlan")
}

/// The interface of such a key.
pub fn of_key(key: &str) -> Option<&str> {
    key.strip_prefix("ethtool/")?.strip_suffix("/rxvlan")
}

/// As ethtool writes it.
pub const fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Name of an interface by its index.
pub fn name_of(ifindex: u32) -> Option<String> {
    let mut name: [c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: room for the longest name and its zero.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the kernel wrote a name and its zero.
    let name = unsafe { CStr::from_ptr(found) };
    Some(name.to_string_lossy().into_owned())
}

/// Whether it is on; `None` where there is no such interface or its driver
/// doesn't know the feature.
pub fn is_on(interface: &str) -> io::Result<Option<bool>> {
    match call(interface, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => Ok(Some(flags & RXVLAN != 0)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Switches it on or off.
pub fn set(interface: &str, on: bool) -> io::Result<()> {
    let flags = call(interface, ETHTOOL_GFLAGS, 0)?;
    let flags = if on { flags | RXVLAN } else { flags & !RXVLAN };
    call(interface, ETHTOOL_SFLAGS, flags)?;
    // A driver for which it is fixed takes the call and does nothing.
    if is_on(interface)? == Some(on) {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "the driver doesn't let it be switched {}",
            word(on)
        )))
    }
}

/// A command of ethtool's that reads or sets one number.
pub(super) fn call(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    // SAFETY: no preconditions.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut value = Value { command, data };
    // SAFETY: plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .take(room)
        .zip(interface.bytes())
    {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request points at a value of the type that these commands
    // read and write, and both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data)
}
