use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{health::testing::probe_within, model::CheckKind};

const PATIENCE: Duration = Duration::from_secs(5);

fn http() -> Http {
    Http {
        method: HttpMethod::Get,
        path: "/healthz?deep=1".into(),
        host: None,
        headers: Vec::new(),
        full_size: false,
        expect: Expect {
            status: vec![(200, 299)],
            headers: Vec::new(),
            body_contains: None,
            body_regex: None,
        },
        tls: None,
    }
}

async fn ask(address: SocketAddr, http: &Http, timeout: Duration) -> (Verdict, String) {
    let kind = CheckKind::Http(Box::new(http.clone()));
    let found = probe_within(kind, address, timeout).await;
    (found.verdict, found.words)
}

/// A server for one connection: reads the request's head, then does `then`.
async fn server<F, T>(then: F) -> (SocketAddr, tokio::task::JoinHandle<String>)
where
    F: FnOnce(TcpStream) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                break;
            }
            head.push(byte[0]);
        }
        then(stream).await;
        String::from_utf8(head).unwrap()
    });
    (address, task)
}

/// What a check says of a server that answers with these bytes and closes.
async fn of(http: &Http, answer: &'static [u8]) -> (Verdict, String) {
    let (address, task) = server(move |mut stream| async move {
        let _ = stream.write_all(answer).await;
    })
    .await;
    let found = ask(address, http, PATIENCE).await;
    task.await.unwrap();
    found
}

fn with(change: impl FnOnce(&mut Expect)) -> Http {
    let mut http = http();
    change(&mut http.expect);
    http
}

const OK: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nX-Role: primary, writer\r\n\r\nall well";

