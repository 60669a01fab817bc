//! The data path's debug log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use lb_common::counter::DropReason;
use tokio::io::unix::AsyncFd;

/// Hands the data path's records to `tracing`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        match dropped(&text) {
            Some((service_id, reason)) => {
                tracing::debug!(target: "datapath", service_id, reason, "dropped");
            }
            None => tracing::debug!(target: "datapath", "{text}"),
        }
    }

    fn flush(&self) {}
}

/// Service id and reason of a record of a drop, which has their numbers.
fn dropped(text: &str) -> Option<(u32, &'static str)> {
    let (service, reason) = text.strip_prefix("drop ")?.split_once(' ')?;
    let reason = DropReason::ALL.get(reason.parse::<usize>().ok()?)?;
    Some((service.parse().ok()?, reason.name()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_told_by_the_name_of_its_reason() {
        assert_eq!(dropped("drop 7 0"), Some((7, "no_service")));
        assert_eq!(dropped("drop 7 99"), None);
        assert_eq!(dropped("something else"), None);
    }
}
