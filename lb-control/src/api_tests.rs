use std::path::{Path, PathBuf};

use super::{listen::ControlSocket, *};
use crate::{
    cli::{Failure as CliFailure, client, exit},
    status::{
        Readiness,
        request::{AdminAction, Flow},
    },
};

struct Server {
    directory: PathBuf,
    socket: PathBuf,
    snapshot: Arc<ArcSwap<Snapshot>>,
    handle: Handle,
    _socket: ControlSocket,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A daemon's loop that knows one backend and refuses every reload.
async fn server(name: &str) -> Server {
    let directory = std::env::temp_dir().join(format!("lbctl-api-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let socket = directory.join("lb.sock");
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (sender, mut commands) = mpsc::channel(4);
    let handle = Handle::new(Arc::clone(&snapshot), sender);
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Reload(reply) => drop(reply.send(Err(Refusal {
                    errors: vec!["line 1: no".into(), "line 2: no".into()],
                }))),
                Command::Admin(request, reply) => drop(reply.send(Ok(AdminAnswer {
                    backend: format!("{}/{}", request.pool, request.backend),
                    message: format!("{:?}", request.action),
                    flows_left: None,
                }))),
                Command::Plan(request, reply) => {
                    drop(reply.send(Err(Refusal::because(request.path))));
                }
                Command::Persistence(filter, reply) => {
                    drop(reply.send(Err(Refusal::because(format!("{filter:?}")))));
                }
                Command::Forget(filter, reply) => drop(reply.send(Ok(ForgetAnswer {
                    forgotten: u64::from(filter.source.is_some()),
                }))),
                Command::Failover(request, reply) => drop(reply.send(Ok(FailoverAnswer {
                    moved: Vec::new(),
                    errors: vec![format!("{request:?}")],
                }))),
                Command::Probe(request, reply) => drop(reply.send(Ok(ProbeAnswer {
                    backend: format!("{}/{}", request.pool, request.backend),
                    checks: Vec::new(),
                }))),
                Command::Flows(filter, reply) => drop(reply.send(Ok(FlowsAnswer {
                    sampled_one_in: 1,
                    truncated: false,
                    flows: vec![Flow {
                        client: "192.0.2.1:1".parse().unwrap(),
                        destination: "192.0.2.2:80".parse().unwrap(),
                        protocol: "tcp".into(),
                        service: filter.service.unwrap_or_default(),
                        backend: filter.backend.unwrap_or_default(),
                        state: "open".into(),
                        age_seconds: 1,
                        idle_seconds: 1,
                    }],
                }))),
            }
        }
    });
    let control = ControlSocket::serve(&socket, control(handle.clone()))
        .await
        .unwrap();
    Server {
        directory,
        socket,
        snapshot,
        handle,
        _socket: control,
    }
}

#[tokio::test]
async fn status_is_the_last_snapshot() {
    let server = server("status").await;
    let mut snapshot = Snapshot::default();
    snapshot.status.node = "lb1".into();
    server.snapshot.store(Arc::new(snapshot));
    let status: Status = client::get(&server.socket, "/v1/status").await.unwrap();
    assert_eq!(status.node, "lb1");
}

#[tokio::test]
async fn a_refused_reload_lists_every_error() {
    let server = server("reload").await;
    let refused = client::post::<ReloadAnswer>(&server.socket, "/v1/reload", &())
        .await
        .unwrap_err();
    assert_eq!(
        refused,
        CliFailure {
            code: exit::REFUSED,
            errors: vec!["line 1: no".into(), "line 2: no".into()],
        }
    );
}

#[tokio::test]
async fn an_operators_decision_reaches_the_loop() {
    let server = server("admin").await;
    let request = AdminRequest {
        pool: "web".into(),
        backend: "a".into(),
        action: AdminAction::Weight { weight: 7 },
    };
    let answer: AdminAnswer = client::post(&server.socket, "/v1/admin", &request)
        .await
        .unwrap();
    assert_eq!(answer.backend, "web/a");
    assert_eq!(answer.message, "Weight { weight: 7 }");
}

