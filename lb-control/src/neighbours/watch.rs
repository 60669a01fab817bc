//! Follows the kernel through netlink.

use std::sync::Arc;

use lb_common::abi::NeighbourRequest;
use tokio::sync::watch;

use super::{NeighbourView, Target};

/// Following the kernel is not possible.
#[derive(Debug, thiserror::Error)]
#[error("netlink: {what}: {source}")]
pub struct NeighbourError {
    /// What was tried.
    pub what: &'static str,
    /// The kernel's answer.
    pub source: std::io::Error,
}

/// The running watcher. Dropping it ends it and leaves what it asked of the
/// kernel in place, as a crash does; [`Neighbours::stop`] takes it back.
#[derive(Debug)]
pub struct Neighbours {}

impl Neighbours {
    /// Starts to follow the kernel, on the current tokio runtime and in the
    /// network namespace of the calling thread. The first view holds the links.
    pub fn start(
        _managed: Vec<String>,
    ) -> Result<(Self, watch::Receiver<Arc<NeighbourView>>), NeighbourError> {
        unimplemented!()
    }

    /// Names of the interfaces the data path is attached to.
    pub fn set_managed(&self, _managed: Vec<String>) {
        unimplemented!()
    }

    /// The addresses whose next hops are wanted from now on.
    pub fn set_targets(&self, _targets: Vec<Target>) {
        unimplemented!()
    }

    /// Asks the kernel to resolve a next hop the data path had no MAC for.
    /// Cheap to call for every request: they are merged and limited in rate.
    pub fn resolve_client(&self, _request: NeighbourRequest) {
        unimplemented!()
    }

    /// Ends the watcher and lets go of the neighbour entries it kept alive.
    pub async fn stop(self) {
        unimplemented!()
    }
}
