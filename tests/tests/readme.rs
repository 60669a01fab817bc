//! The documents tell the truth: configurations are valid, commands exist,
//! and metrics, drop reasons, events and maps are all there and all named.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{CommandFactory as _, Parser as _};
use lb_common::{
    abi::{map, program},
    counter::{DropReason, Event},
};
use lb_control::{
    cli::Cli,
    config, metrics,
    status::{
        BackendStatus, Histogram, InterfaceStatus, LinkStatus, NotifyStatus, PathStatus,
        PoolHealth, PoolStatus, ProbeStatus, ServiceStatus, Snapshot, TrackerStatus, VrrpStatus,
    },
};
use lb_tests::process::workspace_program;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The README and everything in `docs/`: name and text.
fn documents() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    let text = |name: String| (name.clone(), read(&name));
    names.into_iter().map(text).collect()
}

/// Fenced blocks: language and text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => open = Some((language.trim().into(), String::new())),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

#[test]
fn every_whole_configuration_is_valid() {
    let mut found = Vec::new();
    for (name, text) in documents() {
        for (language, block) in blocks(&text) {
            if language == "yaml" && block.lines().any(|l| l.starts_with("services:")) {
                if let Err(errors) = config::parse(&block, &name) {
                    panic!("{errors}\n{block}");
                }
                found.push(name.clone());
            }
        }
    }
    let in_readme = found.iter().filter(|n| *n == "README.md").count();
    assert!(in_readme >= 2, "for DSR and for NAT; found {found:?}");
}

/// What follows `lbctl` wherever a document shows it as code.
fn shown_commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let code = text.lines().filter_map(|line| {
        let line = line.trim_start_matches("$ ").trim();
        line.trim_start_matches("$ ").strip_prefix("lbctl ")
    });
    commands.extend(code.map(str::to_owned));
    // Odd pieces between back-quotes are code; fences come in threes and even out.
    for piece in text.replace("```", "").split('`').skip(1).step_by(2) {
        let piece = piece.split_whitespace().collect::<Vec<_>>().join(" ");
        commands.extend(piece.strip_prefix("lbctl ").map(str::to_owned));
    }
    commands
}

#[test]
fn every_command_exists_with_its_options() {
    let cli = Cli::command();
    let mut seen = BTreeSet::new();
    for (name, text) in documents() {
        for command in shown_commands(&text) {
            let command = command.split(" #").next().unwrap_or_default().trim();
            let mut words = command
                .split([' ', '[', ']', '|'])
                .filter(|w| !w.is_empty());
            let Some(word) = words.next() else { continue };
            // A sentence about the program that begins a line.
            let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
            if word.starts_with('-') || !word.chars().all(is_name) {
                continue;
            }
            let found = cli.find_subcommand(word);
            let found = found.unwrap_or_else(|| panic!("{name}: no command `lbctl {command}`"));
            seen.insert(word.to_owned());
            for option in words.filter_map(|w| w.strip_prefix("--")) {
                let known = found
                    .get_arguments()
                    .chain(cli.get_arguments())
                    .any(|a| a.get_long() == Some(option));
                assert!(known, "{name}: `lbctl {word}` has no --{option}");
            }
        }
    }
    let all: BTreeSet<_> = cli
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .collect();
    assert_eq!(
        seen, all,
        "commands that the documents show and those there are"
    );
}

#[test]
fn every_command_line_in_a_shell_block_is_accepted() {
    let mut count = 0;
    for (name, text) in documents() {
        for (_, block) in blocks(&text).into_iter().filter(|(l, _)| l == "sh") {
            for line in block.lines().filter(|l| l.starts_with("lbctl ")) {
                let line = line.split(" #").next().unwrap_or_default();
                if let Err(error) = Cli::try_parse_from(line.split_whitespace()) {
                    panic!("{name}: {line}\n{error}");
                }
                count += 1;
            }
        }
    }
    assert!(count >= 10, "only {count} command lines found");
}

