//! Attaches the program to interfaces, and keeps it there.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    bpf,
    error::{Kind, PlaneError},
    links,
};
use crate::model::{Interface, Model, XdpMode};

/// An interface with the program on it. Dropping it leaves the pin.
#[derive(Debug)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Why it isn't native, where that was tried.
    pub fallback_reason: Option<String>,
    /// Whether the program replaced a running one.
    pub adopted: bool,
    pin: PathBuf,
    _link: OwnedFd,
}

impl Attached {
    /// Removes the pin, and with the last descriptor the attachment.
    pub(super) fn undo(self) {
        if let Err(e) = fs::remove_file(&self.pin) {
            tracing::warn!("{}: {e}", self.pin.display());
        }
    }
}

const PREFIX: &str = "link-";

/// Pins of links in a directory, with the index of their interface.
pub(super) fn pinned_links(dir: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut links: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let index = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
            Some((index.parse().ok()?, path))
        })
        .collect();
    links.sort();
    links
}

/// The interfaces of a configuration, each once, with the interfaces below VLAN
/// devices in the place of these.
///
/// # Errors
/// There is no such interface, or two names of one disagree about the mode.
pub(super) fn ports(model: &Model) -> Result<Vec<Interface>, PlaneError> {
    let mut ports: Vec<Interface> = Vec::new();
    for interface in &model.interfaces {
        let name = &interface.name;
        let (port, _) = links::port_of(name).map_err(|e| match e.raw_os_error() {
            Some(libc::ENODEV) => no_interface(name),
            _ => refusal(name, "asking what it is on", &e),
        })?;
        match ports.iter().find(|p| p.name == port) {
            Some(other) if other.xdp != interface.xdp => {
                return Err(Kind::Attach {
                    interface: name.clone(),
                    mode: "one".into(),
                    reason: format!("it is on {port}, for which another `xdp` mode is configured"),
                }
                .remedy(
                    "give all VLANs of one interface, and the interface, the same `xdp` mode",
                ));
            }
            Some(_) => {}
            None => ports.push(Interface {
                name: port,
                xdp: interface.xdp,
            }),
        }
    }
    Ok(ports)
}

fn no_interface(name: &str) -> PlaneError {
    Kind::NoInterface { name: name.into() }
        .remedy("`ip link` lists what there is; check `interfaces` in the configuration")
}

/// Puts the program on an interface: in the place of the one that our pinned
/// link has there, or anew.
///
/// # Errors
/// There is no such interface, another program is on it, or the kernel refuses.
pub(super) fn attach(
    interface: &Interface,
    program: BorrowedFd<'_>,
    dir: &Path,
) -> Result<Attached, PlaneError> {
    let name = interface.name.clone();
    let Some(ifindex) = links::ifindex(&name) else {
        return Err(no_interface(&name));
    };
    let pin = dir.join(format!("{PREFIX}{ifindex}"));
    if let Some(link) = adopt(&pin, program, interface)? {
        return Ok(Attached {
            name,
            ifindex,
            fallback_reason: None,
            adopted: true,
            pin,
            _link: link,
        });
    }
    refuse_strangers(&name, ifindex)?;
    let (link, fallback_reason) = create(interface, ifindex, program)?;
    if let Err(e) = bpf::pin(link.as_fd(), &pin) {
        return Err(Kind::File {
            what: "pinning the link as",
            path: pin,
            source: e,
        }
        .into());
    }
    Ok(Attached {
        name,
        ifindex,
        fallback_reason,
        adopted: false,
        pin,
        _link: link,
    })
}

