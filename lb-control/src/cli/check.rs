//! `lbctl check FILE`: validates a configuration offline.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use crate::{config, model::Model};

/// Prints a summary to standard output, or every error to standard error.
/// Exits with 0 when the file is good and with 1 when it isn't.
pub fn check(path: &Path) -> ExitCode {
    // Nobody can be told when the output is closed; the status still tells.
    match config::load(path) {
        Ok(model) => {
            let _ = summary(&mut io::stdout().lock(), path, &model);
            for warning in config::warnings(&model) {
                let _ = writeln!(io::stderr().lock(), "warning: {warning}");
            }
            ExitCode::SUCCESS
        }
        Err(errors) => {
            let _ = writeln!(io::stderr().lock(), "{errors}");
            ExitCode::FAILURE
        }
    }
}

fn summary(out: &mut impl Write, path: &Path, model: &Model) -> io::Result<()> {
    let backends: usize = model.pools.values().map(|pool| pool.backends.len()).sum();
    let slots: u64 = model.services.iter().map(|s| u64::from(s.table_size)).sum();
    writeln!(
        out,
        "{}: good. Services: {}, pools: {}, backends: {backends}, interfaces: {}, table slots: {slots}",
        path.display(),
        model.services.len(),
        model.pools.len(),
        model.interfaces.len(),
    )
}
