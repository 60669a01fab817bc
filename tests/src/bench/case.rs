//! What is measured, and on what.

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use lb_common::abi::method;
use serde::Serialize;

use super::{
    Effort,
    driver::{Driver, Traffic},
    layout::name,
    lru::Lru,
    subject::{Subject, frame, goes_to_a_backend},
};

/// Numbers of flows.
pub const FLOWS: [u64; 3] = [1, 1 << 16, 1 << 20];

/// One flow in so many is sampled: what the controller reaches with 1 M flows.
const SAMPLE_MASK: u32 = 63;

/// A program and the state of its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The wrapper alone.
    Harness,
    /// MAC addresses swapped.
    Swap,
    /// Direct server return, stable slots.
    DsrStable,
    /// The same with every flow sampled.
    DsrStableAllSampled,
    /// Direct server return, tracked slots.
    DsrTracked,
    /// NAT towards the backend, stable slots.
    NatStable,
    /// NAT towards the backend, tracked slots.
    NatTracked,
    /// The comparison in a new table.
    LruFresh,
    /// The comparison in a table that many flows went through.
    LruChurned,
}

impl What {
    const fn is_tracked(self) -> bool {
        matches!(self, Self::DsrTracked | Self::NatTracked)
    }

    const fn balances(self) -> bool {
        !matches!(self, Self::Harness | Self::Swap)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Harness => "wrapper alone",
            Self::Swap => "MAC swap, XDP_TX",
            Self::DsrStable => "L2 DSR, stable",
            Self::DsrStableAllSampled => "L2 DSR, stable, all sampled",
            Self::DsrTracked => "L2 DSR, tracked",
            Self::NatStable => "NAT, stable",
            Self::NatTracked => "NAT, tracked",
            Self::LruFresh => "LRU hash, fresh",
            Self::LruChurned => "LRU hash, churned",
        })
    }
}

/// Whose program a case runs.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Driver(&'static str),
    Subject(usize),
    Lru(usize),
}

/// One program with one number of flows.
pub struct Case {
    /// The program.
    pub what: What,
    /// Number of flows.
    pub flows: u64,
    /// Nanoseconds per packet, one a round, the wrapper's included.
    pub samples: Vec<f64>,
    /// Share of packets whose flow wasn't in the table, where there is one.
    pub missed: f64,
    owner: Owner,
    target: Option<ProgramFd>,
    traffic: Traffic,
    driven: u64,
}

impl Case {
    fn new(what: What, flows: u64, owner: Owner) -> Self {
        Self {
            what,
            flows,
            samples: Vec::new(),
            missed: 0.0,
            owner,
            target: None,
            traffic: Traffic::new(frame(what.is_tracked()), flows),
            driven: 0,
        }
    }

    /// Adds a sample.
    pub fn measure(&mut self, driver: &mut Driver, effort: &Effort) -> Result<()> {
        let (what, flows) = (self.what, self.flows);
        let mut run = |packets| {
            let target = self.target.as_ref().context("no program")?;
            driver
                .run(target, &mut self.traffic, packets)
                .with_context(|| format!("{what}, {flows} flows"))
        };
        run(effort.warm_up)?;
        let ns = run(effort.packets)?;
        self.driven += u64::from(effort.warm_up) + u64::from(effort.packets);
        self.samples.push(f64::from(ns));
        Ok(())
    }
}

/// A program's size.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Its name.
    pub program: String,
    /// Instructions the verifier looked at.
    pub verified: Option<u32>,
    /// Instructions (8 bytes each) after verification.
    pub instructions: Option<u32>,
    /// Bytes of machine code.
    pub machine_code: u32,
}

impl Size {
    fn of(info: &ProgramInfo) -> Self {
        Self {
            program: info.name_as_str().unwrap_or_default().to_owned(),
            verified: info.verified_instruction_count(),
            instructions: info.size_translated().map(|bytes| bytes / 8),
            machine_code: info.size_jitted(),
        }
    }
}

/// All that is measured.
pub struct Field {
    /// In the order in which they take their turns.
    pub cases: Vec<Case>,
    subjects: Vec<Subject>,
    lrus: Vec<Lru>,
}

