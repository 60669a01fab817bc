use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::status::{
    ConfigStatus, FlowTableStatus, Histogram as Durations, InterfaceStatus, LastReload, LinkStatus,
    NotifyStatus, PathStatus, PoolStatus, ProbeStatus, ReloadStatus, Status, StreamStatus,
    TrackerStatus, VrrpStatus,
};

fn snapshot() -> Snapshot {
    Snapshot {
        status: Status {
            node: "lb1".into(),
            version: "0.1.0".into(),
            config: ConfigStatus {
                loaded_at: 1_700_000_000,
                ..ConfigStatus::default()
            },
            reloads: ReloadStatus {
                succeeded: 2,
                failed: 1,
                last: Some(LastReload {
                    at: 1_700_000_001,
                    ok: false,
                    errors: vec!["no".into()],
                }),
            },
            interfaces: vec![InterfaceStatus {
                name: "eth0".into(),
                mode: "generic".into(),
                ..InterfaceStatus::default()
            }],
            full_nat: vec![PoolStatus {
                address: [10, 0, 1, 200].into(),
                free: 1,
                used: 2,
                resting: 3,
                removed: 4,
                draining: true,
            }],
            flow_table: FlowTableStatus {
                entries: 12,
                capacity: 1_000_000,
                refused_total: 3,
                ..FlowTableStatus::default()
            },
            verified_instructions: Some(91_000),
            drops: BTreeMap::from([("truncated".into(), 4)]),
            ..Status::default()
        },
        services: vec![ServiceStatus {
            name: "shop".into(),
            totals: Totals {
                packets: 10,
                connections: 2,
                ..Totals::default()
            },
            tracked_slots: 7,
            drops: BTreeMap::from([("no_backend".into(), 5)]),
            ..ServiceStatus::default()
        }],
        backends: vec![BackendStatus {
            pool: "web".into(),
            backend: "web-1".into(),
            service: "shop".into(),
            condition: Condition::Draining,
            ..BackendStatus::default()
        }],
        sync: vec![LinkStatus {
            peer: "lb2".into(),
            up: true,
            became_up: 2,
            paths: vec![PathStatus {
                local: "10.0.9.1:9465".parse().unwrap(),
                remote: "10.0.9.2:9465".parse().unwrap(),
                alive: true,
                heard_by_peer: true,
                heard_ago_ms: Some(12),
                round_trip_us: Some(250),
                sent: 70,
                received: 60,
                error: None,
            }],
            stream: StreamStatus {
                sent: 9,
                waiting: 4,
                lag_ms: 1500,
                ..StreamStatus::default()
            },
            rejected: [("replayed".to_owned(), 3)].into(),
            ..LinkStatus::default()
        }],
        vrrp: vec![VrrpStatus {
            vrid: 51,
            family: "IPv4".into(),
            interface: "eth0".into(),
            state: "active".into(),
            priority: 150,
            sent: 7,
            isolated: true,
            reference_hosts: 3,
            reference_hosts_answering: 1,
            peers_active: 4,
            handed_over: true,
            handed_over_total: 5,
            taken_over_total: 6,
            late: 8,
            rejected: [("ttl".to_owned(), 2)].into(),
            trackers: vec![TrackerStatus {
                kind: "script".into(),
                name: "uplink".into(),
                ok: true,
                ..TrackerStatus::default()
            }],
            notify: Some(NotifyStatus {
                command: [("timeout".to_owned(), 3)].into(),
                fifo: [("dropped".to_owned(), 4)].into(),
                waiting: 0,
            }),
            ..VrrpStatus::default()
        }],
        probes: vec![ProbeStatus {
            pool: "web".into(),
            backend: "web-1".into(),
            results: BTreeMap::from([("pass".into(), 9)]),
            durations: Durations {
                buckets: vec![(0.001, 8), (0.01, 9)],
                count: 9,
                sum_seconds: 0.5,
            },
            certificate_expiry: Some(4_070_908_800),
        }],
    }
}

fn line(text: &str, start: &str) -> String {
    let found: Vec<_> = text.lines().filter(|l| l.starts_with(start)).collect();
    assert_eq!(found.len(), 1, "{start}: {found:?}");
    found[0][start.len()..].trim().to_owned()
}

