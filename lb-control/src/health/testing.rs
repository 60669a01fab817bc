//! Probes for tests.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    BackendKey, CheckKey, Found,
    probe::{self, Tools},
    trace::Trace,
};
use crate::model::CheckKind;

/// How long a probe of [`probe_once`] waits.
pub const TIMEOUT: Duration = Duration::from_millis(500);

/// The check of a backend called `web/web-1`.
pub fn key_of(kind: CheckKind, target: SocketAddr) -> CheckKey {
    CheckKey {
        backend: BackendKey {
            pool: "web".into(),
            backend: "web-1".into(),
        },
        kind: kind.into(),
        target,
        through: None,
    }
}

/// Makes one probe of this target.
pub async fn probe_once(kind: CheckKind, target: SocketAddr) -> Found {
    probe_within(kind, target, TIMEOUT).await
}

/// As [`probe_once`], with this time-out.
pub async fn probe_within(kind: CheckKind, target: SocketAddr, timeout: Duration) -> Found {
    let (key, tools) = (key_of(kind, target), Arc::<Tools>::default());
    probe::run(&key, timeout, &tools, &Trace::start()).await
}
