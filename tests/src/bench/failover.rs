//! `cargo xtask bench failover`: for how long nobody forwards after a fault and in a
//! hand-over, beside keepalived. How it is measured, and what the figures don't show,
//! stands in docs/benchmarks.md.

mod carrier;
mod keepalived;
mod lbctl;
mod probe;
mod report;

use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use serde::Serialize;

use crate::{
    packet::Rng,
    topology::{Kind, Options as Parts, Topology},
};
use keepalived::Keepalived;
use lbctl::Lbctl;
use probe::Probe;
use report::Report;

/// Advertisement intervals.
const INTERVALS: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// Of the node that is to be active, and of its standby: those of [`crate::pair`].
const PRIORITIES: [u8; 2] = [150, 100];

/// Both kinds of pairs have their advertisements sent by a thread of this real-time
/// priority: that of `lbctl`.
const REAL_TIME_PRIORITY: u8 = 50;

/// A standby that hasn't forwarded by then never will.
const LIMIT: Duration = Duration::from_secs(30);

/// Answers by way of the active node before a fault, and of the standby after it.
const ANSWERS: u64 = 400;

/// Measures for how long nobody forwards after SIGKILL of the active node, after loss
/// of its link, and in a planned hand-over, beside keepalived. Needs root
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Rounds, each of which has every fault of every pair once
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print all figures as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Exit with 1 if a target is missed
    #[arg(long)]
    check: bool,
}

/// What happens to the active node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// Its daemon is killed.
    Kill,
    /// Its switch port loses the carrier.
    Link,
    /// It is told to hand over.
    Planned,
}

impl Fault {
    const ALL: [Self; 3] = [Self::Kill, Self::Link, Self::Planned];
}

/// A pair of nodes. The first is active before each fault.
trait Subject: Send {
    /// Its hosts and links.
    fn topology(&self) -> &Topology;

    /// Returns when the first node is active and the second one its standby.
    fn wait_ready(&self) -> Result<()>;

    /// Does it to the first node. When it was done.
    fn inject(&mut self, fault: Fault) -> Result<Instant>;

    /// Undoes it.
    fn recover(&mut self, fault: Fault) -> Result<()>;
}

/// Figures of one fault, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Nobody forwarded.
    gap: f64,
    /// From the fault to the first packet by way of the standby.
    taken_over: f64,
    /// Nobody forwarded for so long before the fault.
    floor: f64,
    /// The client didn't send for so long.
    stall: f64,
}

/// Samples of one pair.
#[derive(Debug, Default)]
struct Samples(Vec<(Fault, Sample)>);

/// `lbctl` and keepalived at one interval.
struct Contest {
    interval: Duration,
    subjects: [Box<dyn Subject>; 2],
    samples: [Samples; 2],
}

/// Measures, prints, and says whether all went as it should.
pub fn run(options: &Options) -> Result<ExitCode> {
    let load = || -> Result<String> {
        let text = fs::read_to_string("/proc/loadavg")?;
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    };
    crate::cleanup::on_interrupt()?;
    let before = load()?;
    super::progress("starting the pairs");
    let mut contests = INTERVALS
        .into_iter()
        .map(|interval| {
            let subjects: [Box<dyn Subject>; 2] = [
                Box::new(Lbctl::start(interval)?),
                Box::new(Keepalived::start(interval)?),
            ];
            Ok(Contest {
                interval,
                subjects,
                samples: Default::default(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    for round in 1..=options.rounds {
        for fault in Fault::ALL {
            super::progress(&format!("round {round} of {}: {fault}", options.rounds));
            for_all(&mut contests, |subject| subject.wait_ready())?;
            for contest in &mut contests {
                contest.measure(fault)?;
            }
            for_all(&mut contests, |subject| subject.recover(fault))?;
        }
    }
    super::progress("");
    let report = Report::new(options.rounds, [before, load()?], &contests)?;
    drop(contests);
    print!("{report}");
    if options.json {
        println!("{}", report.json()?);
    }
    let missed = options.check && !report.all_met();
    Ok(ExitCode::from(u8::from(missed)))
}

/// Does something with all pairs at once.
fn for_all(
    contests: &mut [Contest],
    work: impl Fn(&mut dyn Subject) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let subjects = contests.iter_mut().flat_map(|c| &mut c.subjects);
        let threads: Vec<_> = subjects
            .map(|subject| scope.spawn(move || work(subject.as_mut())))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(panicked)?)
    })
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> anyhow::Error {
    anyhow!("a thread of the benchmark panicked")
}

impl Contest {
    /// The fault in both pairs at about the same time, so that what else the machine
    /// does is the same for both.
    fn measure(&mut self, fault: Fault) -> Result<()> {
        let interval = self.interval;
        let samples = thread::scope(|scope| {
            let threads: Vec<_> = self
                .subjects
                .iter_mut()
                .map(|subject| scope.spawn(move || measure(subject.as_mut(), interval, fault)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(panicked)?)
                .collect::<Result<Vec<_>>>()
        });
        let samples = samples.with_context(|| format!("{fault} at an interval of {interval:?}"))?;
        for (all, sample) in self.samples.iter_mut().zip(samples) {
            all.0.push((fault, sample));
        }
        Ok(())
    }
}

fn measure(subject: &mut dyn Subject, interval: Duration, fault: Fault) -> Result<Sample> {
    let topology = subject.topology();
    let probe = Probe::start(&topology.router.ns, topology.vip4)?;
    probe.wait_answers(0, ANSWERS, LIMIT)?;
    thread::sleep(interval.mul_f64(random_fraction()?));
    let at = subject.inject(fault)?;
    probe.wait_answers(1, ANSWERS, LIMIT)?;
    let seen = probe.end()?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let taken_over = seen.first_by(1, at);
    Ok(Sample {
        gap: ms(seen.gap(at..)),
        taken_over: ms(taken_over.context("the standby forwarded nothing")?),
        floor: ms(seen.gap(..at)),
        stall: ms(seen.stall),
    })
}

/// At least 0 and below 1.
fn random_fraction() -> Result<f64> {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut rng = Rng::new(nanoseconds as u64);
    Ok((rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
}

/// A switch with two balancers and one server.
fn place() -> Result<(Topology, crate::topology::Host)> {
    let options = Parts {
        backends: 1,
        ..Parts::default()
    };
    let mut topology = Topology::new(Kind::Dsr, &options)?;
    let second = crate::pair::second_balancer(&mut topology)?;
    Ok((topology, second))
}
