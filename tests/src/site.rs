//! A whole site: a topology, servers on every backend, and a balancer that
//! has taken its services up.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cleanup::TempDir,
    config::{Config, Service},
    daemon::Daemon,
    netns::Netns,
    process::wait_ok,
    servers::{EchoServer, Nginx},
    topology::{Kind, Options, Topology, Wires},
};

/// Port of the web service; under NAT the servers listen on [`WEB_INSIDE`].
pub const WEB: u16 = 80;
/// Port that NAT translates [`WEB`] to.
pub const WEB_INSIDE: u16 = 8080;
/// Ports of the service with a list of ports.
pub const LIST: [u16; 2] = [7000, 7010];
/// First and last port of the service with a range.
pub const RANGE: (u16, u16) = (7100, 7110);
/// Port of the name service, over UDP.
pub const DNS: u16 = 53;
/// A port that only the UDP service for any port has.
pub const UDP: u16 = 7001;

/// Longest time until the first health results are in.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A topology with servers and a balancer. On drop the balancer goes first.
#[derive(Debug)]
pub struct Site {
    /// The balancer.
    pub daemon: Daemon,
    /// Its configuration, as last written by [`Self::reload`].
    pub config: Config,
    /// nginx on each backend, where asked for.
    pub web: Vec<Nginx>,
    /// Echo and DNS servers on each backend.
    pub echo: Vec<EchoServer>,
    _wires: Option<Wires>,
    /// Hosts and links.
    pub topology: Topology,
}

/// `v4` or `v6`: the end of the names of services and pools.
pub fn family(of: IpAddr) -> &'static str {
    if of.is_ipv4() { "v4" } else { "v6" }
}

/// Every address of both families.
pub fn any(ports: impl IntoIterator<Item = u16>) -> Vec<SocketAddr> {
    ports
        .into_iter()
        .flat_map(|port| -> [SocketAddr; 2] {
            [
                (Ipv4Addr::UNSPECIFIED, port).into(),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ]
        })
        .collect()
}

/// Services on both VIPs: `list-v4` and `-v6` on [`LIST`].
///
/// Their pools are `many-v4` and `-v6`, with a check of [`LIST`]'s first port.
pub fn list_config(t: &Topology) -> Config {
    let mut config = Config::new("lb1");
    config.set_dataplane("max_flows", 100_000);
    config.interfaces = t
        .balancer
        .interfaces
        .iter()
        .map(|i| (i.name.clone(), "native".into()))
        .collect();
    for vip in t.vips() {
        let family = family(vip);
        let mut pool = t.pool(&format!("many-{family}"), vip, None);
        pool.extra = vec![format!(
            "health: [{{type: tcp, port: {}, interval: 500ms, timeout: 400ms, rise: 2, fall: 3, overloaded_limit: 1s}}]",
            LIST[0]
        )];
        config.pools.push(pool);
        config.services.push(service(
            t,
            &format!("list-{family}"),
            vip,
            &format!("{LIST:?}"),
            "tcp",
            &format!("many-{family}"),
        ));
    }
    config
}

/// [`list_config`] and on both VIPs: `web` on [`WEB`], `range` on [`RANGE`],
/// `dns` on [`DNS`].
pub fn full_config(t: &Topology) -> Config {
    let mut config = list_config(t);
    for vip in t.vips() {
        let family = family(vip);
        let inside = (t.kind != Kind::Dsr).then_some(WEB_INSIDE);
        let mut pool = t.pool(&format!("web-{family}"), vip, inside);
        pool.extra =
            vec!["health: [{type: tcp, interval: 500ms, timeout: 400ms, rise: 2, fall: 3}]".into()];
        let name = pool.name.clone();
        config.pools.push(pool);
        let many = format!("many-{family}");
        let (first, last) = RANGE;
        let mut add = |name: &str, port: &str, protocol: &str, pool: &str| {
            let name = format!("{name}-{family}");
            config
                .services
                .push(service(t, &name, vip, port, protocol, pool));
        };
        add("web", &WEB.to_string(), "tcp", &name);
        add("range", &format!("\"{first}-{last}\""), "tcp", &many);
        add("dns", &DNS.to_string(), "udp", &many);
    }
    config
}

/// A service of the topology's own forwarding method.
pub fn service(
    t: &Topology,
    name: &str,
    address: IpAddr,
    port: &str,
    protocol: &str,
    pool: &str,
) -> Service {
    Service {
        name: name.into(),
        address,
        port: port.into(),
        protocol: protocol.into(),
        forwarding: t.kind.forwarding().into(),
        pool: pool.into(),
        extra: vec![],
    }
}

