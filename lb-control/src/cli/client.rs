//! Requests to the daemon over its unix socket.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{Failure, exit};
use crate::status::request::Refusal;

/// Longer than any reload takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads `path`.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    ask(socket, Method::GET, path, Bytes::new()).await
}

/// Sends `body` to `path`.
pub async fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Failure> {
    let body = serde_json::to_vec(body).map_err(|error| {
        Failure::new(exit::REFUSED, format!("cannot write the request: {error}"))
    })?;
    ask(socket, Method::POST, path, body.into()).await
}

async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, Failure> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| no_daemon(socket, &error))?;
    let answer = tokio::time::timeout(PATIENCE, exchange(stream, method, path, body))
        .await
        .map_err(|_| {
            Failure::new(
                exit::NO_DAEMON,
                format!(
                    "the daemon on {} has not answered for {} s; its log says what it does",
                    socket.display(),
                    PATIENCE.as_secs()
                ),
            )
        })?;
    let (status, body) = answer.map_err(|error| {
        Failure::new(
            exit::NO_DAEMON,
            format!("the daemon on {} hung up: {error}", socket.display()),
        )
    })?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| {
            Failure::new(
                exit::REFUSED,
                format!(
                    "the daemon's answer makes no sense ({error}); is it another version than this lbctl?"
                ),
            )
        });
    }
    let errors = serde_json::from_slice::<Refusal>(&body)
        .map(|refusal| refusal.errors)
        .unwrap_or_else(|_| vec![format!("the daemon answered {status}")]);
    Err(Failure {
        code: exit::REFUSED,
        errors,
    })
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(hyper::StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "lbctl")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}

fn no_daemon(socket: &Path, error: &io::Error) -> Failure {
    let shown = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            exit::NO_DAEMON,
            format!(
                "no daemon answers on {shown}; start one with `lbctl run -c FILE`, or give its --socket"
            ),
        ),
        io::ErrorKind::PermissionDenied => Failure::new(
            exit::NO_DAEMON,
            format!("{shown} may only be opened by its owner; try as root"),
        ),
        _ => Failure::new(exit::NO_DAEMON, format!("cannot open {shown}: {error}")),
    }
}
