//! What a virtual router watches beside its peers, and whom it tells of its state.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::Serialize;

use super::Exec;

/// What a virtual router watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Track {
    /// Interfaces that have to carry frames.
    pub interfaces: Vec<TrackedInterface>,
    /// Programs that have to end with 0.
    pub scripts: Vec<TrackedScript>,
    /// Services that need backends.
    pub services: Vec<TrackedService>,
    /// Hosts on its segment whose answers prove that it is reached.
    pub reference_hosts: Vec<IpAddr>,
}

/// What follows while something that is watched fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// The virtual router fails.
    Fault,
    /// Below 0: added to the priority while it fails. Above: added while it doesn't.
    /// -254 to 254, and not 0.
    Weight(i16),
}

impl Effect {
    /// The weight, where there is one.
    pub const fn weight(self) -> Option<i16> {
        match self {
            Self::Fault => None,
            Self::Weight(weight) => Some(weight),
        }
    }
}

/// An interface that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrackedInterface {
    /// Its name.
    pub name: String,
    /// What follows without it.
    pub effect: Effect,
}

/// A program that is run again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrackedScript {
    /// Unique in its virtual router.
    pub name: String,
    /// What is run.
    pub script: Script,
    /// What follows while it fails.
    pub effect: Effect,
}

/// What is run, and what its results mean.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Script {
    /// The program.
    pub exec: Exec,
    /// From one start to the next.
    pub interval: Duration,
    /// Then it is killed and has failed.
    pub timeout: Duration,
    /// Consecutive successes that end a failure; at least 1.
    pub rise: u32,
    /// Consecutive failures that count; at least 1.
    pub fall: u32,
}

/// A service that needs backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrackedService {
    /// Its name.
    pub service: String,
    /// It fails with fewer usable backends of its own pool.
    pub minimum_backends: usize,
    /// What follows while it fails.
    pub effect: Effect,
}

/// Who is told of changes of a virtual router's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notify {
    /// What the virtual router is called there.
    pub name: String,
    /// A program that is run, with four more arguments.
    pub command: Option<Exec>,
    /// Then it is killed.
    pub timeout: Duration,
    /// A FIFO that gets a line.
    pub fifo: Option<PathBuf>,
}
