//! Who may import whom: the picture in the architecture, as a table.

use super::{
    Finding,
    source::{Path, Source},
};

/// A module of lb-control and the modules of lb-control that it may name. A
/// module may always name itself.
const MODULES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("status", &["model"]),
    // The sizes of tables are checked and chosen where a file is read: pure
    // arithmetic, which would otherwise exist twice.
    ("config", &["model", "scheduler"]),
    ("scheduler", &["model"]),
    ("dataplane", &["model", "replication", "scheduler"]),
    ("health", &["model"]),
    ("neighbours", &["model"]),
    ("vrrp", &["status"]),
    ("replication", &["status"]),
    ("sync", &["status"]),
    ("api", &["status"]),
    ("metrics", &["status"]),
    ("rates", &["status"]),
    ("cli", &["config", "model", "status", "api::client"]),
    ("main", &["cli", "daemon"]),
];

/// Modules that may name all others.
const ALL_SEEING: &[&str] = &["daemon", "lib"];

/// Paths that one file alone may name, with the modules below it, and why.
const ONE_PLACE: &[(&[&str], &str, &str)] = &[
    (
        &["aya", "maps"],
        "lb-control/src/dataplane/aya_maps.rs",
        "everything else goes through the trait of the map store, which has a fake for tests",
    ),
    (
        &["serde_yaml"],
        "lb-control/src/config/yaml.rs",
        "it is no longer developed and must be easy to replace",
    ),
];

/// Import directions within lb-control, and what only one file may name.
pub fn check(path: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let control = path.strip_prefix("lb-control/src/");
    if let Some(file) = control {
        check_direction(path, file, source, &mut findings);
    }
    for (name, place, why) in ONE_PLACE {
        // The test harness uses aya's maps as an independent witness.
        let applies = control.is_some() || name[0] == "serde_yaml";
        let below = place.trim_end_matches(".rs");
        let is_below = path
            .strip_prefix(below)
            .is_some_and(|rest| rest.starts_with('/'));
        if !applies || path == *place || is_below {
            continue;
        }
        let named = |found: &Path| {
            found.segments.len() >= name.len()
                && found.segments.iter().zip(*name).all(|(a, b)| a == b)
        };
        findings.extend(
            source
                .paths
                .iter()
                .filter(|found| named(found))
                .map(|found| {
                    Finding::new(
                        path,
                        found.line,
                        format!("only {place} may name {}: {why}", name.join("::")),
                    )
                }),
        );
    }
    findings
}

fn check_direction(path: &str, file: &str, source: &Source, findings: &mut Vec<Finding>) {
    if super::is_test_file(path) {
        return;
    }
    let module = module_of(file);
    let own = module[0].as_str();
    if ALL_SEEING.contains(&own) {
        return;
    }
    let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == own) else {
        findings.push(Finding::new(
            path,
            0,
            format!("module `{own}` is not in the picture of the architecture: add it there and to tidy's table"),
        ));
        return;
    };
    for found in &source.paths {
        let Some(target) = resolve(&module, &found.segments) else {
            continue;
        };
        if target.first().is_none_or(|first| first == own) {
            continue;
        }
        let fits = |allowed: &&str| {
            let mut target = target.iter();
            allowed
                .split("::")
                .all(|segment| target.next().is_some_and(|found| found == segment))
        };
        if !allowed.iter().any(fits) {
            let list = if allowed.is_empty() {
                "nothing".to_owned()
            } else {
                allowed.join(", ")
            };
            findings.push(Finding::new(
                path,
                found.line,
                format!(
                    "`{own}` may not import `{}`; it may import {list}",
                    target.join("::")
                ),
            ));
        }
    }
}

/// `config/yaml.rs` is the module `config::yaml`. At least one segment.
fn module_of(file: &str) -> Vec<String> {
    file.trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect()
}

