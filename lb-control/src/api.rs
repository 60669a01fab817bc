//! HTTP with JSON on a unix socket, for `lbctl` and for programs; and
//! `/metrics`, `/healthz` and `/readyz` on TCP.
//!
//! Reads are answered from the last snapshot; what changes something is handed
//! to the daemon's loop as a [`Command`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::{
        Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::{mpsc, oneshot};

use crate::status::{
    BackendStatus, LinkStatus, ServiceStatus, Snapshot, Status, VrrpStatus,
    request::{
        AdminAnswer, AdminRequest, FailoverAnswer, FailoverRequest, FlowFilter, FlowsAnswer,
        ForgetAnswer, PersistenceAnswer, PersistenceFilter, PlanAnswer, PlanRequest, ProbeAnswer,
        ProbeRequest, Refusal, ReloadAnswer,
    },
};

pub mod listen;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What only the daemon's loop can do.
#[derive(Debug)]
pub enum Command {
    /// Read the configuration again.
    Reload(Reply<ReloadAnswer>),
    /// An operator's decision about a backend.
    Admin(AdminRequest, Reply<AdminAnswer>),
    /// What would a file change?
    Plan(PlanRequest, Reply<PlanAnswer>),
    /// Flows of the sample.
    Flows(FlowFilter, Reply<FlowsAnswer>),
    /// Sources and their servers.
    Persistence(PersistenceFilter, Reply<PersistenceAnswer>),
    /// Forget sources' servers.
    Forget(PersistenceFilter, Reply<ForgetAnswer>),
    /// Hand virtual routers over.
    Failover(FailoverRequest, Reply<FailoverAnswer>),
    /// Probe a backend now.
    Probe(ProbeRequest, Reply<ProbeAnswer>),
}

/// How `/metrics` is written.
#[derive(Clone, Copy, Debug)]
pub struct MetricsPage {
    /// Its content type.
    pub content_type: &'static str,
    /// Its text, or why there is none.
    pub text: fn(&Snapshot) -> Result<String, String>,
}

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Handle {
    snapshot: Arc<ArcSwap<Snapshot>>,
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Reads from `snapshot`, sends to `commands`.
    pub fn new(snapshot: Arc<ArcSwap<Snapshot>>, commands: mpsc::Sender<Command>) -> Self {
        Self { snapshot, commands }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<Json<T>, Failure> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Failure::stopping())?;
        match answer.await {
            Ok(Ok(answer)) => Ok(Json(answer)),
            Ok(Err(refusal)) => Err(Failure(StatusCode::UNPROCESSABLE_ENTITY, refusal)),
            Err(_) => Err(Failure::stopping()),
        }
    }
}

/// A status with the reasons as `{"errors": […]}`.
#[derive(Debug)]
struct Failure(StatusCode, Refusal);

impl Failure {
    fn stopping() -> Self {
        Self(
            StatusCode::SERVICE_UNAVAILABLE,
            Refusal::because("the daemon is stopping"),
        )
    }

    fn bad_request(reason: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, Refusal::because(reason))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// The routes of the unix socket.
pub fn control(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/backends", get(backends))
        .route("/v1/flows", get(flows))
        .route("/v1/persistence", get(persistence))
        .route("/v1/vrrp", get(vrrp))
        .route("/v1/sync", get(sync))
        .route("/v1/forget", post(forget))
        .route("/v1/reload", post(reload))
        .route("/v1/admin", post(admin))
        .route("/v1/plan", post(plan))
        .route("/v1/probe", post(probe))
        .route("/v1/failover", post(failover))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(handle)
}

/// The routes of the metrics listener, with `page` as `/metrics`.
pub fn observe(handle: Handle, page: MetricsPage) -> Router {
    Router::new()
        .route(
            "/metrics",
            get(async move |State(handle): State<Handle>| metrics(&handle, page)),
        )
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "here are /metrics, /healthz and /readyz\n",
            )
        })
        .with_state(handle)
}

async fn status(State(handle): State<Handle>) -> Json<Status> {
    Json(handle.snapshot.load().status.clone())
}

async fn services(State(handle): State<Handle>) -> Json<Vec<ServiceStatus>> {
    Json(handle.snapshot.load().services.clone())
}

