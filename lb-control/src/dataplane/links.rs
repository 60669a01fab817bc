//! What the kernel says of XDP on an interface.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// On the network card.
    Offload,
    /// Several programs in several ways.
    Multiple,
}

impl std::fmt::Display for AttachedMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
            Self::Multiple => "multiple",
        })
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// How.
    pub mode: AttachedMode,
    /// Its id.
    pub program: u32,
}

/// Index of an interface by name.
pub fn ifindex(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a string with its zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Name of an interface by index.
pub fn ifname(index: u32) -> Option<String> {
    let mut name: [libc::c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: room for the longest name and its zero.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the kernel wrote a name and its zero.
    Some(
        unsafe { CStr::from_ptr(found) }
            .to_string_lossy()
            .into_owned(),
    )
}

const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
/// VLAN tags that the data path reads.
const MOST_VLANS: usize = 2;
const NLMSG_HEADER: usize = 16;
const IFINFOMSG: usize = 16;

/// The XDP program on an interface, by netlink.
pub fn xdp_on(ifindex: u32) -> io::Result<Option<AttachedXdp>> {
    let answer = get_link(ifindex)?;
    let kind = answer.get(4..6).and_then(u16_of).unwrap_or(0);
    if kind == NLMSG_ERROR {
        let code = answer.get(16..20).and_then(u32_of).unwrap_or(0) as i32;
        return Err(io::Error::from_raw_os_error(-code));
    }
    let attributes = answer.get(NLMSG_HEADER + IFINFOMSG..).unwrap_or(&[]);
    Ok(attribute(attributes, IFLA_XDP).and_then(parse))
}

fn parse(nested: &[u8]) -> Option<AttachedXdp> {
    let mode = match attribute(nested, IFLA_XDP_ATTACHED)?.first()? {
        1 => AttachedMode::Native,
        2 => AttachedMode::Generic,
        3 => AttachedMode::Offload,
        4 => AttachedMode::Multiple,
        _ => return None,
    };
    let program = attribute(nested, IFLA_XDP_PROG_ID)
        .or_else(|| attribute(nested, IFLA_XDP_DRV_PROG_ID))
        .and_then(u32_of)?;
    Some(AttachedXdp { mode, program })
}

/// The interface that a name stands for in the data path: itself, or the one
/// below a VLAN device, whose packets pass there with tags. Name and index.
pub fn port_of(name: &str) -> io::Result<(String, u32)> {
    let mut port = ifindex(name).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    // Deeper than the data path looks at tags; `attach` refuses what is left.
    for _ in 0..MOST_VLANS {
        match vlan_parent(port)? {
            Some(parent) => port = parent,
            None => break,
        }
    }
    if vlan_parent(port)?.is_some() {
        return Err(io::Error::other(
            "it is a VLAN in more than two VLANs; at most two tags are supported",
        ));
    }
    let name = ifname(port).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    Ok((name, port))
}

/// Index of the device that a VLAN device is on.
fn vlan_parent(ifindex: u32) -> io::Result<Option<u32>> {
    let answer = get_link(ifindex)?;
    let attributes = answer.get(NLMSG_HEADER + IFINFOMSG..).unwrap_or(&[]);
    let kind = attribute(attributes, IFLA_LINKINFO).and_then(|i| attribute(i, IFLA_INFO_KIND));
    // With or without its zero.
    let is_vlan = kind.is_some_and(|kind| kind.strip_suffix(b"\0").unwrap_or(kind) == b"vlan");
    Ok(attribute(attributes, IFLA_LINK)
        .and_then(u32_of)
        .filter(|_| is_vlan))
}

/// The payload of the first attribute of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(attributes.get(..2).and_then(u16_of)?);
        let found = attributes.get(2..4).and_then(u16_of)? & 0x3fff;
        let payload = attributes.get(4..length)?;
        if found == kind {
            return Some(payload);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?))
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn get_link(ifindex: u32) -> io::Result<Vec<u8>> {
    // SAFETY: no preconditions.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = [0u8; NLMSG_HEADER + IFINFOMSG];
    let fields: [(usize, &[u8]); 4] = [
        (0, &((NLMSG_HEADER + IFINFOMSG) as u32).to_ne_bytes()),
        (4, &RTM_GETLINK.to_ne_bytes()),
        (6, &NLM_F_REQUEST.to_ne_bytes()),
        (NLMSG_HEADER + 4, &ifindex.to_ne_bytes()),
    ];
    for (at, bytes) in fields {
        for (to, from) in request.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    // SAFETY: `request` is as long as stated.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; 65_536];
    // SAFETY: `answer` is as long as stated.
    let received = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            answer.as_mut_ptr().cast(),
            answer.len(),
            0,
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    answer.truncate(received as usize);
    Ok(answer)
}
