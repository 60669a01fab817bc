//! Requests of the data path to resolve next hops towards clients.

use std::io;

use lb_common::abi::NeighbourRequest;
use tokio::io::unix::AsyncFd;

use super::aya_maps::NeighbourRing;

/// A stream of requests.
pub struct NeighbourRequests(AsyncFd<NeighbourRing>);

impl NeighbourRequests {
    pub(super) fn new(ring: NeighbourRing) -> io::Result<Self> {
        // SAFETY: the ring owns its map's descriptor and always gives that one.
        let registered = unsafe { AsyncFd::register(ring) };
        Ok(Self(registered?))
    }

    /// The next request. Cancel-safe.
    ///
    /// # Errors
    /// The ring buffer can't be waited for.
    pub async fn next(&mut self) -> io::Result<NeighbourRequest> {
        loop {
            if let Some(record) = self.0.get_mut().next(parse) {
                if let Some(request) = record {
                    return Ok(request);
                }
                continue;
            }
            self.0.readable_mut().await?.clear_ready();
            // Something may have come between the look and the wait.
        }
    }
}

fn parse(bytes: &[u8]) -> Option<NeighbourRequest> {
    let bytes: &[u8; size_of::<NeighbourRequest>()] = bytes.try_into().ok()?;
    let mut words = [0u64; size_of::<NeighbourRequest>() / 8];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(chunk.try_into().ok()?);
    }
    Some(super::mapping::from_words(words))
}
