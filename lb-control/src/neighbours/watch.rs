//! Follows the kernel through netlink and drives the
//! [`super::resolve::Resolver`].

#![allow(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::poll_fn,
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::abi::NeighbourRequest;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
        neighbour::NeighbourMessage,
    },
    sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use socket2::SockRef;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant, MissedTickBehavior},
};

use super::{
    Link, NeighbourView, Target,
    messages::{
        Request, keep_request, neighbour, own_address, release_request, route, route_prefix,
        route_request, use_request,
    },
    netlink::{ACKNOWLEDGED, Answer, Requests, messages},
    resolve::{Action, NeighbourKey, Resolver},
};

/// Events that follow one another within this time are answered together, but for the
/// loss of a link, which is told at once.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// How often neighbours are asked for where the kernel can't keep them
/// resolved by itself.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Every so many probe intervals all routes are looked up again: IPv4 routes
/// that go with an address or a link vanish without a message.
const REFRESH_EVERY: u32 = 6;

/// A client's next hop is asked for at most this often.
const CLIENT_INTERVAL: Duration = Duration::from_secs(1);

/// Requests of the data path that wait; more are dropped, the next packet
/// asks again.
const CLIENT_QUEUE: usize = 1024;

/// Receive buffer of the events: a burst that doesn't fit costs a dump.
const EVENT_BUFFER_BYTES: usize = 4 << 20;

/// RTNLGRP numbers of what is followed: links, neighbours, and for both
/// families addresses, routes and rules, and next-hop objects.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// Following the kernel is not possible.
#[derive(Debug, thiserror::Error)]
#[error("netlink: {what}: {source}")]
pub struct NeighbourError {
    /// What was tried.
    pub what: &'static str,
    /// The kernel's answer.
    pub source: io::Error,
}

/// The running watcher. Dropping it ends it and leaves what it asked of the
/// kernel in place, as a crash does; [`Neighbours::stop`] takes it back.
#[derive(Debug)]
pub struct Neighbours {
    commands: mpsc::UnboundedSender<Command>,
    clients: mpsc::Sender<NeighbourKey>,
}

#[derive(Debug)]
enum Command {
    Managed(Vec<String>),
    Targets(Vec<Target>),
    Stop(oneshot::Sender<()>),
}

impl Neighbours {
    /// Starts to follow the kernel, on the current tokio runtime and in the
    /// network namespace of the calling thread. The first view holds the links.
    pub fn start(
        managed: Vec<String>,
    ) -> Result<(Self, watch::Receiver<Arc<NeighbourView>>), NeighbourError> {
        let failed = |what| move |source| NeighbourError { what, source };
        // Events first: what changes during the dump is then seen after it.
        let events = open_events().map_err(failed("subscribing to events"))?;
        let requests = Requests::open().map_err(failed("opening a socket"))?;
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (clients, client_receiver) = mpsc::channel(CLIENT_QUEUE);
        let (views, view_receiver) = watch::channel(Arc::default());
        let mut watcher = Watcher {
            resolver: Resolver::new(managed),
            requests,
            views,
            probed: HashSet::new(),
            clients: HashMap::new(),
            kernel_manages: true,
            links_in_doubt: BTreeSet::new(),
        };
        watcher
            .dump()
            .map_err(failed("reading links and neighbours"))?;
        watcher.publish();
        tokio::spawn(watcher.run(events, command_receiver, client_receiver));
        Ok((Self { commands, clients }, view_receiver))
    }

    /// Names of the interfaces the data path is attached to.
    pub fn set_managed(&self, managed: Vec<String>) {
        self.command(Command::Managed(managed));
    }

    /// The addresses whose next hops are wanted from now on.
    pub fn set_targets(&self, targets: Vec<Target>) {
        self.command(Command::Targets(targets));
    }

    /// Asks the kernel to resolve a next hop the data path had no MAC for.
    /// Cheap to call for every request: they are merged and limited in rate.
    pub fn resolve_client(&self, request: NeighbourRequest) {
        let family = u8::try_from(request.family).unwrap_or_default();
        let key = (request.ifindex, request.address.to_ip(family));
        // Full: the client's next packet asks again.
        let _ = self.clients.try_send(key);
    }

    /// Ends the watcher and lets go of the neighbour entries it kept alive.
    pub async fn stop(self) {
        let (done, released) = oneshot::channel();
        self.command(Command::Stop(done));
        // An error means that the watcher is gone already.
        let _ = released.await;
    }

    fn command(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the neighbour watcher has ended");
        }
    }
}

