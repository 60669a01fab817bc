//! From the command line to a daemon that is ready to serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{Daemon, Inbox, METRICS, Options, load, not_started};
use crate::{
    api::{self, Command, Handle, listen},
    cli::{Failure, exit},
    daemon::{
        admin::AdminStore,
        claims::Claims,
        conditions::Now,
        controller::{self, Candidate, Controller},
        lock::DirectoryLock,
        observe::Observer,
        probe_way::ProbeWay,
        replication::Replication,
        settings,
        sync::{self, Peers},
        vrrp::VirtualRouters,
    },
    dataplane::{
        plane::{self, Plane},
        stats::PlaneStats,
    },
    health::{Health, memory},
    neighbours::{Neighbours, Unresolved, multicast::SolicitedNodes, probe_device, targets},
    status::Snapshot,
};

/// The first change waits at most this long for the next hops, so that a fresh
/// data path does not begin with drops.
const FIRST_NEXT_HOPS_WITHIN: Duration = Duration::from_millis(500);

/// Commands that wait for the loop.
const COMMAND_QUEUE: usize = 64;

impl Daemon {
    pub(super) async fn start(options: &Options) -> Result<Self, Failure> {
        let file = std::path::absolute(&options.config)
            .map_err(|error| not_started(format!("{}: {error}", options.config.display())))?;
        let candidate = controller::read(load, &file).map_err(|refusal| Failure {
            code: exit::REFUSED,
            errors: refusal.errors,
        })?;
        let pin_dir = candidate.model.dataplane.pin_dir.clone();
        let (admin, warning) = AdminStore::open(&options.state_dir).map_err(|error| {
            not_started(format!(
                "the state directory {} cannot be used: {error}; give another --state-dir",
                options.state_dir.display()
            ))
        })?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        let mut locks = vec![DirectoryLock::take(&options.state_dir).map_err(not_started)?];
        if pin_dir.exists() {
            locks.push(DirectoryLock::take(&pin_dir).map_err(not_started)?);
        }
        listen::refuse_if_in_use(&options.socket)
            .await
            .map_err(not_started)?;

        let started = Now::read();
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let handle = Handle::new(Arc::clone(&snapshot), sender);
        let metrics = match candidate.model.metrics {
            Some(address) => Some(
                listen::MetricsListener::serve(address, api::observe(handle.clone(), METRICS))
                    .await
                    .map_err(not_started)?,
            ),
            None => None,
        };
        // Whatever is wrong with the key is known before anything is attached.
        sync::settings(&candidate.model).map_err(not_started)?;
        settings::establish(&candidate.model, &options.state_dir).map_err(not_started)?;
        let plane = Plane::open(&candidate.model).map_err(not_started)?;
        let adopted = plane.adopted();
        let result = Self::complete(
            options, file, candidate, admin, plane, started, snapshot, handle, metrics, commands,
            locks,
        )
        .await;
        if result.is_err() && !adopted {
            // What never ran must not stay and drop packets.
            plane::detach(&pin_dir);
            let _ = probe_device::remove();
        }
        result
    }

