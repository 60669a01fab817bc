//! The HTTP check, in plain text or over TLS: passes when a request gets the
//! expected response.

use std::{
    error::Error as _,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsConnector;

use super::{
    Found, Verdict, tcp,
    tls::{self, Configs},
};
use crate::model::{Expect, Http, HttpMethod};

/// The head of a response may have so many bytes.
const MOST_HEAD: usize = 64 << 10;

/// So much of a body is looked at; whatever comes after it costs nothing.
const MOST_BODY: usize = 256 << 10;

/// What a probe waits for, by number.
const STEPS: [&str; 4] = [
    "connecting",
    "connected, waiting for the TLS handshake",
    "connected, waiting for the response",
    "waiting for the rest of the body",
];

const CONNECTING: usize = 0;
const SHAKING_HANDS: usize = 1;
const ASKING: usize = 2;
const READING: usize = 3;

/// Why there is no response to judge.
enum Failure {
    Connect(io::Error),
    Tls(io::Error),
    Http(hyper::Error),
    /// Nothing that could be sent, in words.
    Ours(String),
}

/// Sends the request and judges the response. Returns what was found, also in
/// words. The connection is reset afterwards: nothing is left in TIME_WAIT.
pub async fn probe(target: SocketAddr, http: &Http, timeout: Duration, configs: &Configs) -> Found {
    let step = AtomicUsize::new(CONNECTING);
    let mut expiry = None;
    let exchange = exchange(target, http, configs, (&step, &mut expiry));
    let found = match time::timeout(timeout, exchange).await {
        Ok(Ok(found)) => found,
        Ok(Err(Failure::Connect(error))) => tcp::explain(&error),
        Ok(Err(Failure::Tls(error))) => explain_tls(&error),
        Ok(Err(Failure::Http(error))) => explain(&error),
        Ok(Err(Failure::Ours(error))) => (Verdict::NotMade, format!("could not check: {error}")),
        Err(_) => {
            let step = STEPS.get(step.load(Relaxed)).copied().unwrap_or_default();
            let words = format!("no answer within {timeout:?}: {step}");
            (Verdict::Timeout, words)
        }
    };
    Found {
        certificate_expiry: expiry,
        ..found.into()
    }
}

async fn exchange(
    target: SocketAddr,
    http: &Http,
    configs: &Configs,
    (step, expiry): (&AtomicUsize, &mut Option<i64>),
) -> Result<(Verdict, String), Failure> {
    let request = request(target, http).map_err(|error| Failure::Ours(error.to_string()))?;
    let Some(tls) = &http.tls else {
        let stream = tcp::connect(target).await.map_err(Failure::Connect)?;
        return converse(stream, request, http, step).await;
    };
    let config = configs.of(tls).map_err(Failure::Ours)?;
    let name = match &tls.server_name {
        Some(name) => ServerName::try_from(name.clone())
            .map_err(|error| Failure::Ours(format!("server_name {name:?}: {error}")))?,
        None => target.ip().into(),
    };
    let stream = tcp::connect(target).await.map_err(Failure::Connect)?;
    step.store(SHAKING_HANDS, Relaxed);
    let connecting = TlsConnector::from(config).connect(name, stream);
    let stream = connecting.await.map_err(Failure::Tls)?;
    let (_, session) = stream.get_ref();
    *expiry = session
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(tls::expiry);
    converse(stream, request, http, step).await
}

/// The request and the response.
async fn converse<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
    http: &Http,
    step: &AtomicUsize,
) -> Result<(Verdict, String), Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    step.store(ASKING, Relaxed);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MOST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Http)?;
    // Dropped with this, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(Failure::Http)?;
    if let Some(found) = judge_head(&http.expect, &response) {
        return Ok(found);
    }
    let status = response.status();
    if http.expect.needs_body() {
        step.store(READING, Relaxed);
        let body = body(response.into_body()).await.map_err(Failure::Http)?;
        if let Some(wrong) = judge_body(&http.expect, &body) {
            return Ok((Verdict::WrongAnswer, wrong));
        }
    }
    Ok((Verdict::Pass, format!("status {}", status.as_u16())))
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
    request.body(Empty::new())
}

/// At most [`MOST_BODY`] bytes of it.
async fn body(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
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

/// What the head alone decides.
fn judge_head(expect: &Expect, response: &Response<Incoming>) -> Option<(Verdict, String)> {
    let status = response.status().as_u16();
    let is_expected = |(first, last): &(u16, u16)| (*first..=*last).contains(&status);
    if !expect.status.iter().any(is_expected) {
        // RFC 9110 §15.6.4: too much to do, for a while.
        let retry = response.headers().get(header::RETRY_AFTER);
        if response.status() == StatusCode::SERVICE_UNAVAILABLE && retry.is_some() {
            let words = "status 503 with Retry-After: it has too much to do";
            return Some((Verdict::Overloaded, words.to_owned()));
        }
        return Some((
            Verdict::WrongAnswer,
            format!("status {status}; expected {}", shown(&expect.status)),
        ));
    }
    let missing = |(name, value): &&(String, String)| !has(response.headers(), name, value);
    let (name, value) = expect.headers.iter().find(missing)?;
    Some((
        Verdict::WrongAnswer,
        format!("status {status}, but no header {name} with {value:?} in it"),
    ))
}

fn has(headers: &HeaderMap, name: &str, part: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| String::from_utf8_lossy(value.as_bytes()).contains(part))
}

/// Why the body is not what it should be.
fn judge_body(expect: &Expect, body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let read = if body.len() < MOST_BODY {
        format!("the body ({} bytes)", body.len())
    } else {
        format!("the first {MOST_BODY} bytes of the body")
    };
    if let Some(part) = &expect.body_contains
        && !text.contains(part)
    {
        return Some(format!("{part:?} isn't in {read}"));
    }
    if let Some(pattern) = &expect.body_regex
        && !pattern.is_match(&text)
    {
        return Some(format!("{pattern:?} doesn't match {read}"));
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

fn explain_tls(error: &io::Error) -> (Verdict, String) {
    if error.raw_os_error().is_some() {
        return tcp::explain(error);
    }
    (Verdict::WrongAnswer, format!("TLS: {error}"))
}

fn explain(error: &hyper::Error) -> (Verdict, String) {
    if let Some(io) = error.source().and_then(|e| e.downcast_ref::<io::Error>())
        && io.raw_os_error().is_some()
    {
        return tcp::explain(io);
    }
    let words = if error.is_incomplete_message() {
        "the connection was closed before the response was complete".to_owned()
    } else if error.is_parse() || error.is_parse_too_large() {
        format!("not an HTTP response: {error}")
    } else {
        let why = error.source().map(|source| format!(": {source}"));
        format!("no response: {error}{}", why.unwrap_or_default())
    };
    (Verdict::WrongAnswer, words)
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