impl Field {
    /// Loads all programs, and fills their tables.
    pub fn new(driver: &mut Driver, effort: &Effort) -> Result<Self> {
        let mut this = Self {
            cases: Vec::new(),
            subjects: vec![
                Subject::load(method::L2_DSR, SAMPLE_MASK)?,
                Subject::load(method::NAT, SAMPLE_MASK)?,
                Subject::load(method::L2_DSR, 0)?,
            ],
            lrus: Vec::new(),
        };
        let [.., most] = FLOWS;
        for subject in this.subjects.iter_mut().take(2) {
            subject.fill(driver, most)?;
        }
        for flows in FLOWS {
            this.add(What::Harness, flows, Owner::Driver(name::EMPTY));
            this.add(What::Swap, flows, Owner::Driver(name::SWAP));
            this.add(What::DsrStable, flows, Owner::Subject(0));
            this.add_lru(What::LruFresh, flows, driver, 0)?;
            this.add(What::DsrTracked, flows, Owner::Subject(0));
            this.add(What::NatStable, flows, Owner::Subject(1));
            this.add(What::NatTracked, flows, Owner::Subject(1));
            if flows > 1 {
                this.add_lru(What::LruChurned, flows, driver, effort.churn)?;
            } else {
                this.add(What::DsrStableAllSampled, flows, Owner::Subject(2));
            }
        }
        this.aim(driver)?;
        Ok(this)
    }

    fn add(&mut self, what: What, flows: u64, owner: Owner) {
        self.cases.push(Case::new(what, flows, owner));
    }

    fn add_lru(&mut self, what: What, flows: u64, driver: &mut Driver, churn: u64) -> Result<()> {
        let mut lru = Lru::load()?;
        lru.fill(driver, flows, churn)?;
        self.add(what, flows, Owner::Lru(self.lrus.len()));
        self.lrus.push(lru);
        Ok(())
    }

    /// Finds every case's program, and looks at what it does to a packet.
    fn aim(&mut self, driver: &mut Driver) -> Result<()> {
        for case in &mut self.cases {
            let target = match case.owner {
                Owner::Driver(name) => driver.target(name)?,
                Owner::Subject(index) => self.subjects[index].target()?,
                Owner::Lru(index) => self.lrus[index].target()?,
            };
            let frame = driver.frame(&target, &case.traffic)?;
            ensure!(
                goes_to_a_backend(&frame) == case.what.balances(),
                "{}: the packet went the wrong way",
                case.what
            );
            case.driven = 1;
            case.target = Some(target);
        }
        Ok(())
    }

    /// Whether every packet of every case was forwarded, from tables in the
    /// state they should be in.
    pub fn verify(&mut self) -> Result<()> {
        let driven = |cases: &[Case], mine: fn(Owner) -> Option<usize>, index| {
            let cases = cases.iter().filter(|c| mine(c.owner) == Some(index));
            cases.map(|case| case.driven).sum()
        };
        for (index, subject) in self.subjects.iter_mut().enumerate() {
            let mine = |owner| match owner {
                Owner::Subject(index) => Some(index),
                _ => None,
            };
            subject.verify(driven(&self.cases, mine, index))?;
        }
        for case in &mut self.cases {
            if let Owner::Lru(index) = case.owner {
                case.missed = self.lrus[index].verify(case.driven)?;
                ensure!(
                    case.what == What::LruChurned || case.missed == 0.0,
                    "flows got lost from a table that has room for all"
                );
            }
        }
        Ok(())
    }

    /// Sizes of all programs.
    pub fn sizes(&self, driver: &Driver) -> Result<Vec<Size>> {
        let mut infos = Vec::new();
        if let Some(subject) = self.subjects.first() {
            infos.push(subject.info()?);
        }
        if let Some(lru) = self.lrus.first() {
            infos.push(lru.info()?);
        }
        for name in [name::SWAP, name::DRIVER] {
            infos.push(driver.program(name)?.info()?);
        }
        Ok(infos.iter().map(Size::of).collect())
    }
}
