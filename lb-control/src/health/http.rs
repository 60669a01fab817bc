//! The HTTP check, in plain text or over TLS: passes when a request gets the
//! expected response.

use std::{error::Error as _, io, net::SocketAddr};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
    http::response::Parts,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

use super::{
    Found, Verdict,
    probe::{Failure, Outcome},
    tcp,
    tls::{self, Configs},
    trace::Trace,
    way::Destination,
};
use crate::model::{Expect, FULL_SIZE, Http, HttpMethod, Pattern};

/// The head of a response may have so many bytes.
const MOST_HEAD: usize = 64 << 10;

/// So much of a body is looked at; whatever comes after it costs nothing.
const MOST_BODY: usize = 256 << 10;

/// The protocol's name in TLS (RFC 7301 §6).
const ALPN: &[u8] = b"http/1.1";

/// Sends the request and judges the response. The connection is reset
/// afterwards: nothing is left in TIME_WAIT.
///
/// # Errors
/// There is no response.
pub async fn probe(to: Destination, http: &Http, configs: &Configs, trace: &Trace) -> Outcome {
    let expect = &http.expect;
    let wants_body = |head: &Parts| expect.needs_body() && judge_head(expect, head).is_none();
    let (head, body) = fetch(to, http, configs, trace, wants_body).await?;
    let wrong = judge_head(expect, &head).or_else(|| judge_body(expect, &body));
    Ok(wrong.unwrap_or_else(|| {
        let status = head.status.as_u16();
        Found::new(Verdict::Pass, format!("status {status}"))
    }))
}

/// The response's head, and its body if that `wants_body`: else it is empty.
pub(super) async fn fetch(
    to: Destination,
    http: &Http,
    configs: &Configs,
    trace: &Trace,
    wants_body: impl FnOnce(&Parts) -> bool,
) -> Result<(Parts, Vec<u8>), Failure> {
    let request = request(to.address, http).map_err(|error| Failure::Ours(error.to_string()))?;
    let Some(tls) = &http.tls else {
        let stream = tcp::connect(to, trace).await?;
        return converse(stream, request, trace, wants_body).await;
    };
    // First: what is wrong with it is no fault of the server's.
    let config = configs.of(tls).await.map_err(Failure::Ours)?;
    let stream = tcp::connect(to, trace).await?;
    let name = tls.server_name.as_deref();
    let stream = tls::connect(stream, config, (name, to.address.ip()), &[ALPN], trace).await?;
    converse(stream, request, trace, wants_body).await
}

/// The request and the response.
async fn converse<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
    trace: &Trace,
    wants_body: impl FnOnce(&Parts) -> bool,
) -> Result<(Parts, Vec<u8>), Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    trace.step("connected, waiting for the response");
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MOST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failure)?;
    // Dropped with this, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(failure)?;
    let (head, body) = response.into_parts();
    if !wants_body(&head) {
        return Ok((head, Vec::new()));
    }
    trace.step("waiting for the rest of the body");
    let body = read(body).await.map_err(failure)?;
    Ok((head, body))
}

fn request(target: SocketAddr, http: &Http) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = http.host.clone().unwrap_or_else(|| target.to_string());
    let method = match http.method {
        HttpMethod::Get => hyper::Method::GET,
        HttpMethod::Head => hyper::Method::HEAD,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(&http.path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close");
    let is_given = |name: &str| {
        http.headers
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    if !is_given("user-agent") {
        let agent = concat!("lbctl/", env!("CARGO_PKG_VERSION"));
        request = request.header(header::USER_AGENT, agent);
    }
    if !is_given("accept") {
        request = request.header(header::ACCEPT, "*/*");
    }
    for (name, value) in &http.headers {
        request = request.header(name, value);
    }
    if http.full_size {
        request = request.header("x-padding", "x".repeat(FULL_SIZE));
    }
    request.body(Empty::new())
}

/// At most [`MOST_BODY`] bytes of it.
async fn read(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut bytes = Vec::new();
    while bytes.len() < MOST_BODY
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            let room = MOST_BODY - bytes.len();
            bytes.extend(data.iter().take(room));
        }
    }
    Ok(bytes)
}

/// What speaks against it in the head alone.
fn judge_head(expect: &Expect, head: &Parts) -> Option<Found> {
    let status = head.status.as_u16();
    let is_expected = |(first, last): &(u16, u16)| (*first..=*last).contains(&status);
    if !expect.status.iter().any(is_expected) {
        // RFC 9110 §15.6.4: too much to do, for a while.
        let retry = head.headers.get(header::RETRY_AFTER);
        if head.status == StatusCode::SERVICE_UNAVAILABLE && retry.is_some() {
            let words = "status 503 with Retry-After: it has too much to do";
            return Some(Found::new(Verdict::Overloaded, words));
        }
        let words = format!("status {status}; expected {}", shown(&expect.status));
        return Some(Found::new(Verdict::WrongAnswer, words));
    }
    let missing = |(name, value): &&(String, String)| !has(&head.headers, name, value);
    let (name, value) = expect.headers.iter().find(missing)?;
    let words = format!("status {status}, but no header {name} with {value:?} in it");
    Some(Found::new(Verdict::WrongAnswer, words))
}

fn has(headers: &HeaderMap, name: &str, part: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| String::from_utf8_lossy(value.as_bytes()).contains(part))
}

/// What speaks against it in the body.
fn judge_body(expect: &Expect, body: &[u8]) -> Option<Found> {
    let read = if body.len() < MOST_BODY {
        format!("the body ({} bytes)", body.len())
    } else {
        format!("the first {MOST_BODY} bytes of the body")
    };
    let part = expect.body_contains.as_deref();
    let wrong = judge_text(body, part, expect.body_regex.as_ref(), &read)?;
    Some(Found::new(Verdict::WrongAnswer, wrong))
}

/// Why an answer, `what`, is not what it should be, if it isn't.
pub(super) fn judge_text(
    answer: &[u8],
    part: Option<&str>,
    pattern: Option<&Pattern>,
    what: &str,
) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    if let Some(part) = part
        && !text.contains(part)
    {
        return Some(format!("{part:?} isn't in {what}"));
    }
    if let Some(pattern) = pattern
        && !pattern.is_match(&text)
    {
        return Some(format!("{pattern:?} doesn't match {what}"));
    }
    None
}

fn shown(ranges: &[(u16, u16)]) -> String {
    let all: Vec<String> = ranges
        .iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    all.join(", ")
}

fn failure(error: hyper::Error) -> Failure {
    if let Some(io) = error.source().and_then(|e| e.downcast_ref::<io::Error>())
        && let Some(code) = io.raw_os_error()
    {
        return Failure::Io(io::Error::from_raw_os_error(code));
    }
    Failure::Wrong(if error.is_incomplete_message() {
        "the connection was closed before the response was complete".to_owned()
    } else if error.is_parse() || error.is_parse_too_large() {
        format!("not an HTTP response: {error}")
    } else {
        let why = error.source().map(|source| format!(": {source}"));
        format!("no response: {error}{}", why.unwrap_or_default())
    })
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
