//! Tells bpf-linker which instruction set to emit.

fn main() {
    // The 64-bit compare-and-exchange of the flow and slot tables needs v3
    // (Linux 5.12).
    println!("cargo:rustc-link-arg=--cpu=v3");
}
