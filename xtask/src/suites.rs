//! Which test suites there are: one per host crate, one of all examples in the
//! documentation, and one per file of `tests/tests`.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::workspace::{self, BPF_CRATE, TESTS_CRATE};

/// Name of the suite of examples in the documentation.
pub const DOC: &str = "doc";

/// Name of the suite that is run in the test machine.
pub const MACHINE: &str = "vm";

/// A test binary.
#[derive(Clone, Debug)]
pub struct Binary {
    /// The executable.
    pub path: PathBuf,
    /// The directory it is run in: its crate's.
    pub directory: PathBuf,
}

/// What is run and counted as one.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Unique.
    pub name: String,
    /// Run one after the other. Empty for [`DOC`], which cargo runs.
    pub binaries: Vec<Binary>,
    /// Its tests are run one at a time.
    pub serial: bool,
    /// It waits most of the time: it is run beside another such one.
    pub waits: bool,
    /// It is a failure if none of its tests is run.
    pub required: bool,
    /// What is run in the test machine instead of `binaries`, if anything is.
    pub machine: Vec<Guest>,
}

/// A test binary in the test machine.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The binary.
    pub binary: Binary,
    /// Names of tests that are run there where not everything is; none is all.
    pub filters: Vec<String>,
    /// Its tests are run one at a time.
    pub serial: bool,
}

/// What [`build`] leaves.
pub struct Built {
    /// Every suite in the order in which they are run.
    pub suites: Vec<Suite>,
    /// The `lbctl` that the suites start.
    pub lbctl: PathBuf,
}

/// Builds every binary and every test with one call of cargo, so that each
/// dependency is compiled once, with one set of features.
pub fn build() -> Result<Built> {
    let metadata = workspace::metadata()?;
    let mut child = workspace::cargo()
        .args([
            "build",
            "--workspace",
            "--exclude",
            BPF_CRATE,
            "--lib",
            "--bins",
            "--tests",
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo build")?;
    let stdout = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut artifacts = Vec::new();
    for line in BufReader::new(stdout).lines() {
        if let Ok(message) = serde_json::from_str::<Value>(&line?)
            && message["reason"] == "compiler-artifact"
            && message["executable"].is_string()
        {
            artifacts.push(message);
        }
    }
    ensure!(child.wait()?.success(), "the build of the tests failed");
    let lbctl = artifacts
        .iter()
        .find(|artifact| {
            artifact["target"]["name"] == "lbctl" && artifact["profile"]["test"] == false
        })
        .and_then(|artifact| artifact["executable"].as_str())
        .context("cargo built no lbctl")?;
    Ok(Built {
        lbctl: lbctl.into(),
        suites: collect(&metadata, &artifacts)?,
    })
}

/// Keeps the suites of these names, all if there are none.
pub fn select(suites: Vec<Suite>, names: &[String]) -> Result<Vec<Suite>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| suites.iter().all(|suite| suite.name != **name))
    {
        let known: Vec<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
        bail!(
            "there is no suite {unknown:?}; there are: {}",
            known.join(", ")
        );
    }
    Ok(suites
        .into_iter()
        .filter(|suite| names.is_empty() || names.contains(&suite.name))
        .collect())
}

