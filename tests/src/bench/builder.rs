//! What building a lookup table costs beside a plain loop that makes the same
//! memory accesses in the same order.

use std::{hint::black_box, net::IpAddr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use lb_control::scheduler::{Member, identity, maglev, maglev_observed};
use serde::Serialize;

use super::figures::Figure;

const SIZE: u32 = 65_537;

/// The cost of one table, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Its members.
    pub members: u32,
    /// Their shares differ.
    pub weighted: bool,
    /// Slots looked at while building it.
    pub probes: usize,
    /// Building it.
    pub built: Figure,
    /// The plain loop.
    pub plain: Figure,
    /// The fastest of the one by the fastest of the other: a run takes
    /// milliseconds, so on a busy machine even the median one is interrupted.
    pub ratio: f64,
}

/// One access of the plain loop: the member's own state, then the slot.
#[derive(Clone, Copy)]
struct Access {
    slot: u32,
    id: u32,
}

/// As large as the state of a member in the builder.
#[derive(Clone, Copy, Default)]
struct State([u64; 2]);

/// Tables of 65,537 slots, each built `rounds` times in turn with the loop.
pub fn measure(rounds: usize) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for count in [100, 300, 600] {
        for weighted in [false, true] {
            tables.push(table(count, weighted, rounds)?);
        }
    }
    Ok(tables)
}

fn table(count: u32, weighted: bool, rounds: usize) -> Result<Table> {
    let members: Vec<Member> = (1..=count)
        .map(|id| Member {
            identity: identity(IpAddr::V4((0x0a00_0000 + id).into()), Some(80)),
            share: if weighted { id * 37 % 100 + 1 } else { 100 },
            id,
        })
        .collect();
    let mut trace = Vec::new();
    let expected = maglev_observed(&members, SIZE, |probe| {
        trace.push(Access {
            slot: probe.slot,
            id: probe.id,
        });
    });
    ensure!(
        expected == plain_loop(&trace, members.len()),
        "the plain loop fills another table than the builder"
    );
    let (mut built, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        built.push(microseconds(|| maglev(black_box(&members), SIZE)));
        plain.push(microseconds(|| {
            plain_loop(black_box(&trace), members.len())
        }));
    }
    let built = Figure::of(&built).context("no rounds")?;
    let plain = Figure::of(&plain).context("no rounds")?;
    Ok(Table {
        members: count,
        weighted,
        probes: trace.len(),
        built,
        plain,
        ratio: built.min / plain.min,
    })
}

fn microseconds(run: impl FnOnce() -> Vec<u32>) -> f64 {
    let start = Instant::now();
    drop(black_box(run()));
    start.elapsed().as_secs_f64() * 1e6
}

/// Follows the trace as the builder does, without deciding where to look.
fn plain_loop(trace: &[Access], members: usize) -> Vec<u32> {
    let mut states = vec![State::default(); members + 1];
    let mut table = vec![0; SIZE as usize + 1];
    let mut taken = vec![0_u64; (SIZE as usize).div_ceil(64)];
    for access in trace {
        let state = &mut states[access.id as usize].0;
        state[0] += 1;
        let word = &mut taken[access.slot as usize / 64];
        let bit = 1 << (access.slot % 64);
        let free = *word & bit == 0;
        *word |= bit;
        table[if free { access.slot } else { SIZE } as usize] = access.id;
        state[1] += u64::from(free);
    }
    black_box(&states);
    table.pop();
    table
}
