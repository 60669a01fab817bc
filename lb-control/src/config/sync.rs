//! `sync`: the links to peers.

use std::{net::SocketAddr, time::Duration};

use super::{
    reader::{At, Fields},
    value,
    yaml::Node,
};
use crate::model::{PeerSync, SyncPath, SyncPeer};

/// Longer than a flow table of full size needs.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
const KEEPALIVE: Duration = Duration::from_millis(100);
const SHORTEST_KEEPALIVE: Duration = Duration::from_millis(10);
/// A path that misses five of them is dead before the link is down, after three
/// seconds.
const LONGEST_KEEPALIVE: Duration = Duration::from_millis(500);
const MOST_PATHS: usize = 8;

/// Reads it. `None` after an error. `node` is the name that the file gives to this
/// node.
pub(super) fn read(at: &At<'_>, node: Option<&str>) -> Option<PeerSync> {
    let known = ["node", "key_file", "wait", "keepalive", "peers"];
    let fields = at.fields(&known, &[])?;
    let key_file = fields.required("key_file");
    let key_file = key_file.and_then(|at| at.read(value::absolute_path));
    let peers = fields.required("peers");
    let own = fields.optional("node", value::name);
    let sync = PeerSync {
        node: own.or(node.map(str::to_owned)),
        wait: fields.or(
            "wait",
            Duration::from_secs(60),
            value::duration(Duration::ZERO..=LONGEST_WAIT),
        ),
        keepalive: fields.or(
            "keepalive",
            KEEPALIVE,
            value::duration(SHORTEST_KEEPALIVE..=LONGEST_KEEPALIVE),
        ),
        peers: peers.map(self::peers).unwrap_or_default(),
        key_file: key_file?,
    };
    let list = peers.filter(|at| matches!(at.node, Node::List(_)));
    let items = list.map(At::items).unwrap_or_default();
    check(&sync, &items);
    Some(sync)
}

fn peers(at: &At<'_>) -> Vec<SyncPeer> {
    let items = at.items();
    if items.is_empty() && matches!(at.node, Node::List(_)) {
        at.error("found an empty list; allowed: at least one peer");
    }
    // One that can't be read is kept for the places of the others.
    let unnamed = || SyncPeer {
        name: String::new(),
        paths: Vec::new(),
    };
    let all = items.iter();
    all.map(|at| peer(at).unwrap_or_else(unnamed)).collect()
}

fn peer(at: &At<'_>) -> Option<SyncPeer> {
    let fields = at.fields(&["name", "paths"], &[])?;
    let name = fields.required("name").and_then(|at| at.read(value::name));
    let paths = fields.required("paths")?;
    let items = paths.items();
    if matches!(paths.node, Node::List(_)) && !(1..=MOST_PATHS).contains(&items.len()) {
        paths.error(format!(
            "found {} paths; allowed: 1 to {MOST_PATHS}",
            items.len()
        ));
    }
    Some(SyncPeer {
        name: name?,
        paths: items.iter().filter_map(path).collect(),
    })
}

fn path(at: &At<'_>) -> Option<SyncPath> {
    let fields = at.fields(&["local", "remote"], &[])?;
    let local = end(&fields, "local");
    let remote = end(&fields, "remote");
    let path = SyncPath {
        local: local?,
        remote: remote?,
    };
    if path.local.is_ipv4() != path.remote.is_ipv4() {
        at.error("the two ends are of two families; give both of IPv4, or both of IPv6");
    }
    if path.local == path.remote {
        at.error("both ends are the same");
    }
    Some(path)
}

fn end(fields: &Fields<'_>, key: &str) -> Option<SocketAddr> {
    let at = fields.required(key)?;
    let address: SocketAddr = at.read(value::socket_address)?;
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        at.error(format!(
            "found {address}; allowed: one host's address, and a port"
        ));
        return None;
    }
    Some(address)
}

