//! What the client knows of its requests.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// What a request was sent over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A connection for this request alone.
    New,
    /// A connection that carries several.
    KeptAlive,
    /// A connection held open through the whole scene.
    Held,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Its `X-Request-Id`.
    pub id: String,
    /// What it was sent over.
    pub way: Way,
    /// When it began.
    pub begun: Instant,
    /// The server that answered, or why none did.
    pub answer: Result<String, String>,
}

/// All requests of a scene.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Ledger {
    /// An id for the next request.
    pub fn next_id(&self) -> String {
        format!("demo-{}", self.0.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes a request down.
    pub fn note(&self, exchange: Exchange) {
        self.lock().push(exchange);
    }

    /// Requests written down so far; a place to continue from.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Those written down since [`Self::len`] was `from`.
    pub fn since(&self, from: usize) -> Vec<Exchange> {
        self.lock().get(from..).unwrap_or_default().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.0
            .exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
