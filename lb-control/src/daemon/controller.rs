//! The one owner of the data path: takes events, keeps what is desired and
//! what runs the same. Does no waiting and reads no clock.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    admin::AdminStore,
    conditions::{Conditions, Known, Now, conditions},
    names, reload,
    retry::BackOff,
};
use crate::{
    dataplane::desired::{AdoptedShares, BackendKey, Hop, Link, OwnAddress, Runtime},
    health::HealthState,
    model::Model,
    neighbours::{Device, NeighbourView, Unresolved},
    status::{
        AdminState, ApplyStatus, LastReload, ReloadStatus,
        request::{AdminAction, AdminAnswer, AdminRequest, Refusal},
    },
};

/// What the controller does to the data path.
pub trait DataPath {
    /// Makes the maps hold what model and runtime ask for. On an error
    /// packets go on by what was taken over so far.
    ///
    /// # Errors
    /// Why, with a remedy.
    fn apply(&mut self, model: &Model, runtime: &Runtime) -> Result<Applied, String>;
}

/// What a change of the data path has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Slots of living services that went to another backend.
    pub slots_moved: u64,
    /// Writes.
    pub operations: u64,
}

/// Reads and validates a configuration; the errors are lines of text.
pub type Load = fn(&Path) -> Result<Model, Vec<String>>;

/// A configuration that was read and could come into force.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The configuration.
    pub model: Model,
    hash: String,
}

/// The configuration in force.
#[derive(Debug)]
pub struct InForce {
    /// Its file.
    pub file: PathBuf,
    /// A hash of the file's bytes.
    pub hash: String,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
}

/// The controller's state.
#[derive(Debug)]
pub struct Controller<D> {
    /// The data path.
    pub data_path: D,
    /// The configuration.
    pub model: Model,
    /// Where that came from.
    pub in_force: InForce,
    /// Operators' decisions.
    pub admin: AdminStore,
    /// What the checks say.
    pub verdicts: BTreeMap<BackendKey, Known>,
    /// What the kernel says.
    pub neighbours: Arc<NeighbourView>,
    /// The link that probes come in by, and the first of their ports.
    pub probes: Option<(Link, u16)>,
    /// Shares that other nodes decide on, by service.
    pub adopted: BTreeMap<String, AdoptedShares>,
    /// The conditions at the last reconciliation.
    pub conditions: Conditions,
    /// Reloads so far.
    pub reloads: ReloadStatus,
    /// Changes of the data path so far.
    pub applies: ApplyStatus,
    load: Load,
    start: Start,
    applied: Option<Runtime>,
    back_off: BackOff,
}

/// The time before the first results of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Until this moment at the latest. With `hold` the adopted data path is
    /// left as it is: it knows more than a daemon that has just started.
    Waiting {
        until: Instant,
        hold: bool,
    },
    Over,
}

impl<D: DataPath> Controller<D> {
    /// A controller of `data_path`, which was `adopted` or is new.
    pub fn new(
        data_path: D,
        adopted: bool,
        file: &Path,
        candidate: Candidate,
        admin: AdminStore,
        load: Load,
        now: Now,
    ) -> Self {
        let until = now.instant + first_results_within(&candidate.model);
        Self {
            data_path,
            model: candidate.model,
            in_force: InForce {
                file: file.into(),
                hash: candidate.hash,
                since: now.unix,
            },
            admin,
            verdicts: BTreeMap::new(),
            neighbours: Arc::default(),
            probes: None,
            adopted: BTreeMap::new(),
            conditions: Conditions::default(),
            reloads: ReloadStatus::default(),
            applies: ApplyStatus::default(),
            load,
            start: Start::Waiting {
                until,
                hold: adopted,
            },
            applied: None,
            back_off: BackOff::default(),
        }
    }

    /// When [`Self::reconcile`] has to be called without an event.
    pub fn next_deadline(&self) -> Option<Instant> {
        let start = match self.start {
            Start::Waiting { until, .. } => Some(until),
            Start::Over => None,
        };
        start
            .into_iter()
            .chain(self.conditions.next)
            .chain(self.back_off.at())
            .min()
    }

    /// Whether the data path holds what the configuration asks for.
    pub fn is_applied(&self) -> bool {
        self.applied.is_some() && self.applies.error.is_none()
    }

