//! Real servers and clients in namespaces.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr, TcpStream},
    process::ChildStdout,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use socket2::{Domain, Socket, Type};

use crate::{
    cleanup::TempDir,
    conns::{HoldReport, RateReport, ServeCounts, UdpReport},
    netns::Netns,
    process::{Process, wait_ok, workspace_program},
};

/// Time a server has to accept connections.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Waits until a TCP connection to `address` succeeds from within `ns`.
fn wait_accepting(ns: &Netns, process: &Process, address: SocketAddr) -> Result<()> {
    wait_ok(
        format!("{} to accept on {address}", process.label()),
        READY_WITHIN,
        || {
            process.ensure_running()?;
            ns.run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)))??;
            Ok(())
        },
    )
}

/// An address that reaches a server listening on `address` from its own host.
fn local(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    match address.ip() {
        ip if !ip.is_unspecified() => {}
        std::net::IpAddr::V4(_) => address.set_ip(std::net::Ipv4Addr::LOCALHOST.into()),
        std::net::IpAddr::V6(_) => address.set_ip(std::net::Ipv6Addr::LOCALHOST.into()),
    }
    address
}

/// nginx that answers its own name on every path.
///
/// Responses carry the name in `X-Server` too; connections are kept alive.
/// `/big` is 4 MiB of zeroes.
#[derive(Debug)]
pub struct Nginx {
    /// The master with its worker.
    pub process: Process,
    dir: TempDir,
}

/// One request as a server logged it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct AccessLogLine {
    /// The client's address as the server saw it.
    pub peer: String,
    /// The client's port as the server saw it.
    #[serde(deserialize_with = "number")]
    pub port: u16,
    /// The address the server was reached at.
    pub server: String,
    /// The client's `X-Request-Id`; empty when it sent none.
    pub id: String,
    /// Path and query.
    pub uri: String,
    /// Status of the response.
    #[serde(deserialize_with = "number")]
    pub status: u16,
}

fn number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<u16, D::Error> {
    String::deserialize(d)?
        .parse()
        .map_err(serde::de::Error::custom)
}

impl Nginx {
    /// Starts it and waits until it accepts on every address.
    pub fn start(ns: &Netns, name: &str, listen: &[SocketAddr]) -> Result<Self> {
        let dir = TempDir::new()?;
        fs::create_dir(dir.join("html"))?;
        fs::write(dir.join("html/big"), vec![0; 4 << 20])?;
        fs::write(dir.join("nginx.conf"), nginx_conf(&dir, name, listen)?)?;
        let prefix = dir.path().display().to_string();
        let error_log = dir.join("error.log").display().to_string();
        let conf = dir.join("nginx.conf").display().to_string();
        let argv = ["nginx", "-p", &prefix, "-c", &conf, "-e", &error_log];
        let process = ns.spawn(&format!("nginx {name}"), &argv)?;
        let server = Self { process, dir };
        for &address in listen {
            wait_accepting(ns, &server.process, local(address))
                .with_context(|| server.error_log())?;
        }
        Ok(server)
    }

    /// The requests it has answered so far.
    pub fn access_log(&self) -> Result<Vec<AccessLogLine>> {
        let text = fs::read_to_string(self.dir.join("access.log"))?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log: {line}")))
            .collect()
    }

    /// Its error log.
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.dir.join("error.log")).unwrap_or_default()
    }

    /// SIGKILL to master and worker.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }
}

fn nginx_conf(dir: &TempDir, name: &str, listen: &[SocketAddr]) -> Result<String> {
    let dir = dir.path().display();
    let mut listens = String::new();
    for address in listen {
        let only = if address.is_ipv6() {
            " ipv6only=on"
        } else {
            ""
        };
        writeln!(listens, "    listen {address} backlog=4096{only};")?;
    }
    Ok(format!(
        r#"daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {dir}/nginx.pid;
events {{ worker_connections 19000; }}
http {{
  log_format seen escape=json '{{"peer":"$remote_addr","port":"$remote_port","server":"$server_addr",'
    '"id":"$http_x_request_id","uri":"$request_uri","status":"$status"}}';
  access_log {dir}/access.log seen;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  keepalive_timeout 3600s;
  keepalive_requests 100000000;
  server {{
{listens}    root {dir}/html;
    add_header X-Server {name};
    location = /big {{ }}
    location / {{ default_type text/plain; return 200 "{name}\n"; }}
  }}
}}
"#
    ))
}