fn collect(metadata: &Value, artifacts: &[Value]) -> Result<Vec<Suite>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let mut host = Vec::new();
    let mut root = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        let manifest = PathBuf::from(
            package["manifest_path"]
                .as_str()
                .context("a package has no manifest")?,
        );
        let directory = manifest
            .parent()
            .context("a manifest has no directory")?
            .to_owned();
        let tests = artifacts
            .iter()
            .filter(|artifact| artifact["profile"]["test"] == true)
            .filter(|artifact| artifact["package_id"] == package["id"]);
        let binary = |artifact: &Value| {
            let path = artifact["executable"].as_str().unwrap_or_default().into();
            Binary {
                path,
                directory: directory.clone(),
            }
        };
        let (integration, unit): (Vec<_>, Vec<_>) =
            tests.partition(|artifact| artifact["target"]["kind"][0] == "test");
        if name != TESTS_CRATE {
            if name != BPF_CRATE {
                let binaries = unit.into_iter().chain(integration).map(binary).collect();
                host.push(Suite {
                    name: name.to_owned(),
                    binaries,
                    serial: false,
                    waits: false,
                    required: true,
                    machine: Vec::new(),
                });
            }
            continue;
        }
        root.push(Suite {
            name: name.to_owned(),
            binaries: unit.into_iter().map(binary).collect(),
            serial: false,
            waits: false,
            required: false,
            machine: Vec::new(),
        });
        let serial = names(package, "serial")?;
        let waiting = names(package, "waiting")?;
        for artifact in integration {
            let name = artifact["target"]["name"]
                .as_str()
                .context("a test has no name")?
                .to_owned();
            let waits = waiting.contains(&name.as_str());
            let serial = waits || serial.contains(&name.as_str());
            root.push(Suite {
                name,
                binaries: vec![binary(artifact)],
                serial,
                waits,
                required: true,
                machine: Vec::new(),
            });
        }
        let guests = guests(package, &root)?;
        if let Some(suite) = root.iter_mut().find(|suite| suite.name == MACHINE) {
            suite.machine = guests;
        }
        for (key, names) in [("serial", serial), ("waiting", waiting)] {
            let missing = names
                .iter()
                .find(|name| root.iter().all(|suite| suite.name != **name));
            ensure!(
                missing.is_none(),
                "[package.metadata.lb] {key} names {missing:?}, which is no suite"
            );
        }
    }
    host.sort_by(|a, b| a.name.cmp(&b.name));
    root[1..].sort_by(|a, b| a.name.cmp(&b.name));
    host.push(Suite {
        name: DOC.to_owned(),
        binaries: Vec::new(),
        serial: false,
        waits: false,
        required: false,
        machine: Vec::new(),
    });
    host.append(&mut root);
    Ok(host)
}

/// `[package.metadata.lb]` of the tests crate, where `key` is a list of suites.
fn names<'a>(package: &'a Value, key: &str) -> Result<Vec<&'a str>> {
    let Some(names) = package["metadata"]["lb"].get(key) else {
        return Ok(Vec::new());
    };
    let names: Option<Vec<_>> = names
        .as_array()
        .and_then(|names| names.iter().map(Value::as_str).collect());
    names.with_context(|| format!("[package.metadata.lb] {key} must be a list of names"))
}

/// `[package.metadata.lb.machine]` of the tests crate: a suite, and the names of
/// its tests that are run in the test machine.
fn guests(package: &Value, suites: &[Suite]) -> Result<Vec<Guest>> {
    let Some(table) = package["metadata"]["lb"].get("machine") else {
        return Ok(Vec::new());
    };
    let table = table
        .as_object()
        .context("[package.metadata.lb.machine] must be a table")?;
    let mut guests = Vec::new();
    for (name, filters) in table {
        let suite = suites.iter().find(|suite| suite.name == *name);
        let suite = suite.with_context(|| {
            format!("[package.metadata.lb.machine] names {name:?}, which is no suite")
        })?;
        let filters: Option<Vec<_>> = filters.as_array().and_then(|filters| {
            let names = filters.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect()
        });
        let filters = filters.with_context(|| {
            format!("[package.metadata.lb.machine] {name} must be a list of names")
        })?;
        guests.extend(suite.binaries.iter().map(|binary| Guest {
            binary: binary.clone(),
            filters: filters.clone(),
            serial: suite.serial,
        }));
    }
    Ok(guests)
}

