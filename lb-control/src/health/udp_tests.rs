use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::*;
use crate::{
    health::testing::probe_once,
    model::{CheckKind, Pattern},
};

fn check(change: impl FnOnce(&mut Udp)) -> CheckKind {
    let mut udp = Udp {
        send: b"ping".to_vec(),
        answer_required: true,
        contains: None,
        regex: None,
    };
    change(&mut udp);
    CheckKind::Udp(Box::new(udp))
}

/// Answers one datagram with what was sent and what it is told to add.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let answer = [&buffer[..length], b" pong"].concat();
        socket.send_to(&answer, from).await.unwrap();
    });
    address
}

#[tokio::test]
async fn the_answer_is_looked_at() {
    let found = probe_once(check(|_| {}), echo().await).await;
    assert_eq!(found, Found::new(Verdict::Pass, "answered with 9 bytes"));
    let right = check(|udp| {
        udp.contains = Some("ping po".into());
        udp.regex = Some(Pattern::new("^ping.*g$").unwrap());
    });
    assert_eq!(probe_once(right, echo().await).await.verdict, Verdict::Pass);
    let wrong = check(|udp| udp.contains = Some("pang".into()));
    assert_eq!(
        probe_once(wrong, echo().await).await,
        Found::new(
            Verdict::WrongAnswer,
            "\"pang\" isn't in the answer (9 bytes)"
        )
    );
}

#[tokio::test]
async fn silence_passes_where_no_answer_is_required_and_a_refusal_never_does() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = silent.local_addr().unwrap();
    let found = probe_once(check(|_| {}), address).await;
    assert_eq!(found.verdict, Verdict::Timeout);
    assert_eq!(found.words, "no answer within 500ms: waiting for an answer");
    let optional = || check(|udp| udp.answer_required = false);
    let found = probe_once(optional(), address).await;
    assert_eq!(found.verdict, Verdict::Pass, "{found:?}");
    drop(silent);
    let found = probe_once(optional(), address).await;
    assert_eq!(found, Found::new(Verdict::Refused, "connection refused"));
}
