//! How a pool's traffic follows the state of its backends.

use std::time::Duration;

use serde::Serialize;

use super::{Backend, Model, Pool, Service};

/// How a pool's traffic follows the state of its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolPolicy {
    /// Time over which a backend that came up gets its full share; zero: at
    /// once.
    pub slow_start: Duration,
    /// Percent of a priority group that has to be available: below that the
    /// next group takes over what is missing. Zero: it takes over when nobody
    /// of the group is left.
    pub min_available: u8,
    /// Percent of the backends that checks may keep out of the rotation.
    pub max_ejected: u8,
    /// What becomes of new flows when every backend is down.
    pub when_all_down: WhenAllDown,
}

impl Default for PoolPolicy {
    fn default() -> Self {
        Self {
            slow_start: Duration::ZERO,
            min_available: 0,
            max_ejected: 50,
            when_all_down: WhenAllDown::All,
        }
    }
}

/// What becomes of new flows when every backend is down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAllDown {
    /// They are dropped.
    Fail,
    /// They are sent to all backends, since the checks may be wrong.
    #[default]
    All,
    /// They are sent to another pool's backends.
    FallbackPool(String),
}

impl Pool {
    /// Whether a backend of it has `max_connections`.
    pub fn has_limits(&self) -> bool {
        self.backends.iter().any(|b| b.max_connections > 0)
    }
}

impl Model {
    /// The pool that stands in for a service's own, with its name. (Its own
    /// fallback isn't followed.)
    pub fn fallback(&self, service: &Service) -> Option<(&str, &Pool)> {
        match &self.pools.get(&service.pool)?.policy.when_all_down {
            WhenAllDown::FallbackPool(name) => self
                .pools
                .get_key_value(name)
                .map(|(name, pool)| (name.as_str(), pool)),
            WhenAllDown::Fail | WhenAllDown::All => None,
        }
    }

    /// The pools that a service uses, with their names: its own, its fallback.
    pub fn pools_of<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a str, &'a Pool)> {
        let own = self.pools.get(&service.pool);
        own.map(|pool| (service.pool.as_str(), pool))
            .into_iter()
            .chain(self.fallback(service))
    }

    /// The backends that a service uses, with their pools' names.
    pub fn backends_of<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a str, &'a Backend)> {
        self.pools_of(service)
            .flat_map(|(name, pool)| pool.backends.iter().map(move |backend| (name, backend)))
    }

    /// Backends of a service that the data path has to know one by one: all of
    /// them where one has a limit, since another takes what it can't.
    pub fn listed(&self, service: &Service) -> u32 {
        if self.pools_of(service).any(|(_, pool)| pool.has_limits()) {
            u32::try_from(self.backends_of(service).count()).unwrap_or(u32::MAX)
        } else {
            0
        }
    }
}