/// The command that runs the examples in the documentation. With cargo's own
/// choice, the profile `test`, it would build the whole tree a second time.
pub fn doc_command() -> Command {
    let mut command = workspace::cargo();
    command.args([
        "test",
        "--doc",
        "--profile",
        "dev",
        "--workspace",
        "--exclude",
        BPF_CRATE,
    ]);
    command
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(package: &str, name: &str, kind: &str) -> Value {
        json!({
            "package_id": package, "executable": format!("target/{name}"),
            "target": {"name": name, "kind": [kind]}, "profile": {"test": true},
        })
    }

    fn metadata(serial: &Value) -> Value {
        json!({"packages": [
            {"name": "lb-tests", "id": "t", "manifest_path": "tests/Cargo.toml", "metadata": {"lb": {"serial": serial}}},
            {"name": "lb-ebpf", "id": "e", "manifest_path": "lb-ebpf/Cargo.toml", "metadata": null},
            {"name": "lb-common", "id": "c", "manifest_path": "lb-common/Cargo.toml", "metadata": null},
        ]})
    }

    fn found(serial: &Value) -> Result<Vec<Suite>> {
        let artifacts = [
            artifact("t", "vrrp", "test"),
            artifact("t", "nat", "test"),
            artifact("t", "lb_tests", "lib"),
            artifact("c", "lb_common", "lib"),
        ];
        collect(&metadata(serial), &artifacts)
    }

    #[test]
    fn host_crates_come_first_then_the_harness_then_every_test_file() {
        let names: Vec<_> = found(&json!([]))
            .unwrap()
            .into_iter()
            .map(|suite| suite.name)
            .collect();
        assert_eq!(names, ["lb-common", DOC, TESTS_CRATE, "nat", "vrrp"]);
    }

    #[test]
    fn the_suites_listed_as_serial_are_serial() {
        let suites = found(&json!(["vrrp"])).unwrap();
        let serial: Vec<_> = suites
            .iter()
            .filter(|suite| suite.serial)
            .map(|suite| suite.name.as_str())
            .collect();
        assert_eq!(serial, ["vrrp"]);
    }

    #[test]
    fn a_serial_suite_that_does_not_exist_is_an_error() {
        assert!(found(&json!(["vrpp"])).is_err());
    }

    #[test]
    fn a_suite_that_waits_is_serial_and_the_others_do_not_wait() {
        let mut metadata = metadata(&json!(["vrrp"]));
        metadata["packages"][0]["metadata"]["lb"]["waiting"] = json!(["nat"]);
        let artifacts = [artifact("t", "vrrp", "test"), artifact("t", "nat", "test")];
        let suites = collect(&metadata, &artifacts).unwrap();
        let found = |name: &str| {
            let suite = suites.iter().find(|suite| suite.name == name).unwrap();
            (suite.serial, suite.waits)
        };
        assert_eq!((found("nat"), found("vrrp")), ((true, true), (true, false)));
        assert!(collect(&metadata, &artifacts[..1]).is_err(), "no suite nat");
    }

    fn found_in_machine(machine: &Value) -> Result<Vec<Suite>> {
        let mut metadata = metadata(&json!([]));
        metadata["packages"][0]["metadata"]["lb"]["machine"] = machine.clone();
        let artifacts = [artifact("t", "vm", "test"), artifact("t", "nat", "test")];
        collect(&metadata, &artifacts)
    }

    #[test]
    fn the_test_machine_runs_what_is_listed() {
        let suites = found_in_machine(&json!({"nat": ["flow"], "vm": []})).unwrap();
        let vm = suites.iter().find(|suite| suite.name == MACHINE).unwrap();
        let guests: Vec<_> = vm
            .machine
            .iter()
            .map(|guest| (guest.binary.path.to_str().unwrap(), guest.filters.concat()))
            .collect();
        assert_eq!(
            guests,
            [
                ("target/nat", "flow".to_owned()),
                ("target/vm", String::new())
            ]
        );
        let others = suites.iter().filter(|suite| suite.name != MACHINE);
        assert!(others.into_iter().all(|suite| suite.machine.is_empty()));
    }

    #[test]
    fn a_suite_in_the_test_machine_that_does_not_exist_is_an_error() {
        assert!(found_in_machine(&json!({"nta": []})).is_err());
    }

    #[test]
    fn a_selection_of_an_unknown_suite_is_an_error_that_lists_the_known() {
        let suites = found(&json!([])).unwrap();
        let error = select(suites, &["vrpp".to_owned()])
            .unwrap_err()
            .to_string();
        assert!(error.contains("vrpp") && error.contains("vrrp"), "{error}");
    }
}
