//! Names that operators write, and the nearest ones that exist.

use crate::{dataplane::desired::BackendKey, model::Model};

/// A similarity from which a name is worth suggesting.
const NEAR: f64 = 0.66;

/// From 0 to 1: one transposed pair or wrong letter counts little, and so does
/// a different ending.
fn similarity(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(a, b).max(strsim::jaro_winkler(a, b) - 0.1)
}

/// The backend of that name.
///
/// # Errors
/// There is none; says which ones there are or which may have been meant.
pub fn backend(model: &Model, pool: &str, backend: &str) -> Result<BackendKey, String> {
    let Some(found) = model.pools.get(pool) else {
        return Err(format!(
            "no pool \"{pool}\"; {}",
            suggestion(pool, model.pools.keys().map(String::as_str))
        ));
    };
    if found.backends.iter().any(|b| b.name == backend) {
        return Ok(BackendKey {
            pool: pool.into(),
            backend: backend.into(),
        });
    }
    Err(format!(
        "pool \"{pool}\" has no backend \"{backend}\"; {}",
        suggestion(backend, found.backends.iter().map(|b| b.name.as_str()))
    ))
}

/// The nearest names, or the first ones there are.
pub fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut scored: Vec<(f64, &str)> = known
        .map(|other| (similarity(name, other), other))
        .collect();
    if scored.is_empty() {
        return "there are none".into();
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let quoted = |names: &[(f64, &str)]| {
        names
            .iter()
            .map(|(_, name)| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let near: Vec<(f64, &str)> = scored
        .iter()
        .copied()
        .filter(|(s, _)| *s >= NEAR)
        .take(3)
        .collect();
    if near.is_empty() {
        scored.sort_by(|a, b| a.1.cmp(b.1));
        let more = if scored.len() > 5 { ", …" } else { "" };
        scored.truncate(5);
        format!("there is {}{more}", quoted(&scored))
    } else {
        format!("did you mean {}?", quoted(&near))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = ["web-1", "web-2", "mail"];
        assert!(suggestion("wbe-1", known.into_iter()).starts_with("did you mean \"web-1\""));
        assert_eq!(
            suggestion("zzz", known.into_iter()),
            "there is \"mail\", \"web-1\", \"web-2\""
        );
        assert_eq!(suggestion("zzz", [].into_iter()), "there are none");
    }
}
