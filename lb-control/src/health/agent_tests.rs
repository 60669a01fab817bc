use std::net::{Ipv4Addr, SocketAddr};

use tokio::{io::AsyncBufReadExt as _, net::TcpListener};

use super::*;
use crate::{health::testing::probe_once, model::CheckKind};

#[test]
fn a_line_has_words_in_any_order() {
    let of = |line: &str| {
        let found = judge_line(line).unwrap();
        (found.verdict, found.load, found.words)
    };
    let pass = |words: &str| (Verdict::Pass, None, words.to_owned());
    assert_eq!(of("up\n"), pass("the agent says up"));
    assert_eq!(
        of("READY # back again\r\n"),
        pass("the agent says up (back again)")
    );
    assert_eq!(
        of("up, 75% maxconn:30\n"),
        (
            Verdict::Pass,
            Some(Load::Weight(75)),
            "the agent says up, 75 % of its weight".to_owned()
        )
    );
    assert_eq!(of("300%").1, Some(Load::Weight(255)));
    assert_eq!(of("drain\n").0, Verdict::Drain);
    assert_eq!(
        of("0%\n"),
        (
            Verdict::Drain,
            None,
            "the agent says up, 0 % of its weight".into()
        )
    );
    for word in ["down", "maint", "failed", "fail", "stopped"] {
        assert_eq!(of(word).0, Verdict::WrongAnswer, "{word}");
    }
    // The worst word counts.
    assert_eq!(of("up drain down").0, Verdict::WrongAnswer);
    assert_eq!(of("drain 50%").1, Some(Load::Weight(50)));
}

#[test]
fn what_means_nothing_is_said_so() {
    for (line, words) in [
        ("", "the agent said nothing"),
        ("# only words for people\n", "the agent said nothing"),
        ("half%\n", "the agent said \"half%\", which means nothing"),
        ("well\n", "the agent said \"well\", which means nothing"),
    ] {
        let Err(Failure::Wrong(found)) = judge_line(line) else {
            panic!("{line:?} makes sense");
        };
        assert_eq!(found, words);
    }
}

#[test]
fn json_says_the_same_and_how_busy_it_is() {
    let of = |body: &str| judge_json(body.as_bytes()).map(|found| (found.verdict, found.load));
    assert_eq!(of("{}").unwrap(), (Verdict::Pass, None));
    assert_eq!(
        of(r#"{"busy": 40, "other": [1]}"#).unwrap(),
        (Verdict::Pass, Some(Load::Busy(40)))
    );
    assert_eq!(
        of(r#"{"state": "drain", "weight": 10, "message": "bye"}"#).unwrap(),
        (Verdict::Drain, Some(Load::Weight(10)))
    );
    for wrong in ["", "[]", r#"{"weight": -1}"#, r#"{"state": "well"}"#] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
}

/// An agent for one connection, which answers what it was told with this.
async fn agent(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio::io::BufReader::new(stream);
        let mut heard = String::new();
        stream.read_line(&mut heard).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        heard
    });
    (address, task)
}

#[tokio::test]
async fn an_agent_is_asked_as_it_wants_to_be() {
    let (address, task) = agent("up 50%").await;
    let line = Agent::Line {
        send: "web-1\n".into(),
    };
    let found = probe_once(CheckKind::Agent(Box::new(line)), address).await;
    assert_eq!(found.load, Some(Load::Weight(50)), "{found:?}");
    assert_eq!(task.await.unwrap(), "web-1\n");

    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"busy\": 7}";
    let (address, task) = agent(answer).await;
    let json = Agent::Json {
        path: "/load".into(),
    };
    let found = probe_once(CheckKind::Agent(Box::new(json)), address).await;
    assert_eq!(found.load, Some(Load::Busy(7)), "{found:?}");
    assert_eq!(task.await.unwrap(), "GET /load HTTP/1.1\r\n");
}
