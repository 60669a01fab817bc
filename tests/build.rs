//! Builds the BPF programs of the benchmark and of the tests, and leaves them
//! in `OUT_DIR/lb-bench-ebpf` and `OUT_DIR/lb-mutate-ebpf`.

#[path = "../lb-ebpf/compile.rs"]
mod bpf;

fn main() -> anyhow::Result<()> {
    bpf::compile("lb-bench-ebpf")?;
    bpf::compile("lb-mutate-ebpf")
}
