//! Operators' decisions about backends, kept in a file over reload and restart.
//!
//! A decision holds until it is cleared, also while its backend is not in the
//! configuration.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    dataplane::desired::BackendKey,
    model::Model,
    status::{AdminState, request::AdminAction},
};

/// Name of the file in the state directory.
const FILE: &str = "admin.json";

/// Version of the file's format.
const VERSION: u32 = 1;

/// What was decided about one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Whether it takes part; `None`: nothing was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AdminState>,
    /// Its weight; `None`: the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// When `state` was decided, in seconds since the Unix epoch.
    #[serde(default)]
    pub since: u64,
}

impl Override {
    /// Whether it takes part.
    pub fn admin_state(&self) -> AdminState {
        self.state.unwrap_or_default()
    }

    /// The decision with one more action, `now` in seconds since the Unix epoch.
    pub fn after(self, action: AdminAction, now: u64) -> Self {
        let state = |state| Self {
            state: Some(state),
            // Draining again does not start the time-out anew.
            since: if self.state == Some(state) {
                self.since
            } else {
                now
            },
            ..self
        };
        match action {
            AdminAction::Drain => state(AdminState::Draining),
            AdminAction::Enable => state(AdminState::Enabled),
            AdminAction::Disable => state(AdminState::Disabled),
            AdminAction::Weight { weight } => Self {
                weight: Some(weight),
                ..self
            },
            AdminAction::Clear => Self::default(),
        }
    }
}

/// Pools, and in them backends, by name.
type Pools = BTreeMap<String, BTreeMap<String, Override>>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    pools: Pools,
}

/// All decisions.
#[derive(Debug)]
pub struct AdminStore {
    path: PathBuf,
    pools: Pools,
}

impl AdminStore {
    /// Reads the decisions kept in `directory`, which is made if need be. A
    /// file that makes no sense is set aside and told about, and the daemon
    /// goes on without: traffic matters more.
    ///
    /// # Errors
    /// The directory or the file can't be used.
    pub fn open(directory: &Path) -> io::Result<(Self, Option<String>)> {
        fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((
                    Self {
                        path,
                        pools: Pools::new(),
                    },
                    None,
                ));
            }
            Err(error) => return Err(error),
        };
        let problem = match serde_json::from_slice::<File>(&text) {
            Ok(File {
                version: VERSION,
                pools,
            }) => return Ok((Self { path, pools }, None)),
            Ok(File { version, .. }) => format!("its format is version {version}, not {VERSION}"),
            Err(error) => error.to_string(),
        };
        let aside = path.with_extension("json.corrupt");
        fs::rename(&path, &aside)?;
        let warning = format!(
            "{} makes no sense ({problem}); it was moved to {} and no drain, disable or weight of an \
             operator is in force",
            path.display(),
            aside.display()
        );
        Ok((
            Self {
                path,
                pools: Pools::new(),
            },
            Some(warning),
        ))
    }

    /// What was decided about a backend.
    pub fn of(&self, key: &BackendKey) -> Override {
        self.pools
            .get(&key.pool)
            .and_then(|pool| pool.get(&key.backend))
            .copied()
            .unwrap_or_default()
    }

    /// Records a decision; it holds once it is on the disk.
    ///
    /// # Errors
    /// The file can't be written; nothing has changed then.
    pub fn decide(&mut self, key: &BackendKey, action: AdminAction, now: u64) -> io::Result<()> {
        let mut pools = self.pools.clone();
        let decision = self.of(key).after(action, now);
        let pool = pools.entry(key.pool.clone()).or_default();
        if decision == Override::default() {
            pool.remove(&key.backend);
        } else {
            pool.insert(key.backend.clone(), decision);
        }
        pools.retain(|_, pool| !pool.is_empty());
        write(&self.path, &pools)?;
        self.pools = pools;
        Ok(())
    }

    /// Backends with a decision that the configuration doesn't have.
    pub fn strangers(&self, model: &Model) -> Vec<String> {
        self.pools
            .iter()
            .flat_map(|(pool, backends)| backends.keys().map(move |backend| (pool, backend)))
            .filter(|(pool, backend)| {
                !model
                    .pools
                    .get(*pool)
                    .is_some_and(|pool| pool.backends.iter().any(|b| b.name == **backend))
            })
            .map(|(pool, backend)| format!("{pool}/{backend}"))
            .collect()
    }
}

/// The old file or the new one, whatever happens in between.
fn write(path: &Path, pools: &Pools) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&File {
        version: VERSION,
        pools: pools.clone(),
    })?;
    let temporary = path.with_extension("json.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
