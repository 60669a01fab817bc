//! What is wrong with a configuration, and where.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// Column, from 1; 0 where the file as a whole is meant.
    pub column: usize,
    /// The field, such as `services[0].port`; empty for the whole document.
    pub path: String,
    /// What was found, what is allowed, and why.
    pub message: String,
}

/// Everything that is wrong with a file, in the order of lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The file's name as it was given.
    pub file: String,
    /// At least one.
    pub errors: Vec<ConfigError>,
    /// Errors beyond those in `errors`.
    pub unreported: usize,
}

impl ConfigErrors {
    pub(super) fn whole_file(file: &str, message: String) -> Self {
        let error = ConfigError {
            line: 0,
            column: 0,
            path: String::new(),
            message,
        };
        Self {
            file: file.into(),
            errors: vec![error],
            unreported: 0,
        }
    }
}

/// One line for each error: `file:line:column: path: message`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.file)?;
            if error.line > 0 {
                write!(f, ":{}:{}", error.line, error.column)?;
            }
            f.write_str(": ")?;
            if !error.path.is_empty() {
                write!(f, "{}: ", error.path)?;
            }
            f.write_str(&error.message)?;
        }
        if self.unreported > 0 {
            write!(f, "\n{}: and {} more errors", self.file, self.unreported)?;
        }
        Ok(())
    }
}