async fn backends(State(handle): State<Handle>) -> Json<Vec<BackendStatus>> {
    Json(handle.snapshot.load().backends.clone())
}

async fn sync(State(handle): State<Handle>) -> Json<Vec<LinkStatus>> {
    Json(handle.snapshot.load().sync.clone())
}

async fn vrrp(State(handle): State<Handle>) -> Json<Vec<VrrpStatus>> {
    Json(handle.snapshot.load().vrrp.clone())
}

async fn flows(
    State(handle): State<Handle>,
    filter: Result<Query<FlowFilter>, QueryRejection>,
) -> Result<Json<FlowsAnswer>, Failure> {
    let Query(filter) = filter.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle.ask(|reply| Command::Flows(filter, reply)).await
}

async fn persistence(
    State(handle): State<Handle>,
    filter: Result<Query<PersistenceFilter>, QueryRejection>,
) -> Result<Json<PersistenceAnswer>, Failure> {
    let Query(filter) = filter.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle
        .ask(|reply| Command::Persistence(filter, reply))
        .await
}

async fn forget(
    State(handle): State<Handle>,
    filter: Result<Json<PersistenceFilter>, JsonRejection>,
) -> Result<Json<ForgetAnswer>, Failure> {
    let Json(filter) = filter.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle.ask(|reply| Command::Forget(filter, reply)).await
}

async fn reload(State(handle): State<Handle>) -> Result<Json<ReloadAnswer>, Failure> {
    handle.ask(Command::Reload).await
}

async fn admin(
    State(handle): State<Handle>,
    request: Result<Json<AdminRequest>, JsonRejection>,
) -> Result<Json<AdminAnswer>, Failure> {
    let Json(request) = request.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle.ask(|reply| Command::Admin(request, reply)).await
}

async fn plan(
    State(handle): State<Handle>,
    request: Result<Json<PlanRequest>, JsonRejection>,
) -> Result<Json<PlanAnswer>, Failure> {
    let Json(request) = request.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle.ask(|reply| Command::Plan(request, reply)).await
}

async fn probe(
    State(handle): State<Handle>,
    request: Result<Json<ProbeRequest>, JsonRejection>,
) -> Result<Json<ProbeAnswer>, Failure> {
    let Json(request) = request.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle.ask(|reply| Command::Probe(request, reply)).await
}

async fn failover(
    State(handle): State<Handle>,
    request: Result<Json<FailoverRequest>, JsonRejection>,
) -> Result<Json<FailoverAnswer>, Failure> {
    let Json(request) = request.map_err(|e| Failure::bad_request(e.body_text()))?;
    handle.ask(|reply| Command::Failover(request, reply)).await
}

async fn unknown_path() -> Failure {
    Failure(
        StatusCode::NOT_FOUND,
        Refusal::because(
            "no such path; there are /v1/status, /v1/services, /v1/backends, /v1/vrrp, /v1/sync, /v1/flows, \
             /v1/persistence (GET) and /v1/reload, /v1/admin, /v1/plan, /v1/forget, /v1/probe, \
             /v1/failover (POST)",
        ),
    )
}

async fn wrong_method() -> Failure {
    Failure(
        StatusCode::METHOD_NOT_ALLOWED,
        Refusal::because(
            "wrong method; GET reads, POST is for /v1/reload, /v1/admin, /v1/plan, /v1/forget, \
             /v1/probe and /v1/failover",
        ),
    )
}

fn metrics(handle: &Handle, page: MetricsPage) -> Response {
    match (page.text)(&handle.snapshot.load()) {
        Ok(text) => ([(header::CONTENT_TYPE, page.content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(handle): State<Handle>) -> Response {
    if handle.commands.is_closed() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response()
    } else {
        "ok\n".into_response()
    }
}

async fn readyz(State(handle): State<Handle>) -> Response {
    let snapshot = handle.snapshot.load();
    let readiness = &snapshot.status.readiness;
    if readiness.ready {
        "ready\n".into_response()
    } else {
        let reasons = readiness.reasons.join("\n");
        (StatusCode::SERVICE_UNAVAILABLE, format!("{reasons}\n")).into_response()
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
