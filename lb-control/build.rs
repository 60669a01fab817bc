//! Builds the data path for the BPF target and leaves it in `OUT_DIR`.

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-ebpf");
    println!(
        "cargo:rerun-if-changed={}",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-common/src")
    );
    println!("cargo:rerun-if-env-changed=LB_BPF_TOOLCHAIN");
    // `cargo xtask setup` says which toolchain it found: rustup's nightly with
    // rust-src, or a linked one that carries a precompiled `core`.
    let toolchain = std::env::var("LB_BPF_TOOLCHAIN").unwrap_or_else(|_| "lb-bpf".into());
    if toolchain != "nightly" {
        // aya-ebpf and lb-ebpf use unstable features; a stable compiler with a
        // precompiled `core` accepts them for these crates alone. Naming them
        // (and not "1") keeps aya-build from asking for `-Z build-std`.
        // SAFETY: the build script has a single thread.
        unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,lb_ebpf") };
    }
    aya_build::build_ebpf(
        [Package {
            name: "lb-ebpf",
            root_dir,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .context("building the BPF data path failed; `cargo xtask setup` installs what it needs")
}
