//! The UDP check: passes when a datagram gets the expected answer, or at least
//! no ICMP error.

use std::time::Duration;

use tokio::time;

use super::{
    Found, Verdict,
    http::judge_text,
    probe::{Failure, Outcome},
    trace::Trace,
    way::Destination,
};
use crate::model::Udp;

/// The largest datagram.
const MOST_BYTES: usize = 65_535;

/// Sends the datagram and judges what comes back.
///
/// # Errors
/// The network says that it can't be delivered, or the answer is another one.
pub async fn probe(to: Destination, udp: &Udp, timeout: Duration, trace: &Trace) -> Outcome {
    let socket = to.udp()?;
    trace.step("waiting for an answer");
    socket.send(&udp.send).await?;
    let mut answer = vec![0; MOST_BYTES];
    let length = if udp.answer_required {
        socket.recv(&mut answer).await?
    } else {
        // With the whole of the time this were a time-out.
        let enough = timeout.mul_f64(0.9).saturating_sub(trace.elapsed());
        match time::timeout(enough, socket.recv(&mut answer)).await {
            Ok(length) => length?,
            Err(_) => {
                let words = "no answer, and nobody says that it is unreachable";
                return Ok(Found::new(Verdict::Pass, words));
            }
        }
    };
    answer.truncate(length);
    let what = format!("the answer ({length} bytes)");
    let (part, pattern) = (udp.contains.as_deref(), udp.regex.as_ref());
    match judge_text(&answer, part, pattern, &what) {
        Some(wrong) => Err(Failure::Wrong(wrong)),
        None => Ok(Found::new(
            Verdict::Pass,
            format!("answered with {length} bytes"),
        )),
    }
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