#[tokio::test]
async fn the_request_is_what_the_configuration_says() {
    let mut http = http();
    http.host = Some("shop.example".into());
    http.headers = vec![
        ("X-Probe".into(), "1".into()),
        ("User-Agent".into(), "me".into()),
    ];
    let (address, task) = server(|mut stream| async move {
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let found = ask(address, &http, PATIENCE).await;
    assert_eq!(found, (Verdict::Pass, "status 200".to_owned()));
    let request = task.await.unwrap().to_ascii_lowercase();
    let (line, headers) = request.split_once("\r\n").unwrap();
    assert_eq!(line, "get /healthz?deep=1 http/1.1");
    for expected in [
        "host: shop.example\r\n",
        "x-probe: 1\r\n",
        "user-agent: me\r\n",
        "connection: close\r\n",
    ] {
        assert!(headers.contains(expected), "no {expected:?} in {headers}");
    }
    assert!(!headers.contains("lbctl/"), "{headers}");
}

#[tokio::test]
async fn a_response_passes_when_everything_that_is_expected_holds() {
    let all = with(|expect| {
        expect.headers = vec![("x-role".into(), "writer".into())];
        expect.body_contains = Some("well".into());
        expect.body_regex = Pattern::new("^all w").ok();
    });
    assert_eq!(of(&all, OK).await.0, Verdict::Pass);
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Role: writer\r\n\r\n\
                    4\r\nall \r\n4\r\nwell\r\n0\r\n\r\n";
    assert_eq!(of(&all, chunked).await.0, Verdict::Pass);
    let to_the_end = b"HTTP/1.0 200 OK\r\nX-Role: writer\r\n\r\nall well";
    assert_eq!(of(&all, to_the_end).await.0, Verdict::Pass);
    let mut head = http();
    head.method = HttpMethod::Head;
    assert_eq!(
        of(&head, b"HTTP/1.1 204 No Content\r\n\r\n").await.0,
        Verdict::Pass
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_response_is_said() {
    for (check, answer, expected) in [
        (
            http(),
            &b"HTTP/1.1 404 No\r\n\r\n"[..],
            "status 404; expected 200-299",
        ),
        (
            http(),
            b"HTTP/1.1 503 No\r\n\r\n",
            "status 503; expected 200-299",
        ),
        (
            with(|e| e.status = vec![(200, 200), (301, 302)]),
            b"HTTP/1.1 204 No Content\r\n\r\n",
            "status 204; expected 200, 301-302",
        ),
        (
            with(|e| e.headers = vec![("x-role".into(), "reader".into())]),
            OK,
            "status 200, but no header x-role with \"reader\" in it",
        ),
        (
            with(|e| e.body_contains = Some("unwell".into())),
            OK,
            "\"unwell\" isn't in the body (8 bytes)",
        ),
        (
            with(|e| e.body_regex = Pattern::new("^well").ok()),
            OK,
            "\"^well\" doesn't match the body (8 bytes)",
        ),
        (
            http(),
            b"220 mail.example ESMTP\r\n",
            "not an HTTP response",
        ),
        // A TLS alert, as a server for HTTPS answers.
        (
            http(),
            b"\x15\x03\x01\x00\x02\x02\x46",
            "not an HTTP response",
        ),
        (http(), b"", "closed before the response"),
        (
            with(|e| e.body_contains = Some("x".into())),
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            "end of file before message length reached",
        ),
    ] {
        let (verdict, words) = of(&check, answer).await;
        assert_eq!(verdict, Verdict::WrongAnswer, "{words}");
        assert!(words.contains(expected), "{words}\nexpected {expected}");
    }
}

#[tokio::test]
async fn a_503_with_retry_after_is_overload_unless_it_is_expected() {
    let answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(of(&http(), answer).await.0, Verdict::Overloaded);
    let expected = with(|e| e.status = vec![(503, 503)]);
    assert_eq!(of(&expected, answer).await.0, Verdict::Pass);
}

#[tokio::test]
async fn nobody_there_is_a_refusal() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let found = ask(address, &http(), PATIENCE).await;
    assert_eq!(found, (Verdict::Refused, "connection refused".to_owned()));
}

#[tokio::test]
async fn a_tarpit_costs_its_own_timeout_and_says_what_it_was_waiting_for() {
    let short = Duration::from_millis(200);
    let (address, task) = server(|stream| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(stream);
    })
    .await;
    let since = Instant::now();
    let (verdict, words) = ask(address, &http(), short).await;
    task.abort();
    assert_eq!(verdict, Verdict::Timeout);
    assert!(
        words.ends_with("connected, waiting for the response"),
        "{words}"
    );
    assert!(since.elapsed() < PATIENCE);
    // Drop by drop.
    let body = with(|e| e.body_contains = Some("x".into()));
    let (address, task) = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let (verdict, words) = ask(address, &body, short).await;
    assert_eq!(verdict, Verdict::Timeout);
    assert!(
        words.ends_with("waiting for the rest of the body"),
        "{words}"
    );
    // The connection is gone, not left to itself.
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_endless_body_is_read_to_the_limit_and_an_endless_head_to_its() {
    let endless = |first: &'static [u8], rest: &'static [u8]| {
        server(move |mut stream| async move {
            let mut next = first;
            while stream.write_all(next).await.is_ok() {
                next = rest;
            }
        })
    };
    let body = with(|e| e.body_contains = Some("needle".into()));
    let (address, task) = endless(b"HTTP/1.1 200 OK\r\n\r\n", &[b'.'; 4096]).await;
    let (verdict, words) = ask(address, &body, PATIENCE).await;
    assert_eq!(verdict, Verdict::WrongAnswer);
    assert_eq!(
        words,
        "\"needle\" isn't in the first 262144 bytes of the body"
    );
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    // A body that nobody asked for isn't read at all.
    let (address, task) = endless(b"HTTP/1.1 200 OK\r\n\r\n", &[b'.'; 4096]).await;
    assert_eq!(ask(address, &http(), PATIENCE).await.0, Verdict::Pass);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    let (address, task) = endless(b"HTTP/1.1 200 OK\r\nX-A: ", &[b'a'; 4096]).await;
    let (verdict, words) = ask(address, &http(), PATIENCE).await;
    assert_eq!(verdict, Verdict::WrongAnswer, "{words}");
    assert!(words.contains("not an HTTP response"), "{words}");
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}