/// The path below the crate's root that `segments`, written in `module`, mean;
/// `None` if they lead out of the crate.
fn resolve(module: &[String], segments: &[String]) -> Option<Vec<String>> {
    let (first, rest) = segments.split_first()?;
    match first.as_str() {
        "crate" | "lb_control" => Some(rest.to_vec()),
        "super" => {
            let above = segments
                .iter()
                .take_while(|segment| *segment == "super")
                .count();
            // Within an inline module `super` is less far away, and then it is
            // not above the crate's root here.
            let kept = module.len().checked_sub(above)?;
            let rest = segments.iter().skip(above);
            Some(module.iter().take(kept).chain(rest).cloned().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(path, &Source::parse(text).unwrap())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn imports_along_the_arrows_are_fine() {
        assert!(
            findings(
                "lb-control/src/config/yaml.rs",
                "use crate::{model::Pool, config::x};"
            )
            .is_empty()
        );
        assert!(findings("lb-control/src/cli.rs", "use crate::api::client::Client;").is_empty());
        assert!(
            findings(
                "lb-control/src/daemon/run.rs",
                "use crate::{vrrp, metrics::x};"
            )
            .is_empty()
        );
        assert!(findings("lb-control/src/main.rs", "use lb_control::{cli, daemon};").is_empty());
    }

    #[test]
    fn siblings_do_not_import_one_another() {
        let found = findings("lb-control/src/vrrp.rs", "\nuse crate::{sync::Message};");
        assert_eq!(
            found,
            [
                "lb-control/src/vrrp.rs:2: `vrrp` may not import `sync::Message`; it may import status"
            ]
        );
    }

    #[test]
    fn paths_without_use_are_imports_too() {
        assert_eq!(
            findings(
                "lb-control/src/health/state.rs",
                "fn f() { crate::dataplane::g() }"
            )
            .len(),
            1
        );
        assert_eq!(
            findings(
                "lb-control/src/main.rs",
                "fn f() { lb_control::health::g() }"
            )
            .len(),
            1
        );
    }

    #[test]
    fn super_is_resolved() {
        assert_eq!(
            findings("lb-control/src/health.rs", "use super::dataplane::X;").len(),
            1
        );
        assert_eq!(
            findings(
                "lb-control/src/health/state.rs",
                "use super::super::dataplane::X;"
            )
            .len(),
            1
        );
        assert!(findings("lb-control/src/health/state.rs", "use super::dataplane::X;").is_empty());
    }

    #[test]
    fn only_the_client_of_the_api_is_open_to_the_command_line() {
        assert_eq!(
            findings("lb-control/src/cli.rs", "use crate::api::server;").len(),
            1
        );
    }

    #[test]
    fn tests_may_import_anything() {
        assert!(
            findings(
                "lb-control/src/vrrp.rs",
                "#[cfg(test)]\nmod tests { use crate::sync; }"
            )
            .is_empty()
        );
    }

    #[test]
    fn a_module_outside_the_picture_is_a_finding() {
        assert_eq!(findings("lb-control/src/utils.rs", "").len(), 1);
    }

    #[test]
    fn ayas_maps_are_named_in_one_file() {
        let text = "use aya::{Ebpf, maps::HashMap};";
        assert_eq!(findings("lb-control/src/dataplane/load.rs", text).len(), 1);
        assert!(findings("lb-control/src/dataplane/aya_maps.rs", text).is_empty());
        assert!(findings("lb-control/src/dataplane/aya_maps/read.rs", text).is_empty());
        assert_eq!(
            findings("lb-control/src/dataplane/aya_maps_too.rs", text).len(),
            1
        );
        assert!(
            findings(
                "lb-control/src/dataplane/load.rs",
                "use aya::{Ebpf, programs::Xdp};"
            )
            .is_empty()
        );
        assert!(findings("tests/src/run.rs", text).is_empty());
    }

    #[test]
    fn serde_yaml_is_named_in_one_file() {
        assert_eq!(
            findings(
                "lb-control/src/config/error.rs",
                "fn f(e: serde_yaml::Error) {}"
            )
            .len(),
            1
        );
        assert!(
            findings(
                "lb-control/src/config/yaml.rs",
                "fn f(e: serde_yaml::Error) {}"
            )
            .is_empty()
        );
        assert_eq!(
            findings("tests/src/config.rs", "use serde_yaml as yaml;").len(),
            1
        );
    }
}
