//! What a probe found, apart from what follows from it.

use serde::{Deserialize, Serialize};

use super::load::Load;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The right answer, in time.
    Pass,
    /// The right answer, later than the check calls good.
    Slow,
    /// The backend said that it has too much to do: 503 with Retry-After.
    Overloaded,
    /// Refused, reset, or the network said that it can't be reached.
    Refused,
    /// No answer in time.
    Timeout,
    /// An answer, but not the right one.
    WrongAnswer,
    /// The backend asked to be drained.
    Drain,
    /// The probe could not be made, for reasons that are not the backend's.
    NotMade,
}

/// What a probe found, and what else it learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The verdict.
    pub verdict: Verdict,
    /// The same in words: "connection refused".
    pub words: String,
    /// When the server's certificate ends, in seconds since the Unix epoch.
    pub certificate_expiry: Option<i64>,
    /// What the backend says of its own load.
    pub load: Option<Load>,
}

impl Found {
    /// A verdict in words, and nothing else.
    pub fn new(verdict: Verdict, words: impl Into<String>) -> Self {
        Self {
            verdict,
            words: words.into(),
            certificate_expiry: None,
            load: None,
        }
    }
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pass,
        Self::Slow,
        Self::Overloaded,
        Self::Refused,
        Self::Timeout,
        Self::WrongAnswer,
        Self::Drain,
        Self::NotMade,
    ];

    /// The name in JSON, tables and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Slow => "slow",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::WrongAnswer => "wrong_answer",
            Self::Drain => "drain",
            Self::NotMade => "not_made",
        }
    }
}
