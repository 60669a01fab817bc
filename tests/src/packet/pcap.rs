//! Files for Wireshark: the classic format, microseconds, Ethernet.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Writes frames with their times since the Unix epoch.
pub fn write_pcap<'a>(
    path: &Path,
    frames: impl IntoIterator<Item = (Duration, &'a [u8])>,
) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut out = BufWriter::new(file);
    let header: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 0x4_0000, 1];
    for word in header {
        out.write_all(&word.to_le_bytes())?;
    }
    for (time, frame) in frames {
        let length = u32::try_from(frame.len())?;
        let seconds = u32::try_from(time.as_secs())?;
        for word in [seconds, time.subsec_micros(), length, length] {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(frame)?;
    }
    out.flush()?;
    Ok(())
}
