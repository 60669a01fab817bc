//! The comparison: a minimal balancer with an LRU hash, see the BPF side.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap, PerCpuArray},
    programs::{ProgramFd, ProgramInfo, Xdp},
};
use lb_common::net::protocol;

use super::{
    driver::{Driver, Traffic, load_object},
    layout::{LruBackend, LruPool, LruService, LruStats, name},
    subject::{BACKENDS, MAX_FLOWS, OWN_MAC, PORT, STABLE_VIP, backend_mac, frame},
};

// SAFETY: `repr(C)` over integers without padding, all four.
unsafe impl aya::Pod for LruService {}
// SAFETY: see above.
unsafe impl aya::Pod for LruPool {}
// SAFETY: see above.
unsafe impl aya::Pod for LruBackend {}
// SAFETY: see above.
unsafe impl aya::Pod for LruStats {}

/// The number of the first flow that is only there to churn a table.
const CHURN_FROM: u64 = 1 << 24;

/// The loaded comparison with a table of its own.
pub struct Lru {
    ebpf: Ebpf,
    /// Packets driven through it before the measurement.
    before: u64,
    /// Misses among them.
    missed_before: u64,
}

impl Lru {
    /// Loads it with one service of as many backends as the data path has.
    pub fn load() -> Result<Self> {
        let mut ebpf = load_object(MAX_FLOWS, &[name::LRU])?;
        let service = LruService {
            address: u32::from_ne_bytes(STABLE_VIP.octets()),
            port: PORT.to_be(),
            protocol: protocol::TCP.into(),
        };
        let pool = LruPool {
            offset: 1,
            size: BACKENDS,
        };
        let map = ebpf.map_mut(name::LRU_SERVICES).context("no services")?;
        HashMap::try_from(map)?.insert(service, pool, 0)?;
        let map = ebpf.map_mut(name::LRU_BACKENDS).context("no backends")?;
        let mut backends = Array::try_from(map)?;
        for id in 1..=BACKENDS {
            let backend = LruBackend {
                mac: words(backend_mac(id)),
                own_mac: words(OWN_MAC),
            };
            backends.set(id, backend, 0)?;
        }
        Ok(Self {
            ebpf,
            before: 0,
            missed_before: 0,
        })
    }

    fn program(&self) -> Result<&Xdp> {
        let program = self.ebpf.program(name::LRU).context("no program")?;
        Ok(program.try_into()?)
    }

    /// The program.
    pub fn target(&self) -> Result<ProgramFd> {
        Ok(self.program()?.fd()?.try_clone()?)
    }

    /// What it looks like to the kernel.
    pub fn info(&self) -> Result<ProgramInfo> {
        Ok(self.program()?.info()?)
    }

    /// Makes an entry for each of `flows`, after `churn` others went through
    /// the table.
    pub fn fill(&mut self, driver: &mut Driver, flows: u64, churn: u64) -> Result<()> {
        let target = self.target()?;
        if churn > 0 {
            let mut others = Traffic::new(frame(false), churn);
            others.first = CHURN_FROM;
            driver.run(&target, &mut others, u32::try_from(churn)?)?;
        }
        // Twice: in a full table new entries push out one another.
        let mut traffic = Traffic::new(frame(false), flows);
        driver.run(&target, &mut traffic, u32::try_from(2 * flows)?)?;
        self.before = churn + 2 * flows;
        self.missed_before = self.misses()?;
        ensure!(
            churn > 0 || self.missed_before == flows,
            "{flows} flows were to be made in a fresh table, but {} were",
            self.missed_before
        );
        Ok(())
    }

    fn misses(&self) -> Result<u64> {
        let map = self.ebpf.map(name::LRU_MISSES).context("no counter")?;
        let misses: PerCpuArray<_, u64> = map.try_into()?;
        Ok(misses.get(&0, 0)?.iter().sum())
    }

    /// Whether each of `driven` packets was forwarded; the share of those
    /// whose flow wasn't in the table.
    pub fn verify(&self, driven: u64) -> Result<f64> {
        let map = self.ebpf.map(name::LRU_STATS).context("no counters")?;
        let stats: PerCpuArray<_, LruStats> = map.try_into()?;
        let mut forwarded = 0;
        for id in 1..=BACKENDS {
            forwarded += stats.get(&id, 0)?.iter().map(|s| s.packets).sum::<u64>();
        }
        ensure!(
            forwarded == driven + self.before,
            "{driven} packets measured and {} before, but {forwarded} forwarded",
            self.before
        );
        let missed = self.misses()? - self.missed_before;
        Ok(missed as f64 / driven as f64)
    }
}

fn words(mac: [u8; 6]) -> [u16; 3] {
    let [a, b, c, d, e, f] = mac;
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}
