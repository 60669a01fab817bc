//! The daemon's dealings with its peers: flows that they have, or are to have.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Daemon;
use crate::{
    daemon::{conditions::Now, replication},
    status::LinkStatus,
    sync::StreamEvent,
};

/// Peers may take so long to know the last flows of an address that is handed over.
const TOLD_WITHIN: Duration = Duration::from_millis(250);

impl Daemon {
    /// What peers tell, as much as there is, but for what takes too long. Whether there
    /// is something to reconcile.
    pub(super) fn hear(
        &mut self,
        first: StreamEvent,
        more: &mut mpsc::Receiver<StreamEvent>,
    ) -> bool {
        // What is this node's by now isn't the peer's to tell, and the other way round.
        let mut changed = self.look_at_owners();
        let mut next = Some(first);
        let mut left = replication::TURN;
        while let Some(event) = next {
            match self.replication.take(event, &mut self.controller.data_path) {
                Ok(adopted) => changed |= adopted,
                Err(error) => tracing::error!(%error, "a peer's flows were not taken over"),
            }
            left -= 1;
            next = (left > 0).then(|| more.try_recv().ok()).flatten();
        }
        self.tell_changes();
        self.adopt(changed)
    }

    fn adopt(&mut self, changed: bool) -> bool {
        if changed {
            self.controller.adopted = self.replication.adopted();
        }
        changed
    }

    fn look_at_owners(&mut self) -> bool {
        let vrrp = self.routers.status();
        self.replication
            .look_at_owners(&mut self.controller.data_path, &vrrp)
    }

    /// Tells peers what has changed, if it is time to. Whether there is something to
    /// reconcile.
    pub(super) fn replicate(&mut self) -> bool {
        let changed = self.replication.is_used() && self.look_at_owners();
        self.tell_changes();
        self.adopt(changed)
    }

    fn tell_changes(&mut self) {
        self.routers.in_sync(self.replication.in_sync());
        let now = Now::read().instant;
        let plane = &mut self.controller.data_path;
        if self.replication.is_used()
            && let Err(error) = self.replication.tick(plane, now)
        {
            tracing::error!(%error, "the flows could not be told to peers");
        }
    }

    /// Before an address is handed over, its new owner is to know the last flows.
    pub(super) async fn tell_everything(&mut self) {
        let began = Now::read().instant;
        loop {
            self.replication.hasten();
            self.replicate();
            let waited = Now::read().instant.saturating_duration_since(began);
            if self.replication.is_current(began) || waited >= TOLD_WITHIN {
                return;
            }
            tokio::time::sleep(TOLD_WITHIN / 50).await;
        }
    }

    /// The links to peers, with what is replicated.
    pub(super) fn links(&mut self) -> Vec<LinkStatus> {
        let mut links = self.peers.status();
        let changed = self.replication.keep_only(&links);
        self.adopt(changed);
        self.replication.complete(&mut links, Now::read().instant);
        links
    }
}
