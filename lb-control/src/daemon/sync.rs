//! The links to peers that the configuration asks for.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, OnceLock},
};

use tokio::sync::mpsc;

use crate::{
    model::Model,
    status::LinkStatus,
    sync::{
        Key, PathSettings, PeerLinks, PeerSettings, Settings, Sinks, StreamEvent, UrgentSender,
    },
    vrrp::thread::Telephone,
};

/// Events of the streams that wait for their reader.
const ROOM: usize = 1024;
/// More than a key has in any form.
const MOST_KEY_BYTES: u64 = 4096;
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The links, where the configuration has any.
#[derive(Debug)]
pub struct Peers {
    links: Option<PeerLinks>,
    stream: mpsc::Sender<StreamEvent>,
    /// Who takes urgent messages, once there is somebody.
    telephone: Arc<OnceLock<Telephone>>,
}

impl Peers {
    /// No links, and where what comes by their streams can be read.
    pub fn new() -> (Self, mpsc::Receiver<StreamEvent>) {
        let (stream, events) = mpsc::channel(ROOM);
        (
            Self {
                links: None,
                stream,
                telephone: Arc::default(),
            },
            events,
        )
    }

    /// These are the links from now on; links that stay as they are go on. Starts
    /// their thread with the first and ends it with the last of them.
    ///
    /// # Errors
    /// There is no thread; in words.
    pub fn follow(&mut self, settings: Option<Settings>) -> Result<(), String> {
        match (&self.links, settings) {
            (_, None) => self.links = None,
            (Some(links), Some(settings)) => links.configure(settings),
            (None, Some(settings)) => {
                let links = PeerLinks::start(settings, self.sinks());
                self.links = Some(links.map_err(|error| format!("sync: {error}"))?);
            }
        }
        Ok(())
    }

    /// Urgent messages go there from now on.
    pub fn answer(&self, telephone: Telephone) {
        // There is one for as long as the daemon runs.
        let _ = self.telephone.set(telephone);
    }

    /// The way to send urgent messages, where there are links.
    pub fn urgent(&self) -> Option<UrgentSender> {
        self.links.as_ref().map(PeerLinks::urgent)
    }

    /// What they do.
    pub fn status(&self) -> Vec<LinkStatus> {
        self.links
            .as_ref()
            .map(PeerLinks::status)
            .unwrap_or_default()
    }

    /// Ends them.
    pub fn stop(&mut self) {
        self.links = None;
    }

    fn sinks(&self) -> Sinks {
        let telephone = Arc::clone(&self.telephone);
        Sinks {
            urgent: Box::new(move |peer, message| {
                if let Some(telephone) = telephone.get() {
                    telephone.heard(peer, message);
                }
            }),
            stream: self.stream.clone(),
        }
    }
}

/// What the model says of links, with the key and this node's name.
///
/// # Errors
/// The key can't be used, or a peer has this node's name; in words.
pub fn settings(model: &Model) -> Result<Option<Settings>, String> {
    let Some(sync) = &model.sync else {
        return Ok(None);
    };
    let node = match &sync.node {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    if let Some(peer) = sync.peers.iter().find(|peer| peer.name == node) {
        return Err(format!(
            "sync: the peer {} has the name of this node; give each its own by `sync.node`",
            peer.name
        ));
    }
    let key = read_key(&sync.key_file)
        .map_err(|error| format!("sync.key_file: {}: {error}", sync.key_file.display()))?;
    let peers = sync.peers.iter().map(|peer| PeerSettings {
        name: Arc::from(peer.name.as_str()),
        paths: peer
            .paths
            .iter()
            .map(|path| PathSettings {
                local: path.local,
                remote: path.remote,
            })
            .collect(),
    });
    Ok(Some(Settings {
        node,
        key,
        keepalive: sync.keepalive,
        peers: peers.collect(),
    }))
}

fn host_name() -> Result<String, String> {
    let name = fs::read_to_string(HOST_NAME)
        .map_err(|error| format!("{HOST_NAME}: {error}; give `sync.node`"))?;
    // Names of peers are in lower case; hosts' names don't distinguish.
    let name = name.trim().to_ascii_lowercase();
    if name.is_empty() || name.len() > 63 {
        return Err("the host's name is none for a node; give `sync.node`".into());
    }
    Ok(name)
}

/// The key in a file that nobody but its owner and root can read.
fn read_key(path: &Path) -> Result<Key, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "others than its owner may use it (mode {:03o}); `chmod 600` it, and make a new key if somebody \
             may have read it",
            mode & 0o777
        ));
    }
    let mut text = String::new();
    file.take(MOST_KEY_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    Key::parse(&text).map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;
    use crate::{daemon::testing, model};

    /// A file of its own, which is removed in the end.
    struct KeyFile(PathBuf);

    impl KeyFile {
        fn new(name: &str, text: &str, mode: u32) -> Self {
            let path = std::env::temp_dir().join(format!("lb-sync-{}-{name}", std::process::id()));
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Self(path)
        }
    }

    impl Drop for KeyFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn with_link(node: Option<&str>, key_file: &Path) -> Model {
        let mut model = testing::model(&["web-1"]);
        model.sync = Some(model::PeerSync {
            node: node.map(str::to_owned),
            key_file: key_file.to_owned(),
            wait: std::time::Duration::ZERO,
            keepalive: std::time::Duration::from_millis(50),
            peers: vec![model::SyncPeer {
                name: "lb2".into(),
                paths: vec![model::SyncPath {
                    local: "10.0.0.1:9465".parse().unwrap(),
                    remote: "10.0.0.2:9465".parse().unwrap(),
                }],
            }],
        });
        model
    }

    #[test]
    fn settings_are_the_models_with_the_key() {
        let file = KeyFile::new("good", &"5a".repeat(32), 0o600);
        let settings = settings(&with_link(Some("lb1"), &file.0)).unwrap().unwrap();
        assert_eq!(
            (settings.node.as_str(), settings.key),
            ("lb1", Key::new([0x5a; 32]))
        );
        assert_eq!(
            (&*settings.peers[0].name, settings.peers[0].paths.len()),
            ("lb2", 1)
        );
        let host = super::settings(&with_link(None, &file.0)).unwrap().unwrap();
        assert_eq!(host.node, host_name().unwrap());
        assert_eq!(super::settings(&testing::model(&["web-1"])), Ok(None));
    }

    #[test]
    fn a_key_that_is_missing_open_or_none_is_refused() {
        for mode in [0o640, 0o604, 0o620] {
            let file = KeyFile::new("open", &"5a".repeat(32), mode);
            let error = settings(&with_link(Some("lb1"), &file.0)).unwrap_err();
            assert!(error.contains("chmod 600"), "{error}");
        }
        let file = KeyFile::new("bad", "hush", 0o600);
        let error = settings(&with_link(Some("lb1"), &file.0)).unwrap_err();
        assert!(
            error.contains("64 hexadecimal digits") && !error.contains("hush"),
            "{error}"
        );
        let error = settings(&with_link(Some("lb1"), Path::new("/nowhere/key"))).unwrap_err();
        assert!(
            error.starts_with("sync.key_file: /nowhere/key: No such file"),
            "{error}"
        );
    }

    #[test]
    fn a_peer_is_not_this_node() {
        let error = settings(&with_link(Some("lb2"), Path::new("/k"))).unwrap_err();
        assert!(
            error.contains("the peer lb2 has the name of this node"),
            "{error}"
        );
    }
}
