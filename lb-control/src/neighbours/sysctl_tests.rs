use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::model::{
    Backend, Balance, Dataplane, Defence, ForwardingMethod, Interface, OnBackendDown, Pool, Ports,
    ProbePath, Protocol, Replies, Service, Tunnel, XdpMode,
};
use crate::neighbours::devices::Way;

#[derive(Default)]
struct Fake(BTreeMap<String, String>);

impl Fake {
    /// As on a freshly booted machine with the interfaces of [`model`].
    fn new() -> Self {
        let mut all = BTreeMap::new();
        for name in ["all", "eth0", "eth1.20"] {
            all.insert(format!("net/ipv4/conf/{name}/forwarding"), "0".to_owned());
            all.insert(
                format!("net/ipv4/conf/{name}/send_redirects"),
                "1".to_owned(),
            );
            all.insert(format!("net/ipv6/conf/{name}/forwarding"), "0".to_owned());
        }
        Self(all)
    }
}

impl Settings for Fake {
    fn read(&self, key: &str) -> io::Result<Option<String>> {
        Ok(self.0.get(key).cloned())
    }

    fn write(&mut self, key: &str, value: &str) -> io::Result<()> {
        if key == "net/ipv6/conf/all/forwarding" {
            for (key, old) in &mut self.0 {
                if key.starts_with("net/ipv6/") {
                    value.clone_into(old);
                }
            }
        }
        self.0.insert(key.to_owned(), value.to_owned());
        Ok(())
    }
}

fn model(services: &[(&str, ForwardingMethod)]) -> Model {
    Model {
        node: "lb1".to_owned(),
        interfaces: ["eth0", "eth1.20"]
            .map(|name| Interface {
                name: name.to_owned(),
                xdp: XdpMode::Auto,
            })
            .to_vec(),
        dataplane: Dataplane {
            max_flows: 1,
            max_services: 1,
            max_members: 1,
            max_slots: 1,
            max_source_prefixes: 1024,
            max_limited_sources: 1024,
            max_bindings: 1_000,
            max_fragments: 1024,
            max_persistent_sources: 1024,
            icmp_rate: 1000,
            tcp_idle: Duration::ZERO,
            udp_idle: Duration::ZERO,
            dead_after: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            hash_secret_file: None,
            pin_dir: "/sys/fs/bpf/lb".into(),
            debug_log: false,
            manage_sysctls: true,
            yields_when_daemon_dead: false,
            tunnel: Tunnel::default(),
            probes: ProbePath::default(),
        },
        metrics: None,
        pools: BTreeMap::from([(
            "web".to_owned(),
            Pool {
                backends: Vec::<Backend>::new(),
                ..Pool::default()
            },
        )]),
        services: services
            .iter()
            .map(|(vip, forwarding)| Service {
                name: (*vip).to_owned(),
                address: vip.parse().unwrap(),
                ports: Ports::Any,
                protocol: Protocol::Tcp,
                forwarding: *forwarding,
                replies: Replies::Port,
                defence: Defence::default(),
                on_backend_down: OnBackendDown::Keep,
                balance: Balance::default(),
                persistence: None,
                topology: Default::default(),
                pool: "web".to_owned(),
                table_size: 101,
                table_size_is_explicit: false,
            })
            .collect(),
        full_nat: None,
        vrrp: Vec::new(),
        sync: None,
    }
}

fn record(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lb-sysctl-{test}-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    path
}

fn keys(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.key.as_str()).collect()
}

#[test]
fn without_nat_nothing_has_to_change() {
    let model = model(&[("192.0.2.1", ForwardingMethod::L2Dsr)]);
    assert_eq!(plan_sysctls(&model, &[], &Fake::new()).unwrap(), []);
}

#[test]
fn nat_over_ipv4_needs_forwarding_and_no_redirects() {
    let model = model(&[("192.0.2.1", ForwardingMethod::Nat)]);
    let changes = plan_sysctls(&model, &[], &Fake::new()).unwrap();
    assert_eq!(
        keys(&changes),
        [
            "net/ipv4/conf/all/send_redirects",
            "net/ipv4/conf/eth0/forwarding",
            "net/ipv4/conf/eth0/send_redirects",
            "net/ipv4/conf/eth1.20/forwarding",
            "net/ipv4/conf/eth1.20/send_redirects",
        ]
    );
}

#[test]
fn nat_over_ipv6_needs_forwarding_everywhere_first() {
    let model = model(&[("2001:db8::1", ForwardingMethod::Nat)]);
    let changes = plan_sysctls(&model, &[], &Fake::new()).unwrap();
    assert_eq!(
        keys(&changes),
        [
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/eth0/forwarding",
            "net/ipv6/conf/eth1.20/forwarding",
        ]
    );
}

#[test]
fn an_interface_that_is_missing_is_an_error_that_names_the_setting() {
    let model = model(&[("192.0.2.1", ForwardingMethod::Nat)]);
    let mut settings = Fake::new();
    settings.0.remove("net/ipv4/conf/eth0/forwarding");
    let error = plan_sysctls(&model, &[], &settings)
        .unwrap_err()
        .to_string();
    assert!(error.contains("net.ipv4.conf.eth0.forwarding"), "{error}");
}

