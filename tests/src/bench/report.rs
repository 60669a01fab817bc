//! The figures for people and for programs.

use std::fmt;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    Effort,
    builder::Table,
    case::{Case, FLOWS, Size, What},
    figures::Figure,
};

/// Nanoseconds per packet of one case.
#[derive(Clone, Debug, Serialize)]
struct Row {
    what: What,
    flows: u64,
    /// The wrapper's cost included.
    gross: Figure,
    /// Medians subtracted: the program's own cost.
    net: f64,
    /// Share of packets whose flow wasn't in the LRU hash.
    missed: f64,
}

/// Something that is to hold.
#[derive(Clone, Debug, Serialize)]
struct Target {
    what: String,
    value: f64,
    limit: f64,
    met: bool,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    rounds: u32,
    packets: u32,
    processor: usize,
    ns_per_packet: Vec<Row>,
    programs: Vec<Size>,
    tables: Vec<Table>,
    targets: Vec<Target>,
}

impl Report {
    /// From all samples.
    pub fn new(
        processor: usize,
        effort: Effort,
        cases: &[Case],
        programs: Vec<Size>,
        tables: Vec<Table>,
    ) -> Result<Self> {
        let figure = |case: &Case| Figure::of(&case.samples).context("nothing was measured");
        let mut rows = Vec::new();
        for case in cases {
            let harness = cases
                .iter()
                .find(|c| c.what == What::Harness && c.flows == case.flows)
                .context("the wrapper wasn't measured")?;
            let gross = figure(case)?;
            rows.push(Row {
                what: case.what,
                flows: case.flows,
                gross,
                net: gross.median - figure(harness)?.median,
                missed: case.missed,
            });
        }
        let targets = targets(&rows, &tables)?;
        Ok(Self {
            rounds: effort.rounds,
            packets: effort.packets,
            processor,
            ns_per_packet: rows,
            programs,
            tables,
            targets,
        })
    }

    /// Whether every target was met.
    pub fn all_met(&self) -> bool {
        self.targets.iter().all(|target| target.met)
    }

    /// One object on one line.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

fn targets(rows: &[Row], tables: &[Table]) -> Result<Vec<Target>> {
    let net = |what, flows| {
        rows.iter()
            .find(|row| row.what == what && row.flows == flows)
            .map(|row| row.net)
            .with_context(|| format!("{what} wasn't measured"))
    };
    let [one, _, most] = FLOWS;
    let stable = net(What::DsrStable, most)?;
    let target = |what: &str, value, limit| Target {
        what: what.to_owned(),
        value,
        limit,
        met: value <= limit,
    };
    let worst = tables.iter().map(|t| t.ratio).fold(0.0, f64::max);
    Ok(vec![
        target(
            "L2 DSR, stable, 1 M flows / LRU hash, fresh, 1 M flows",
            stable / net(What::LruFresh, most)?,
            0.3,
        ),
        target(
            "L2 DSR, stable, 1 M flows / the same, 1 flow",
            stable / net(What::DsrStable, one)?,
            1.3,
        ),
        target("lookup table / plain loop, the worst of all", worst, 1.5),
    ])
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ns per packet, one core ({} rounds of {} packets: median [min..max]; net = medians less the wrapper's)\n",
            self.rounds, self.packets
        )?;
        writeln!(f, "{:<30}{:>7}{:>22}{:>8}", "", "flows", "gross", "net")?;
        let mut whats: Vec<What> = Vec::new();
        for row in &self.ns_per_packet {
            if !whats.contains(&row.what) {
                whats.push(row.what);
            }
        }
        for what in whats {
            for row in self.ns_per_packet.iter().filter(|row| row.what == what) {
                let Figure { median, min, max } = row.gross;
                let gross = format!("{median:.0} [{min:.0}..{max:.0}]");
                let flows = short(row.flows);
                write!(f, "{what:<30}{flows:>7}{gross:>22}{:>8.0}", row.net)?;
                if row.missed > 0.0 {
                    write!(f, "  ({:.2} % not in the table)", row.missed * 100.0)?;
                }
                writeln!(f)?;
            }
        }
        self.programs(f)?;
        self.tables(f)?;
        writeln!(f)?;
        for target in &self.targets {
            writeln!(
                f,
                "{}  {:<56}{:.2} (at most {})",
                if target.met { "PASS" } else { "FAIL" },
                target.what,
                target.value,
                target.limit,
            )?;
        }
        Ok(())
    }
}

impl Report {
    fn programs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<20}{:>22}{:>15}{:>20}",
            "program", "verified instructions", "instructions", "machine code, bytes"
        )?;
        let number = |n: Option<u32>| n.map_or("unknown".to_owned(), |n| n.to_string());
        for size in &self.programs {
            writeln!(
                f,
                "{:<20}{:>22}{:>15}{:>20}",
                size.program,
                number(size.verified),
                number(size.instructions),
                size.machine_code,
            )?;
        }
        Ok(())
    }

    fn tables(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<26}{:>9}{:>24}{:>24}{:>7}",
            "lookup table of 65,537", "probes", "built, µs", "plain loop, µs", "ratio"
        )?;
        let figure =
            |Figure { median, min, max }: Figure| format!("{median:.0} [{min:.0}..{max:.0}]");
        for table in &self.tables {
            let shares = if table.weighted { "weighted" } else { "equal" };
            writeln!(
                f,
                "{:<26}{:>9}{:>24}{:>24}{:>7.2}",
                format!("{} members, {shares}", table.members),
                table.probes,
                figure(table.built),
                figure(table.plain),
                table.ratio,
            )?;
        }
        Ok(())
    }
}

fn short(flows: u64) -> String {
    match flows {
        f if f >= 1 << 20 => format!("{} M", f >> 20),
        f if f >= 1 << 10 => format!("{} K", f >> 10),
        f => f.to_string(),
    }
}
