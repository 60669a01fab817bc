//! Connections by the thousand, watched: the modes of `lb-conns`.
//!
//! The protocol is lines of text. A server greets a TCP connection with its
//! name, and answers each line, and each datagram, with its name, a blank and
//! the line. So a client can tell on every message that it still talks to the
//! same server and that nothing was lost or mixed up.

pub mod args;
mod dns;
mod hold;
mod rate;
mod serve;
mod udp;

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, Write as _},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

pub use hold::{HoldOptions, hold};
pub use rate::{RateOptions, rate};
pub use serve::{ServeOptions, serve};
pub use udp::{UdpOptions, udp};

/// Why connections were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Reset, or closed by the server.
    pub reset: u32,
    /// Given up by the kernel, or unreachable.
    pub timeout: u32,
    /// Another server answered.
    pub wrong_server: u32,
    /// No answer within 10 s.
    pub stall: u32,
    /// The right server gave an answer with the wrong number.
    pub wrong_answer: u32,
}

impl Lost {
    /// All of them.
    pub fn total(&self) -> u32 {
        self.reset + self.timeout + self.wrong_server + self.stall + self.wrong_answer
    }
}

/// What [`hold()`] has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldReport {
    /// Connections asked for.
    pub wanted: u32,
    /// Connections that were opened and greeted.
    pub opened: u32,
    /// Connections that could not be opened.
    pub failed_to_open: u32,
    /// Opened connections that were lost since.
    pub lost: Lost,
    /// Opened connections by server.
    pub per_server: BTreeMap<String, u32>,
    /// Lost connections by the server that had them.
    pub lost_per_server: BTreeMap<String, u32>,
    /// Messages answered rightly.
    pub messages: u64,
    /// Longest time that a message waited for its answer, those still waiting
    /// included, in milliseconds.
    pub max_stall_ms: u64,
    /// First few failures in words.
    pub examples: Vec<String>,
}

/// What [`rate()`] has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RateReport {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Failures by kind: `refused`, `connect_timeout`, `reset`, `timeout`,
    /// `wrong_answer`, `other`.
    pub failures: BTreeMap<String, u64>,
    /// Answers by server.
    pub per_server: BTreeMap<String, u64>,
    /// Answered requests per second.
    pub per_second: f64,
    /// Longest request, in milliseconds.
    pub max_ms: u64,
    /// First few failures in words.
    pub examples: Vec<String>,
}

/// What [`udp()`] has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpReport {
    /// Requests sent.
    pub sent: u64,
    /// Right answers.
    pub answered: u64,
    /// Requests without an answer within a second.
    pub unanswered: u64,
    /// Answers from another server than this socket's last one.
    pub moved: u64,
    /// Answers that fit no request: late, wrong or of another sender.
    pub wrong_answer: u64,
    /// Answers by server.
    pub per_server: BTreeMap<String, u64>,
}

/// What [`serve()`] has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeCounts {
    /// TCP connections accepted.
    pub accepted: u64,
    /// TCP connections open now.
    pub open: u64,
    /// Lines answered.
    pub lines: u64,
    /// Datagrams answered, DNS included.
    pub datagrams: u64,
    /// TCP connections by the client's address.
    pub peers: BTreeMap<String, u64>,
}

/// Most failures that a report describes in words.
const EXAMPLES: usize = 5;

/// Raises the soft limit of open files to the hard one.
pub fn raise_open_files_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: limit is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: limit is a valid value.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lines from standard input. After its end the channel stays open: a closed
/// input is no command.
fn commands() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line.trim().to_owned()).is_err() {
                return;
            }
        }
        loop {
            std::thread::park();
        }
    });
    receiver
}

/// Prints one line of JSON.
fn print<T: Serialize + DeserializeOwned>(report: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    out.flush()
}

/// The kind a failed read or write counts as.
fn is_reset(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        e.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}
