//! The data path's debug log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// Hands the data path's records to `tracing`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "datapath", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Reads the log until it is dropped.
#[derive(Debug)]
pub struct DebugLog(tokio::task::JoinHandle<()>);

impl DebugLog {
    /// `None` where the data path has no log.
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        let logger = EbpfLogger::init_with_logger(ebpf, ToTracing)
            .inspect_err(|e| tracing::debug!("no data path log: {e}"))
            .ok()?;
        // SAFETY: the logger owns its map's descriptor and always gives that one.
        let mut logger = unsafe { AsyncFd::register(logger) }
            .inspect_err(|e| tracing::warn!("data path log: {e}"))
            .ok()?;
        Some(Self(tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        })))
    }
}

impl Drop for DebugLog {
    fn drop(&mut self) {
        self.0.abort();
    }
}
