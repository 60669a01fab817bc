//! The sockets of the API.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use axum::Router;
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    task::JoinHandle,
};

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon answers there.
    #[error(
        "a daemon{} already answers on {}; stop it first, or give this one another --socket",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        .path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The other daemon, where the kernel says.
        pid: Option<i32>,
    },
    /// Something that is not a socket is in the way.
    #[error("{} exists and is not a socket; move it away or give another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refused the unix socket.
    #[error("cannot listen on {}: {source}", .path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the TCP socket.
    #[error("cannot listen on {address} for metrics: {source}; change metrics.listen")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The control socket; its file goes away with it.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl ControlSocket {
    /// Serves `router` on a unix socket that only its owner may open. A stale
    /// socket is replaced; one that somebody answers on is not.
    pub async fn serve(path: &Path, router: Router) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Unix {
            path: path.into(),
            source,
        };
        refuse_if_in_use(path).await?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        // Bound under another name and renamed: nobody can connect before the
        // permissions are right, and a stale socket is replaced at once.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(|source| {
                let _ = fs::remove_file(&temporary);
                failed(source)
            })?;
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the control socket has failed");
            }
        });
        Ok(Self {
            path: path.into(),
            task,
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// Refuses a path that a daemon answers on, or that is no socket.
///
/// # Errors
/// Says which, and the other daemon's pid.
pub async fn refuse_if_in_use(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(stream) => Err(ListenError::InUse {
            path: path.into(),
            pid: stream.peer_cred().ok().and_then(|peer| peer.pid()),
        }),
        Err(_) => Ok(()),
    }
}

/// The metrics listener; closed when dropped.
#[derive(Debug)]
pub struct MetricsListener {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl MetricsListener {
    /// Serves `router` on a TCP address.
    pub async fn serve(address: SocketAddr, router: Router) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Tcp { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the metrics listener has failed");
            }
        });
        Ok(Self { address, task })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
