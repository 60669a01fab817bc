//! What building a lookup table costs beside a plain loop that makes the same
//! memory accesses in the same order. Exits with 1 beyond a factor of 1.5.
//!
//! `cargo run --release -p lb-control --example maglev_speed`

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use lb_control::scheduler::{Member, identity, maglev, maglev_observed};

const SIZE: u32 = 65_537;
const ROUNDS: usize = 31;

/// One access of the plain loop: the member's own state, then the slot.
#[derive(Clone, Copy)]
struct Access {
    slot: u32,
    id: u32,
}

/// The fields of a member's state that the builder touches at each probe.
#[derive(Clone, Copy)]
struct State {
    slot: u32,
    left: u32,
    id: u32,
}

fn plain_loop(trace: &[Access], members: usize) -> Vec<u32> {
    let mut states: Vec<State> = (0..=members as u32)
        .map(|id| State {
            slot: 0,
            left: SIZE,
            id,
        })
        .collect();
    let mut table = vec![0; SIZE as usize + 1];
    let mut taken = vec![0_u64; (SIZE as usize).div_ceil(64)];
    for access in trace {
        let state = &mut states[access.id as usize];
        state.slot = access.slot;
        let word = &mut taken[access.slot as usize / 64];
        let bit = 1 << (access.slot % 64);
        let free = *word & bit == 0;
        *word |= bit;
        table[if free { access.slot } else { SIZE } as usize] = state.id;
        state.left -= u32::from(free);
    }
    black_box(&states);
    table.pop();
    table
}

/// The fastest of several runs: the one the rest of the machine disturbed least.
fn fastest(mut run: impl FnMut()) -> Duration {
    let once = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..ROUNDS)
        .map(|_| once(&mut run))
        .min()
        .unwrap_or_default()
}

fn main() -> ExitCode {
    let mut worst = 0.0_f64;
    for (count, weighted) in [(100, false), (100, true), (600, false), (600, true)] {
        let members: Vec<Member> = (1..=count)
            .map(|id: u32| Member {
                identity: identity(std::net::IpAddr::V4((0x0a00_0000 + id).into()), Some(80)),
                share: if weighted { id * 37 % 100 + 1 } else { 100 },
                id,
            })
            .collect();
        let mut trace = Vec::new();
        let table = maglev_observed(&members, SIZE, |probe| {
            trace.push(Access {
                slot: probe.slot,
                id: probe.id,
            });
        });
        assert_eq!(table, plain_loop(&trace, members.len()));

        let built = fastest(|| drop(black_box(maglev(black_box(&members), SIZE))));
        let plain = fastest(|| drop(black_box(plain_loop(black_box(&trace), members.len()))));
        let factor = built.as_secs_f64() / plain.as_secs_f64();
        worst = worst.max(factor);
        println!(
            "{count} members, {}: {} probes, built in {built:?}, plain loop {plain:?}, factor {factor:.2}",
            if weighted { "weighted" } else { "equal" },
            trace.len(),
        );
    }
    if worst <= 1.5 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