    /// Pools some of whose backends have no result yet.
    pub fn pools_without_results(&self) -> Vec<&str> {
        self.model
            .pools
            .iter()
            .filter(|(name, pool)| {
                !pool.health.is_empty()
                    && pool.backends.iter().any(|backend| {
                        let key = BackendKey {
                            pool: (*name).clone(),
                            backend: backend.name.clone(),
                        };
                        self.verdicts
                            .get(&key)
                            .is_none_or(|verdict| verdict.state == HealthState::Unknown)
                    })
            })
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Brings the data path to what is desired now. Costs little when nothing
    /// has changed. A failure is repeated after a pause; the data path goes on
    /// meanwhile.
    pub fn reconcile(&mut self, now: Now) {
        if let Start::Waiting { until, hold } = self.start {
            if self.pools_without_results().is_empty() || now.instant >= until {
                self.start = Start::Over;
            } else if hold {
                return;
            }
        }
        self.conditions = self.conditions_of(&self.model, now);
        let runtime = self.runtime(&self.conditions);
        let waiting = self.back_off.at().is_some_and(|at| now.instant < at);
        if waiting || (self.applied.as_ref() == Some(&runtime) && self.back_off.at().is_none()) {
            return;
        }
        let _ = self.apply(runtime, now.instant);
    }

    /// Makes the next [`Self::reconcile`] look at the maps even if nothing
    /// that it knows of has changed.
    pub fn look_again(&mut self) {
        self.applied = None;
    }

    fn conditions_of(&self, model: &Model, now: Now) -> Conditions {
        let starting = self.start != Start::Over;
        conditions(
            model,
            &self.verdicts,
            &self.admin,
            starting,
            now,
            &self.conditions,
        )
    }

    fn apply(&mut self, runtime: Runtime, now: Instant) -> Result<Applied, String> {
        match self.data_path.apply(&self.model, &runtime) {
            Ok(applied) => {
                if applied.operations > 0 {
                    let slots = self.model.services.iter().map(|s| u64::from(s.table_size));
                    let share = applied.slots_moved as f64 / slots.sum::<u64>().max(1) as f64;
                    self.applies.slots_moved += applied.slots_moved;
                    self.applies.last_moved_share = share;
                    tracing::info!(
                        operations = applied.operations,
                        slots_moved = applied.slots_moved,
                        percent_moved = format!("{:.1}", share * 100.0),
                        "data path changed"
                    );
                }
                self.applied = Some(runtime);
                self.applies.succeeded += u64::from(applied.operations > 0);
                self.applies.error = None;
                self.back_off.succeeded();
                Ok(applied)
            }
            Err(error) => {
                let pause = self.back_off.failed(now);
                tracing::error!(
                    %error,
                    retry_in_seconds = pause.as_secs(),
                    "the data path could not be changed; it goes on as it is"
                );
                self.applied = None;
                self.applies.failed += 1;
                self.applies.error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// What the data path would be told with another configuration.
    pub fn runtime_for(&self, model: &Model, now: Now) -> Runtime {
        self.runtime(&self.conditions_of(model, now))
    }

    /// What is known at run time, in the data path's terms.
    fn runtime(&self, conditions: &Conditions) -> Runtime {
        let mut runtime = Runtime {
            backends: conditions.backends.clone(),
            adopted: self.adopted.clone(),
            links: self.neighbours.devices.iter().map(link_of).collect(),
            addresses: self
                .neighbours
                .addresses
                .iter()
                .map(|own| OwnAddress {
                    address: own.address,
                    prefix_bits: own.prefix_bits,
                    ifindex: own.ifindex,
                })
                .collect(),
            ..Runtime::default()
        };
        if let Some((link, port)) = &self.probes {
            runtime.links.push(link.clone());
            runtime.probes = Some((*port, link.ifindex));
        }
        for (address, hop) in &self.neighbours.hops {
            match hop {
                Ok(hop) => {
                    let hop = Hop {
                        mac: hop.mac,
                        ifindex: hop.ifindex,
                        mtu: hop.mtu,
                    };
                    runtime.next_hops.insert(*address, hop);
                }
                // Not known to be gone: what the maps have stays.
                Err(Unresolved::Pending | Unresolved::Resolving { .. }) => {}
                Err(_) => {
                    runtime.unreachable.insert(*address);
                }
            }
        }
        runtime
    }

    /// Reads a configuration and says whether it could come into force.
    ///
    /// # Errors
    /// One line an error.
    pub fn candidate(&self, file: &Path) -> Result<Candidate, Refusal> {
        let candidate = read(self.load, file)?;
        let obstacles = reload::obstacles(&self.model, &candidate.model);
        if obstacles.is_empty() {
            Ok(candidate)
        } else {
            Err(Refusal { errors: obstacles })
        }
    }

    /// Puts a configuration into force, or leaves the old one.
    ///
    /// # Errors
    /// The data path refused it; the old one was put back.
    pub fn take_over(&mut self, candidate: Candidate, now: Now) -> Result<Applied, Refusal> {
        let old = std::mem::replace(&mut self.model, candidate.model);
        let conditions = self.conditions_of(&self.model, now);
        let runtime = self.runtime(&conditions);
        match self.apply(runtime, now.instant) {
            Ok(applied) => {
                self.conditions = conditions;
                self.in_force.hash = candidate.hash;
                self.in_force.since = now.unix;
                Ok(applied)
            }
            Err(error) => {
                self.model = old;
                self.back_off.succeeded();
                let runtime = self.runtime(&self.conditions);
                let mut errors = vec![error];
                if let Err(error) = self.apply(runtime, now.instant) {
                    errors.push(format!(
                        "the configuration before could not be put back completely either, which is tried \
                         again: {error}"
                    ));
                }
                Err(Refusal { errors })
            }
        }
    }

    /// Counts a reload and remembers how it went.
    pub fn reloaded<T>(&mut self, result: &Result<T, Refusal>, now: Now) {
        let errors = match result {
            Ok(_) => {
                self.reloads.succeeded += 1;
                Vec::new()
            }
            Err(refusal) => {
                self.reloads.failed += 1;
                refusal.errors.clone()
            }
        };
        self.reloads.last = Some(LastReload {
            at: now.unix,
            ok: result.is_ok(),
            errors,
        });
    }

    /// An operator's decision; in force when this returns.
    ///
    /// # Errors
    /// There is no such backend, or the decision can't be kept.
    pub fn decide(&mut self, request: &AdminRequest, now: Now) -> Result<AdminAnswer, Refusal> {
        let key = names::backend(&self.model, &request.pool, &request.backend)
            .map_err(Refusal::because)?;
        self.admin
            .decide(&key, request.action, now.unix)
            .map_err(|error| {
                Refusal::because(format!(
                    "the decision cannot be kept: {error}; nothing has changed"
                ))
            })?;
        let name = format!("{}/{}", request.pool, request.backend);
        tracing::info!(backend = name, action = ?request.action, "decided by an operator");
        self.reconcile(now);
        Ok(AdminAnswer {
            backend: name,
            message: self.describe(&key, request.action),
            flows_left: None,
        })
    }

    fn describe(&self, key: &BackendKey, action: AdminAction) -> String {
        let decided = self.admin.of(key);
        let time_out = self.model.dataplane.drain_timeout.as_secs();
        let mut message = match (action, decided.admin_state()) {
            (AdminAction::Clear, _) => "as the configuration and its checks say".into(),
            (_, AdminState::Enabled) => "enabled".into(),
            (_, AdminState::Disabled) => "disabled".into(),
            (_, AdminState::Draining) => {
                format!("draining: no new flows, disabled {time_out} s after the drain began")
            }
        };
        if let Some(weight) = decided.weight {
            message.push_str(&format!(", weight {weight}"));
        }
        if let Some(error) = &self.applies.error {
            message.push_str(&format!(
                "; not yet in the data path, which is tried again: {error}"
            ));
        }
        message
    }
}

/// Reads and validates a configuration, and hashes the file.
///
/// # Errors
/// One line an error.
pub fn read(load: Load, file: &Path) -> Result<Candidate, Refusal> {
    let bytes = std::fs::read(file)
        .map_err(|error| Refusal::because(format!("{}: {error}", file.display())))?;
    let model = load(file).map_err(|errors| Refusal { errors })?;
    let hash = siphasher::sip::SipHasher13::new().hash(&bytes);
    Ok(Candidate {
        model,
        hash: format!("{hash:016x}"),
    })
}

/// A device in the data path's terms.
fn link_of(device: &Device) -> Link {
    Link {
        name: device.name.clone(),
        ifindex: device.ifindex,
        mac: device.mac,
        mtu: device.mtu,
        is_bridge: device.is_bridge,
        is_blocked: device.is_blocked,
        egress: device.egress,
        tags: device.tags,
        ways: device
            .ways
            .iter()
            .map(|way| (way.ifindex, way.tags, way.egress))
            .collect(),
    }
}

/// Every check has its first result by then: the first turn is within a
/// second, and the probe ends by its time-out; on a busy machine a bit later.
fn first_results_within(model: &Model) -> Duration {
    let slowest = model
        .pools
        .values()
        .flat_map(|pool| &pool.health)
        .map(|check| check.timeout)
        .max()
        .unwrap_or_default();
    Duration::from_millis(2_000).saturating_add(slowest)
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