impl Site {
    /// A site with echo servers alone and [`list_config`], changed by `adapt`.
    pub fn echo(kind: Kind, options: &Options, adapt: impl FnOnce(&mut Config)) -> Result<Self> {
        let topology = Topology::new(kind, options)?;
        let mut config = list_config(&topology);
        adapt(&mut config);
        Self::start(topology, config, false)
    }

    /// A site with nginx too and [`full_config`], changed by `adapt`.
    pub fn full(kind: Kind, options: &Options, adapt: impl FnOnce(&mut Config)) -> Result<Self> {
        let topology = Topology::new(kind, options)?;
        let mut config = full_config(&topology);
        adapt(&mut config);
        Self::start(topology, config, true)
    }

    /// As [`Self::full`], in a topology that was built before.
    pub fn full_in(topology: Topology, adapt: impl FnOnce(&mut Config)) -> Result<Self> {
        let mut config = full_config(&topology);
        adapt(&mut config);
        Self::start(topology, config, true)
    }

    /// A site in a topology that is there, with nginx or without.
    pub fn start(topology: Topology, config: Config, with_web: bool) -> Result<Self> {
        let mut web = vec![];
        let mut echo = vec![];
        let ports = LIST.into_iter().chain(RANGE.0..=RANGE.1);
        let tcp = any(ports);
        // A socket bound to no address answers from the interface's address,
        // and not from the VIP that was asked.
        let is_direct = config
            .services
            .iter()
            .any(|service| !service.forwarding.ends_with("nat"));
        let udp = |port| match is_direct {
            true => topology
                .vips()
                .map(|vip| SocketAddr::new(vip, port))
                .to_vec(),
            false => any([port]),
        };
        for backend in &topology.backends {
            let (ns, name) = (&backend.ns, &backend.name);
            if with_web {
                web.push(Nginx::start(ns, name, &any([WEB, WEB_INSIDE]))?);
            }
            echo.push(EchoServer::start(ns, name, &tcp, &udp(UDP), &udp(DNS))?);
        }
        let is_native = config.interfaces.iter().any(|(_, mode)| mode != "generic");
        let wires = is_native.then(|| topology.wire_balancer()).transpose()?;
        let daemon = Daemon::start(&topology.balancer.ns, &config)?;
        let site = Self {
            daemon,
            config,
            web,
            echo,
            _wires: wires,
            topology,
        };
        site.wait_ready()?;
        Ok(site)
    }

    /// Waits until `/readyz` would say yes: attached, applied, and the first
    /// health results are in.
    pub fn wait_ready(&self) -> Result<()> {
        wait_ok("the daemon to be ready", READY_WITHIN, || {
            let status = self.daemon.ctl_json(&["status"])?;
            ensure!(
                status["readiness"]["ready"] == true,
                "not ready: {}",
                status["readiness"]["reasons"]
            );
            Ok(())
        })
    }

    /// Writes [`Self::config`] and has it read.
    pub fn reload(&self) -> Result<()> {
        self.daemon.write_config(&self.config)?;
        self.daemon.reload()
    }

    /// The row of one (service, backend) pair in `lbctl backends`.
    pub fn backend(&self, service: &str, backend: &str) -> Result<Value> {
        row(&self.daemon.ctl_json(&["backends"])?, |b| {
            b["service"] == service && b["backend"] == backend
        })
        .with_context(|| format!("lbctl backends does not list {backend} of {service}"))
    }

    /// The row of a service in `lbctl services`.
    pub fn service(&self, service: &str) -> Result<Value> {
        row(&self.daemon.ctl_json(&["services"])?, |s| {
            s["name"] == service
        })
        .with_context(|| format!("lbctl services does not list {service}"))
    }

    /// Waits until the data path treats a backend so: `up`, `draining`,
    /// `failing` or `dead`. Its row.
    pub fn wait_condition(&self, service: &str, backend: &str, condition: &str) -> Result<Value> {
        wait_ok(
            format!("{backend} of {service} to be {condition}"),
            READY_WITHIN,
            || {
                let row = self.backend(service, backend)?;
                ensure!(row["condition"] == condition, "it is {row}");
                Ok(row)
            },
        )
    }

    /// Waits until the checks say this of a backend, in words that hold `words`.
    pub fn wait_health(
        &self,
        service: &str,
        backend: &str,
        health: &str,
        words: &str,
    ) -> Result<()> {
        let what = format!("{backend} of {service} to be {health}");
        wait_ok(what, Duration::from_secs(10), || {
            let row = self.backend(service, backend)?;
            let text = row["last_result"].as_str().unwrap_or_default();
            ensure!(
                row["health"] == health && text.contains(words),
                "it is {row}"
            );
            Ok(())
        })
    }

