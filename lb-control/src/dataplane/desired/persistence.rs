//! Which server a source has: what the data path has to know for that.

use lb_common::{
    abi::{ServerKey, ServiceEntry},
    clock, persist,
};

use super::Builder;
use crate::model::{Backend, Service};

impl Builder<'_> {
    /// Has a member be found by its server's number, where sources have a server
    /// and the member a share of new flows.
    pub(super) fn server(
        &mut self,
        service: &Service,
        backend: &Backend,
        service_id: u32,
        (member, share): (u32, u32),
    ) {
        if service.persistence.is_none() || share == 0 {
            return;
        }
        let backend = persist::backend(&backend.name);
        let key = ServerKey {
            backend,
            service: service_id,
            reserved: 0,
        };
        self.state.servers.insert(key, member);
        self.servers.insert(member, backend);
    }

    /// The service's entry, completed.
    pub(super) fn persistence(&self, service: &Service, entry: ServiceEntry) -> ServiceEntry {
        let Some(persistence) = &service.persistence else {
            return entry;
        };
        let milliseconds = u64::try_from(persistence.timeout.as_millis()).unwrap_or(u64::MAX);
        let ticks = clock::ticks(milliseconds, self.given.hz);
        ServiceEntry {
            group: persist::group(&persistence.group_name(&service.name)),
            persist_ticks: u32::try_from(ticks).unwrap_or(u32::MAX),
            persist_v4: persistence.prefix_v4,
            persist_v6: persistence.prefix_v6,
            ..entry
        }
    }
}
