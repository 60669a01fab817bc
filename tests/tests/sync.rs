//! The link between two balancers, over two paths.

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check, cleanup::TempDir, config::Config, daemon::Daemon, netns::Netns, process::wait_ok,
};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 9465;
const METRICS: &str = "127.0.0.1:9464";

/// Two balancers with two cables between them: the first IPv4, the second IPv6.
struct Pair {
    nodes: [Daemon; 2],
    namespaces: [Netns; 2],
    keys: TempDir,
}

fn address(path: usize, node: usize) -> String {
    match path {
        0 => format!("10.9.0.{}:{PORT}", node + 1),
        _ => format!("[fd00:9::{}]:{PORT}", node + 1),
    }
}

impl Pair {
    fn start() -> Result<Self> {
        let namespaces = [Netns::new("lb1")?, Netns::new("lb2")?];
        let [first, second] = &namespaces;
        for path in 0..2 {
            let name = second.name();
            let add =
                format!("link add cable{path} type veth peer name cable{path} netns {name}\n");
            first.feed(&["ip", "-batch", "-"], &add)?;
        }
        for (node, namespace) in (1..).zip(&namespaces) {
            namespace.feed(
                &["ip", "-batch", "-"],
                &format!(
                    "addr add 10.9.0.{node}/24 dev cable0\naddr add fd00:9::{node}/64 dev cable1 nodad\n\
                     link set cable0 up\nlink set cable1 up\n\
                     link add lan0 type veth peer name lan1\nlink set lan0 up\nlink set lan1 up\n"
                ),
            )?;
        }
        let keys = TempDir::new()?;
        let node = |namespace: &Netns| Daemon::prepare(namespace, &Config::new("unused"));
        let mut pair = Self {
            nodes: [node(first)?, node(second)?],
            keys,
            namespaces,
        };
        let key = pair.nodes[0].ctl(&["sync-key"])?;
        for node in 0..2 {
            pair.write_key(node, &key)?;
            pair.write_config(node)?;
            pair.nodes[node].launch()?;
        }
        Ok(pair)
    }

    fn key_file(&self, node: usize) -> std::path::PathBuf {
        self.keys.join(&format!("key{node}"))
    }

    fn write_key(&self, node: usize, key: &str) -> Result<()> {
        let file = self.key_file(node);
        fs::write(&file, key)?;
        Ok(fs::set_permissions(
            &file,
            fs::Permissions::from_mode(0o600),
        )?)
    }

    fn write_config(&self, node: usize) -> Result<()> {
        let daemon = &self.nodes[node];
        let path = |path: usize| {
            let (local, remote) = (address(path, node), address(path, 1 - node));
            format!("{{local: \"{local}\", remote: \"{remote}\"}}")
        };
        daemon.write_yaml(&format!(
            "node: {{name: lb{}}}\ninterfaces: [{{name: lan0, xdp: generic}}]\n\
             dataplane: {{pin_dir: {}}}\nmetrics: {{listen: \"{METRICS}\"}}\npools: {{}}\nservices: []\n\
             sync:\n  key_file: {}\n  keepalive: 50ms\n  peers:\n    - name: lb{}\n      paths: [{}, {}]\n",
            node + 1,
            daemon.pin_dir().display(),
            self.key_file(node).display(),
            2 - node,
            path(0),
            path(1),
        ))
    }

    /// The link as a node sees it.
    fn link(&self, node: usize) -> Result<Value> {
        let mut links = self.nodes[node].ctl_json(&["sync"])?;
        let link = links.get_mut(0).context("no link")?;
        Ok(link.take())
    }

