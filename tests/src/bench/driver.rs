//! Runs a program on one flow after the other: a wrapper in BPF writes the
//! whole frame anew before every run and goes on as the program by a tail call.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunOptions, VerifierLogLevel,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, TestRun as _, Xdp},
};

use super::layout::{Drive, FRAME, name};
use crate::program::action;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-bench-ebpf"));

// SAFETY: `repr(C)` over integers without padding.
unsafe impl aya::Pod for Drive {}

/// Loads the benchmark's object with room for `flows` in the comparison's
/// table, and the programs `names` of it.
pub fn load_object(flows: u32, names: &[&str]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .map_max_entries(name::LRU_FLOWS, flows);
    let mut ebpf = loader
        .load(OBJECT)
        .context("can't load the benchmark's BPF object (it needs root)")?;
    for name in names {
        program(&mut ebpf, name)?
            .load()
            .with_context(|| format!("the kernel refused the program {name}"))?;
    }
    Ok(ebpf)
}

/// A program of the benchmark's object.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("the object lacks the program {name}"))?
        .try_into()?)
}

/// What is driven through a program.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// See [`Drive::frame`].
    pub frame: [u8; FRAME],
    /// Number of flows, a power of two.
    pub flows: u64,
    /// Number of the first.
    pub first: u64,
    /// Where the order of flows goes on.
    pub state: u64,
}

impl Traffic {
    /// From the first flow on.
    pub fn new(frame: [u8; FRAME], flows: u64) -> Self {
        Self {
            frame,
            flows,
            first: 0,
            state: 0,
        }
    }
}

/// The wrapper.
pub struct Driver {
    ebpf: Ebpf,
}

impl Driver {
    /// Loads it and the two programs that do nothing much.
    pub fn load() -> Result<Self> {
        let ebpf = load_object(1, &[name::DRIVER, name::EMPTY, name::SWAP])?;
        Ok(Self { ebpf })
    }

    /// One of the programs that were loaded with it.
    pub fn program(&self, name: &str) -> Result<&Xdp> {
        Ok(self
            .ebpf
            .program(name)
            .with_context(|| format!("the object lacks the program {name}"))?
            .try_into()?)
    }

    /// One of them, to be run.
    pub fn target(&self, name: &str) -> Result<ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    /// Runs `target` on `packets` packets; nanoseconds per packet on average,
    /// the wrapper's own included. All of them must be sent back.
    pub fn run(&mut self, target: &ProgramFd, traffic: &mut Traffic, packets: u32) -> Result<u32> {
        self.aim(target, traffic)?;
        let result = self.program(name::DRIVER)?.test_run(TestRunOptions {
            data_in: Some(&traffic.frame),
            repeat: packets,
            ..TestRunOptions::new()
        })?;
        ensure!(
            result.return_value == action::TX,
            "a packet was not sent back, the program returned {}",
            result.return_value
        );
        traffic.state = self.drive()?.get(&0, 0)?.state;
        Ok(u32::try_from(result.duration.as_nanos())?)
    }

    /// The frame that comes out of `target` for the next flow.
    pub fn frame(&mut self, target: &ProgramFd, traffic: &Traffic) -> Result<Vec<u8>> {
        self.aim(target, traffic)?;
        let mut out = vec![0; FRAME];
        let result = self.program(name::DRIVER)?.test_run(TestRunOptions {
            data_in: Some(&traffic.frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })?;
        ensure!(
            result.return_value == action::TX,
            "the first packet was not sent back, the program returned {}",
            result.return_value
        );
        Ok(out)
    }

    fn aim(&mut self, target: &ProgramFd, traffic: &Traffic) -> Result<()> {
        let map = self.ebpf.map_mut(name::TARGET).context("no TARGET")?;
        ProgramArray::try_from(map)?
            .set(0, target, 0)
            .context("can't call the program from the wrapper; is it loaded with other flags?")?;
        let mut frame = [0; FRAME / 8];
        for (word, bytes) in frame.iter_mut().zip(traffic.frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let drive = Drive {
            frame,
            state: traffic.state,
            mask: traffic.flows - 1,
            first: traffic.first,
        };
        let map = self.ebpf.map_mut(name::DRIVE).context("no DRIVE")?;
        Ok(Array::try_from(map)?.set(0, drive, 0)?)
    }

    fn drive(&self) -> Result<Array<&aya::maps::MapData, Drive>> {
        let map = self.ebpf.map(name::DRIVE).context("no DRIVE")?;
        Ok(Array::try_from(map)?)
    }
}
