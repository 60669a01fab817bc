//! `cargo xtask tidy`: rules of the tree that neither the compiler nor clippy
//! knows. Each rule is a pure function of a file's text.

mod imports;
mod manifests;
mod size;
mod source;
mod words;

use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};

use self::source::Source;
use crate::{process, workspace};

/// One breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path below the root.
    pub path: String,
    /// Counted from 1; 0 for the whole file.
    pub line: usize,
    /// What is wrong, and what to do.
    pub text: String,
}

impl Finding {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            text: text.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}

/// Checks every file of the tree and prints all findings.
pub fn run() -> Result<()> {
    let mut findings = Vec::new();
    let mut checked = 0;
    for path in workspace::files()? {
        let Ok(text) = fs::read_to_string(workspace::root().join(&path)) else {
            // Not text, such as a seed of the fuzzer.
            continue;
        };
        checked += 1;
        findings.extend(check(&path, &text).with_context(|| path.clone())?);
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    process::step(format!("tidy: {checked} files"));
    Ok(())
}

/// Whether the file holds tests alone, by its name: `tests/nat.rs`,
/// `plan/tests.rs`, `plan_tests.rs`.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

/// All rules on one file.
fn check(path: &str, text: &str) -> Result<Vec<Finding>> {
    let mut findings = words::check(path, text);
    if path.ends_with("Cargo.toml") {
        findings.extend(manifests::check(path, text));
    }
    if path.ends_with(".rs") {
        let source = Source::parse(text)?;
        findings.extend(imports::check(path, &source));
        if !is_test_file(path) {
            findings.extend(size::check(path, text, &source));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_tests_may_be_long() {
        let text = "fn f() {}\n".repeat(501);
        for path in [
            "tests/tests/nat.rs",
            "lb-common/src/flow/tests.rs",
            "lb-common/src/flow_tests.rs",
        ] {
            assert_eq!(check(path, &text).unwrap(), [], "{path}");
        }
        assert_eq!(check("tests/src/netns.rs", &text).unwrap().len(), 1);
    }

    #[test]
    fn a_rust_file_that_does_not_parse_is_an_error() {
        assert!(check("a/src/b.rs", "fn f( {").is_err());
    }
}
