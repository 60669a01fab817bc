//! Packets that come in by an interface of the calling thread's namespace,
//! and what the data path asks its controller for.

use anyhow::{Context as _, Result};
use aya::{
    TestRunOptions,
    maps::RingBuf,
    programs::{TestRun as _, Xdp},
};
use lb_common::{
    abi::{self, ClockReading, NeighbourRequest, map},
    net::Addr,
};

use super::{Outcome, Program};

/// `struct xdp_md` of linux/bpf.h as BPF_PROG_TEST_RUN takes it: data, data
/// end, metadata, ingress interface, its queue, egress interface.
const CONTEXT_WORDS: usize = 6;

impl Program {
    /// Runs one frame through the program as if it came in by interface
    /// `ifindex`. The interface is looked up in the calling thread's network
    /// namespace, whose routes and neighbours the program sees: call it within
    /// [`crate::netns::Netns::run`].
    pub fn run_on(&self, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        let length = u32::try_from(frame.len())?;
        let mut context = Vec::with_capacity(CONTEXT_WORDS * 4);
        for word in [0, length, 0, ifindex, 0, 0] {
            context.extend(word.to_ne_bytes());
        }
        super::run(self.lb()?, frame, Some(&context))
    }

    /// Runs one frame through the program as if the driver had left only
    /// `room` bytes before it, of the 216 that there usually are for it.
    pub fn run_with_headroom(&self, room: usize, frame: &[u8]) -> Result<Outcome> {
        // Metadata stands before the frame and takes its room.
        let metadata = 216 - room;
        let data = [vec![0; metadata], frame.to_vec()].concat();
        let (start, end) = (u32::try_from(metadata)?, u32::try_from(data.len())?);
        let mut context = Vec::with_capacity(CONTEXT_WORDS * 4);
        for word in [start, end, 0, 1, 0, 0] {
            context.extend(word.to_ne_bytes());
        }
        super::run(self.lb()?, &data, Some(&context))
    }

    /// The kernel's jiffies, as leases in `OWNERS` count them.
    pub fn jiffies(&mut self) -> Result<u64> {
        let program: &Xdp = self
            .ebpf
            .program(abi::program::CLOCK)
            .context("the object lacks a program")?
            .try_into()?;
        program.test_run(TestRunOptions {
            data_in: Some(&[0; 14]),
            ..TestRunOptions::new()
        })?;
        let clock = self.array::<ClockReading>(map::CLOCK)?;
        Ok(clock.get(&0, 0)?.jiffies)
    }

    /// Next hops the data path asked for since the last call, oldest first.
    pub fn neighbour_requests(&mut self) -> Result<Vec<NeighbourRequest>> {
        let mut ring = RingBuf::try_from(self.map(map::NEIGHBOUR_REQUESTS)?)?;
        let mut requests = Vec::new();
        while let Some(item) = ring.next() {
            let words: Vec<u32> = item
                .chunks_exact(4)
                .map(|w| w.try_into().map(u32::from_ne_bytes))
                .collect::<Result<_, _>>()?;
            let [a, b, c, d, ifindex, family] = <[u32; 6]>::try_from(words)
                .ok()
                .context("a request of another size")?;
            requests.push(NeighbourRequest {
                address: Addr([a, b, c, d]),
                ifindex,
                family,
            });
        }
        Ok(requests)
    }
}
