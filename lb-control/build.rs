//! Builds the data path for the BPF target and leaves it in `OUT_DIR`.

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// The rustup toolchain that `cargo xtask setup` links to what it found:
/// Debian's rustc, which has a precompiled `core` for BPF, or rustup's nightly
/// with rust-src, for which aya-build adds `-Z build-std`.
const TOOLCHAIN: &str = "lb-bpf";

fn main() -> anyhow::Result<()> {
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-ebpf");
    println!(
        "cargo:rerun-if-changed={}",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-common/src")
    );
    // aya-ebpf and lb-ebpf use unstable features; a stable compiler accepts
    // them for these crates alone, and a nightly doesn't mind. Naming them (and
    // not "1") keeps aya-build from asking a stable one for `-Z build-std`.
    // SAFETY: the build script has a single thread.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,lb_ebpf") };
    aya_build::build_ebpf(
        [Package {
            name: "lb-ebpf",
            root_dir,
            ..Package::default()
        }],
        Toolchain::Custom(TOOLCHAIN),
    )
    .context("building the BPF data path failed; `cargo xtask setup` installs what it needs")
}