/// Names of everything on the metrics page.
fn metric_names() -> BTreeSet<String> {
    let mut snapshot = Snapshot::default();
    snapshot.status.verified_instructions = Some(1);
    snapshot.status.interfaces = vec![InterfaceStatus::default()];
    snapshot.status.drops.insert("icmp".into(), 1);
    snapshot.status.events.insert("arp_reply".into(), 1);
    snapshot.services = vec![ServiceStatus::default()];
    let mut backend = BackendStatus::default();
    backend.concurrent.half_open = Some(1);
    backend.max_connections = Some(1);
    snapshot.backends = vec![backend];
    snapshot.status.pools = vec![PoolHealth::default()];
    snapshot.status.full_nat = vec![PoolStatus {
        address: [192, 0, 2, 1].into(),
        free: 1,
        used: 0,
        resting: 0,
        removed: 0,
        draining: false,
    }];
    snapshot.probes = vec![ProbeStatus {
        results: [("passed".to_owned(), 1)].into(),
        durations: Histogram {
            buckets: vec![(1.0, 1)],
            count: 1,
            sum_seconds: 0.5,
        },
        certificate_expiry: Some(1),
        ..ProbeStatus::default()
    }];
    snapshot.sync = vec![LinkStatus {
        paths: vec![PathStatus {
            local: ([192, 0, 2, 1], 9465).into(),
            remote: ([192, 0, 2, 2], 9465).into(),
            alive: true,
            heard_by_peer: true,
            heard_ago_ms: Some(1),
            round_trip_us: Some(1),
            sent: 1,
            received: 1,
            error: None,
        }],
        rejected: [("replayed".to_owned(), 1)].into(),
        ..LinkStatus::default()
    }];
    snapshot.vrrp = vec![VrrpStatus {
        rejected: [("ttl".to_owned(), 1)].into(),
        trackers: vec![TrackerStatus::default()],
        notify: Some(NotifyStatus {
            command: [("failed".to_owned(), 1)].into(),
            fifo: [("written".to_owned(), 1)].into(),
            waiting: 0,
        }),
        ..VrrpStatus::default()
    }];
    let page = metrics::text(&snapshot).unwrap();
    let types = page.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types
        .filter_map(|l| l.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// Words of the text that begin with `lb_`: metrics, and programs of the data path.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("lb_") && word.len() > 3)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_metrics_and_programs_in_the_documents_are_those_there_are() {
    let there = metric_names();
    for (name, text) in documents() {
        let mut unknown = &metrics_in(&text) - &there;
        unknown.retain(|name| {
            ![program::PROBE, program::CLOCK].contains(&name.as_str())
                && !program::TAILS.contains(&name.as_str())
        });
        assert!(unknown.is_empty(), "{name}: no such metrics: {unknown:?}");
    }
    let described = metrics_in(&read("docs/ARCHITECTURE.md"));
    for name in program::TAILS {
        assert!(
            described.contains(name),
            "docs/ARCHITECTURE.md lacks {name}"
        );
    }
    let listed = metrics_in(&read("docs/operations.md"));
    let missing: Vec<_> = there.difference(&listed).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
}

/// Code in the first column of the table with this heading.
fn first_column(text: &str, heading: &str) -> BTreeSet<String> {
    let rows = text.lines().skip_while(|l| !l.starts_with(heading)).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_drop_reason_has_a_meaning_and_a_remedy() {
    let there: BTreeSet<_> = DropReason::ALL
        .iter()
        .map(|r| r.name().to_owned())
        .collect();
    assert_eq!(first_column(&read("README.md"), "| Reason |"), there);
}

#[test]
fn every_event_is_named() {
    let text = read("docs/operations.md");
    for event in Event::ALL {
        assert!(text.contains(&format!("`{}`", event.name())), "{event:?}");
    }
}

#[test]
fn every_map_is_explained() {
    let there: BTreeSet<_> = [
        map::ABI,
        map::CONFIG,
        map::SERVICES,
        map::RANGES,
        map::SERVICE_NAMES,
        map::VIPS,
        map::OWNERS,
        map::VIRTUAL_MACS,
        map::SLOTS,
        map::MEMBERS,
        map::FLOWS,
        map::REPLY_FLOWS,
        map::REPLIES,
        map::LINKS,
        map::STATS,
        map::DROPS,
        map::EVENTS,
        map::LOADS,
        map::TURNS,
        map::SAMPLE,
        map::NEIGHBOUR_REQUESTS,
        map::NAT_POOL,
        map::BINDINGS,
        map::FREE_PORTS,
        map::NAT_FLOWS,
        map::LOCAL,
        map::CLOCK,
        map::PROGRAMS,
        map::WORK,
        map::SOURCES,
        map::CORE_LIMITS,
        map::SOURCE_LIMITS,
        map::FRAGMENTS,
        map::ICMP_LIMIT,
        map::CLAIMS,
        map::PROBES,
        map::PERSISTENCE,
        map::SERVERS,
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(
        first_column(&read("docs/ARCHITECTURE.md"), "| Map |"),
        there
    );
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    for (name, text) in documents() {
        let directory = root().join(&name).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            let is_file = !path.is_empty() && !path.contains("://");
            assert!(
                !is_file || directory.join(path).exists(),
                "{name}: {target} leads nowhere"
            );
        }
    }
}

/// A row of the topologies in `docs/configuration.md`, without its code marks.
struct Row {
    line: String,
    subnets: String,
    path: String,
    arms: String,
    gateway: String,
    method: String,
    says: String,
    example: String,
    tests: Vec<(String, String)>,
}

fn topologies() -> Vec<Row> {
    let text = read("docs/configuration.md");
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| Subnets | Path |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells: Vec<String> = line
            .split('|')
            .map(|cell| cell.replace('`', "").trim().to_owned())
            .collect();
        let [
            _,
            subnets,
            path,
            arms,
            gateway,
            method,
            says,
            example,
            tests,
            _,
        ] = &cells[..]
        else {
            panic!("not eight cells: {line}");
        };
        let link = example.split("](../").nth(1).unwrap_or_default();
        let tests = tests.split(", ").filter(|name| !name.is_empty());
        Row {
            line: line.into(),
            subnets: subnets.clone(),
            path: path.clone(),
            arms: arms.clone(),
            gateway: gateway.clone(),
            method: method.clone(),
            says: says.clone(),
            example: link.trim_end_matches(')').into(),
            tests: tests
                .map(|name| name.split_once("::").expect("suite::test"))
                .map(|(suite, test)| (suite.into(), test.into()))
                .collect(),
        }
    })
    .collect()
}

