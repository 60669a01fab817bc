//! Builds the data path for the BPF target and leaves it in `OUT_DIR/lb-ebpf`.

#[path = "../lb-ebpf/compile.rs"]
mod bpf;

fn main() -> anyhow::Result<()> {
    bpf::compile("lb-ebpf")
}
