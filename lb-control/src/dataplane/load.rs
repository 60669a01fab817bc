//! Loads the data path, or adopts the one that runs.

use std::{
    fs,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::abi::{ABI_VERSION, ClockReading, map, program};

use super::{
    attach::{self, Attached},
    aya_maps::{self, AyaMaps, NeighbourRing},
    bpf, bpffs, clock,
    error::{Kind, PlaneError, chain, os_error},
    object::DATA_PATH,
    probes::ProbePorts,
    shape,
    state::Capacity,
    store::MapStore as _,
};
use crate::model::{Dataplane, Model};

/// A data path that is loaded and attached.
pub(super) struct Loaded {
    pub(super) maps: AyaMaps,
    pub(super) attached: Vec<Attached>,
    pub(super) hz: u32,
    pub(super) adopted: bool,
    pub(super) verified_instructions: Option<u32>,
    pub(super) neighbour_requests: Option<NeighbourRing>,
    pub(super) probe_ports: ProbePorts,
    /// The program on the probes' device, for as long as this lives.
    pub(super) probe_link: Option<OwnedFd>,
    pub(super) ebpf: Ebpf,
}

/// Loads the program against new or pinned maps and puts it on the interfaces.
/// What was new is removed again if anything fails.
pub(super) fn open(model: &Model) -> Result<Loaded, PlaneError> {
    let dir = &model.dataplane.pin_dir;
    bpffs::prepare(dir)?;
    let adopted = is_running(dir)?;
    let capacity = Capacity::of(&model.dataplane);
    if adopted {
        shape::check(dir, capacity)?;
    }
    let opened = load(model, capacity, adopted).and_then(|mut loaded| {
        attach_all(model, &mut loaded)?;
        Ok(loaded)
    });
    if opened.is_err() && !adopted {
        remove_pins(dir);
    }
    opened
}

/// Whether the directory holds a data path of this layout. What an interrupted
/// first start left there is removed.
fn is_running(dir: &Path) -> Result<bool, PlaneError> {
    let path = dir.join(map::ABI);
    if !path.exists() {
        return Ok(false);
    }
    let unreadable = |error: String| Kind::File {
        what: "pinned map",
        path: path.clone(),
        source: io::Error::other(error),
    };
    let version = aya_maps::pinned_abi_version(&path).map_err(unreadable)?;
    if version == 0 && attach::pinned_links(dir).is_empty() {
        remove_pins(dir);
        return Ok(false);
    }
    shape::check_version(dir, version)?;
    Ok(true)
}

fn load(model: &Model, capacity: Capacity, adopted: bool) -> Result<Loaded, PlaneError> {
    let dataplane = &model.dataplane;
    let level: u8 = if dataplane.debug_log { 4 } else { 0 };
    let sizes = shape::sizes(capacity);
    let mut loader = EbpfLoader::new();
    loader
        .default_map_pin_directory(&dataplane.pin_dir)
        .override_global(aya_log::LEVEL, &level, false);
    for (name, entries) in &sizes {
        loader.map_max_entries(name, *entries);
    }
    let mut ebpf = loader.load(DATA_PATH).map_err(|e| refused("maps", &e))?;
    let mut verified_instructions = Some(0);
    let mut tails = Vec::new();
    let entries = [program::LB, program::CLOCK, program::PROBE];
    for name in entries.iter().chain(&program::TAILS) {
        let program = xdp(&mut ebpf, name)?;
        verified(program).map_err(|e| refused("program", &e))?;
        let verified = program.info().ok();
        verified_instructions = verified
            .and_then(|info| info.verified_instruction_count())
            .zip(verified_instructions)
            .map(|(one, sum)| one + sum);
        if program::TAILS.contains(name) {
            let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?));
            tails.push(fd.map_err(|e| refused("program", &e))?);
        }
    }
    aya_maps::set_programs(&mut ebpf, &tails)?;
    let mut maps = AyaMaps::open(&mut ebpf, capacity)?;
    let neighbour_requests = Some(NeighbourRing::take(&mut ebpf)?);
    let probe_ports = ProbePorts::new(aya_maps::probes(&mut ebpf)?);
    set_key(dataplane, &mut maps, adopted)?;
    let hz = calibrate(&mut ebpf, &maps)?;
    if !adopted {
        maps.set_abi_version(ABI_VERSION)?;
    }
    Ok(Loaded {
        maps,
        attached: Vec::new(),
        hz,
        adopted,
        verified_instructions,
        neighbour_requests,
        probe_ports,
        probe_link: None,
        ebpf,
    })
}

