//! Probes that an operator asks for.

use crate::{
    api::Reply,
    health::{BackendKey, Health, Probed},
    status::request::{ProbeAnswer, ProbeRequest, ProbeStep, ProbedCheck, Refusal},
};

/// Probes the backend and answers when that has ended; the daemon goes on
/// meanwhile.
pub fn probe(health: &Health, request: ProbeRequest, reply: Reply<ProbeAnswer>) {
    let ProbeRequest { pool, backend } = request;
    let name = format!("{pool}/{backend}");
    let Some(probes) = health.probe_now(&BackendKey { pool, backend }) else {
        let refusal = format!("there is no backend {name}; `lbctl backends` lists them");
        // Whoever asked may have hung up.
        let _ = reply.send(Err(Refusal::because(refusal)));
        return;
    };
    tokio::spawn(async move {
        let checks: Vec<_> = probes.await.iter().map(described).collect();
        let answer = if checks.is_empty() {
            let refusal = format!("{name} has no health checks; it counts as up");
            Err(Refusal::because(refusal))
        } else {
            Ok(ProbeAnswer {
                backend: name,
                checks,
            })
        };
        let _ = reply.send(answer);
    });
}

fn described(probed: &Probed) -> ProbedCheck {
    let target = probed.key.target;
    ProbedCheck {
        kind: probed.key.kind.name().to_owned(),
        target: match target.port() {
            0 => target.ip().to_string(),
            _ => target.to_string(),
        },
        verdict: probed.found.verdict.name().to_owned(),
        reason: probed.found.words.clone(),
        took_seconds: probed.took.as_secs_f64(),
        steps: probed
            .steps
            .iter()
            .map(|(step, took)| ProbeStep {
                what: step.what.to_owned(),
                at_seconds: step.at.as_secs_f64(),
                took_seconds: took.as_secs_f64(),
            })
            .collect(),
    }
}
