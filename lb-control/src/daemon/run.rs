//! `lbctl run`: start, the loop, stop.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::Signal,
    sync::{Notify, mpsc, watch},
    time::MissedTickBehavior,
};

use super::{
    claims::{self, Claims},
    conditions::{Known, Now},
    controller::Controller,
    flows,
    lock::DirectoryLock,
    observe::{Observer, View},
    persistence, preview,
    probe_way::ProbeWay,
    probes,
    replication::Replication,
    settings,
    sync::Peers,
    trackers::Seen,
    vrrp::VirtualRouters,
};
use crate::{
    api::{Command, Handle, MetricsPage, listen},
    cli::{Failure, exit},
    dataplane::{
        desired::BackendKey, neighbours::NeighbourRequests, plane::Plane, stats::PlaneStats,
    },
    health::{Health, HealthChange, memory},
    metrics,
    model::Model,
    neighbours::{NeighbourView, Neighbours, Target, multicast::SolicitedNodes, targets},
    status::{Snapshot, request::AdminAction},
    sync::StreamEvent,
};

mod peers;
mod reloading;
mod start;

/// Time between two looks at the counters.
const TICK: Duration = Duration::from_secs(1);

/// Time between two sweeps of the flow table.
const SWEEP: Duration = Duration::from_secs(10);

/// What `/metrics` gives.
const METRICS: MetricsPage = MetricsPage {
    content_type: metrics::CONTENT_TYPE,
    text: |snapshot| metrics::text(snapshot).map_err(|error| error.to_string()),
};

/// What `lbctl run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Where decisions and changed settings are kept.
    pub state_dir: PathBuf,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// It could not start; says why and what to do.
pub fn run(options: &Options) -> Result<(), Failure> {
    raise_limit_of_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| not_started(format!("cannot start threads: {error}")))?;
    runtime.block_on(async {
        let daemon = Daemon::start(options).await?;
        daemon.serve().await;
        Ok(())
    })
}

/// As many files as may be: every check under way has one, and when a switch dies
/// all of them wait for their time-outs at once. Where it can't be raised, checks
/// wait for each other.
fn raise_limit_of_files() {
    let files = Resource::RLIMIT_NOFILE;
    if let Ok((soft, hard)) = getrlimit(files)
        && soft < hard
        && let Err(error) = setrlimit(files, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit of open files could not be raised");
    }
}

fn not_started(reason: impl std::fmt::Display) -> Failure {
    Failure::new(exit::NOT_STARTED, reason.to_string())
}

struct Daemon {
    controller: Controller<Plane>,
    adopted: bool,
    observer: Observer,
    handle: Handle,
    snapshot: Arc<ArcSwap<Snapshot>>,
    stats: PlaneStats,
    claims: Claims,
    health: Health,
    /// And a later daemon doesn't know it yet.
    health_changed: bool,
    probe_way: ProbeWay,
    routers: VirtualRouters,
    peers: Peers,
    replication: Replication,
    neighbours: Neighbours,
    targets: Vec<Target>,
    groups: SolicitedNodes,
    /// VLAN devices that are known.
    vlans: BTreeSet<u32>,
    state_dir: PathBuf,
    /// Of this machine, for what is kept in the state directory.
    boot_id: String,
    metrics: Option<listen::MetricsListener>,
    told_ready: bool,
    inbox: Option<Inbox>,
    /// Held for its drop; there once there is something to tell.
    control: Option<listen::ControlSocket>,
    _locks: Vec<DirectoryLock>,
}

