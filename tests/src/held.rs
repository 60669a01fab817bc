//! Connections to both VIPs that are watched while something happens.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{conns::HoldReport, servers::Hold, topology::Topology};

/// Every connection speaks at least once in this time.
const SETTLE: Duration = Duration::from_millis(1300);

/// Connections to both VIPs.
#[derive(Debug)]
pub struct Held([Hold; 2]);

impl Held {
    /// Opens so many to each VIP's port.
    pub fn open(t: &Topology, port: u16, connections: u32) -> Result<Self> {
        let start = |vip| {
            let target = SocketAddr::new(vip, port);
            Hold::start(&t.client.ns, target, connections, 400)
        };
        let [v4, v6] = t.vips();
        let mut held = Self([start(v4)?, start(v6)?]);
        for hold in &mut held.0 {
            let report = hold.wait_open(Duration::from_secs(60))?;
            ensure!(
                report.opened == connections && report.failed_to_open == 0,
                "{report:?}"
            );
        }
        Ok(held)
    }

    /// The counts so far.
    pub fn reports(&mut self) -> Result<Vec<HoldReport>> {
        self.0.iter_mut().map(Hold::report).collect()
    }

    /// Lets every connection speak, and fails if one is lost by then.
    pub fn none_lost(&mut self, after: &str) -> Result<()> {
        let before: u64 = self.reports()?.iter().map(|r| r.messages).sum();
        thread::sleep(SETTLE);
        let reports = self.reports()?;
        let lost: u32 = reports.iter().map(|r| r.lost.total()).sum();
        let stall = reports
            .iter()
            .map(|r| r.max_stall_ms)
            .max()
            .unwrap_or_default();
        let messages = reports.iter().map(|r| r.messages).sum::<u64>() - before;
        let open: u32 = reports.iter().map(|r| r.opened).sum();
        println!(
            "{after}: {lost} of {open} lost, {messages} messages, longest wait so far {stall} ms"
        );
        ensure!(lost == 0, "lost after {after}: {reports:?}");
        ensure!(messages > 0, "nobody spoke after {after}");
        Ok(())
    }

    /// The final counts; every connection has spoken about every second.
    pub fn end(self, since: Instant) -> Result<()> {
        let seconds = since.elapsed().as_secs();
        for hold in self.0 {
            let report = hold.stop()?;
            println!(
                "{} connections open for {seconds} s, {} messages, longest wait {} ms, lost: {:?}",
                report.opened, report.messages, report.max_stall_ms, report.lost
            );
            ensure!(report.lost.total() == 0, "{report:?}");
            // A connection may have waited for its answers, but not for long.
            let least = u64::from(report.opened) * seconds / 2;
            ensure!(
                report.messages > least,
                "fewer than {least} messages: {report:?}"
            );
        }
        Ok(())
    }
}