    /// Waits until both nodes say this of the link and its paths.
    fn wait(&self, up: bool, paths: [bool; 2]) -> Result<()> {
        for node in 0..2 {
            wait_ok(format!("up: {up}, paths: {paths:?}"), SOON, || {
                let link = self.link(node)?;
                let alive = [0, 1].map(|path| link["paths"][path]["alive"] == true);
                ensure!(link["up"] == up && alive == paths, "{link:#}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn cable(&self, path: usize, is_up: bool) -> Result<()> {
        let device = format!("cable{path}");
        let state = if is_up { "up" } else { "down" };
        self.namespaces[0].exec(&["ip", "link", "set", &device, state])?;
        if is_up && path == 1 {
            // IPv6 addresses leave with the link.
            let add = [
                "ip",
                "addr",
                "replace",
                "fd00:9::1/64",
                "dev",
                &device,
                "nodad",
            ];
            self.namespaces[0].exec(&add)?;
        }
        Ok(())
    }

    fn metric(&self, node: usize, name: &str) -> Result<f64> {
        let page =
            self.namespaces[node].exec(&["curl", "-s", &format!("http://{METRICS}/metrics")])?;
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {name}"))?.parse()?)
    }

    fn wait_metric(&self, node: usize, name: &str, value: f64) -> Result<()> {
        wait_ok(format!("{name} to be {value}"), SOON, || {
            let is = self.metric(node, name)?;
            ensure!(is == value, "{name} is {is}");
            Ok(())
        })
    }
}

/// One pair for both: most of the time goes into starting it.
#[test]
fn the_link_lives_as_long_as_one_of_its_paths_whatever_others_send() {
    check(|| {
        let pair = Pair::start()?;
        pair.wait(true, [true, true])?;
        what_others_send_is_counted_and_the_session_stays(&pair)?;
        it_lives_as_long_as_one_of_its_paths(&pair)
    });
}

fn it_lives_as_long_as_one_of_its_paths(pair: &Pair) -> Result<()> {
    let epoch = pair.link(0)?["epoch"].clone();
    let text = pair.nodes[0].ctl(&["sync"])?;
    ensure!(text.contains("lb2") && text.contains("alive"), "{text}");
    pair.wait_metric(0, r#"lb_sync_up{peer="lb2"}"#, 1.0)?;

    for path in 0..2 {
        pair.cable(path, false)?;
        pair.wait(true, [path != 0, path != 1])?;
        let name = format!(
            r#"lb_sync_path_up{{peer="lb2",path="{}"}}"#,
            address(path, 1)
        );
        pair.wait_metric(0, &name, 0.0)?;
        pair.cable(path, true)?;
        pair.wait(true, [true, true])?;
    }
    ensure!(pair.link(0)?["became_up"] == 1, "a cut path is no cut link");

    pair.cable(0, false)?;
    pair.cable(1, false)?;
    pair.wait(false, [false, false])?;
    pair.wait_metric(0, r#"lb_sync_up{peer="lb2"}"#, 0.0)?;
    pair.cable(0, true)?;
    pair.cable(1, true)?;
    pair.wait(true, [true, true])?;
    let link = pair.link(0)?;
    ensure!(link["became_up"] == 2 && link["epoch"] == epoch, "{link:#}");
    Ok(())
}

#[test]
fn with_another_key_there_is_no_link_and_with_an_open_one_no_reload() {
    check(|| {
        let mut pair = Pair::start()?;
        pair.wait(true, [true, true])?;
        let old = fs::read_to_string(pair.key_file(1))?;

        fs::set_permissions(pair.key_file(1), fs::Permissions::from_mode(0o644))?;
        let refused = pair.nodes[1].ctl_output(&["reload"])?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            !refused.status.success() && text.contains("chmod 600"),
            "{text}"
        );
        pair.write_key(1, &old)?;
        let sessions = pair.link(1)?["sessions"].clone();
        pair.nodes[1].reload()?;
        ensure!(
            pair.link(1)?["sessions"] == sessions,
            "a reload that changes nothing"
        );

        pair.write_key(1, &pair.nodes[1].ctl(&["sync-key"])?)?;
        pair.nodes[1].reload()?;
        pair.wait(false, [false, false])?;
        wait_ok("wrong keys to be counted", SOON, || {
            let link = pair.link(1)?;
            ensure!(link["rejected"]["wrong_key"].as_u64() > Some(3), "{link:#}");
            Ok(())
        })?;
        for node in &pair.nodes {
            node.process()?.ensure_running()?;
        }

        pair.write_key(1, &old)?;
        pair.nodes[1].reload()?;
        pair.wait(true, [true, true])?;
        // A restart: another epoch, soon.
        let epoch = pair.link(0)?["epoch"].clone();
        pair.nodes[1].restart()?;
        wait_ok("the new start to be known", SOON, || {
            let link = pair.link(0)?;
            ensure!(link["up"] == true && link["epoch"] != epoch, "{link:#}");
            Ok(())
        })
    });
}

/// Datagrams of the link that arrive in a namespace, without headers.
fn captured(namespace: &Netns, count: usize) -> Result<Vec<Vec<u8>>> {
    namespace.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
        socket.set_read_timeout(Some(SOON))?;
        let end = Instant::now() + SOON;
        let mut all = Vec::new();
        while all.len() < count {
            ensure!(Instant::now() < end, "only {} datagrams came", all.len());
            let mut buffer = [0; 2048];
            let length = (&socket).read(&mut buffer)?;
            let bytes = &buffer[..length];
            // IPv4 without options, UDP.
            if bytes.len() > 28 && bytes[22..24] == PORT.to_be_bytes() {
                all.push(bytes[28..].to_vec());
            }
        }
        Ok(all)
    })?
}

/// What somebody without the key may come up with.
fn noise(captured: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    let mut all = captured.to_vec();
    for datagram in captured {
        // Less than the shortest.
        all.push(datagram[..random() % 40].to_vec());
        let mut changed = datagram.clone();
        changed[24] ^= 1;
        // A nonce that was not seen.
        changed[20] ^= 0x10;
        all.push(changed);
        let mut other = datagram.clone();
        other[4] = 9;
        all.push(other);
        all.push([&datagram[..], &[0; 1400]].concat());
        all.push((0..random() % 1200).map(|_| random() as u8).collect());
        let mut unknown = datagram.clone();
        unknown[8..16].copy_from_slice(&(random() as u64).to_be_bytes());
        all.push(unknown);
    }
    // A hint that nobody meant.
    all.push([&b"LBSY\x01\x01\0\0"[..], &[0; 16]].concat());
    all
}

fn what_others_send_is_counted_and_the_session_stays(pair: &Pair) -> Result<()> {
    let before = [pair.link(0)?, pair.link(1)?];
    let captured = captured(&pair.namespaces[0], 40)?;
    let noise = noise(&captured);
    // From the peer's own address and port.
    pair.namespaces[1].run(|| -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        let [from, to] = [1, 0].map(|node| address(0, node).parse::<SocketAddr>());
        socket.bind(&from?.into())?;
        socket.connect(&to?.into())?;
        for datagram in &noise {
            socket.send(datagram)?;
        }
        Ok(())
    })??;
    let expected = [
        "replayed",
        "truncated",
        "oversized",
        "foreign",
        "version",
        "unknown_session",
        "not_authentic",
    ];
    wait_ok("all of it to be counted", SOON, || {
        let link = pair.link(0)?;
        for reason in expected {
            let least = if reason == "foreign" { 30 } else { 35 };
            ensure!(
                link["rejected"][reason].as_u64() >= Some(least),
                "{reason}: {link:#}"
            );
        }
        Ok(())
    })?;
    pair.wait(true, [true, true])?;
    for (node, before) in before.iter().enumerate() {
        let link = pair.link(node)?;
        ensure!(
            link["became_up"] == 1 && link["epoch"] == before["epoch"],
            "{link:#}"
        );
    }
    Ok(())
}