fn open_events() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    // The kernel cuts it to net.core.rmem_max.
    SockRef::from(socket.socket_ref()).set_recv_buffer_size(EVENT_BUFFER_BYTES)?;
    let groups = GROUPS.iter().fold(0, |bits, group| bits | 1 << (group - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

struct Watcher {
    resolver: Resolver,
    requests: Requests,
    views: watch::Sender<Arc<NeighbourView>>,
    /// Kept neighbours that the kernel doesn't keep by itself.
    probed: HashSet<NeighbourKey>,
    /// When a client's next hop was last asked for.
    clients: HashMap<NeighbourKey, Instant>,
    /// The kernel knows NTF_EXT_MANAGED (5.16).
    kernel_manages: bool,
    /// Links that something happened to that wasn't said in full.
    links_in_doubt: BTreeSet<u32>,
}

impl Watcher {
    async fn run(
        mut self,
        events: TokioSocket,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut clients: mpsc::Receiver<NeighbourKey>,
    ) {
        let mut tick = time::interval(PROBE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks: u32 = 0;
        let mut settle_at: Option<Instant> = None;
        loop {
            let settle = async {
                match settle_at {
                    Some(at) => time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Stop(done)) => {
                        self.release_all();
                        let _ = done.send(());
                        return;
                    }
                    Some(Command::Managed(managed)) => {
                        self.resolver.set_managed(managed);
                        self.settle().await;
                    }
                    Some(Command::Targets(targets)) => {
                        self.resolver.set_targets(&targets);
                        self.settle().await;
                    }
                },
                event = poll_fn(|cx| events.poll_recv_from_full(cx)) => {
                    match event {
                        Ok((datagram, _)) => self.handle_datagram(&datagram),
                        Err(error) => {
                            // ENOBUFS: events were lost, the rest is in doubt.
                            tracing::debug!(%error, "netlink events lost, reading all anew");
                            if let Err(error) = self.dump() {
                                tracing::warn!(%error, "reading links and neighbours failed");
                                time::sleep(DEBOUNCE).await;
                            }
                        }
                    }
                    let now = Instant::now();
                    if self.resolver.take_link_loss() {
                        settle_at = Some(now);
                    }
                    settle_at.get_or_insert(now + DEBOUNCE);
                }
                () = settle => {
                    settle_at = None;
                    self.settle().await;
                }
                Some(key) = clients.recv() => self.kick_clients(key, &mut clients),
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.probe();
                    if ticks.is_multiple_of(REFRESH_EVERY) {
                        self.resolver.handle_routing_change(None);
                        self.settle().await;
                    }
                }
            }
        }
    }

    fn handle_datagram(&mut self, datagram: &[u8]) {
        for message in messages(datagram) {
            match message.map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => self.handle(&message),
                Ok(_) => {}
                // Next-hop objects: which routes use them isn't known here.
                Err(_) => self.resolver.handle_routing_change(None),
            }
        }
    }

    fn handle(&mut self, message: &RouteNetlinkMessage) {
        use RouteNetlinkMessage as M;
        match message {
            // A bridge describes its ports by messages of its own family, with
            // less in them. It says so that a port has left, and what spanning
            // tree made of a port.
            M::NewLink(message) | M::DelLink(message)
                if message.header.interface_family != AddressFamily::Unspec =>
            {
                self.links_in_doubt.insert(message.header.index);
            }
            M::NewLink(message) => {
                if let Some(link) = Link::from_message(message) {
                    self.resolver.handle_link(link);
                }
            }
            M::DelLink(message) => self.resolver.handle_link_gone(message.header.index),
            M::NewNeighbour(message) => {
                if let Some((key, neighbour)) = neighbour(message) {
                    self.resolver.handle_neighbour(key, neighbour);
                }
            }
            M::DelNeighbour(message) => {
                if let Some((key, _)) = neighbour(message) {
                    self.probed.remove(&key);
                    self.resolver.handle_neighbour_gone(key);
                }
            }
            M::NewRoute(message) | M::DelRoute(message) => {
                self.resolver.handle_routing_change(route_prefix(message));
            }
            M::NewAddress(message) => {
                if let Some(own) = own_address(message) {
                    self.resolver.handle_address(own);
                }
            }
            M::DelAddress(message) => {
                if let Some(own) = own_address(message) {
                    self.resolver.handle_address_gone(own);
                }
            }
            M::NewRule(_) | M::DelRule(_) => {
                self.resolver.handle_routing_change(None);
            }
            _ => {}
        }
    }

    fn dump(&mut self) -> io::Result<()> {
        let mut all = Vec::new();
        for request in [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        ] {
            self.requests.dump(request, |message| all.push(message))?;
        }
        self.resolver.begin_dump();
        for message in &all {
            self.handle(message);
        }
        self.resolver.end_of_dump();
        Ok(())
    }

    fn ask_for_links(&mut self) {
        let indexes = std::mem::take(&mut self.links_in_doubt);
        let requests = indexes.into_iter().map(|index| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            (RouteNetlinkMessage::GetLink(message), 0)
        });
        for answer in self.ask("reading links", requests.collect()) {
            if let Ok(Some(message)) = answer {
                self.handle(&message);
            }
        }
    }

    /// Asks and tells the kernel what the resolver wants, and publishes.
    async fn settle(&mut self) {
        self.ask_for_links();
        loop {
            let mut look_ups = Vec::new();
            let mut keep = Vec::new();
            let mut release = Vec::new();
            while let Some(action) = self.resolver.next_action() {
                match action {
                    Action::LookUp(address) => look_ups.push(address),
                    Action::Keep(key) => keep.push(key),
                    Action::Release(key) => release.push(key),
                }
            }
            if look_ups.is_empty() && keep.is_empty() && release.is_empty() {
                break;
            }
            self.look_up(&look_ups);
            self.release(&release);
            self.keep(&keep);
            tokio::task::yield_now().await;
        }
        self.publish();
    }

    fn publish(&self) {
        let view = self.resolver.view();
        self.views.send_if_modified(|published| {
            let differs = **published != view;
            if differs {
                *published = Arc::new(view);
            }
            differs
        });
    }

    fn look_up(&mut self, addresses: &[IpAddr]) {
        let requests = addresses
            .iter()
            .map(|address| (route_request(*address), 0))
            .collect();
        for (address, answer) in addresses
            .iter()
            .zip(self.ask("looking up routes", requests))
        {
            self.resolver.handle_route(*address, route(answer));
        }
    }

    fn keep(&mut self, keys: &[NeighbourKey]) {
        let mut probe = Vec::new();
        if self.kernel_manages {
            let answers = self.tell("keeping neighbours", keys, keep_request);
            for (key, answer) in keys.iter().zip(answers) {
                if let Err(error) = answer {
                    tracing::debug!(?key, %error, "the kernel doesn't manage this neighbour");
                    let unknown = [libc::EINVAL, libc::EOPNOTSUPP].map(Some);
                    self.kernel_manages &= !unknown.contains(&error.raw_os_error());
                    probe.push(*key);
                }
            }
        } else {
            probe.extend_from_slice(keys);
        }
        self.probed.extend(&probe);
        self.tell("asking for neighbours", &probe, use_request);
    }

    fn release(&mut self, keys: &[NeighbourKey]) {
        for key in keys {
            self.probed.remove(key);
        }
        self.tell("letting go of neighbours", keys, release_request);
    }

    fn release_all(&mut self) {
        let kept: Vec<NeighbourKey> = self.resolver.kept().collect();
        self.release(&kept);
    }

    fn probe(&mut self) {
        let keys: Vec<NeighbourKey> = self.probed.iter().copied().collect();
        self.tell("asking for neighbours", &keys, use_request);
    }

    fn kick_clients(&mut self, first: NeighbourKey, more: &mut mpsc::Receiver<NeighbourKey>) {
        let now = Instant::now();
        self.clients
            .retain(|_, asked| now.duration_since(*asked) < CLIENT_INTERVAL);
        let mut keys = Vec::new();
        let mut next = Some(first);
        while let Some(key) = next {
            let known_link = self.resolver.managed_link(key.0).is_some();
            if known_link && !self.clients.contains_key(&key) && self.clients.len() < CLIENT_QUEUE {
                self.clients.insert(key, now);
                keys.push(key);
            }
            next = more.try_recv().ok();
        }
        self.tell("asking for clients' next hops", &keys, use_request);
    }

    fn tell(
        &mut self,
        what: &'static str,
        keys: &[NeighbourKey],
        request: impl Fn(NeighbourKey) -> Request,
    ) -> Vec<Answer> {
        let requests = keys
            .iter()
            .map(|key| {
                let Request { message, create } = request(*key);
                let flags = if create { NLM_F_CREATE } else { 0 };
                (message, ACKNOWLEDGED | flags)
            })
            .collect();
        self.ask(what, requests)
    }

    fn ask(
        &mut self,
        what: &'static str,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> Vec<Answer> {
        if requests.is_empty() {
            return Vec::new();
        }
        self.requests.batch(requests).unwrap_or_else(|error| {
            tracing::warn!(%error, "{what} failed");
            Vec::new()
        })
    }
}