/// The service of such a topology in a file of its own.
fn file_of(row: &Row) -> String {
    let interfaces = match row.arms.as_str() {
        "two" => "{name: eth0}, {name: eth1}",
        _ => "{name: eth0}",
    };
    format!(
        "interfaces: [{interfaces}]\n\
         pools: {{web: {{backends: [{{name: a, address: 203.0.113.11}}]}}}}\n\
         services:\n  - {{name: shop, address: 203.0.113.10, port: 80, protocol: tcp, \
         forwarding: {}, pool: web, topology: {}}}\n",
        row.method,
        topology_of(row)
    )
}

/// As the files write it.
fn topology_of(row: &Row) -> String {
    format!(
        "{{arms: {}, path: {}, subnets: {}, gateway: {}}}",
        row.arms, row.path, row.subnets, row.gateway
    )
}

#[test]
fn every_topology_is_tested_with_an_example_or_refused_with_the_reason() {
    let (mut work, mut refused) = (0, 0);
    for row in topologies() {
        let line = &row.line;
        if let Some((_, reason)) = row
            .says
            .split_once(": ")
            .filter(|(says, _)| says.starts_with("refused"))
        {
            let errors = config::parse(&file_of(&row), "f.yaml").map(|_| ());
            let errors = errors.expect_err(line).to_string();
            assert!(errors.contains(reason), "{line}\n{errors}");
            assert!(row.example.is_empty() && row.tests.is_empty(), "{line}");
            refused += 1;
            continue;
        }
        work += 1;
        let text = read(&row.example);
        let model = config::parse(&text, &row.example).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(
            text.contains(&format!("topology: {}", topology_of(&row)))
                && model
                    .services
                    .iter()
                    .any(|s| s.forwarding.to_string() == row.method),
            "{} is no example of\n{line}",
            row.example
        );
        let is_warned = !config::warnings(&model).is_empty();
        assert_eq!(is_warned, row.says.contains("warning"), "{line}");
        assert!(!row.tests.is_empty(), "no test: {line}");
        for (suite, test) in &row.tests {
            let is_there = sources(suite).iter().any(|text| {
                text.contains(&format!("fn {test}("))
                    || text.contains(&format!("topology!({test}:"))
            });
            assert!(is_there, "{suite} has no test {test}: {line}");
        }
    }
    assert!(work >= 11 && refused == 4, "{work} work, {refused} refused");
}

/// The files of a suite.
fn sources(suite: &str) -> Vec<String> {
    let tests = root().join("tests/tests");
    match fs::read_dir(tests.join(suite)) {
        Ok(files) if tests.join(suite).join("main.rs").exists() => files
            .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
            .collect(),
        _ => vec![read(&format!("tests/tests/{suite}.rs"))],
    }
}

#[test]
fn lbctl_check_accepts_every_example() {
    let lbctl = workspace_program("lbctl", "LBCTL", "cargo build").unwrap();
    let mut count = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new(&lbctl)
            .arg("check")
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {output:?}", path.display());
        count += 1;
    }
    assert!(count >= 14, "{count} examples");
}
