//! Sources and their servers for `lbctl persistence` and `lbctl forget`.

use std::collections::{HashMap, HashSet};

use lb_common::persist;

use super::names;
use crate::{
    dataplane::plane::{PersistentSource, Plane},
    model::{Model, Persistence, Prefix},
    status::request::{ForgetAnswer, PersistenceAnswer, PersistenceFilter, PersistentRow, Refusal},
};

/// Sources listed when nothing else is said.
const DEFAULT_LIMIT: usize = 1_000;

/// A group of services, or one that is alone.
struct Group {
    name: String,
    persistence: Persistence,
    /// Names of the backends by number.
    backends: HashMap<u64, String>,
}

fn groups(model: &Model) -> HashMap<u32, Group> {
    let mut groups: HashMap<u32, Group> = HashMap::new();
    for service in &model.services {
        let Some(persistence) = &service.persistence else {
            continue;
        };
        let number = persist::group(&persistence.group_name(&service.name));
        let group = groups.entry(number).or_insert_with(|| Group {
            name: persistence
                .group
                .clone()
                .unwrap_or_else(|| service.name.clone()),
            persistence: persistence.clone(),
            backends: HashMap::new(),
        });
        for (_, backend) in model.backends_of(service) {
            let number = persist::backend(&backend.name);
            group.backends.insert(number, backend.name.clone());
        }
    }
    groups
}

/// Answers a filter.
///
/// # Errors
/// It names something that doesn't exist, or the map can't be read.
pub fn list(
    plane: &mut Plane,
    model: &Model,
    filter: &PersistenceFilter,
) -> Result<PersistenceAnswer, Refusal> {
    let groups = groups(model);
    let mut sources = matching(plane, &groups, filter)?;
    sources.sort_by_key(|source| (source.group, source.source));
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT);
    let truncated = sources.len() > limit;
    sources.truncate(limit);
    let rows = sources.iter().filter_map(|source| {
        let group = groups.get(&source.group)?;
        let backend = group.backends.get(&source.backend).cloned();
        Some(PersistentRow {
            group: group.name.clone(),
            source: prefix(group, source).to_string(),
            backend: backend.unwrap_or_else(|| "(not configured any more)".into()),
            idle_seconds: source.idle_seconds.into(),
        })
    });
    Ok(PersistenceAnswer {
        truncated,
        sources: rows.collect(),
    })
}

/// Has the sources that match lose their servers.
///
/// # Errors
/// As [`list`]; or the map can't be written.
pub fn forget(
    plane: &mut Plane,
    model: &Model,
    filter: &PersistenceFilter,
) -> Result<ForgetAnswer, Refusal> {
    let sources = matching(plane, &groups(model), filter)?;
    plane
        .forget(sources.iter())
        .map_err(|error| Refusal::because(error.to_string()))?;
    Ok(ForgetAnswer {
        forgotten: sources.len() as u64,
    })
}

fn matching(
    plane: &mut Plane,
    groups: &HashMap<u32, Group>,
    filter: &PersistenceFilter,
) -> Result<Vec<PersistentSource>, Refusal> {
    if let Some(name) = &filter.group
        && !groups.values().any(|group| group.name == *name)
    {
        let known: HashSet<&str> = groups.values().map(|group| group.name.as_str()).collect();
        return Err(Refusal::because(format!(
            "no group or service with persistence is called \"{name}\"; {}",
            names::suggestion(name, known.into_iter())
        )));
    }
    let mut sources = plane
        .persistent_sources()
        .map_err(|error| Refusal::because(error.to_string()))?;
    sources.retain(|source| {
        groups.get(&source.group).is_some_and(|group| {
            filter.group.as_ref().is_none_or(|name| *name == group.name)
                && filter.source.is_none_or(|wanted| {
                    Prefix::of(wanted, bits(group, source)) == prefix(group, source)
                })
        })
    });
    Ok(sources)
}

fn bits(group: &Group, source: &PersistentSource) -> u8 {
    if source.source.is_ipv4() {
        group.persistence.prefix_v4
    } else {
        group.persistence.prefix_v6
    }
}

fn prefix(group: &Group, source: &PersistentSource) -> Prefix {
    Prefix {
        address: source.source,
        bits: bits(group, source),
    }
}