/// The pinned link with its program replaced, if there is one that lives and
/// is of the wanted mode.
fn adopt(
    pin: &Path,
    program: BorrowedFd<'_>,
    interface: &Interface,
) -> Result<Option<OwnedFd>, PlaneError> {
    let link = match bpf::open_pin(pin) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(Kind::File {
                what: "pinned link",
                path: pin.to_owned(),
                source: e,
            }
            .into());
        }
    };
    match bpf::update_link(link.as_fd(), program) {
        Ok(()) => Ok(Some(link)),
        // The interface went away, and another one has got its index.
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {
            let _ = fs::remove_file(pin);
            Ok(None)
        }
        Err(e) => Err(refusal(
            &interface.name,
            "replacing the running program",
            &e,
        )),
    }
}

fn refuse_strangers(name: &str, ifindex: u32) -> Result<(), PlaneError> {
    let present = links::xdp_on(ifindex).map_err(|e| refusal(name, "asking for XDP", &e))?;
    let Some(present) = present else {
        return Ok(());
    };
    let owner = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|p| p.id() == present.program)
        .and_then(|p| p.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "without a name".into());
    Err(Kind::OtherProgram {
        interface: name.to_owned(),
        program: format!("id {} ({owner}), {}", present.program, present.mode),
    }
    .remedy(format!(
        "stop its owner, or remove it (`ip link set {name} xdp off`); \
         if it is an earlier lbctl with another pin_dir, run `lbctl detach` for that"
    )))
}

fn create(
    interface: &Interface,
    ifindex: u32,
    program: BorrowedFd<'_>,
) -> Result<(OwnedFd, Option<String>), PlaneError> {
    let name = &interface.name;
    let generic = || {
        bpf::create_xdp_link(program, ifindex, bpf::XDP_FLAGS_SKB_MODE)
            .map_err(|e| refusal(name, "generic", &e))
    };
    if interface.xdp == XdpMode::Generic {
        return Ok((generic()?, None));
    }
    match bpf::create_xdp_link(program, ifindex, bpf::XDP_FLAGS_DRV_MODE) {
        Ok(link) => Ok((link, None)),
        Err(e) if interface.xdp == XdpMode::Native || is_final(&e) => {
            Err(refusal(name, "native", &e))
        }
        Err(e) => {
            let reason = native_reason(&e);
            tracing::warn!(
                "{name}: no native XDP ({reason}); attached in generic mode, which is slower"
            );
            Ok((generic()?, Some(reason)))
        }
    }
}

/// Whether generic mode would meet the same.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EBUSY | libc::EEXIST | libc::ENODEV)
    )
}

fn native_reason(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "; its driver has no XDP",
        Some(libc::ERANGE) => "; its MTU is too large for XDP in this driver",
        Some(libc::ENOSPC) => "; it has too few queues",
        Some(libc::EINVAL) => {
            "; the driver doesn't accept the program with the present MTU or offloads (GRO-HW, LRO)"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

fn refusal(interface: &str, mode: &str, error: &io::Error) -> PlaneError {
    let kind = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            return Kind::NotPermitted {
                call: format!("attaching to {interface}"),
                source: io::Error::from_raw_os_error(libc::EPERM),
            }
            .remedy("run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
        }
        _ => Kind::Attach {
            interface: interface.to_owned(),
            mode: mode.to_owned(),
            reason: native_reason(error),
        },
    };
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => kind.remedy(format!(
            "another program is on the interface; `ip link show {interface}` names it"
        )),
        _ if mode == "native" => {
            kind.remedy("set `xdp: auto` or `xdp: generic` for this interface")
        }
        _ => kind.into(),
    }
}

/// Takes the program off interfaces that aren't configured any more.
pub(super) fn release_others(dir: &Path, attached: &[Attached]) {
    for (ifindex, pin) in pinned_links(dir) {
        if attached.iter().any(|a| a.ifindex == ifindex) {
            continue;
        }
        let name = links::ifname(ifindex).unwrap_or_else(|| format!("index {ifindex}"));
        match fs::remove_file(&pin) {
            Ok(()) => tracing::info!("{name}: not configured any more, detached"),
            Err(e) => tracing::warn!("{}: {e}", pin.display()),
        }
    }
}
