//! From a YAML file to a [`Model`]: every error at once, each with its place,
//! what was found and what is allowed.
//!
//! `yaml` alone knows the YAML library. `document` reads keys and values,
//! `check` holds what concerns more than one value. Depends on `model` and,
//! for the default size of tables, on `scheduler`.

mod balance;
mod check;
mod defence;
mod document;
mod error;
mod persistence;
mod pool_policy;
mod probe;
mod probe_path;
mod reader;
mod shared;
mod sync;
mod topology;
mod value;
mod vrrp;
mod yaml;

use std::{fs::File, io::Read as _, path::Path};

pub use error::{ConfigError, ConfigErrors};

use crate::model::Model;

/// Larger files are refused: 65,536 backends need about half of it.
const MAX_FILE_BYTES: usize = 16 << 20;

/// Errors that are located and reported; the rest is only counted.
const MAX_REPORTED: usize = 100;

/// Reads and validates the configuration file at `path`.
pub fn load(path: impl AsRef<Path>) -> Result<Model, ConfigErrors> {
    let path = path.as_ref();
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, also where
    // its length isn't known beforehand (a pipe).
    if let Err(error) = File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes))
    {
        return Err(ConfigErrors::whole_file(
            &name,
            format!("can't be read: {error}"),
        ));
    }
    match std::str::from_utf8(&bytes) {
        // A character may be cut in two at the limit: leave that to `parse`.
        Ok(text) => parse(text, &name),
        Err(_) if bytes.len() > MAX_FILE_BYTES => Err(too_large(&name)),
        Err(error) => Err(ConfigErrors::whole_file(
            &name,
            format!("is not UTF-8 text (at byte {})", error.valid_up_to()),
        )),
    }
}

/// Validates the configuration in `text`; `file_name` is for the messages.
pub fn parse(text: &str, file_name: &str) -> Result<Model, ConfigErrors> {
    if text.len() > MAX_FILE_BYTES {
        return Err(too_large(file_name));
    }
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(error) => {
            return Err(ConfigErrors {
                file: file_name.into(),
                errors: vec![ConfigError {
                    line: error.line,
                    column: error.column,
                    path: String::new(),
                    message: error.message,
                }],
                unreported: 0,
            });
        }
    };
    let errors = reader::Errors::default();
    let mut document = document::read(&root, &errors);
    // Checks between values that weren't understood would report consequences.
    if errors.is_empty() {
        check::all(&mut document, &errors);
    }
    let errors = errors.into_inner();
    if errors.is_empty() {
        return Ok(document.model);
    }
    let unreported = errors.len().saturating_sub(MAX_REPORTED);
    let mut errors: Vec<ConfigError> = errors
        .into_iter()
        .take(MAX_REPORTED)
        .map(|error| {
            let (line, column) = yaml::position(text, &error.path, error.at_key);
            ConfigError {
                line,
                column,
                path: error.path.to_string(),
                message: error.message,
            }
        })
        .collect();
    errors.sort_by_key(|error| (error.line, error.column));
    Err(ConfigErrors {
        file: file_name.into(),
        errors,
        unreported,
    })
}

/// What is valid and may still not work, one sentence each.
pub fn warnings(model: &Model) -> Vec<String> {
    model
        .services
        .iter()
        .filter_map(topology::warnings)
        .chain(shared::warnings(model))
        .collect()
}

fn too_large(name: &str) -> ConfigErrors {
    ConfigErrors::whole_file(name, format!("is larger than {} MiB", MAX_FILE_BYTES >> 20))
}

#[cfg(test)]
mod tests;
