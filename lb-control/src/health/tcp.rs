//! The TCP check: passes when the handshake completes.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpSocket, TcpStream},
    time,
};

use super::Verdict;

/// Connects to `target` and closes at once with a reset: the backend's
/// application sees no data, and neither side keeps a connection in TIME_WAIT.
/// Returns what was found, also in words.
pub async fn probe(target: SocketAddr, timeout: Duration) -> (Verdict, String) {
    match time::timeout(timeout, connect(target)).await {
        Ok(Ok(_)) => (Verdict::Pass, "connected".to_owned()),
        Ok(Err(error)) => explain(&error),
        Err(_) => (Verdict::Timeout, format!("no answer within {timeout:?}")),
    }
}

/// A connection that ends with a reset when it is dropped.
pub(super) async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_zero_linger()?;
    socket.connect(target).await
}

/// What a connection's error says of the backend.
pub(super) fn explain(error: &io::Error) -> (Verdict, String) {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => (Verdict::Refused, "connection refused".to_owned()),
        Some(libc::ECONNRESET) => (Verdict::Refused, "connection reset".to_owned()),
        // The kernel gave up before we did (tcp_syn_retries).
        Some(libc::ETIMEDOUT) => (Verdict::Timeout, "no answer".to_owned()),
        Some(libc::EHOSTUNREACH) => (Verdict::Refused, "host unreachable".to_owned()),
        Some(libc::ENETUNREACH) => (Verdict::Refused, "network unreachable".to_owned()),
        // The backend answered with an ICMP error of another kind.
        Some(libc::EACCES | libc::ENOPROTOOPT | libc::EPROTO | libc::EHOSTDOWN) => {
            (Verdict::Refused, format!("unreachable: {error}"))
        }
        Some(libc::EMFILE | libc::ENFILE) => (
            Verdict::NotMade,
            "could not check: out of file descriptors".to_owned(),
        ),
        Some(libc::EADDRNOTAVAIL) => (
            Verdict::NotMade,
            "could not check: out of local ports or without a source address".to_owned(),
        ),
        Some(libc::EPERM) => (
            Verdict::NotMade,
            "could not check: forbidden by this machine's firewall".to_owned(),
        ),
        _ => (Verdict::NotMade, format!("could not check: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_listener_passes_and_its_connection_is_reset_at_once() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let target = listener.local_addr().unwrap();
        let (verdict, words) = probe(target, Duration::from_secs(1)).await;
        assert_eq!((verdict, words.as_str()), (Verdict::Pass, "connected"));
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
        let (verdict, words) = probe(target, Duration::from_secs(1)).await;
        assert_eq!(
            (verdict, words.as_str()),
            (Verdict::Refused, "connection refused")
        );
    }

    #[test]
    fn what_is_our_own_fault_says_nothing_of_the_backend() {
        for code in [
            libc::EMFILE,
            libc::ENFILE,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
            libc::ENOBUFS,
        ] {
            let (verdict, words) = explain(&io::Error::from_raw_os_error(code));
            assert_eq!(verdict, Verdict::NotMade, "{words}");
            assert!(words.starts_with("could not check: "), "{words}");
        }
    }

    #[test]
    fn what_the_network_says_counts_as_a_refusal() {
        for code in [
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
        ] {
            let (verdict, words) = explain(&io::Error::from_raw_os_error(code));
            assert_eq!(verdict, Verdict::Refused, "{words}");
        }
    }
}
