//! The agent check: a program beside the server says how the server is.

use hyper::http::response::Parts;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    Found, Verdict, http,
    load::Load,
    probe::{Failure, Outcome, Tools},
    tcp,
    trace::Trace,
    way::Destination,
};
use crate::model::{Agent, Expect, Http, HttpMethod};

/// Bytes of an answer in the line protocol at most.
const MOST_LINE: u64 = 1024;

/// Asks the agent and does as it says.
///
/// # Errors
/// There is no answer, or one that makes no sense.
pub async fn probe(to: Destination, agent: &Agent, tools: &Tools, trace: &Trace) -> Outcome {
    match agent {
        Agent::Line { send } => judge_line(&line(to, send, trace).await?),
        Agent::Json { path } => json(to, path, tools, trace).await,
    }
}

async fn line(to: Destination, send: &str, trace: &Trace) -> Result<String, Failure> {
    let mut stream = tcp::connect(to, trace).await?;
    trace.step("connected, waiting for the agent's line");
    stream.write_all(send.as_bytes()).await?;
    let (mut line, mut limited) = (Vec::new(), stream.take(MOST_LINE));
    // The connection's end ends a line, too.
    while !line.ends_with(b"\n") && limited.read_buf(&mut line).await? > 0 {}
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Words in any order, with spaces, tabs and commas between them, and a
/// description after `#`, as HAProxy's manual has them under `agent-check`.
fn judge_line(line: &str) -> Outcome {
    let line = line.lines().next().unwrap_or_default();
    let (words, description) = line.split_once('#').unwrap_or((line, ""));
    let mut report = Report::default();
    let mut is_empty = true;
    for word in words
        .split([' ', '\t', ','])
        .filter(|word| !word.is_empty())
    {
        is_empty = false;
        match word.strip_suffix('%').map(str::parse::<u32>) {
            Some(Ok(percent)) => report.weight = Some(percent),
            // A limit of connections is the configuration's affair.
            None if word.starts_with("maxconn:") => {}
            _ => report.state = State::worst(report.state, State::read(word)?),
        }
    }
    if is_empty {
        return Err(Failure::Wrong("the agent said nothing".into()));
    }
    Ok(report.judge(description.trim()))
}

async fn json(to: Destination, path: &str, tools: &Tools, trace: &Trace) -> Outcome {
    let http = Http {
        method: HttpMethod::Get,
        path: path.to_owned(),
        host: None,
        headers: Vec::new(),
        full_size: false,
        expect: Expect {
            status: vec![(200, 200)],
            headers: Vec::new(),
            body_contains: None,
            body_regex: None,
        },
        tls: None,
    };
    let is_good = |head: &Parts| head.status.as_u16() == 200;
    let (head, body) = http::fetch(to, &http, &tools.tls, trace, is_good).await?;
    if !is_good(&head) {
        let status = head.status.as_u16();
        return Err(Failure::Wrong(format!("status {status}; expected 200")));
    }
    judge_json(&body)
}

fn judge_json(body: &[u8]) -> Outcome {
    let answer: Json = serde_json::from_slice(body)
        .map_err(|error| Failure::Wrong(format!("not what an agent says: {error}")))?;
    let report = Report {
        state: match &answer.state {
            Some(word) => State::read(word)?,
            None => State::Up,
        },
        weight: answer.weight,
        busy: answer.busy,
    };
    Ok(report.judge(answer.message.as_deref().unwrap_or_default()))
}

/// What an agent says in JSON. Other members are left alone.
#[derive(Deserialize)]
struct Json {
    /// A word of the line protocol.
    state: Option<String>,
    /// The part of its weight that it wants, in percent.
    weight: Option<u32>,
    /// How busy it is, in percent.
    busy: Option<u32>,
    /// For people.
    message: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    #[default]
    Up,
    Drain,
    Down,
}

impl State {
    fn read(word: &str) -> Result<Self, Failure> {
        match word.to_ascii_lowercase().as_str() {
            "up" | "ready" => Ok(Self::Up),
            "drain" => Ok(Self::Drain),
            "down" | "maint" | "failed" | "fail" | "stopped" => Ok(Self::Down),
            _ => {
                let start: String = word.chars().take(40).collect();
                Err(Failure::Wrong(format!(
                    "the agent said {start:?}, which means nothing"
                )))
            }
        }
    }

    fn worst(one: Self, other: Self) -> Self {
        one.max(other)
    }
}

#[derive(Default)]
struct Report {
    state: State,
    weight: Option<u32>,
    busy: Option<u32>,
}

impl Report {
    fn judge(&self, description: &str) -> Found {
        let percent = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        let mut words = match self.state {
            State::Up => "the agent says up".to_owned(),
            State::Drain => "the agent says drain".to_owned(),
            State::Down => "the agent says down".to_owned(),
        };
        let verdict = match self.state {
            State::Down => Verdict::WrongAnswer,
            // Who wants nothing of its weight wants no new flows.
            _ if self.weight == Some(0) => Verdict::Drain,
            State::Drain => Verdict::Drain,
            State::Up => Verdict::Pass,
        };
        if let Some(weight) = self.weight {
            words += &format!(", {weight} % of its weight");
        }
        if let Some(busy) = self.busy {
            words += &format!(", {busy} % busy");
        }
        if !description.is_empty() {
            let description: String = description.chars().take(80).collect();
            words += &format!(" ({description})");
        }
        let weight = self.weight.filter(|weight| *weight > 0);
        let load = weight.map(|weight| Load::Weight(percent(weight)));
        Found {
            load: load.or(self.busy.map(|busy| Load::Busy(percent(busy)))),
            ..Found::new(verdict, words)
        }
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