/// Where events come from.
struct Inbox {
    commands: mpsc::Receiver<Command>,
    health: mpsc::UnboundedReceiver<HealthChange>,
    views: watch::Receiver<Arc<NeighbourView>>,
    streams: mpsc::Receiver<StreamEvent>,
    /// Scripts of virtual routers.
    trackers: Arc<Notify>,
    clients: Option<NeighbourRequests>,
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// Reads and validates a file, with the errors as lines.
fn load(path: &Path) -> Result<Model, Vec<String>> {
    crate::config::load(path)
        .map_err(|errors| errors.to_string().lines().map(str::to_owned).collect())
}

impl Daemon {
    async fn serve(mut self) {
        let Some(mut inbox) = self.inbox.take() else {
            return;
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of both comes at once.
        tick.reset();
        sweep.reset();
        loop {
            let deadline = self.deadline();
            tokio::select! {
                _ = inbox.terminate.recv() => break,
                _ = inbox.interrupt.recv() => break,
                _ = inbox.reload.recv() => {
                    // The result is in the log and in the status.
                    let _ = self.reload().await;
                }
                Some(command) = inbox.commands.recv() => self.command(command).await,
                Some(_) = inbox.health.recv() => {
                    // One reaction to all that came at once.
                    while inbox.health.try_recv().is_ok() {}
                    self.read_health();
                    self.health_changed = true;
                }
                Ok(()) = inbox.views.changed() => {
                    self.controller.neighbours = Arc::clone(&inbox.views.borrow_and_update());
                    self.follow_links();
                }
                // Before the first change it isn't known here what they speak of.
                Some(event) = inbox.streams.recv(), if self.controller.data_path.is_known() => {
                    if !self.hear(event, &mut inbox.streams) {
                        continue;
                    }
                }
                () = sleep_until(self.replication.due()) => {
                    if !self.replicate() {
                        continue;
                    }
                }
                () = inbox.trackers.notified() => {}
                request = next_client(&mut inbox.clients) => match request {
                    Ok(request) => self.neighbours.resolve_client(request),
                    Err(error) => {
                        tracing::error!(%error, "next hops towards clients are not resolved any more");
                        inbox.clients = None;
                    }
                },
                _ = sweep.tick() => self.sweep(),
                _ = tick.tick() => self.tick(),
                () = sleep_until(deadline) => {}
            }
            self.reconcile();
        }
        self.stop().await;
    }

    fn deadline(&self) -> Option<std::time::Instant> {
        self.controller
            .next_deadline()
            .into_iter()
            .chain(self.controller.data_path.next_deadline())
            .min()
    }

    fn reconcile(&mut self) {
        let now = Now::read();
        let departed_ends = self.controller.data_path.next_deadline();
        if departed_ends.is_some_and(|end| end <= now.instant) {
            self.controller.look_again();
        }
        self.controller.reconcile(now);
        self.watch_trackers();
        self.tell_members();
        let mut wanted = targets(&self.controller.model);
        // Those that have left still serve their flows.
        for address in self.controller.data_path.departed_backends() {
            if !wanted.iter().any(|target| target.address == address) {
                wanted.push(Target {
                    address,
                    on_link_only: false,
                });
            }
        }
        if wanted != self.targets {
            self.neighbours.set_targets(wanted.clone());
            self.targets = wanted;
        }
    }

    fn watch_trackers(&mut self) {
        let seen = Seen {
            model: &self.controller.model,
            conditions: &self.controller.conditions,
            links: &self.controller.neighbours,
        };
        self.routers.watch(&seen, Now::read().unix);
    }

    fn tell_members(&mut self) {
        let Controller {
            model, data_path, ..
        } = &self.controller;
        self.probe_way.tell(model, data_path, &self.health);
    }

    fn sweep(&mut self) {
        if let Err(error) = self.controller.data_path.sweep() {
            tracing::error!(%error, "the flow table could not be swept");
        }
        // And whatever else may have happened to the maps.
        self.controller.look_again();
        self.write_health();
    }

    /// For a daemon that comes after this one, which may be soon and at any time.
    fn write_health(&self) {
        let known = self.health.to_remember();
        let now = Now::read().unix;
        if let Err(error) = memory::write(&self.state_dir, &self.boot_id, now, known) {
            tracing::warn!(%error, "the states of the backends could not be kept for a restart");
        }
    }

    fn read_health(&mut self) {
        self.controller.verdicts = known(&self.health);
    }

    /// Joins the groups of the VIPs on the links there are, and sees to the
    /// settings of VLAN devices that are new.
    fn follow_links(&mut self) {
        // First: a virtual router that may not start isn't to.
        self.watch_trackers();
        self.routers.links(&self.controller.neighbours);
        let vlans: BTreeSet<u32> = self
            .controller
            .neighbours
            .devices
            .iter()
            .filter(|device| device.tags != [0; 2])
            .map(|device| device.ifindex)
            .collect();
        if !vlans.is_subset(&self.vlans)
            && let Err(error) = settings::establish(&self.controller.model, &self.state_dir)
        {
            tracing::error!(%error, "a VLAN device may not work");
        }
        self.vlans = vlans;
        let vips: Vec<_> = self
            .controller
            .model
            .services
            .iter()
            .map(|s| s.address)
            .chain(self.controller.data_path.pool_addresses())
            .collect();
        let indexes: Vec<_> = self
            .controller
            .neighbours
            .devices
            .iter()
            .map(|device| device.ifindex)
            .collect();
        for error in self.groups.set(&vips, &indexes) {
            tracing::warn!(%error, "neighbour solicitations for a VIP may not arrive");
        }
    }

    /// Reads the counters and publishes a snapshot.
    fn tick(&mut self) {
        self.read_health();
        if std::mem::take(&mut self.health_changed) {
            self.write_health();
        }
        match self.controller.data_path.stats() {
            Ok(stats) => {
                self.stats = stats;
                self.warn_of_claims();
            }
            Err(error) => tracing::error!(%error, "the counters could not be read"),
        }
        self.publish();
    }

    fn warn_of_claims(&mut self) {
        for claim in self.claims.due(&self.stats.claims, Now::read().instant) {
            tracing::warn!(
                vip = %claim.address,
                mac = claims::mac(claim.mac),
                interface = claim.interface,
                "somebody else on the segment has a VIP of this node; clients may reach it instead"
            );
        }
    }

    fn publish(&mut self) {
        let health = self.health.snapshot();
        let sync = self.links();
        let view = View {
            controller: &self.controller,
            stats: &self.stats,
            health: &health,
            adopted: self.adopted,
            vrrp: self.routers.status(),
            sync,
        };
        let snapshot = self.observer.snapshot(&view, Now::read());
        if snapshot.status.readiness.ready && !self.told_ready {
            self.told_ready = true;
            tracing::info!("ready");
            if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
                tracing::debug!(%error, "no service manager to tell");
            }
        }
        self.snapshot.store(Arc::new(snapshot));
    }