    #[allow(clippy::too_many_arguments, reason = "the second half of `start`")]
    async fn complete(
        options: &Options,
        file: PathBuf,
        candidate: Candidate,
        admin: AdminStore,
        mut plane: Plane,
        started: Now,
        snapshot: Arc<ArcSwap<Snapshot>>,
        handle: Handle,
        metrics: Option<listen::MetricsListener>,
        commands: mpsc::Receiver<Command>,
        mut locks: Vec<DirectoryLock>,
    ) -> Result<Self, Failure> {
        if locks.len() < 2 {
            locks.push(
                DirectoryLock::take(&candidate.model.dataplane.pin_dir).map_err(not_started)?,
            );
        }
        let adopted = plane.adopted();
        let model = candidate.model.clone();
        let managed = model.interfaces.iter().map(|i| i.name.clone()).collect();
        let (neighbours, mut views) = Neighbours::start(managed).map_err(not_started)?;
        let targets = targets(&model);
        neighbours.set_targets(targets.clone());
        let known = memory::read(&options.state_dir, &memory::boot_id(), started.unix)
            .unwrap_or_else(|why| {
                if let Some(why) = why {
                    tracing::info!(why, "states of an earlier daemon are not used");
                }
                BTreeMap::new()
            });
        let seed = u64::from(std::process::id());
        let (health, health_changes) = Health::start(&model, seed, known);
        let clients = plane.neighbour_requests();
        if model.dataplane.debug_log {
            // Reads until the process ends.
            std::mem::forget(plane.debug_log());
        }
        let signal_of =
            |kind| signal(kind).map_err(|e| not_started(format!("cannot take signals: {e}")));
        let mut controller =
            Controller::new(plane, adopted, &file, candidate, admin, load, Now::read());
        let _ = tokio::time::timeout(
            FIRST_NEXT_HOPS_WITHIN,
            views.wait_for(|view| {
                targets.iter().all(|target| {
                    !matches!(
                        view.hops.get(&target.address),
                        None | Some(Err(Unresolved::Pending | Unresolved::Resolving { .. }))
                    )
                })
            }),
        )
        .await;
        controller.neighbours = Arc::clone(&views.borrow_and_update());
        controller.verdicts = super::known(&health);
        let mut probe_way = ProbeWay::default();
        probe_way
            .establish(&model, &mut controller, &health)
            .map_err(not_started)?;
        controller.reconcile(Now::read());
        if let Some(error) = controller.applies.error.clone().filter(|_| !adopted) {
            return Err(not_started(error));
        }
        let (peers, streams) = Peers::new();
        let routers = VirtualRouters::default();
        let mut daemon = Self {
            adopted,
            observer: Observer::new(started),
            snapshot,
            stats: PlaneStats::default(),
            claims: Claims::default(),
            health,
            health_changed: false,
            probe_way,
            peers,
            replication: Replication::default(),
            neighbours,
            targets,
            groups: SolicitedNodes::default(),
            vlans: BTreeSet::new(),
            state_dir: options.state_dir.clone(),
            boot_id: memory::boot_id(),
            metrics,
            told_ready: false,
            inbox: Some(Inbox {
                commands,
                health: health_changes,
                streams,
                views,
                trackers: routers.changes(),
                clients,
                reload: signal_of(SignalKind::hangup())?,
                terminate: signal_of(SignalKind::terminate())?,
                interrupt: signal_of(SignalKind::interrupt())?,
            }),
            control: None,
            routers,
            handle,
            controller,
            _locks: locks,
        };
        let links = sync::settings(&daemon.controller.model).map_err(not_started)?;
        daemon.peers.follow(links).map_err(not_started)?;
        // Whoever becomes active has all its services in the maps by now.
        let plane = &daemon.controller.data_path;
        let followed = daemon
            .routers
            .follow(&daemon.controller.model, plane, &daemon.peers);
        followed.map_err(not_started)?;
        daemon.follow_links();
        daemon.tell_members();
        daemon.tick();
        let routes = api::control(daemon.handle.clone());
        let control = listen::ControlSocket::serve(&options.socket, routes).await;
        daemon.control = Some(control.map_err(not_started)?);
        daemon.log_start(&options.socket);
        Ok(daemon)
    }

    fn log_start(&self, socket: &Path) {
        let model = &self.controller.model;
        for interface in &self.snapshot.load().status.interfaces {
            let why = interface.reason.clone().unwrap_or_default();
            tracing::info!(
                interface = interface.name,
                mode = interface.mode,
                why,
                "attached"
            );
            let link = self
                .controller
                .neighbours
                .links
                .iter()
                .find(|link| link.name == interface.name);
            if interface.mode == "native" && link.is_some_and(|l| l.kind.as_deref() == Some("veth"))
            {
                tracing::warn!(
                    interface = interface.name,
                    "a veth in native mode: its peer needs an XDP program, too, or sent frames stay in the \
                     peer's queue, and `ethtool -K PEER tx-checksumming off`; `xdp: generic` needs neither"
                );
            }
        }
        for warning in crate::config::warnings(model) {
            tracing::warn!("{warning}");
        }
        for stranger in self.controller.admin.strangers(model) {
            tracing::warn!(
                backend = stranger,
                "an operator decided about a backend that is not in the configuration"
            );
        }
        tracing::info!(
            node = model.node,
            services = model.services.len(),
            adopted = self.adopted,
            socket = %socket.display(),
            metrics = self.metrics.as_ref().map(|m| m.address().to_string()),
            "running"
        );
    }
}
