//! What probes found, as text for people.

use std::fmt::Write as _;

use crate::{
    cli::table::{Tone, paint},
    status::request::ProbeAnswer,
};

/// `lbctl probe`.
pub fn probe(answer: &ProbeAnswer, colour: bool) -> String {
    let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1000.0);
    let mut text = format!("{}\n", answer.backend);
    for check in &answer.checks {
        let tone = if check.verdict == "pass" {
            Tone::Good
        } else {
            Tone::Bad
        };
        let _ = writeln!(
            text,
            "  {} {}: {} after {}: {}",
            check.kind,
            check.target,
            paint(&check.verdict, tone, colour),
            milliseconds(check.took_seconds),
            check.reason
        );
        for step in &check.steps {
            let _ = writeln!(
                text,
                "    {:>10} + {:>10}  {}",
                milliseconds(step.at_seconds),
                milliseconds(step.took_seconds),
                step.what
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::request::{ProbeStep, ProbedCheck};

    #[test]
    fn every_step_is_shown_with_its_times() {
        let step = |what: &str, at_seconds, took_seconds| ProbeStep {
            what: what.into(),
            at_seconds,
            took_seconds,
        };
        let answer = ProbeAnswer {
            backend: "web/web-1".into(),
            checks: vec![ProbedCheck {
                kind: "http".into(),
                target: "10.0.1.11:80".into(),
                verdict: "pass".into(),
                reason: "status 200".into(),
                took_seconds: 0.0123,
                steps: vec![
                    step("connecting", 0.0, 0.0004),
                    step("connected, waiting for the response", 0.0004, 0.0119),
                ],
            }],
        };
        assert_eq!(
            probe(&answer, false),
            "web/web-1\n  http 10.0.1.11:80: pass after 12.3 ms: status 200\n        \
             0.0 ms +     0.4 ms  connecting\n        \
             0.4 ms +    11.9 ms  connected, waiting for the response\n"
        );
    }
}
