//! The running data path, as the daemon sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use lb_common::{
    abi::{SampleEntry, owner},
    member::MemberState,
};

use super::{
    apply::{Applied, apply},
    aya_maps::AyaMaps,
    desired::{DesiredState, Given, Runtime, TableCache, desired},
    error::PlaneError,
    load::{self, Attached, Loaded},
    plan::{MapOp, plan},
    state::{Capacity, MapSnapshot},
    stats::{self, PlaneStats, SampledFlow},
    store::MapStore as _,
    sweep::{self, SweepReport},
};
use crate::model::Model;

/// The data path of this node: its maps, its program and where that is attached.
///
/// Dropping it leaves everything running; [`detach`] removes it.
#[derive(Debug)]
pub struct Plane {
    loaded: Loaded,
    tables: TableCache,
    sweeper: sweep::Sweeper,
    /// When members left the configuration.
    departed: BTreeMap<u32, Instant>,
    desired: DesiredState,
    last_sweep: SweepReport,
}
