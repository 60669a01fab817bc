//! What the daemon's tests share.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::conditions::Now;
use crate::{
    dataplane::desired::BackendKey,
    model::{
        Backend, Balance, Check, CheckKind, Dataplane, Defence, ForwardingMethod, Interface, Model,
        OnBackendDown, Pool, PoolPolicy, Ports, ProbePath, Protocol, Replies, Service, Track,
        Tunnel, Vrrp, XdpMode,
    },
};

/// A directory that goes away with it.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lbctl-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The name of whoever runs the tests.
pub fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    user.unwrap().unwrap().name
}

/// A virtual router with these addresses.
pub fn vrrp(addresses: &[&str]) -> Vrrp {
    Vrrp {
        vrid: 51,
        interface: "eth0".into(),
        priority: 150,
        interval: Duration::from_secs(1),
        version: 3,
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        pseudo_header: false,
        peers: vec!["192.0.2.2".parse().unwrap()],
        track: Track::default(),
        notify: None,
        virtual_mac: true,
        sync_group: None,
    }
}

pub fn now(unix: u64) -> Now {
    Now {
        instant: Instant::now(),
        unix,
    }
}

pub fn key(backend: &str) -> BackendKey {
    BackendKey {
        pool: "web".into(),
        backend: backend.into(),
    }
}

/// One service over one checked pool.
pub fn model(backends: &[&str]) -> Model {
    Model {
        node: "lb1".into(),
        interfaces: vec![Interface {
            name: "eth0".into(),
            xdp: XdpMode::Auto,
        }],
        dataplane: Dataplane {
            max_flows: 1_000,
            max_services: 16,
            max_members: 64,
            max_slots: 100_000,
            max_source_prefixes: 1024,
            max_limited_sources: 1024,
            max_bindings: 1_000,
            max_fragments: 1024,
            max_persistent_sources: 1024,
            icmp_rate: 1000,
            tcp_idle: Duration::from_secs(300),
            udp_idle: Duration::from_secs(30),
            dead_after: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(300),
            hash_secret_file: None,
            pin_dir: "/sys/fs/bpf/test".into(),
            debug_log: false,
            manage_sysctls: true,
            yields_when_daemon_dead: false,
            tunnel: Tunnel::default(),
            probes: ProbePath::default(),
        },
        metrics: None,
        pools: BTreeMap::from([(
            "web".into(),
            Pool {
                backends: backends
                    .iter()
                    .zip(1..)
                    .map(|(name, n)| Backend {
                        name: (*name).into(),
                        address: [10, 0, 1, n].into(),
                        port: None,
                        weight: 100,
                        priority: 1,
                        max_connections: 0,
                    })
                    .collect(),
                health: vec![Check {
                    kind: CheckKind::Tcp,
                    port: None,
                    via: None,
                    interval: Duration::from_secs(2),
                    timeout: Duration::from_secs(1),
                    slow_after: None,
                    fast_interval: None,
                    rise: 2,
                    fall: 3,
                    overloaded_limit: Duration::from_secs(60),
                    hold_down_limit: Duration::from_secs(300),
                }],
                policy: PoolPolicy::default(),
            },
        )]),
        services: vec![Service {
            name: "shop".into(),
            address: [203, 0, 113, 10].into(),
            ports: Ports::Ranges(vec![(80, 80)]),
            protocol: Protocol::Tcp,
            forwarding: ForwardingMethod::L2Dsr,
            replies: Replies::Port,
            defence: Defence::default(),
            on_backend_down: OnBackendDown::Keep,
            balance: Balance::default(),
            persistence: None,
            topology: Default::default(),
            pool: "web".into(),
            table_size: 1_009,
            table_size_is_explicit: false,
        }],
        full_nat: None,
        vrrp: Vec::new(),
        sync: None,
    }
}
