//! What virtual routers watch, and whom they tell: two balancers, one owner.

use std::{
    fs::{self, File, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    check,
    cleanup::TempDir,
    config::{Backend, Config, Pool},
    daemon::Daemon,
    netns::Netns,
    process::wait_ok,
    site,
    topology::{Kind, Options, Topology},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// One of the two. Its checks and scripts pass while a file is there.
struct Node {
    daemon: Daemon,
    flags: TempDir,
}

impl Node {
    fn start(
        t: &Topology,
        ns: &Netns,
        name: &str,
        priority: u8,
        notify: impl FnOnce(&TempDir) -> String,
    ) -> Result<Self> {
        let flags = TempDir::new()?;
        for flag in ["uplink", "disk", "server", "hang"] {
            fs::write(flags.join(flag), "")?;
        }
        let path = |flag: &str| flags.join(flag).display().to_string();
        let command =
            |flag: &str| format!("command: [/usr/bin/test, -e, {}], user: root", path(flag));
        // Three times in a row: a machine that is slow once moves nothing.
        let timing = "interval: 250ms, timeout: 250ms, rise: 1, fall: 3";
        let mut config = Config::new(name);
        config.interfaces = vec![("eth0".into(), "generic".into())];
        config.pools.push(Pool {
            name: "web".into(),
            backends: vec![Backend {
                name: "web-1".into(),
                address: t.backends[0].v4().into(),
                port: None,
                weight: 100,
                priority: 1,
            }],
            extra: vec![format!(
                "health: [{{type: exec, {}, {timing}}}]",
                command("server")
            )],
        });
        let vip = t.vip4.into();
        let service = site::service(t, "shop", vip, "80", "tcp", "web");
        config.services.push(service);
        config.extra.push(format!(
            "vrrp:\n  - vrid: 51\n    interface: eth0\n    priority: {priority}\n    \
             advertisement_interval: 200ms\n    addresses: [{vip}]\n    sync_group: site\n    track:\n      scripts:\n        \
             - {{name: uplink, {}, {timing}, weight: -20}}\n        \
             - {{name: disk, {}, {timing}}}\n      services: [shop]\n    notify: {}",
            command("uplink"),
            command("disk"),
            notify(&flags)
        ));
        let daemon = Daemon::start(ns, &config)?;
        Ok(Self { daemon, flags })
    }

    /// From now on what needs this file fails, or passes.
    fn set(&self, flag: &str, is_there: bool) -> Result<()> {
        let path = self.flags.join(flag);
        match is_there {
            true => fs::write(path, "")?,
            false => fs::remove_file(path)?,
        }
        Ok(())
    }

    fn row(&self) -> Result<Value> {
        let rows = self.daemon.ctl_json(&["vrrp"])?;
        rows.get(0).cloned().context("no virtual router")
    }

    fn wait(&self, state: &str, priority: u8) -> Result<Value> {
        let node = self.daemon.config_path();
        let what = format!("{} to be {state} with {priority}", node.display());
        wait_ok(what, SOON, || {
            let row = self.row()?;
            ensure!(
                row["state"] == state && row["priority"] == priority,
                "{row}"
            );
            Ok(row)
        })
    }
}

/// Notes what it is told in a file, after this, and has a FIFO beside it.
fn notify(dir: &TempDir, name: &str, before: &str) -> String {
    format!(
        "{{name: {name}, command: [/bin/sh, -c, '{before}echo \"$*\" >> {}', sh], user: root, \
         timeout: 1h, fifo: {}}}",
        dir.join("told").display(),
        dir.join("vrrp.fifo").display()
    )
}

/// What is told: of the virtual router, and of the group that it is alone in.
fn in_words(name: &str, group: &str, expected: &[(&str, u8)]) -> Vec<String> {
    let all = expected.iter();
    let both = |(state, priority): &(&str, u8)| {
        [
            format!("INSTANCE {name} {state} {priority}"),
            format!("GROUP {group} {state} 0"),
        ]
    };
    all.flat_map(both).collect()
}

/// A second balancer on the switch of the first, at 10.2.0.21.
fn second(t: &Topology) -> Result<Netns> {
    let ns = Netns::new("second")?;
    ns.feed(
        &["ip", "-batch", "-"],
        &format!(
            "link set lo up\nlink add eth0 type veth peer name second netns {}\n\
             addr add 10.2.0.21/24 dev eth0\nlink set eth0 up\n",
            t.switch.name()
        ),
    )?;
    t.switch.feed(
        &["ip", "-batch", "-"],
        "link set second master br0\nlink set second up\n",
    )?;
    Ok(ns)
}

/// A reader of a FIFO that is there, which doesn't wait.
fn reader(fifo: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    options.open(fifo).context("the FIFO")
}

/// A priority that moves the owner by a script, by a service and by a fault, each
/// time without a word of the operator, and back.
#[test]
fn trackers_move_the_owner_and_others_are_told() {
    check(|| {
        let options = Options {
            backends: 1,
            ..Options::default()
        };
        let topology = Topology::new(Kind::Dsr, &options)?;
        let first_ns = topology.balancer.ns.clone();
        let mut first = Node::start(&topology, &first_ns, "lb1", 150, |dir| {
            notify(dir, "VI_1", "")
        })?;
        let first_is = |state: &str, priority| first.wait(state, priority);
        let mut fifo = reader(&first.flags.join("vrrp.fifo"))?;
        first_is("active", 150)?;
        // Its command hangs, and nobody reads its FIFO.
        let second_ns = second(&topology)?;
        let mut second = Node::start(&topology, &second_ns, "lb2", 140, |dir| {
            let hang = dir.join("hang");
            let script = format!("while test -e {}; do sleep 0.1; done; ", hang.display());
            notify(dir, "VI_2", &script)
        })?;
        second.wait("backup", 140)?;

        // A script with a weight.
        first.set("uplink", false)?;
        let row = first_is("backup", 130)?;
        second.wait("active", 140)?;
        let part = &row["priority_parts"][1];
        ensure!(
            part["what"] == "script uplink" && part["change"] == -20,
            "{row}"
        );
        let text = first.daemon.ctl(&["vrrp"])?;
        ensure!(
            text.contains("130 = 150 − 20 script uplink")
                && text.contains("script uplink fails since")
                && text.contains("exit status 1"),
            "{text}"
        );
        first.set("uplink", true)?;
        first_is("active", 150)?;
        second.wait("backup", 140)?;

        // A service whose last backend this node doesn't reach.
        first.set("server", false)?;
        let row = first_is("backup", 130)?;
        ensure!(row["priority_parts"][1]["what"] == "service shop", "{row}");
        second.wait("active", 140)?;
        first.set("server", true)?;
        first_is("active", 150)?;
        second.wait("backup", 140)?;

        // Nobody reaches it: both have as much less, and nothing moves.
        let before = first.row()?["became_active"].clone();
        second.set("server", false)?;
        second.wait("backup", 120)?;
        first.set("server", false)?;
        first_is("active", 130)?;
        first.set("server", true)?;
        first_is("active", 150)?;
        second.set("server", true)?;
        second.wait("backup", 140)?;
        ensure!(first.row()?["became_active"] == before, "{}", first.row()?);

        // A script without a weight.
        first.set("disk", false)?;
        let row = first_is("fault", 150)?;
        let reason = row["reason"].as_str().unwrap_or_default();
        ensure!(reason == "script disk: exit status 1", "{row}");
        second.wait("active", 140)?;
        first.set("disk", true)?;
        first_is("active", 150)?;
        second.wait("backup", 140)?;

        // All that went on while its first command hung.
        wait_ok("lb2's commands to wait", SOON, || {
            let row = second.row()?;
            let notify = &row["notify"];
            ensure!(
                notify["command"]["succeeded"] == 0
                    && notify["command"]["timeout"] == 0
                    && notify["waiting"] == 13
                    && notify["fifo"]["written"] == 14,
                "{row}"
            );
            Ok(())
        })?;
        second.set("hang", false)?;
        // At its end it waits for a while, but not for all of that on a busy machine.
        wait_ok("lb2's commands to have run", SOON, || {
            let row = second.row()?;
            ensure!(row["notify"]["waiting"] == 0, "{row}");
            Ok(())
        })?;
        ensure!(second.daemon.stop()?.success(), "lb2 ended badly");
        let told = fs::read_to_string(second.flags.join("told"))?;
        let expected = [
            ("BACKUP", 140),
            ("MASTER", 140),
            ("BACKUP", 140),
            ("MASTER", 140),
            ("BACKUP", 140),
            ("MASTER", 140),
            ("BACKUP", 140),
            ("STOP", 140),
        ];
        ensure!(
            told.lines().eq(in_words("VI_2", "site", &expected)),
            "lb2 was told of:\n{told}"
        );

        ensure!(first.daemon.stop()?.success(), "lb1 ended badly");
        let expected = [
            ("BACKUP", 150),
            ("MASTER", 150),
            ("BACKUP", 130),
            ("MASTER", 150),
            ("BACKUP", 130),
            ("MASTER", 150),
            ("FAULT", 150),
            ("BACKUP", 150),
            ("MASTER", 150),
            ("STOP", 150),
        ];
        let told = fs::read_to_string(first.flags.join("told"))?;
        ensure!(
            told.lines().eq(in_words("VI_1", "site", &expected)),
            "lb1 was told of:\n{told}"
        );
        let mut in_fifo = String::new();
        fifo.read_to_string(&mut in_fifo)?;
        ensure!(
            in_fifo
                .lines()
                .eq(in_words("\"VI_1\"", "\"site\"", &expected)),
            "its FIFO has:\n{in_fifo}"
        );
        Ok(())
    });
}