#[test]
fn every_figure_stands_under_its_name_and_labels() {
    let text = text(&snapshot()).unwrap();
    for (start, value) in [
        (r#"lb_build_info{version="0.1.0",node="lb1"}"#, "1"),
        (r#"lb_service_packets_total{service="shop"}"#, "10"),
        (
            r#"lb_service_connections_opened_total{service="shop"}"#,
            "2",
        ),
        (
            r#"lb_backend_up{service="shop",pool="web",backend="web-1"}"#,
            "0",
        ),
        (
            r#"lb_backend_state{service="shop",pool="web",backend="web-1",state="draining"}"#,
            "1",
        ),
        (r#"lb_drops_total{service="",reason="truncated"}"#, "4"),
        (r#"lb_drops_total{service="shop",reason="no_backend"}"#, "5"),
        (r#"lb_flow_table_entries{table="flows"}"#, "12"),
        ("lb_flow_table_refused_total ", "3"),
        (
            r#"lb_full_nat_ports{address="10.0.1.200",state="resting"}"#,
            "3",
        ),
        (
            r#"lb_full_nat_ports{address="10.0.1.200",state="free"}"#,
            "1",
        ),
        (r#"lb_tracked_slots{service="shop"}"#, "7"),
        (r#"lb_reloads_total{result="failure"}"#, "1"),
        ("lb_last_reload_success ", "0"),
        (r#"lb_xdp_mode{interface="eth0",mode="generic"}"#, "1"),
        (r#"lb_xdp_mode{interface="eth0",mode="native"}"#, "0"),
        ("lb_program_verified_instructions ", "91000"),
        (
            r#"lb_probe_results_total{pool="web",backend="web-1",result="pass"}"#,
            "9",
        ),
        (
            r#"lb_probe_certificate_expiry_time_seconds{pool="web",backend="web-1"}"#,
            "4070908800",
        ),
        (r#"lb_sync_up{peer="lb2"}"#, "1"),
        (r#"lb_sync_became_up_total{peer="lb2"}"#, "2"),
        (r#"lb_sync_messages_sent_total{peer="lb2"}"#, "9"),
        (r#"lb_sync_waiting_messages{peer="lb2"}"#, "4"),
        (r#"lb_sync_lag_seconds{peer="lb2"}"#, "1.5"),
        (r#"lb_sync_path_up{peer="lb2",path="10.0.9.2:9465"}"#, "1"),
        (
            r#"lb_sync_path_round_trip_seconds{peer="lb2",path="10.0.9.2:9465"}"#,
            "0.00025",
        ),
        (
            r#"lb_sync_datagrams_sent_total{peer="lb2",path="10.0.9.2:9465"}"#,
            "70",
        ),
        (
            r#"lb_sync_datagrams_received_total{peer="lb2",path="10.0.9.2:9465"}"#,
            "60",
        ),
        (
            r#"lb_sync_rejected_total{peer="lb2",reason="replayed"}"#,
            "3",
        ),
        (
            r#"lb_vrrp_state{vrid="51",family="IPv4",interface="eth0",state="active"}"#,
            "1",
        ),
        (
            r#"lb_vrrp_state{vrid="51",family="IPv4",interface="eth0",state="backup"}"#,
            "0",
        ),
        (
            r#"lb_vrrp_isolated{vrid="51",family="IPv4",interface="eth0"}"#,
            "1",
        ),
        (
            r#"lb_vrrp_reference_hosts{vrid="51",family="IPv4",interface="eth0"}"#,
            "3",
        ),
        (
            r#"lb_vrrp_reference_hosts_answering{vrid="51",family="IPv4",interface="eth0"}"#,
            "1",
        ),
        (
            r#"lb_vrrp_handed_over{vrid="51",family="IPv4",interface="eth0"}"#,
            "1",
        ),
        (
            r#"lb_vrrp_peers_active{vrid="51",family="IPv4",interface="eth0"}"#,
            "4",
        ),
        (
            r#"lb_vrrp_handed_over_total{vrid="51",family="IPv4",interface="eth0"}"#,
            "5",
        ),
        (
            r#"lb_vrrp_taken_over_total{vrid="51",family="IPv4",interface="eth0"}"#,
            "6",
        ),
        (
            r#"lb_vrrp_advertisements_late_total{vrid="51",family="IPv4",interface="eth0"}"#,
            "8",
        ),
        (
            r#"lb_vrrp_priority{vrid="51",family="IPv4",interface="eth0"}"#,
            "150",
        ),
        (
            r#"lb_vrrp_advertisements_sent_total{vrid="51",family="IPv4",interface="eth0"}"#,
            "7",
        ),
        (
            r#"lb_vrrp_tracker_ok{vrid="51",family="IPv4",interface="eth0",kind="script",tracker="uplink"}"#,
            "1",
        ),
        (
            r#"lb_vrrp_notify_runs_total{vrid="51",family="IPv4",interface="eth0",result="timeout"}"#,
            "3",
        ),
        (
            r#"lb_vrrp_notify_lines_total{vrid="51",family="IPv4",interface="eth0",result="dropped"}"#,
            "4",
        ),
        (
            r#"lb_vrrp_rejected_total{vrid="51",family="IPv4",interface="eth0",reason="ttl"}"#,
            "2",
        ),
        (
            r#"lb_probe_duration_seconds_bucket{pool="web",backend="web-1",le="+Inf"}"#,
            "9",
        ),
    ] {
        assert_eq!(line(&text, start), value, "{start}");
    }
}

#[test]
fn every_family_has_one_help_and_one_type_and_counters_end_in_total() {
    let text = text(&snapshot()).unwrap();
    let mut seen = BTreeSet::new();
    for declaration in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = declaration.split_once(' ').unwrap();
        assert!(seen.insert(name.to_owned()), "{name} twice");
        assert!(name.starts_with("lb_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} {kind}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    assert!(seen.len() > 30, "{}", seen.len());
}

#[test]
fn no_label_can_name_a_client() {
    let text = text(&snapshot()).unwrap();
    let allowed = [
        "service",
        "backend",
        "pool",
        "reason",
        "event",
        "interface",
        "mode",
        "state",
        "result",
        "table",
        // Of full NAT's pool.
        "address",
        "version",
        "node",
        "le",
        "peer",
        "path",
        "vrid",
        "family",
        "kind",
        "tracker",
    ];
    for labels in text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| Some(l.split_once('{')?.1.split_once('}')?.0))
    {
        for label in labels
            .split(',')
            .map(|pair| pair.split_once('=').unwrap().0)
        {
            assert!(allowed.contains(&label), "{label}");
        }
    }
}

#[test]
fn a_daemon_without_services_still_has_a_page() {
    let text = text(&Snapshot::default()).unwrap();
    assert!(text.contains("lb_build_info"));
    assert!(text.contains("lb_last_reload_success 1"));
}
