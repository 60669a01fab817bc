//! Configuration files for `lbctl`, written as an operator would.
//!
//! Text on purpose, and not the controller's own types: the suites come from
//! outside. `extra` lines take whatever has no field here.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// A configuration file in the making.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Name of the node.
    pub node: String,
    /// Interfaces: name, and `auto`, `native` or `generic`.
    pub interfaces: Vec<(String, String)>,
    /// Entries of `dataplane`: key, value. [`crate::daemon::Daemon`] adds
    /// `pin_dir` when it is missing.
    pub dataplane: Vec<(String, String)>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Services.
    pub services: Vec<Service>,
    /// Further top-level lines.
    pub extra: Vec<String>,
}

/// One pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its backends.
    pub backends: Vec<Backend>,
    /// Further lines of the pool, such as `health: […]`.
    pub extra: Vec<String>,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// Its port; the packet's when absent.
    pub port: Option<u16>,
    /// Its weight.
    pub weight: u16,
    /// Its priority group.
    pub priority: u8,
}

/// One service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The VIP.
    pub address: IpAddr,
    /// A port, `[80, 443]`, `8000-8010` or `any`.
    pub port: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `l2-dsr` or `nat`.
    pub forwarding: String,
    /// The pool's name.
    pub pool: String,
    /// Further lines of the service.
    pub extra: Vec<String>,
}

impl Config {
    /// An empty one.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            ..Self::default()
        }
    }

    /// Attaches to every interface in this mode.
    pub fn set_xdp(&mut self, mode: &str) {
        for (_, m) in &mut self.interfaces {
            *m = mode.into();
        }
    }

    /// Sets an entry of `dataplane`.
    pub fn set_dataplane(&mut self, key: &str, value: impl std::fmt::Display) {
        self.dataplane.retain(|(k, _)| k != key);
        self.dataplane.push((key.into(), value.to_string()));
    }

    /// The pool of this name.
    ///
    /// # Panics
    /// When there is none.
    pub fn pool_mut(&mut self, name: &str) -> &mut Pool {
        let pool = self.pools.iter_mut().find(|p| p.name == name);
        pool.unwrap_or_else(|| panic!("the configuration has no pool {name}"))
    }

    /// The file's text.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        self.write(&mut out)
            .unwrap_or_else(|_| unreachable!("writing to a String never fails"));
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "node: {{name: {}}}", self.node)?;
        writeln!(out, "interfaces:")?;
        for (name, mode) in &self.interfaces {
            writeln!(out, "  - {{name: {name}, xdp: {mode}}}")?;
        }
        if !self.dataplane.is_empty() {
            writeln!(out, "dataplane:")?;
            for (key, value) in &self.dataplane {
                writeln!(out, "  {key}: {value}")?;
            }
        }
        if let Some(listen) = self.metrics {
            writeln!(out, "metrics: {{listen: \"{listen}\"}}")?;
        }
        writeln!(out, "pools:")?;
        for pool in &self.pools {
            writeln!(out, "  {}:", pool.name)?;
            writeln!(out, "    backends:")?;
            for b in &pool.backends {
                let port = b.port.map(|p| format!("port: {p}, ")).unwrap_or_default();
                writeln!(
                    out,
                    "      - {{name: {}, address: \"{}\", {port}weight: {}, priority: {}}}",
                    b.name, b.address, b.weight, b.priority
                )?;
            }
            for line in &pool.extra {
                writeln!(out, "    {line}")?;
            }
        }
        writeln!(out, "services:")?;
        for s in &self.services {
            writeln!(out, "  - name: {}", s.name)?;
            writeln!(out, "    address: \"{}\"", s.address)?;
            writeln!(out, "    port: {}", s.port)?;
            writeln!(out, "    protocol: {}", s.protocol)?;
            writeln!(out, "    forwarding: {}", s.forwarding)?;
            writeln!(out, "    pool: {}", s.pool)?;
            for line in &s.extra {
                writeln!(out, "    {line}")?;
            }
        }
        for line in &self.extra {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}