/// `iperf3 -s`.
#[derive(Debug)]
pub struct Iperf3Server {
    /// The process.
    pub process: Process,
}

impl Iperf3Server {
    /// Starts it on a port of every address, both families.
    pub fn start(ns: &Netns, port: u16) -> Result<Self> {
        let process = ns.spawn("iperf3 -s", &["iperf3", "-s", "-p", &port.to_string()])?;
        // Not by connecting: that would count as a test.
        wait_ok("iperf3 to listen", READY_WITHIN, || {
            process.ensure_running()?;
            let listening = ns.exec(&["ss", "-Hltn", &format!("sport = :{port}")])?;
            anyhow::ensure!(
                !listening.trim().is_empty(),
                "nothing listens on port {port}"
            );
            Ok(())
        })?;
        Ok(Self { process })
    }
}

/// Runs an iperf3 client to its end: what it prints as JSON.
pub fn iperf3(ns: &Netns, server: SocketAddr, args: &[&str]) -> Result<serde_json::Value> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let mut argv = vec!["iperf3", "-J", "-c", &ip, "-p", &port];
    argv.extend(args);
    Ok(serde_json::from_str(&ns.exec(&argv)?)?)
}

/// `lb-conns serve`: TCP and UDP echo and DNS that tell the server's name.
#[derive(Debug)]
pub struct EchoServer {
    /// The process.
    pub process: Process,
    stdout: BufReader<ChildStdout>,
}

impl EchoServer {
    /// Starts it and waits until it has bound everything.
    pub fn start(
        ns: &Netns,
        name: &str,
        tcp: &[SocketAddr],
        udp: &[SocketAddr],
        dns: &[SocketAddr],
    ) -> Result<Self> {
        let mut args = vec!["serve".to_owned(), "--name".to_owned(), name.to_owned()];
        for (flag, addresses) in [("--tcp", tcp), ("--udp", udp), ("--dns", dns)] {
            for address in addresses {
                args.extend([flag.to_owned(), address.to_string()]);
            }
        }
        let (process, stdout) = start_conns(ns, &args)?;
        let mut server = Self { process, stdout };
        let line = read_line(&server.process, &mut server.stdout)?;
        anyhow::ensure!(
            line == "ready",
            "expected \"ready\" from {}, got {line:?}",
            server.process.label()
        );
        Ok(server)
    }

    /// What it has seen so far.
    pub fn counts(&mut self) -> Result<ServeCounts> {
        ask(&mut self.process, &mut self.stdout, "report")
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }
}

/// `lb-conns hold`: open connections that are watched.
#[derive(Debug)]
pub struct Hold {
    /// The process.
    pub process: Process,
    stdout: BufReader<ChildStdout>,
}

impl Hold {
    /// Starts opening `connections` to `target`, `ramp` a second.
    pub fn start(ns: &Netns, target: SocketAddr, connections: u32, ramp: u32) -> Result<Self> {
        let args = [
            "hold".to_owned(),
            "--target".into(),
            target.to_string(),
            "--connections".into(),
            connections.to_string(),
            "--ramp".into(),
            ramp.to_string(),
        ];
        let (process, stdout) = start_conns(ns, &args)?;
        Ok(Self { process, stdout })
    }

    /// Waits until every connection is open or has failed to.
    pub fn wait_open(&mut self, timeout: Duration) -> Result<HoldReport> {
        wait_ok("the connections to open", timeout, || {
            let r = self.report()?;
            anyhow::ensure!(
                r.opened + r.failed_to_open == r.wanted,
                "{} of {} open, {} failed",
                r.opened,
                r.wanted,
                r.failed_to_open
            );
            Ok(r)
        })
    }