    /// Dropped packets by service (empty for none) and reason, those that are
    /// not zero.
    pub fn drops(&self) -> Result<BTreeMap<(String, String), u64>> {
        let mut all = BTreeMap::new();
        let mut add = |service: &str, drops: &Value| {
            for (reason, n) in drops.as_object().into_iter().flatten() {
                if let Some(n) = n.as_u64().filter(|n| *n > 0) {
                    all.insert((service.to_owned(), reason.clone()), n);
                }
            }
        };
        add("", &self.daemon.ctl_json(&["status"])?["drops"]);
        for service in self
            .daemon
            .ctl_json(&["services"])?
            .as_array()
            .into_iter()
            .flatten()
        {
            add(
                service["name"].as_str().unwrap_or_default(),
                &service["drops"],
            );
        }
        Ok(all)
    }

    /// The share of a service's slots that each backend has.
    pub fn shares(&self, service: &str) -> Result<BTreeMap<String, f64>> {
        let rows = self.daemon.ctl_json(&["backends", "--service", service])?;
        rows.as_array()
            .into_iter()
            .flatten()
            .map(|b| {
                let name = b["backend"].as_str().context("a backend without a name")?;
                let share = b["slot_share"]
                    .as_f64()
                    .context("a backend without a share")?;
                Ok((name.to_owned(), share))
            })
            .collect()
    }
}

fn row(rows: &Value, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
    rows.as_array()?.iter().find(|r| is_it(r)).cloned()
}

/// Fails unless every backend got its share of `counts`, give or take five
/// standard deviations of a fair draw. All of `counts` are named in `shares`.
pub fn ensure_shares(
    what: &str,
    counts: &BTreeMap<String, u64>,
    shares: &BTreeMap<String, f64>,
) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let float = |n: u64| n as f64;
    let total = float(counts.values().sum());
    for name in counts.keys() {
        ensure!(shares.contains_key(name), "{what}: who is {name}?");
    }
    for (name, share) in shares {
        let got = float(counts.get(name).copied().unwrap_or_default());
        let (expected, deviation) = (total * share, (total * share * (1.0 - share)).sqrt());
        ensure!(
            (got - expected).abs() <= 5.0 * deviation,
            "{what}: {name} answered {got} of {total}, where {expected:.0} ± {:.0} are its share: {counts:?}",
            5.0 * deviation
        );
    }
    Ok(())
}

/// One answered request of [`curl`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The `X-Request-Id` sent.
    pub id: String,
    /// The name of the server that answered.
    pub server: String,
    /// Connections that curl opened for it: 0 where one was kept alive.
    pub connects: u32,
}

/// Requests `count` pages from `target` with curl, one after the other, over
/// one connection (`keep_alive`) or one each. An error unless all succeed.
pub fn curl(
    ns: &Netns,
    target: SocketAddr,
    name: &str,
    count: usize,
    keep_alive: bool,
) -> Result<Vec<Fetched>> {
    let dir = TempDir::new()?;
    let file = dir.join("requests");
    let mut text = String::new();
    for number in 0..count {
        let separator = if number == 0 {
            "fail-early\n"
        } else {
            "next\n"
        };
        let close = if keep_alive {
            ""
        } else {
            "header = \"Connection: close\"\n"
        };
        write!(
            text,
            "{separator}url = \"http://{target}/{name}\"\nheader = \"X-Request-Id: {name}-{number}\"\n{close}\
             silent\nshow-error\nmax-time = 10\n\
             write-out = \"{name}-{number} %{{http_code}} %{{num_connects}} %{{errormsg}}\\n\"\n"
        )?;
    }
    std::fs::write(&file, text)?;
    let output = ns.output(&["curl", "--config", &file.display().to_string()])?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let mut lines = printed.lines();
    let mut all = vec![];
    // The server's name, then what curl says.
    while let (Some(server), Some(said)) = (lines.next(), lines.next()) {
        let words: Vec<_> = said.split_whitespace().collect();
        let [id, "200", connects] = words[..] else {
            break;
        };
        all.push(Fetched {
            id: id.into(),
            server: server.into(),
            connects: connects.parse()?,
        });
    }
    ensure!(
        all.len() == count && output.status.success(),
        "{} of {count} requests to {target} succeeded; curl, {}, printed\n{printed}{}",
        all.len(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(all)
}

/// The server that answers a DNS query over UDP, with dig.
pub fn dig(ns: &Netns, server: IpAddr) -> Result<String> {
    let at = format!("@{server}");
    let text = ns.exec(&[
        "dig",
        &at,
        "+short",
        "+tries=1",
        "+time=5",
        "+noedns",
        "example.org",
        "TXT",
    ])?;
    Ok(text.trim().trim_matches('"').to_owned())
}