/// Has the kernel verify and take a program. It gives up with EAGAIN when a
/// signal arrives meanwhile.
fn verified(program: &mut Xdp) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 20;
    let mut attempt = 1;
    loop {
        match program.load() {
            Err(error) if attempt < ATTEMPTS && os_error(&error) == Some(libc::EAGAIN) => {
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, PlaneError> {
    let missing = || Kind::Load {
        what: format!("program {name}"),
        reason: "not in the object".into(),
    };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    Ok(program.try_into().map_err(|_| missing())?)
}

fn refused(what: &str, error: &(dyn std::error::Error + 'static)) -> PlaneError {
    let reason = chain(error);
    let kind = Kind::Load {
        what: what.to_owned(),
        reason,
    };
    match os_error(error) {
        Some(libc::EPERM) => Kind::NotPermitted {
            call: format!("loading the {what}"),
            source: io::Error::from_raw_os_error(libc::EPERM),
        }
        .remedy("run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; some kernels forbid BPF in containers"),
        Some(libc::ENOSYS) => kind.remedy("the kernel has no BPF; Linux 6.1 or newer is needed"),
        Some(libc::ENOMEM) => {
            kind.remedy("lower max_flows, max_slots or max_members in `dataplane`, or free memory")
        }
        _ => kind.remedy("Linux 6.1 or newer is needed"),
    }
}

/// The flow hash's key: kept with running maps, else from the file or random.
fn set_key(dataplane: &Dataplane, maps: &mut AyaMaps, adopted: bool) -> Result<(), PlaneError> {
    let mut config = maps.config();
    let wanted = dataplane
        .hash_secret_file
        .as_deref()
        .map(read_key)
        .transpose()?;
    if adopted {
        return match (wanted, &dataplane.hash_secret_file) {
            (Some(key), Some(path)) if key != config.hash_key => {
                Err(Kind::SecretChanged { path: path.clone() }.remedy(
                    "restore the key, or run `lbctl detach` first, which ends the running data path and its flows",
                ))
            }
            _ => Ok(()),
        };
    }
    config.hash_key = match wanted {
        Some(key) => key,
        None => random_key()?,
    };
    Ok(maps.set_config(&config)?)
}

fn read_key(path: &Path) -> Result<[u64; 2], PlaneError> {
    let wrong = |reason: String| Kind::Secret {
        path: path.to_owned(),
        reason,
    };
    let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    parse_key(&text).ok_or_else(|| {
        wrong("not a key".into()).remedy(
            "it has to be 32 hexadecimal digits, as `head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'` makes them",
        )
    })
}

/// 32 hexadecimal digits as SipHash's two little-endian words.
fn parse_key(text: &str) -> Option<[u64; 2]> {
    let text = text.trim();
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let word = |half: &str| u64::from_str_radix(half, 16).ok().map(u64::swap_bytes);
    let (first, second) = text.split_at_checked(16)?;
    Some([word(first)?, word(second)?])
}

fn random_key() -> Result<[u64; 2], PlaneError> {
    let path = PathBuf::from("/dev/urandom");
    let mut bytes = [[0u8; 8]; 2];
    let read = fs::File::open(&path).and_then(|mut f| f.read_exact(bytes.as_flattened_mut()));
    read.map_err(|source| Kind::File {
        what: "reading",
        path,
        source,
    })?;
    Ok(bytes.map(u64::from_le_bytes))
}

/// Reads the kernel's clock.
pub(super) fn read_clock(ebpf: &mut Ebpf, maps: &AyaMaps) -> Result<ClockReading, PlaneError> {
    let frame = [0u8; 64];
    let options = TestRunOptions {
        data_in: Some(&frame),
        ..TestRunOptions::default()
    };
    xdp(ebpf, program::CLOCK)?
        .test_run(options)
        .map_err(|e| Kind::Clock { reason: chain(&e) })?;
    Ok(maps.clock())
}

fn calibrate(ebpf: &mut Ebpf, maps: &AyaMaps) -> Result<u32, PlaneError> {
    clock::calibrate(|| read_clock(ebpf, maps))?.ok_or_else(|| {
        Kind::Clock {
            reason: "jiffies stand still".into(),
        }
        .into()
    })
}

fn attach_all(model: &Model, loaded: &mut Loaded) -> Result<(), PlaneError> {
    let dir = &model.dataplane.pin_dir;
    let mut attached = Vec::new();
    for interface in &attach::ports(model)? {
        let fd = xdp(&mut loaded.ebpf, program::LB)?
            .fd()
            .map_err(|e| refused("program", &e))?
            .try_clone()
            .map_err(|e| refused("program", &e))?;
        match attach::attach(interface, fd.as_fd(), dir) {
            Ok(link) => attached.push(link),
            Err(error) => {
                attached
                    .into_iter()
                    .filter(|a: &Attached| !a.adopted)
                    .for_each(Attached::undo);
                return Err(error);
            }
        }
    }
    attach::release_others(dir, &attached);
    loaded.attached = attached;
    Ok(())
}

/// Puts the program for probes on the device that they come in by. Not pinned:
/// without this process there are no probes.
pub(super) fn attach_probes(loaded: &mut Loaded, ifindex: u32) -> Result<(), PlaneError> {
    let program = xdp(&mut loaded.ebpf, program::PROBE)?;
    let fd = program.fd().map_err(|e| refused("program", &e))?;
    // Veths have the native mode, too, but not towards every kind of interface.
    let link = bpf::create_xdp_link(fd.as_fd(), ifindex, bpf::XDP_FLAGS_SKB_MODE);
    loaded.probe_link = Some(link.map_err(|e| refused("program for probes", &e))?);
    Ok(())
}

/// Removes all pins and the directory; returns what was removed.
pub(super) fn remove_pins(dir: &Path) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    // Links first, so that no packet meets a program whose maps vanish.
    let links: Vec<PathBuf> = attach::pinned_links(dir)
        .into_iter()
        .map(|(_, path)| path)
        .collect();
    let others = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        (path.is_file() && !links.contains(&path)).then_some(path)
    });
    let others: Vec<PathBuf> = others.collect();
    for path in links.into_iter().chain(others) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(e) => tracing::warn!("{}: {e}", path.display()),
        }
    }
    if fs::remove_dir(dir).is_ok() {
        removed.push(dir.to_owned());
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_siphash_does_its_sixteen_bytes() {
        let key = parse_key("000102030405060708090a0b0c0d0e0f\n");
        assert_eq!(key, Some([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]));
        assert_eq!(parse_key("0001"), None);
        assert_eq!(parse_key(&"+f".repeat(16)), None);
    }
}
