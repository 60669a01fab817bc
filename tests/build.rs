//! Builds the benchmark's own BPF programs and leaves them in
//! `OUT_DIR/lb-bench-ebpf`.

#[path = "../lb-ebpf/compile.rs"]
mod bpf;

fn main() -> anyhow::Result<()> {
    bpf::compile("lb-bench-ebpf")
}
