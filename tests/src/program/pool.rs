//! Programs that several tests use, one after the other: the verifier takes
//! more than a second for all of them, and to empty their maps takes little.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use aya::maps::Map;

use super::{
    Program, Sizes,
    contents::{self, Contents},
};

/// Programs that nobody uses.
pub struct Pool {
    /// The one that was used last at the end.
    idle: Mutex<Vec<Program>>,
    /// How many are kept at most.
    kept: usize,
}

/// What the tests of a process share. Each program holds some 20 MB of maps.
static SHARED: Pool = Pool::new(8);

impl Pool {
    /// An empty one that keeps at most `kept` programs, of all sizes together.
    pub const fn new(kept: usize) -> Self {
        Self {
            idle: Mutex::new(vec![]),
            kept,
        }
    }

    /// Takes a program of these sizes out, or loads one.
    pub fn take(&'static self, sizes: Sizes) -> Result<Pooled> {
        let found = {
            let mut idle = self.idle();
            let place = idle.iter().rposition(|program| program.sizes == sizes);
            place.map(|place| idle.remove(place))
        };
        let program = match found {
            Some(mut program) => {
                program.reset().context("emptying a used program's maps")?;
                program
            }
            None => Program::load(sizes)?,
        };
        Ok(Pooled {
            program: Some(program),
            pool: self,
        })
    }

    fn put(&self, program: Program) {
        let surplus = {
            let mut idle = self.idle();
            idle.push(program);
            (idle.len() > self.kept).then(|| idle.remove(0))
        };
        drop(surplus);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Program>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A program as [`Program::load`] makes it, perhaps used before; for others to
/// use when it is dropped, unless its thread panics then.
///
/// Its maps hold what those of a new one do. What the kernel has beside them
/// may differ: an LRU hash whose keys were deleted keeps free entries for each
/// core, and another core may find it full with up to 128 of them unused.
pub struct Pooled {
    program: Option<Program>,
    pool: &'static Pool,
}

impl Pooled {
    /// One of those that all tests of the process share.
    pub fn take(sizes: Sizes) -> Result<Self> {
        SHARED.take(sizes)
    }
}

impl Deref for Pooled {
    type Target = Program;

    fn deref(&self) -> &Program {
        self.program.as_ref().expect("it is there until the drop")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Program {
        self.program.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(program) = self.program.take()
            && !thread::panicking()
        {
            self.pool.put(program);
        }
    }
}

impl Program {
    /// Takes all maps back to what they hold after [`Self::load`].
    pub fn reset(&mut self) -> Result<()> {
        for (name, map) in self.ebpf.maps_mut() {
            contents::clear(map).with_context(|| format!("map {name}"))?;
        }
        self.initialise()
    }

    /// Fills every map as far as there is room, arrays with `byte`; leaves ring
    /// buffers alone. No packet must be run before [`Self::reset`].
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        let maps = self.ebpf.maps();
        maps.filter(|(_, map)| !matches!(map, Map::RingBuf(_)))
            .try_for_each(|(name, map)| {
                contents::fill(map, byte).with_context(|| format!("map {name}"))
            })
    }

    /// Keys and values of every map by its name, those that are zero in arrays
    /// left out. What ring buffers hold is taken out of them.
    pub fn contents(&mut self) -> Result<BTreeMap<String, Contents>> {
        let maps = self.ebpf.maps_mut();
        maps.map(|(name, map)| {
            let contents = contents::read(map).with_context(|| format!("map {name}"))?;
            Ok((name.to_owned(), contents))
        })
        .collect()
    }
}
