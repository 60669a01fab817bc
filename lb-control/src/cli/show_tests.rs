use std::collections::BTreeMap;

use super::*;
use crate::status::{
    ConfigStatus, DuplicateVip, FlowTableStatus, InterfaceStatus, LastReload, NextHopStatus, Rates,
    Readiness, ReloadStatus,
};

#[test]
fn status_for_people() {
    let shown = status(
        &Status {
            node: "lb1".into(),
            version: "0.1.0".into(),
            pid: 42,
            uptime_seconds: 200,
            readiness: Readiness {
                ready: false,
                reasons: vec!["pool web: no result yet".into()],
            },
            config: ConfigStatus {
                file: "/etc/lb.yaml".into(),
                hash: "00ff".into(),
                loaded_at: 900,
                services: 1,
                pools: 1,
                backends: 2,
            },
            reloads: ReloadStatus {
                succeeded: 1,
                failed: 1,
                last: Some(LastReload {
                    at: 990,
                    ok: false,
                    errors: vec!["lb.yaml:3:1: no".into()],
                }),
            },
            interfaces: vec![InterfaceStatus {
                name: "eth0".into(),
                mode: "generic".into(),
                reason: Some("the driver has no XDP".into()),
                program_id: Some(7),
                ..InterfaceStatus::default()
            }],
            flow_table: FlowTableStatus {
                entries: 5,
                capacity: 1_000,
                tracked_slots: 3,
                slots: 1_009,
                ..FlowTableStatus::default()
            },
            drops: BTreeMap::from([("truncated".into(), 4), ("fragment".into(), 0)]),
            duplicate_vips: vec![DuplicateVip {
                address: [192, 0, 2, 1].into(),
                mac: "02:00:00:00:00:fe".into(),
                interface: "eth0".into(),
                last_seen: 995,
            }],
            ..Status::default()
        },
        false,
        1_000,
    );
    assert_eq!(
        shown,
        "\
lb1: not ready, up 3 min 20 s (lbctl 0.1.0, pid 42)
  pool web: no result yet
Configuration: /etc/lb.yaml (hash 00ff), loaded 1 min 40 s ago; 1 service, 1 pool, 2 backends
Reloads: 1 succeeded, 1 failed; the last failed 10 s ago:
  lb.yaml:3:1: no
Data path: loaded by this daemon, 0 changes applied, 0 failed
Flow table: 5 of 1000 entries, 0 refused; 3 of 1009 slots tracked
Dropped, of no service: truncated 4
Duplicate VIP 192.0.2.1: 02:00:00:00:00:fe has it too, by eth0, last seen 5 s ago

INTERFACE  XDP      PROGRAM  WHY
eth0       generic        7  the driver has no XDP
"
    );
}

#[test]
fn services_for_people() {
    let shown = services(
        &[ServiceStatus {
            name: "shop".into(),
            address: Some("203.0.113.10".parse().unwrap()),
            ports: "80,443".into(),
            protocol: "tcp".into(),
            forwarding: "l2-dsr".into(),
            pool: "web".into(),
            backends_up: 1,
            backends_total: 2,
            rates: Rates {
                connections_per_second: 1_234.0,
                packets_per_second: 10.0,
                bytes_per_second: 1_250_000.0,
                ..Rates::default()
            },
            concurrent: Concurrent {
                connections: 20_000,
                error: 150,
                estimated: true,
                half_open: None,
            },
            drops: BTreeMap::from([("no_backend".into(), 2)]),
            ..ServiceStatus::default()
        }],
        false,
    );
    assert_eq!(
        shown,
        "\
SERVICE  VIP           PORTS       METHOD  POOL   UP  CONN/S        ACTIVE           IN  PKT/S  REPLIES  DROPS
shop     203.0.113.10  80,443/tcp  l2-dsr  web   1/2  1.23 k  20.0 k ± 150  10.0 Mbit/s   10.0  0 bit/s  no_backend 2
"
    );
}

#[test]
fn backends_for_people_say_why_one_is_not_up() {
    let up = BackendStatus {
        pool: "web".into(),
        backend: "a".into(),
        service: "shop".into(),
        address: Some("2001:db8::1".parse().unwrap()),
        port: Some(8080),
        health: Health::Up,
        health_since: Some(940),
        condition: Condition::Up,
        weight: 50,
        weight_effective: 50,
        slot_share: 1.0,
        next_hop: NextHopStatus {
            resolved: true,
            detail: "02:00:00:00:00:01 on eth0".into(),
            mtu: Some(1500),
        },
        ..BackendStatus::default()
    };
    let down = BackendStatus {
        backend: "b".into(),
        health: Health::Down,
        last_result: "connection refused".into(),
        admin: AdminState::Disabled,
        condition: Condition::Dead,
        weight_effective: 0,
        slot_share: 0.0,
        next_hop: NextHopStatus {
            resolved: false,
            detail: "no route".into(),
            mtu: None,
        },
        ..up.clone()
    };
    assert_eq!(
        backends(&[up, down], false, 1_000),
        "\
BACKEND  SERVICE  ADDRESS             STATE  HEALTH             WEIGHT    SHARE  CONN/S  ACTIVE       IN  WHY
web/a    shop     [2001:db8::1]:8080  up     up 1 min 0 s           50  100.0 %       0       0  0 bit/s
web/b    shop     [2001:db8::1]:8080  dead   down 1 min 0 s  0 (of 50)    0.0 %       0       0  0 bit/s  disabled by an operator; connection refused; no route
"
    );
}

#[test]
fn a_plan_for_people() {
    use crate::status::request::ServicePlan;
    let answer = PlanAnswer {
        services: vec![ServicePlan {
            service: "shop".into(),
            change: "change".into(),
            details: vec!["+ backend c 10.0.0.3 weight 1".into()],
            slots_moved: 336,
            slots: 1_009,
        }],
        ..PlanAnswer::default()
    };
    assert_eq!(
        plan(&answer, false),
        "~ service shop: 336 of 1009 slots would move (33.3 %)\n    + backend c 10.0.0.3 weight 1\n"
    );
}