    /// The counts so far.
    pub fn report(&mut self) -> Result<HoldReport> {
        ask(&mut self.process, &mut self.stdout, "report")
    }

    /// Ends it: the final counts.
    pub fn stop(mut self) -> Result<HoldReport> {
        let report = ask(&mut self.process, &mut self.stdout, "stop")?;
        self.process.wait(READY_WITHIN)?;
        Ok(report)
    }
}

/// Runs `lb-conns rate` to its end: one new connection per request, from
/// `workers` at once, for `duration`.
pub fn rate(
    ns: &Netns,
    target: SocketAddr,
    workers: u32,
    duration: Duration,
) -> Result<RateReport> {
    run_conns(
        ns,
        &[
            "rate".into(),
            "--target".into(),
            target.to_string(),
            "--workers".into(),
            workers.to_string(),
            "--seconds".into(),
            duration.as_secs_f64().to_string(),
        ],
    )
}

/// Runs `lb-conns udp` to its end: `sockets` of them, one request at a time
/// each, `interval` apart, for `duration`.
pub fn udp(
    ns: &Netns,
    target: SocketAddr,
    sockets: u32,
    interval: Duration,
    duration: Duration,
) -> Result<UdpReport> {
    run_conns(
        ns,
        &[
            "udp".into(),
            "--target".into(),
            target.to_string(),
            "--sockets".into(),
            sockets.to_string(),
            "--interval-ms".into(),
            interval.as_millis().to_string(),
            "--seconds".into(),
            duration.as_secs_f64().to_string(),
        ],
    )
}

/// The echo server that answers a new connection from the address `client`.
pub fn greeting(ns: &Netns, client: IpAddr, target: SocketAddr) -> Result<String> {
    let name = ns.run(|| -> Result<String> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(client, 0).into())?;
        socket
            .connect_timeout(&target.into(), READY_WITHIN)
            .with_context(|| format!("{client} to {target}"))?;
        socket.set_read_timeout(Some(READY_WITHIN))?;
        let mut line = String::new();
        BufReader::new(TcpStream::from(socket)).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    })??;
    anyhow::ensure!(name.starts_with("backend-"), "{client}: {name:?}");
    Ok(name)
}

fn conns_path() -> Result<String> {
    let path = workspace_program(
        "lb-conns",
        "LB_CONNS",
        "cargo build -p lb-tests --bin lb-conns",
    )?;
    Ok(path.display().to_string())
}

fn run_conns<T: serde::de::DeserializeOwned>(ns: &Netns, args: &[String]) -> Result<T> {
    let mut argv = vec![conns_path()?];
    argv.extend_from_slice(args);
    let text = ns.exec(&argv)?;
    serde_json::from_str(&text).with_context(|| format!("lb-conns printed {text}"))
}

fn start_conns(ns: &Netns, args: &[String]) -> Result<(Process, BufReader<ChildStdout>)> {
    let mut command = ns.command(conns_path()?);
    command.args(args);
    let mode = args.first().cloned().unwrap_or_default();
    let mut process = Process::spawn_piped(&format!("lb-conns {mode} in {}", ns.name()), command)?;
    let stdout = process.take_stdout().context("standard output is a pipe")?;
    Ok((process, BufReader::new(stdout)))
}

fn read_line(process: &Process, stdout: &mut BufReader<ChildStdout>) -> Result<String> {
    let mut line = String::new();
    let read = stdout.read_line(&mut line)?;
    anyhow::ensure!(
        read > 0,
        "{} has ended; its log:\n{}",
        process.label(),
        process.log()
    );
    Ok(line.trim().to_owned())
}

fn ask<T: serde::de::DeserializeOwned>(
    process: &mut Process,
    stdout: &mut BufReader<ChildStdout>,
    question: &str,
) -> Result<T> {
    process.write_line(question)?;
    let line = read_line(process, stdout)?;
    serde_json::from_str(&line).with_context(|| format!("{} printed {line}", process.label()))
}
