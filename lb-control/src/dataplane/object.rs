//! The data path's object file, built by this crate's build script.

/// The ELF object with all programs and maps.
pub static DATA_PATH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));
