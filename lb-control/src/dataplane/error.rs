//! Why the data path can't run or be changed, and what to do about it.

use std::{fmt, io, path::PathBuf};

use super::{desired::DesiredError, store::StoreError};

/// What went wrong, with a remedy where there is one.
#[derive(Debug)]
pub struct PlaneError {
    /// What happened.
    pub kind: Kind,
    /// What can be done about it.
    pub remedy: Option<String>,
}

/// What happened to the data path.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Kind {
    #[error("the process may not use BPF ({call}): {source}")]
    NotPermitted { call: String, source: io::Error },
    #[error("no interface `{name}`")]
    NoInterface { name: String },
    #[error("interface `{interface}` has an XDP program already: {program}")]
    OtherProgram { interface: String, program: String },
    #[error("the XDP program can't be attached to `{interface}` ({mode}): {reason}")]
    Attach {
        interface: String,
        mode: String,
        reason: String,
    },
    #[error("{path} is not in a BPF file system, and none can be mounted there: {reason}")]
    NoBpfFs { path: PathBuf, reason: String },
    #[error("the maps pinned in {dir} have layout version {found}, this program has {expected}")]
    OtherAbi {
        dir: PathBuf,
        found: u32,
        expected: u32,
    },
    #[error("map {map} pinned in {dir} has {what} {found}, this configuration needs {expected}")]
    OtherShape {
        dir: PathBuf,
        map: String,
        what: &'static str,
        found: u32,
        expected: u32,
    },
    #[error("{path}: {reason}")]
    Secret { path: PathBuf, reason: String },
    #[error(
        "the key of the flow hash in {path} is not the one the running data path uses: every flow would move"
    )]
    SecretChanged { path: PathBuf },
    #[error("the kernel refused the data path's {what}: {reason}")]
    Load { what: String, reason: String },
    #[error("the kernel's clock can't be read: {reason}")]
    Clock { reason: String },
    #[error("{what} {path}: {source}")]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Desired(#[from] DesiredError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl fmt::Display for PlaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        let mut source = std::error::Error::source(&self.kind);
        while let Some(error) = source {
            // Most messages carry their source already.
            if matches!(self.kind, Kind::Store(_)) {
                write!(f, ": {error}")?;
            }
            source = error.source();
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlaneError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.kind)
    }
}

impl Kind {
    /// The error with what can be done about it.
    pub fn remedy(self, remedy: impl Into<String>) -> PlaneError {
        PlaneError {
            kind: self,
            remedy: Some(remedy.into()),
        }
    }
}

impl<K: Into<Kind>> From<K> for PlaneError {
    fn from(kind: K) -> Self {
        Self {
            kind: kind.into(),
            remedy: None,
        }
    }
}

/// All messages of an error and its causes, in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = error.source();
    }
    text
}

/// The operating system's reason among an error's causes.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}
