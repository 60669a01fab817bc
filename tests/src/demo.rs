//! The demonstration: a client, a router, the balancer and three nginx, under
//! direct server return and then under NAT.
//!
//! Real HTTP goes through; one backend is drained, one killed and brought
//! back, while some 500 connections stay open. At the end the servers' own
//! logs have to agree with what the client saw. Whatever should hold and
//! doesn't is a *problem*: it is printed, and the exit status tells.

mod acts;
mod http;
mod ledger;
mod logs;
mod report;
mod scene;
mod view;

use std::time::Instant;

pub use report::{Report, SceneReport};

use crate::topology::Kind;

/// Plays both scenes. What could not be done at all is in the report, too.
pub fn run() -> Report {
    let start = Instant::now();
    let mut report = Report::default();
    if let Err(error) = crate::conns::raise_open_files_limit() {
        view::problem(&format!("the limit of open files can't be raised: {error}"));
    }
    for (kind, title) in [
        (Kind::Dsr, "direct server return (l2-dsr)"),
        (Kind::NatTwoArmed, "NAT, two arms"),
    ] {
        view::title(title);
        let mut scene = SceneReport::default();
        if let Err(error) = acts::play(kind, &mut scene) {
            scene.problem(format!("the demonstration broke off: {error:#}"));
        }
        if kind == Kind::Dsr {
            report.dsr = scene;
        } else {
            report.nat = scene;
        }
    }
    report.ok = report.dsr.problems.is_empty() && report.nat.problems.is_empty();
    report.seconds = start.elapsed().as_secs_f64();
    view::summary(&report);
    report
}
