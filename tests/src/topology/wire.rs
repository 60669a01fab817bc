//! Far ends of veths that behave as a wire.
//!
//! A veth in native mode puts what XDP_TX sends into its peer's queue, but
//! wakes the peer only if that has an XDP program, too; without one a frame
//! waits until something else wakes it. So the far ends get one that passes
//! everything on.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::{Port, Topology};
use crate::bpf;

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const DRIVER_MODE: u32 = 1 << 2;
/// The program takes frames in several buffers, so the MTU may be large.
const HAS_FRAGS: u64 = 1 << 5;

/// `mov w0, XDP_PASS; exit`
const PASS: [u64; 2] = [0x0000_0002_0000_00b4, 0x0000_0000_0000_0095];

/// The beginning of the kernel's `union bpf_attr` for a load.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    rest: [u64; 16],
}

/// The beginning of the kernel's `union bpf_attr` for a link.
#[repr(C)]
struct Link {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 4],
}

/// Programs on the far ends; taken off on drop.
#[derive(Debug)]
pub struct Wires(#[allow(dead_code, reason = "held for its drop")] Vec<OwnedFd>);

impl Topology {
    /// Makes the far ends of the balancer's links behave as a wire. Not for
    /// [`super::Offloads::On`]: what the balancer's kernel sends loses its
    /// unfinished checksums there.
    pub fn wire_balancer(&self) -> Result<Wires> {
        let program = pass_program().context("loading an XDP program")?;
        let links = self.balancer_ports.iter().map(|port| {
            attach(&program, port).with_context(|| format!("an XDP program on {}", port.interface))
        });
        Ok(Wires(links.collect::<Result<_>>()?))
    }
}

impl Port {
    /// As [`Topology::wire_balancer`], for one far end.
    pub fn wire(&self) -> Result<Wires> {
        let program = pass_program().context("loading an XDP program")?;
        Ok(Wires(vec![attach(&program, self)?]))
    }
}

fn pass_program() -> io::Result<OwnedFd> {
    let load = Load {
        program_type: PROG_TYPE_XDP,
        instructions: 2,
        code: PASS.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        // The flags are the upper half of the third word.
        rest: {
            let mut rest = [0; 16];
            rest[2] = HAS_FRAGS << 32;
            rest
        },
    };
    descriptor(PROG_LOAD, load)
}

fn attach(program: &OwnedFd, port: &Port) -> Result<OwnedFd> {
    let name = CString::new(port.interface.as_str())?;
    port.ns
        .run(|| {
            // SAFETY: a valid C string, which the call only reads.
            let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
            if ifindex == 0 {
                return Err(io::Error::last_os_error());
            }
            let link = Link {
                program: program.as_raw_fd().cast_unsigned(),
                ifindex,
                attach_type: ATTACH_TYPE_XDP,
                flags: DRIVER_MODE,
                rest: [0; 4],
            };
            descriptor(LINK_CREATE, link)
        })?
        .map_err(Into::into)
}

/// bpf(2) of a command that returns a descriptor.
fn descriptor<T>(command: libc::c_int, mut attributes: T) -> io::Result<OwnedFd> {
    let fd = bpf::call(command, &mut attributes)?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}
