use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;
use crate::{health::testing::probe_once, model::CheckKind};

/// A server that says these, one each time it has read a line, the first one at
/// once. Returns what was found and what it was told.
async fn talk(says: &'static [&'static str]) -> (Found, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut heard = String::new();
        for text in says {
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            if stream.read_line(&mut heard).await.unwrap_or(0) == 0 {
                break;
            }
        }
        heard
    });
    let smtp = Smtp {
        helo: "lb1.example".into(),
        starttls: None,
    };
    let found = probe_once(CheckKind::Smtp(Box::new(smtp)), address).await;
    (found, task.await.unwrap())
}

#[tokio::test]
async fn a_server_that_greets_and_knows_ehlo_passes() {
    let (found, heard) = talk(&[
        "220-mx.example\r\n220 ready\r\n",
        "250-mx.example\r\n250-SIZE 1000\r\n250 HELP\r\n",
    ])
    .await;
    assert_eq!(found, Found::new(Verdict::Pass, "220 ready"));
    assert_eq!(heard, "EHLO lb1.example\r\nQUIT\r\n");
}

#[tokio::test]
async fn whoever_is_not_ready_does_not() {
    let (busy, _) = talk(&["421 too many connections\r\n"]).await;
    assert_eq!(
        busy,
        Found::new(Verdict::Overloaded, "421 too many connections")
    );
    for (says, words) in [
        (&["554 no\r\n"][..], "554 no; expected 220"),
        (&["220 hi\r\n", "502 what?\r\n"], "502 what?; expected 250"),
        (&["SSH-2.0-x\r\n"], "not an SMTP reply: \"SSH-2.0-x\""),
        (
            &["220-never ends"],
            "the connection was closed, or went on for too long, before the reply was complete",
        ),
    ] {
        let (found, _) = talk(says).await;
        // A server that hangs up in the middle of its line resets, or not.
        if says != ["220-never ends"] || found.verdict == Verdict::WrongAnswer {
            assert_eq!(found, Found::new(Verdict::WrongAnswer, words));
        }
    }
}

#[tokio::test]
async fn a_reply_without_an_end_is_cut_off() {
    let endless = tokio::io::repeat(b'2');
    let mut endless = BufReader::new(endless);
    let Err(Failure::Wrong(words)) = reply(&mut endless).await else {
        panic!("an endless line is no reply");
    };
    assert!(words.contains("went on for too long"), "{words}");
}
