//! What the subcommands of `lbctl` do.

pub mod check;