fn check(sync: &PeerSync, items: &[At<'_>]) {
    let mut ends = Vec::new();
    for (index, (peer, at)) in sync.peers.iter().zip(items).enumerate() {
        let earlier = sync.peers.get(..index).unwrap_or_default();
        if sync.node.as_ref() == Some(&peer.name) {
            at.error(format!("`{}` is this node itself", peer.name));
        }
        if !peer.name.is_empty() && earlier.iter().any(|other| other.name == peer.name) {
            at.error(format!("`{}` is an earlier peer already", peer.name));
        }
        for path in &peer.paths {
            if ends.contains(path) {
                at.error(format!(
                    "the path from {} to {} is listed twice",
                    path.local, path.remote
                ));
            }
            ends.push(*path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn sync(text: &str) -> Result<PeerSync, String> {
        let text =
            format!("interfaces: [{{name: eth0}}]\npools: {{}}\nservices: []\nsync:\n  {text}\n");
        match parse(&text, "f.yaml") {
            Ok(model) => Ok(model.sync.unwrap()),
            Err(errors) => Err(errors.to_string()),
        }
    }

    const PATH: &str = "{local: \"10.0.9.1:9465\", remote: \"10.0.9.2:9465\"}";

    #[test]
    fn a_link_has_defaults_and_paths_of_both_families() {
        let v6 = "{local: \"[fd00::1]:9465\", remote: \"[fd00::2]:9465\"}";
        let text = format!("{{key_file: /k, peers: [{{name: lb2, paths: [{PATH}, {v6}]}}]}}");
        let sync = sync(&text).unwrap();
        assert_eq!((sync.node, sync.wait), (None, Duration::from_secs(60)));
        assert_eq!(sync.keepalive, Duration::from_millis(100));
        assert_eq!(sync.peers[0].name, "lb2");
        assert_eq!(
            sync.peers[0].paths[1].remote,
            "[fd00::2]:9465".parse().unwrap()
        );
    }

    #[test]
    fn the_name_of_the_node_is_that_of_the_link_unless_it_is_given() {
        let text = |own: &str| {
            format!(
                "node: {{name: lb1}}\ninterfaces: [{{name: eth0}}]\npools: {{}}\nservices: []\n\
                 sync: {{{own}key_file: /k, peers: [{{name: lb2, paths: [{PATH}]}}]}}"
            )
        };
        for (own, expected) in [("", "lb1"), ("node: east, ", "east")] {
            let model = parse(&text(own), "f.yaml").unwrap();
            assert_eq!(model.sync.unwrap().node.as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let with_peers = |peers: &str| format!("{{node: lb1, key_file: /k, peers: [{peers}]}}");
        let with_path = |path: &str| with_peers(&format!("{{name: lb2, paths: [{path}]}}"));
        let peer = format!("{{name: lb2, paths: [{PATH}]}}");
        for (text, expected) in [
            ("{}".to_owned(), "sync: `key_file` is missing"),
            ("{}".to_owned(), "sync: `peers` is missing"),
            (
                "{key_file: k, peers: []}".to_owned(),
                "key_file: found \"k\"; allowed: an absolute path",
            ),
            (with_peers(""), "peers: found an empty list"),
            (with_peers("{name: lb2}"), "peers[0]: `paths` is missing"),
            (
                with_peers("{name: lb2, paths: []}"),
                "paths: found 0 paths; allowed: 1 to 8",
            ),
            (with_path(&[PATH; 9].join(", ")), "paths: found 9 paths"),
            (
                with_peers(&peer.replace("lb2", "lb1")),
                "peers[0]: `lb1` is this node itself",
            ),
            (
                with_peers(&format!("{peer}, {peer}")),
                "peers[1]: `lb2` is an earlier peer",
            ),
            (
                with_path(&format!("{PATH}, {PATH}")),
                "the path from 10.0.9.1:9465 to 10.0.9.2:9465 is listed twice",
            ),
            (
                with_path("{local: \"10.0.9.1:9465\", remote: \"[fd00::2]:9465\"}"),
                "two families",
            ),
            (
                with_path("{local: \"10.0.9.1:9465\", remote: \"10.0.9.1:9465\"}"),
                "both ends are the same",
            ),
            (
                with_path("{local: \"0.0.0.0:9465\", remote: \"10.0.9.1:9465\"}"),
                "local: found 0.0.0.0:9465; allowed: one host's address",
            ),
            (
                with_path("{local: \"10.0.9.1:0\", remote: \"10.0.9.1:9465\"}"),
                "local: found 10.0.9.1:0",
            ),
            (
                with_path("{local: \"10.0.9.1\", remote: \"10.0.9.2:9465\"}"),
                "local: found \"10.0.9.1\"; allowed: an address and a port",
            ),
            (
                format!("{{key_file: /k, keepalive: 1s, peers: [{peer}]}}"),
                "keepalive: found \"1s\"; allowed",
            ),
        ] {
            let errors = sync(&text).err().unwrap_or_default();
            assert!(
                errors.contains(expected),
                "{text}\n  found    {errors}\n  expected {expected}"
            );
        }
    }
}