    async fn command(&mut self, command: Command) {
        // Whoever asked may have hung up.
        match command {
            Command::Reload(reply) => {
                let _ = reply.send(self.reload().await);
            }
            Command::Admin(request, reply) => {
                self.read_health();
                let mut result = self.controller.decide(&request, Now::read());
                self.tick();
                if let (Ok(answer), AdminAction::Drain) = (&mut result, request.action) {
                    answer.flows_left = self.flows_left(&answer.backend);
                }
                let _ = reply.send(result);
            }
            Command::Plan(request, reply) => {
                let path = Path::new(&request.path);
                let _ = reply.send(preview::plan(&mut self.controller, load, path));
            }
            Command::Persistence(filter, reply) => {
                let Controller {
                    model, data_path, ..
                } = &mut self.controller;
                let _ = reply.send(persistence::list(data_path, model, &filter));
            }
            Command::Forget(filter, reply) => {
                let Controller {
                    model, data_path, ..
                } = &mut self.controller;
                let _ = reply.send(persistence::forget(data_path, model, &filter));
            }
            Command::Failover(request, reply) => {
                self.tell_everything().await;
                self.routers.hand_over(request, reply);
            }
            Command::Probe(request, reply) => probes::probe(&self.health, request, reply),
            Command::Flows(filter, reply) => {
                let model = self.controller.model.clone();
                let _ = reply.send(flows::flows(
                    &mut self.controller.data_path,
                    &model,
                    &filter,
                    self.stats.sample_mask,
                ));
            }
        }
    }

    /// Connections of a backend in all services.
    fn flows_left(&self, name: &str) -> Option<u64> {
        let snapshot = self.snapshot.load();
        let of = snapshot
            .backends
            .iter()
            .filter(|b| format!("{}/{}", b.pool, b.backend) == name);
        Some(of.map(|b| b.concurrent.connections).sum())
    }

    /// An orderly end that leaves the data path forwarding.
    async fn stop(mut self) {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        // First of all: another node waits to be told.
        self.tell_everything().await;
        self.routers.stop().await;
        self.peers.stop();
        self.write_health();
        self.neighbours.stop().await;
        tracing::info!(
            "stopped; the data path goes on forwarding as it is, without health checks and with the next \
             hops known now; `lbctl run` takes it over again, `lbctl detach` removes it"
        );
    }
}

/// What the checks say, in the controller's terms.
fn known(health: &Health) -> BTreeMap<BackendKey, Known> {
    let backends = health.snapshot().into_iter().map(|(key, health)| {
        let key = BackendKey {
            pool: key.pool,
            backend: key.backend,
        };
        let known = Known {
            state: health.state,
            for_time: health.in_state_for,
            verdict: health.verdict,
            held_for: health.held_for,
            response: health.response,
            free: health.free,
        };
        (key, known)
    });
    backends.collect()
}

async fn next_client(
    requests: &mut Option<NeighbourRequests>,
) -> std::io::Result<lb_common::abi::NeighbourRequest> {
    match requests {
        Some(requests) => requests.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