#[test]
fn after_applying_nothing_is_left_to_change_and_restoring_puts_all_back() {
    let record = record("roundtrip");
    let model = model(&[
        ("192.0.2.1", ForwardingMethod::Nat),
        ("2001:db8::1", ForwardingMethod::Nat),
    ]);
    let before = Fake::new().0;
    let mut settings = Fake::new();
    let changes = plan_sysctls(&model, &[], &settings).unwrap();
    apply(&changes, &mut settings, &record).unwrap();
    assert_eq!(plan_sysctls(&model, &[], &settings).unwrap(), []);
    assert_eq!(
        restore(&mut settings, &record).unwrap().len(),
        changes.len()
    );
    assert_eq!(settings.0, before);
    assert!(!record.exists());
}

#[test]
fn what_somebody_else_changed_since_is_left_alone() {
    let record = record("foreign");
    let model = model(&[("192.0.2.1", ForwardingMethod::Nat)]);
    let mut settings = Fake::new();
    let changes = plan_sysctls(&model, &[], &settings).unwrap();
    apply(&changes, &mut settings, &record).unwrap();
    let foreign = "net/ipv4/conf/eth0/send_redirects";
    settings.0.insert(foreign.to_owned(), "2".to_owned());
    let restored = restore(&mut settings, &record).unwrap();
    assert!(!restored.contains(&foreign.to_owned()));
    assert_eq!(settings.0.get(foreign).unwrap(), "2");
}

#[test]
fn a_second_run_does_not_take_the_first_runs_values_for_the_operators() {
    let record = record("twice");
    let model = model(&[("192.0.2.1", ForwardingMethod::Nat)]);
    let before = Fake::new().0;
    let mut settings = Fake::new();
    let changes = plan_sysctls(&model, &[], &settings).unwrap();
    apply(&changes, &mut settings, &record).unwrap();
    // Somebody set one in between, and the daemon sets it again.
    let key = "net/ipv4/conf/eth0/forwarding";
    settings.0.insert(key.to_owned(), "2".to_owned());
    let changes = plan_sysctls(&model, &[], &settings).unwrap();
    assert_eq!(keys(&changes), [key]);
    apply(&changes, &mut settings, &record).unwrap();
    restore(&mut settings, &record).unwrap();
    assert_eq!(settings.0, before);
}

/// A VLAN device whose frames come in by interface 1, which is `lo` everywhere.
fn vlan(name: &str) -> Device {
    Device {
        name: name.to_owned(),
        ifindex: 9,
        mac: [2; 6],
        mtu: 1500,
        is_bridge: false,
        is_blocked: false,
        egress: 1,
        tags: [0x8100_000a, 0],
        ways: vec![Way {
            ifindex: 1,
            tags: [0x8100_000a, 0],
            egress: 1,
        }],
    }
}

#[test]
fn below_vlan_devices_tags_stay_in_the_frames() {
    let model = model(&[("192.0.2.1", ForwardingMethod::L2Dsr)]);
    let mut settings = Fake::new();
    let key = "ethtool/lo/rxvlan";
    let devices = [vlan("lo.10"), vlan("lo.11")];
    assert_eq!(
        plan_sysctls(&model, &devices, &settings).unwrap(),
        [],
        "a driver that doesn't know the feature"
    );
    settings.0.insert(key.to_owned(), "on".to_owned());
    let changes = plan_sysctls(&model, &devices, &settings).unwrap();
    assert_eq!(keys(&changes), [key]);
    assert_eq!(changes[0].wants, "off");
    let text = explain(&changes);
    assert!(text.contains("ethtool -K lo rxvlan off"), "{text}");
    let mut untagged = vlan("lo");
    untagged.ways[0].tags = [0; 2];
    assert_eq!(plan_sysctls(&model, &[untagged], &settings).unwrap(), []);
    settings.0.insert(key.to_owned(), "off".to_owned());
    assert_eq!(plan_sysctls(&model, &devices, &settings).unwrap(), []);
}

#[test]
fn nat_over_vlan_devices_needs_forwarding_on_these() {
    let model = model(&[("192.0.2.1", ForwardingMethod::Nat)]);
    let mut settings = Fake::new();
    for setting in ["forwarding", "send_redirects"] {
        let key = format!("net/ipv4/conf/eth0.10/{setting}");
        let value = if setting == "forwarding" { "0" } else { "1" };
        settings.0.insert(key, value.to_owned());
    }
    let changes = plan_sysctls(&model, &[vlan("eth0.10")], &settings).unwrap();
    for setting in ["forwarding", "send_redirects"] {
        let key = format!("net/ipv4/conf/eth0.10/{setting}");
        assert!(keys(&changes).contains(&key.as_str()), "{key}");
    }
}

#[test]
fn the_explanation_lists_what_to_set_and_what_it_is() {
    let model = model(&[("192.0.2.1", ForwardingMethod::Nat)]);
    let text = explain(&plan_sysctls(&model, &[], &Fake::new()).unwrap());
    assert!(
        text.contains("net.ipv4.conf.eth0.forwarding = 1    # is 0"),
        "{text}"
    );
    assert!(
        text.contains("net/ipv4/conf/eth1.20/forwarding = 1"),
        "{text}"
    );
    assert_eq!(explain(&[]), "");
}
