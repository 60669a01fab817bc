//! The TCP check: passes when the handshake completes.

use std::io;

use tokio::net::TcpStream;

use super::{Found, Verdict, probe::Outcome, trace::Trace, way::Destination};

/// Connects and closes at once with a reset: the backend's
/// application sees no data, and neither side keeps a connection in TIME_WAIT.
///
/// # Errors
/// There is no connection.
pub async fn probe(to: Destination, trace: &Trace) -> Outcome {
    connect(to, trace).await?;
    Ok(Found::new(Verdict::Pass, "connected"))
}

/// A connection that ends with a reset when it is dropped.
pub(super) async fn connect(to: Destination, trace: &Trace) -> io::Result<TcpStream> {
    trace.step("connecting");
    to.tcp()?.connect(to.address).await
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{health::testing::probe_once, model::CheckKind};

    #[tokio::test]
    async fn a_listener_passes_and_its_connection_is_reset_at_once() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let target = listener.local_addr().unwrap();
        let found = probe_once(CheckKind::Tcp, target).await;
        assert_eq!(found, Found::new(Verdict::Pass, "connected"));
        // Accepting a connection that was reset succeeds; reading tells.
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        let error = stream.try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let target = {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let found = probe_once(CheckKind::Tcp, target).await;
        assert_eq!(found, Found::new(Verdict::Refused, "connection refused"));
    }
}
