//! `cargo xtask`: everything a developer or CI does with the tree.

fn main() {}