#[tokio::test]
async fn filters_come_through_the_query() {
    let server = server("flows").await;
    let path = "/v1/flows?service=a%20b&backend=web%2Fx&limit=3";
    let answer: FlowsAnswer = client::get(&server.socket, path).await.unwrap();
    assert_eq!(answer.flows[0].service, "a b");
    assert_eq!(answer.flows[0].backend, "web/x");
}

async fn error_of(socket: &Path, path: &str) -> String {
    let failure = client::get::<serde_json::Value>(socket, path)
        .await
        .unwrap_err();
    failure.errors.join("\n")
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let server = server("bad").await;
    assert!(
        error_of(&server.socket, "/v1/nothing")
            .await
            .contains("/v1/services")
    );
    assert!(
        error_of(&server.socket, "/v1/reload")
            .await
            .contains("wrong method")
    );
    let error = error_of(&server.socket, "/v1/flows?clinet=1.2.3.4").await;
    assert!(error.contains("clinet"), "{error}");
    let wrong = serde_json::json!({"pool": "web", "backend": "a", "action": "explode"});
    let failure = client::post::<AdminAnswer>(&server.socket, "/v1/admin", &wrong)
        .await
        .unwrap_err();
    assert!(failure.errors[0].contains("explode"), "{failure:?}");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only_and_a_second_daemon_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = server("owner").await;
    let mode = std::fs::metadata(&server.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = ControlSocket::serve(&server.socket, control(server.handle.clone()))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let server = server("stale").await;
    let stale = server.directory.join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    ControlSocket::serve(&stale, control(server.handle.clone()))
        .await
        .unwrap();
    std::fs::write(&stale, "precious").unwrap();
    let error = ControlSocket::serve(&stale, control(server.handle.clone()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&stale).unwrap(), "precious");
}

#[tokio::test]
async fn readyz_tells_why_not_and_healthz_only_that_the_process_lives() {
    let server = server("ready").await;
    let mut snapshot = Snapshot::default();
    snapshot.status.readiness = Readiness {
        ready: false,
        reasons: vec!["pool web: no result yet".into()],
    };
    server.snapshot.store(Arc::new(snapshot.clone()));
    let response = readyz(State(server.handle.clone())).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body = axum::body::to_bytes(response.into_body(), 1_000)
        .await
        .unwrap();
    assert_eq!(body, "pool web: no result yet\n");
    assert_eq!(
        healthz(State(server.handle.clone())).await.status(),
        StatusCode::OK
    );
    snapshot.status.readiness.ready = true;
    server.snapshot.store(Arc::new(snapshot));
    assert_eq!(
        readyz(State(server.handle.clone())).await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn sources_are_listed_by_filter_and_forgotten() {
    let server = server("persistence").await;
    let path = "/v1/persistence?group=shop&source=2001%3Adb8%3A%3A1&limit=3";
    let refused = client::get::<PersistenceAnswer>(&server.socket, path)
        .await
        .unwrap_err();
    let told = refused.errors.concat();
    for expected in ["shop", "2001:db8::1", "limit: Some(3)"] {
        assert!(told.contains(expected), "{told}");
    }
    let path = "/v1/persistence?source=nobody";
    let refused = client::get::<PersistenceAnswer>(&server.socket, path)
        .await
        .unwrap_err();
    assert!(refused.errors.concat().contains("source"), "{refused:?}");
    let filter = PersistenceFilter {
        source: Some("192.0.2.1".parse().unwrap()),
        ..PersistenceFilter::default()
    };
    let answer: ForgetAnswer = client::post(&server.socket, "/v1/forget", &filter)
        .await
        .unwrap();
    assert_eq!(answer.forgotten, 1);
    let request = ProbeRequest {
        pool: "web".into(),
        backend: "web-1".into(),
    };
    let answer: ProbeAnswer = client::post(&server.socket, "/v1/probe", &request)
        .await
        .unwrap();
    assert_eq!(answer.backend, "web/web-1");
    let request = FailoverRequest {
        vrids: vec![51],
        to: Some("lb2".into()),
    };
    let answer: FailoverAnswer = client::post(&server.socket, "/v1/failover", &request)
        .await
        .unwrap();
    assert!(
        answer.errors[0].contains("[51], to: Some(\"lb2\")"),
        "{answer:?}"
    );
}
