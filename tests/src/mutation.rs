//! Millions of mutated frames for the data path: a program in BPF makes each
//! from one of 256 frames, calls the data path and judges what became of it.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunOptions, VerifierLogLevel,
    maps::{Array, Map, ProgramArray},
    programs::{TestRun as _, Xdp},
};
use lb_common::net::Addr;

#[allow(dead_code)] // The other side uses the rest.
#[path = "../../lb-ebpf/src/mutate/layout.rs"]
mod layout;

pub use layout::{BYTES, Mutator, SEEDS};
use layout::{Delivery, Seed, WORDS, name};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-mutate-ebpf"));

// SAFETY: `repr(C)` over integers without padding.
unsafe impl aya::Pod for Seed {}
// SAFETY: as above.
unsafe impl aya::Pod for Mutator {}
// SAFETY: as above.
unsafe impl aya::Pod for Delivery {}

/// The driver, loaded.
pub struct Mutation {
    ebpf: Ebpf,
}

impl Mutation {
    /// Loads it. Frames follow from `seed` and the frames it starts from.
    pub fn load(seed: u64) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .load(OBJECT)
            .context("can't load the driver's BPF object (it needs root)")?;
        let driver: &mut Xdp = ebpf
            .program_mut(name::DRIVER)
            .context("the object lacks the driver")?
            .try_into()?;
        driver.load().context("the kernel refused the driver")?;
        let mut this = Self { ebpf };
        this.change(|mutator| mutator.state = seed)?;
        Ok(this)
    }

    /// Says that packets to `vip` may go to the backend with this number at
    /// `address`; untouched but for the MAC addresses, if that is the VIP.
    pub fn allow(&mut self, number: u8, vip: IpAddr, address: IpAddr) -> Result<()> {
        let delivery = Delivery {
            vip: Addr::from_ip(vip).0.0,
            address: Addr::from_ip(address).0.0,
            family: if vip.is_ipv4() { 4 } else { 6 },
            is_untouched: u32::from(vip == address),
        };
        let mut array: Array<_, Delivery> = self.map(name::DELIVERIES)?.try_into()?;
        Ok(array.set(number.into(), delivery, 0)?)
    }

    /// Replaces the frames to start from by [`SEEDS`] others, at most [`BYTES`]
    /// long.
    pub fn start_from(&mut self, mut frame: impl FnMut() -> Vec<u8>) -> Result<()> {
        let mut array: Array<_, Seed> = self.map(name::SEEDS)?.try_into()?;
        for index in 0..SEEDS {
            let mut bytes = frame();
            while bytes.len() > BYTES {
                bytes = frame();
            }
            let mut seed = Seed {
                length: bytes.len() as u64,
                ..Seed::default()
            };
            bytes.resize(BYTES, 0);
            seed.frame = words(&bytes);
            array.set(index, seed, 0)?;
        }
        Ok(())
    }

    /// Has `target` do with the next `frames` what it does.
    pub fn run(&mut self, target: &Xdp, frames: u32) -> Result<()> {
        let mut targets: ProgramArray<_> = self.map(name::TARGET)?.try_into()?;
        targets.set(0, target.fd()?, 0)?;
        self.change(|mutator| mutator.length = 0)?;
        let left = self.test_run(&[0; BYTES], frames)?;
        // The last one is judged by a run of its own.
        self.change(|mutator| mutator.ends = 1)?;
        self.test_run(&left, 1)?;
        self.change(|mutator| mutator.ends = 0)
    }

    /// The next frame, which goes nowhere.
    pub fn frame(&mut self) -> Result<Vec<u8>> {
        let mut targets: ProgramArray<_> = self.map(name::TARGET)?.try_into()?;
        let _ = targets.clear_index(&0);
        self.change(|mutator| mutator.length = 0)?;
        self.test_run(&[0; BYTES], 1)
    }

    /// What the driver has seen.
    pub fn state(&self) -> Result<Mutator> {
        let map = self.ebpf.map(name::MUTATOR).context("no map")?;
        Ok(Array::<_, Mutator>::try_from(map)?.get(&0, 0)?)
    }

    /// The frame as the last of so many runs left it.
    fn test_run(&self, frame: &[u8], runs: u32) -> Result<Vec<u8>> {
        let driver: &Xdp = self
            .ebpf
            .program(name::DRIVER)
            .context("the object lacks the driver")?
            .try_into()?;
        let mut out = vec![0; BYTES + 256];
        let result = driver.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: runs,
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(out)
    }

    fn change(&mut self, change: impl FnOnce(&mut Mutator)) -> Result<()> {
        let mut array: Array<_, Mutator> = self.map(name::MUTATOR)?.try_into()?;
        let mut mutator = array.get(&0, 0)?;
        change(&mut mutator);
        Ok(array.set(0, mutator, 0)?)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object lacks the map {name}"))
    }
}

impl Mutator {
    /// Fails if a frame went where it must not; shows the first.
    pub fn ensure_right(&self) -> Result<()> {
        let show = |words: &[u64; WORDS], length: u64| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            format!("{:02x?}", &bytes[..bytes.len().min(length as usize)])
        };
        ensure!(
            self.wrong == 0,
            "{} frames went wrong, the first of them\n{}\nbecame\n{}",
            self.wrong,
            show(&self.wrong_before, self.wrong_lengths & 0xffff_ffff),
            show(&self.wrong_after, self.wrong_lengths >> 32)
        );
        Ok(())
    }
}

fn words(bytes: &[u8]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    }
    words
}
