//! What the data path counted.

use std::collections::BTreeMap;

use anyhow::Result;
use aya::maps::PerCpuArray;
use lb_common::{
    abi::{MemberStats, SampleEntry, map},
    counter::{DropReason, Event},
};

use super::Program;

impl Program {
    /// Drops of a service so far, by reason; zeros left out.
    pub fn drops(&mut self, service: u32) -> Result<BTreeMap<&'static str, u64>> {
        let row = DropReason::ALL
            .iter()
            .map(|r| (r.name(), r.index(service)))
            .collect();
        self.counters(map::DROPS, row)
    }

    /// Events of a service so far, by name; zeros left out.
    pub fn events(&mut self, service: u32) -> Result<BTreeMap<&'static str, u64>> {
        let row = Event::ALL
            .iter()
            .map(|e| (e.name(), e.index(service)))
            .collect();
        self.counters(map::EVENTS, row)
    }

    fn counters(
        &mut self,
        name: &str,
        row: Vec<(&'static str, u32)>,
    ) -> Result<BTreeMap<&'static str, u64>> {
        let counters: PerCpuArray<_, u64> = self.map(name)?.try_into()?;
        let mut result = BTreeMap::new();
        for (label, index) in row {
            let sum = counters.get(&index, 0)?.iter().sum();
            if sum > 0 {
                result.insert(label, sum);
            }
        }
        Ok(result)
    }

    /// Statistics of a member, all cores together.
    pub fn stats(&mut self, member: u32) -> Result<MemberStats> {
        let stats: PerCpuArray<_, MemberStats> = self.map(map::STATS)?.try_into()?;
        let mut sum = MemberStats::default();
        for row in stats.get(&member, 0)?.iter() {
            sum.packets += row.packets;
            sum.bytes += row.bytes;
            sum.connections += row.connections;
            sum.reply_packets += row.reply_packets;
            sum.reply_bytes += row.reply_bytes;
        }
        Ok(sum)
    }

    /// All sampled flows.
    pub fn sample(&mut self) -> Result<Vec<SampleEntry>> {
        let sample = self.array::<SampleEntry>(map::SAMPLE)?;
        let mut found = Vec::new();
        for entry in sample.iter() {
            let entry = entry?;
            if entry.check != 0 {
                found.push(entry);
            }
        }
        Ok(found)
    }
}
