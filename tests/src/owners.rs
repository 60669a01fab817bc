//! Who owns a virtual address according to the data paths of two balancers, looked
//! at all the time.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::abi::map;

use crate::pair::{Pair, VRID};

/// Between two looks.
const PERIOD: Duration = Duration::from_micros(200);

/// Rates of the kernel's clock that there are.
const RATES: [f64; 4] = [100.0, 250.0, 300.0, 1000.0];

/// The kernel's jiffies, as leases count them.
#[derive(Clone, Copy, Debug)]
struct Jiffies {
    at: Instant,
    jiffies: u64,
    hz: f64,
}

impl Jiffies {
    fn find() -> Result<Self> {
        let first = (Instant::now(), read_jiffies()?);
        thread::sleep(Duration::from_millis(500));
        let (at, jiffies) = (Instant::now(), read_jiffies()?);
        let rate = (jiffies - first.1) as f64 / (at - first.0).as_secs_f64();
        let near = RATES.into_iter().find(|hz| (rate / hz - 1.0).abs() < 0.1);
        let hz = near.with_context(|| format!("{rate} jiffies a second"))?;
        Ok(Self { at, jiffies, hz })
    }

    fn now(&self) -> u64 {
        self.jiffies + (self.at.elapsed().as_secs_f64() * self.hz) as u64
    }
}

fn read_jiffies() -> Result<u64> {
    let text = fs::read_to_string("/proc/timer_list")?;
    let value = text.lines().find_map(|line| line.strip_prefix("jiffies: "));
    Ok(value.context("no jiffies in /proc/timer_list")?.parse()?)
}

/// How long nobody owned, and both did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Looks that were taken.
    pub looks: u64,
    /// The longest time without an owner.
    pub nobody: Duration,
    /// The longest time with two.
    pub both: Duration,
    /// The longest time between two looks: what may have been overlooked.
    pub blind: Duration,
}

/// A thread that looks until it is asked.
#[derive(Debug)]
pub struct Watch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<Owned>>,
}

impl Watch {
    /// Begins to look.
    ///
    /// # Errors
    /// The maps can't be opened.
    pub fn start(pair: &Pair) -> Result<Self> {
        let maps = [0, 1].map(|node| open(&pair.nodes[node].daemon.pin_dir()));
        let [first, second] = maps;
        let maps = [first?, second?];
        let jiffies = Jiffies::find()?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = thread::spawn(move || look(&maps, jiffies, &until));
        Ok(Self { ended, thread })
    }

    /// What was seen.
    ///
    /// # Errors
    /// A map could not be read, or nobody was ever looked at.
    pub fn end(self) -> Result<Owned> {
        self.ended.store(true, Ordering::Relaxed);
        let owned = self.thread.join();
        let owned = owned.map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        ensure!(owned.looks > 0, "nothing was looked at");
        Ok(owned)
    }
}

fn open(pins: &Path) -> Result<Array<MapData, u64>> {
    let data = MapData::from_pin(pins.join(map::OWNERS))?;
    Ok(Array::try_from(Map::Array(data))?)
}

fn look(maps: &[Array<MapData, u64>; 2], jiffies: Jiffies, ended: &AtomicBool) -> Result<Owned> {
    let mut seen = Owned::default();
    let mut last = Instant::now();
    let (mut nobody, mut both) = (None, None);
    while !ended.load(Ordering::Relaxed) {
        let now = jiffies.now();
        let owns = |map: &Array<MapData, u64>| Ok(map.get(&VRID.into(), 0)? > now);
        let owners: Result<Vec<bool>> = maps.iter().map(owns).collect();
        let count = owners?.into_iter().filter(|owns| *owns).count();
        let time = Instant::now();
        seen.looks += 1;
        seen.blind = seen.blind.max(time - last);
        last = time;
        let account = |is_so: bool, since: &mut Option<Instant>, longest: &mut Duration| {
            if is_so {
                *longest = (*longest).max(time - *since.get_or_insert(time));
            } else {
                *since = None;
            }
        };
        account(count == 0, &mut nobody, &mut seen.nobody);
        account(count == 2, &mut both, &mut seen.both);
        thread::sleep(PERIOD);
    }
    Ok(seen)
}
