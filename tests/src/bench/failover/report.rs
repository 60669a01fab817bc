//! The figures for people and for programs.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{super::figures::Figure, Contest, Fault, PRIORITIES, Sample};

/// A gap is no longer than the skew and this.
const SLACK_MS: f64 = 20.0;

/// Of a planned hand-over, at any interval.
const PLANNED_MS: f64 = 5.0;

/// Both wait for the same timers, from moments that are random within an interval: the
/// medians of 20 rounds differ by so much now and then.
const NOISE: f64 = 1.15;

/// Milliseconds of one fault at one interval.
#[derive(Clone, Debug, Serialize)]
struct Row {
    fault: Fault,
    interval_ms: u64,
    gap: Both,
    taken_over: Both,
}

/// What is shown of a row.
type Part = fn(&Row) -> &Both;

/// Of both kinds of pairs.
#[derive(Clone, Debug, Serialize)]
struct Both {
    lbctl: Figure,
    keepalived: Figure,
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
    /// Before and after.
    load: [String; 2],
    rows: Vec<Row>,
    /// The longest gap without a fault, in milliseconds.
    floor: Both,
    /// How long the client didn't send, at most in each round, in milliseconds.
    stall: Figure,
    targets: Vec<Target>,
}

impl Report {
    /// From all samples.
    pub fn new(rounds: u32, load: [String; 2], contests: &[Contest]) -> Result<Self> {
        let mut rows = vec![];
        for fault in Fault::ALL {
            for contest in contests {
                let both = |value: fn(&Sample) -> f64| {
                    Both::of(contest, |(of, sample)| {
                        (*of == fault).then(|| value(sample))
                    })
                };
                rows.push(Row {
                    fault,
                    interval_ms: u64::try_from(contest.interval.as_millis())?,
                    gap: both(|sample| sample.gap)?,
                    taken_over: both(|sample| sample.taken_over)?,
                });
            }
        }
        let of = |system: usize, value: fn(&Sample) -> f64| {
            let all = contests.iter().flat_map(|c| &c.samples[system].0);
            let all: Vec<_> = all.map(|(_, sample)| value(sample)).collect();
            Figure::of(&all).context("nothing was measured")
        };
        let targets = targets(&rows);
        Ok(Self {
            rounds,
            load,
            rows,
            floor: Both {
                lbctl: of(0, |sample| sample.floor)?,
                keepalived: of(1, |sample| sample.floor)?,
            },
            stall: of(0, |sample| sample.stall)?,
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

impl Both {
    fn of(contest: &Contest, value: impl Fn(&(Fault, Sample)) -> Option<f64>) -> Result<Self> {
        let of = |system: usize| {
            let all: Vec<f64> = contest.samples[system]
                .0
                .iter()
                .filter_map(&value)
                .collect();
            Figure::of(&all).context("nothing was measured")
        };
        Ok(Self {
            lbctl: of(0)?,
            keepalived: of(1)?,
        })
    }

    /// Of the medians.
    fn ratio(&self) -> f64 {
        self.lbctl.median / self.keepalived.median
    }

    fn shown_ratio(&self) -> String {
        if self.keepalived.median > 0.0 {
            format!("{:.2}", self.ratio())
        } else {
            "-".into()
        }
    }
}

fn targets(rows: &[Row]) -> Vec<Target> {
    let mut all = vec![];
    let mut target = |what: String, value: f64, limit: f64| {
        all.push(Target {
            what,
            value,
            limit,
            met: value <= limit,
        });
    };
    for row in rows {
        let interval = Duration::from_millis(row.interval_ms);
        let at = format!("{} at {interval:?}", row.fault);
        if row.fault == Fault::Planned {
            target(
                format!("{at}, longest gap, ms"),
                row.gap.lbctl.max,
                PLANNED_MS,
            );
            continue;
        }
        target(
            format!("{at}, standby forwards, lbctl / keepalived"),
            row.taken_over.ratio(),
            NOISE,
        );
        if row.fault == Fault::Kill {
            let skew =
                interval.as_secs_f64() * 1e3 * f64::from(256 - u16::from(PRIORITIES[1])) / 256.0;
            target(
                format!("{at}, longest gap, ms (skew + {SLACK_MS})"),
                row.gap.lbctl.max,
                skew + SLACK_MS,
            );
        }
    }
    all
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "SIGKILL",
            Self::Link => "link lost",
            Self::Planned => "planned",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ms ({} rounds: median [min..max]), load {} before and {} after",
            self.rounds, self.load[0], self.load[1]
        )?;
        let titles: [(&str, Part); 2] = [
            ("nobody forwards", |row| &row.gap),
            ("the standby forwards after", |row| &row.taken_over),
        ];
        for (title, of) in titles {
            writeln!(
                f,
                "\n{title:<28}{:>8}{:>25}{:>25}{:>8}",
                "interval", "lbctl", "keepalived", "ratio"
            )?;
            for row in &self.rows {
                let both = of(row);
                writeln!(
                    f,
                    "{:<28}{:>8}{:>25}{:>25}{:>8}",
                    row.fault,
                    format!("{:?}", Duration::from_millis(row.interval_ms)),
                    shown(both.lbctl),
                    shown(both.keepalived),
                    both.shown_ratio(),
                )?;
            }
        }
        writeln!(
            f,
            "\n{:<36}{:>25}{:>25}",
            "nobody forwards, without a fault",
            shown(self.floor.lbctl),
            shown(self.floor.keepalived)
        )?;
        writeln!(
            f,
            "{:<36}{:>25}\n",
            "longest wait of the client",
            shown(self.stall)
        )?;
        for target in &self.targets {
            writeln!(
                f,
                "{}  {:<60}{:.2} (at most {:.2})",
                if target.met { "PASS" } else { "FAIL" },
                target.what,
                target.value,
                target.limit,
            )?;
        }
        Ok(())
    }
}

fn shown(Figure { median, min, max }: Figure) -> String {
    format!("{median:.1} [{min:.1}..{max:.1}]")
}
