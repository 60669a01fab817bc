//! One probe: what a check does when its turn comes.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time,
};

use super::{
    CheckKey, Found, Verdict, agent, dns, exec, http,
    ping::Pinger,
    smtp, snmp, tcp,
    tls::Configs,
    trace::Trace,
    udp,
    way::{self, Destination, Members, Pass, Passage},
};
use crate::model::CheckKind;

/// Programs of checks that run at a time.
const MOST_PROGRAMS: usize = 64;

/// What probes share.
#[derive(Debug)]
pub struct Tools {
    /// Configurations of TLS.
    pub tls: Configs,
    /// Sends and receives all echo requests.
    pub pinger: Pinger,
    /// Sessions with SNMP agents.
    pub snmp: snmp::Sessions,
    /// Lets probes into the data path; empty where there is none.
    pub passage: OnceLock<Arc<dyn Passage>>,
    /// Members of the data path.
    pub members: watch::Sender<Members>,
    /// One for each program that may still be started.
    pub programs: Semaphore,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            tls: Configs::default(),
            pinger: Pinger::default(),
            snmp: snmp::Sessions::default(),
            passage: OnceLock::new(),
            members: watch::Sender::default(),
            programs: Semaphore::new(MOST_PROGRAMS),
        }
    }
}

/// Why there is no answer to judge.
#[derive(Debug)]
pub enum Failure {
    /// The network, or the other end, says so.
    Io(io::Error),
    /// The answer is none.
    Wrong(String),
    /// The probe could not be made, for reasons of our own.
    Ours(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Tools {
    /// Has the files that probes use be read again.
    pub fn forget(&self) {
        self.tls.forget();
        self.snmp.forget();
    }
}

/// How a probe ends: what it found, or why there is nothing to judge.
pub type Outcome = Result<Found, Failure>;

/// Makes the probe, notes its steps in `trace`, and tells what it found within
/// `timeout`.
pub async fn run(key: &CheckKey, timeout: Duration, tools: &Arc<Tools>, trace: &Trace) -> Found {
    let outcome = match time::timeout(timeout, find_way(key, tools, trace)).await {
        Ok(Ok((to, pass))) => {
            let left = timeout.saturating_sub(trace.elapsed());
            let probe = dispatch(key, to, timeout, tools, trace);
            let outcome = time::timeout(left, probe).await;
            // Until here the port is the probe's.
            drop(pass);
            outcome.unwrap_or_else(|_| Ok(silence(timeout, trace)))
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::Ours(
            "the data path doesn't have this backend (yet)".into(),
        )),
    };
    let found = outcome.unwrap_or_else(|failure| explain(&failure));
    Found {
        certificate_expiry: trace.certificate_expiry(),
        ..found
    }
}

/// Where the probe goes. Waits until the data path has the backend.
async fn find_way(
    key: &CheckKey,
    tools: &Tools,
    trace: &Trace,
) -> Result<(Destination, Option<Pass>), Failure> {
    let Some(through) = &key.through else {
        return Ok((key.target.into(), None));
    };
    let Some(passage) = tools.passage.get() else {
        return Err(Failure::Ours("there is no way into the data path".into()));
    };
    trace.step("finding the way through the data path");
    let mut members = tools.members.subscribe();
    let known = members.wait_for(|members| members.contains_key(through));
    let member = known
        .await
        .ok()
        .and_then(|members| members.get(through).copied())
        .ok_or_else(|| Failure::Ours("the data path is gone".into()))?;
    let vip = key.target.ip();
    let source = way::source_towards(through.address, vip).map_err(|error| {
        Failure::Ours(format!(
            "no address of this host leads to the backend: {error}"
        ))
    })?;
    let pass = passage.open(member, source).map_err(Failure::Ours)?;
    let to = Destination {
        address: key.target,
        through: Some((SocketAddr::new(source, pass.port), pass.mark)),
    };
    Ok((to, Some(pass)))
}

async fn dispatch(
    key: &CheckKey,
    to: Destination,
    timeout: Duration,
    tools: &Arc<Tools>,
    trace: &Trace,
) -> Outcome {
    match &*key.kind {
        CheckKind::Ping(ping) => tools.pinger.probe(key.target.ip(), ping, trace).await,
        CheckKind::Tcp => tcp::probe(to, trace).await,
        CheckKind::Udp(check) => udp::probe(to, check, timeout, trace).await,
        CheckKind::Http(check) => http::probe(to, check, &tools.tls, trace).await,
        CheckKind::Dns(check) => dns::probe(to, check, trace).await,
        CheckKind::Smtp(check) => smtp::probe(to, check, &tools.tls, trace).await,
        CheckKind::Exec(check) => exec::probe(key, check, &tools.programs, trace).await,
        CheckKind::Agent(check) => agent::probe(to, check, tools, trace).await,
        CheckKind::Snmp(check) => snmp::probe(key.target, check, &tools.snmp, trace).await,
    }
}

/// Nothing came in time.
fn silence(timeout: Duration, trace: &Trace) -> Found {
    let words = match trace.last() {
        Some(exec::WAITING) => {
            let words = "could not check: too many programs of checks run at a time";
            return Found::new(Verdict::NotMade, words);
        }
        Some(step) => format!("no answer within {timeout:?}: {step}"),
        None => format!("no answer within {timeout:?}"),
    };
    Found::new(Verdict::Timeout, words)
}

fn explain(failure: &Failure) -> Found {
    match failure {
        Failure::Io(error) => explain_io(error),
        Failure::Wrong(words) => Found::new(Verdict::WrongAnswer, words.as_str()),
        Failure::Ours(why) => Found::new(Verdict::NotMade, format!("could not check: {why}")),
    }
}

/// What a socket's error says of the backend.
fn explain_io(error: &io::Error) -> Found {
    let (verdict, words) = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => (Verdict::Refused, "connection refused".to_owned()),
        Some(libc::ECONNRESET | libc::EPIPE) => (Verdict::Refused, "connection reset".to_owned()),
        // The kernel gave up before we did (tcp_syn_retries).
        Some(libc::ETIMEDOUT) => (Verdict::Timeout, "no answer".to_owned()),
        Some(libc::EHOSTUNREACH) => (Verdict::Refused, "host unreachable".to_owned()),
        Some(libc::ENETUNREACH) => (Verdict::Refused, "network unreachable".to_owned()),
        // The backend answered with an ICMP error of another kind.
        Some(libc::EACCES | libc::ENOPROTOOPT | libc::EPROTO | libc::EHOSTDOWN) => {
            (Verdict::Refused, format!("unreachable: {error}"))
        }
        Some(libc::EMFILE | libc::ENFILE) => (
            Verdict::NotMade,
            "could not check: out of file descriptors".to_owned(),
        ),
        Some(libc::EADDRNOTAVAIL) => (
            Verdict::NotMade,
            "could not check: out of local ports or without a source address".to_owned(),
        ),
        Some(libc::EPERM) => (
            Verdict::NotMade,
            "could not check: forbidden by this machine's firewall".to_owned(),
        ),
        // The other end's, such as the end of what it says.
        None if error.kind() == io::ErrorKind::UnexpectedEof => (
            Verdict::WrongAnswer,
            "the connection was closed before the answer was complete".to_owned(),
        ),
        _ => (Verdict::NotMade, format!("could not check: {error}")),
    };
    Found::new(verdict, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_our_own_fault_says_nothing_of_the_backend() {
        for code in [
            libc::EMFILE,
            libc::ENFILE,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
            libc::ENOBUFS,
        ] {
            let found = explain_io(&io::Error::from_raw_os_error(code));
            assert_eq!(found.verdict, Verdict::NotMade, "{found:?}");
            assert!(found.words.starts_with("could not check: "), "{found:?}");
        }
    }

    #[test]
    fn what_the_network_says_counts_as_a_refusal() {
        for code in [
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
        ] {
            let found = explain_io(&io::Error::from_raw_os_error(code));
            assert_eq!(found.verdict, Verdict::Refused, "{found:?}");
        }
    }
}
