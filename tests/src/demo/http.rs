//! HTTP clients: new connections, kept-alive ones, and those held open.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::LocalSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::ledger::{Exchange, Ledger, Way};
use crate::netns::Netns;

/// A request without an answer after this has failed. Long enough for two
/// retransmissions of a SYN.
const PATIENCE: Duration = Duration::from_secs(5);

/// A held connection without an answer for this long is lost.
const STALL: Duration = Duration::from_secs(10);

/// Time from one request of a held connection to its next.
const HELD_EVERY: Duration = Duration::from_secs(1);

/// One HTTP/1.1 connection.
struct Connection {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Connection {
    async fn open(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            host: target,
        })
    }

    /// Asks, and returns the name in the answer's `X-Server`.
    async fn get(&mut self, id: &str, last: bool) -> io::Result<String> {
        let connection = if last { "close" } else { "keep-alive" };
        let request = format!(
            "GET /demo HTTP/1.1\r\nHost: {}\r\nX-Request-Id: {id}\r\nConnection: {connection}\r\n\r\n",
            self.host
        );
        self.stream.write_all(request.as_bytes()).await?;
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let status = self.line().await?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(bad(format!("answered {status:?}")));
        }
        let (mut server, mut length) = (None, None);
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "x-server" => server = Some(value.trim().to_owned()),
                    "content-length" => length = value.trim().parse::<usize>().ok(),
                    _ => {}
                }
            }
        }
        let length = length.ok_or_else(|| bad("no Content-Length".into()))?;
        let server = server.ok_or_else(|| bad("no X-Server".into()))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        if body.trim_ascii() != server.as_bytes() {
            return Err(bad("header and body name different servers".into()));
        }
        Ok(server)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by the server",
            ));
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Opens a connection and sends `requests` over it; writes each one down.
async fn visit(ledger: &Ledger, target: SocketAddr, requests: u32, way: Way) {
    let mut connection = None;
    for number in 1..=requests {
        let (id, begun) = (ledger.next_id(), Instant::now());
        let exchange = async {
            let open = match connection.take() {
                Some(open) => open,
                None => Connection::open(target).await?,
            };
            connection.insert(open).get(&id, number == requests).await
        };
        let answer = match timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err("no answer in time".into()),
        };
        let failed = answer.is_err();
        ledger.note(Exchange {
            id,
            way,
            begun,
            answer,
        });
        if failed {
            return;
        }
    }
}

/// Runs a future on a thread of its own in the namespace.
fn inside<F: Future<Output = ()>>(
    ns: &Netns,
    work: impl FnOnce() -> F + Send + 'static,
) -> JoinHandle<io::Result<io::Result<()>>> {
    ns.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, work());
        Ok(())
    })
}

fn join(thread: JoinHandle<io::Result<io::Result<()>>>) -> Result<()> {
    let ended = thread
        .join()
        .map_err(|_| anyhow!("the client's thread panicked"))?;
    ended?.context("the client's runtime")
}

/// Opens `connections`, `workers` at a time and over the targets in turn, and
/// sends `requests` over each.
pub fn burst(
    ns: &Netns,
    ledger: &Ledger,
    targets: &[SocketAddr],
    connections: usize,
    requests: u32,
) -> Result<()> {
    const WORKERS: usize = 16;
    let way = if requests == 1 {
        Way::New
    } else {
        Way::KeptAlive
    };
    let (ledger, targets) = (ledger.clone(), targets.to_vec());
    join(inside(ns, move || async move {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (ledger, targets) = (ledger.clone(), targets.clone());
                tokio::task::spawn_local(async move {
                    let mine = targets.iter().cycle().take(connections).enumerate();
                    for (_, target) in mine.filter(|(i, _)| i / 2 % WORKERS == worker) {
                        visit(&ledger, *target, requests, way).await;
                    }
                })
            })
            .collect();
        for worker in workers {
            // A panic of a worker shows as requests that are missing.
            let _ = worker.await;
        }
    }))
}

/// A steady stream of new connections, one request each.
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<io::Result<()>>>,
}

impl Stream {
    /// Starts it, with this time between connections.
    pub fn start(ns: &Netns, ledger: &Ledger, targets: &[SocketAddr], every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ledger, targets) = (Arc::clone(&stop), ledger.clone(), targets.to_vec());
        let thread = inside(ns, move || async move {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut visits = tokio::task::JoinSet::new();
            for target in targets.iter().cycle().copied() {
                ticks.tick().await;
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let ledger = ledger.clone();
                visits.spawn_local(async move { visit(&ledger, target, 1, Way::New).await });
                while visits.try_join_next().is_some() {}
            }
            while visits.join_next().await.is_some() {}
        });
        Self { stop, thread }
    }

    /// Whether it is still going.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it after the requests under way.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        join(self.thread)
    }
}

/// A held connection that ended.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The server it had.
    pub server: String,
    /// Why.
    pub why: String,
}

#[derive(Debug, Default)]
struct HeldState {
    per_server: BTreeMap<String, u64>,
    failed_to_open: Vec<String>,
    lost: Vec<Loss>,
}

/// Connections held open, a request over each about every second.
pub struct Held {
    state: Arc<Mutex<HeldState>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<io::Result<()>>>,
}

fn lock(state: &Mutex<HeldState>) -> MutexGuard<'_, HeldState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// Starts opening them.
    pub fn start(ns: &Netns, ledger: &Ledger, targets: &[SocketAddr], connections: usize) -> Self {
        let (state, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let (ledger, targets) = (ledger.clone(), targets.to_vec());
        let thread = inside(ns, move || async move {
            let mut all = tokio::task::JoinSet::new();
            for target in targets.iter().cycle().take(connections).copied() {
                let (ledger, state, stop) =
                    (ledger.clone(), Arc::clone(&shared), Arc::clone(&stopped));
                all.spawn_local(async move { hold(&ledger, target, &state, &stop).await });
                sleep(Duration::from_millis(1)).await;
            }
            while all.join_next().await.is_some() {}
        });
        Self {
            state,
            stop,
            thread,
        }
    }

    /// Connections that were opened, by server, and why others were not.
    pub fn opened(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let state = lock(&self.state);
        (state.per_server.clone(), state.failed_to_open.clone())
    }

    /// Those lost so far, the first first.
    pub fn lost(&self) -> Vec<Loss> {
        lock(&self.state).lost.clone()
    }

    /// Ends them after the requests under way: all losses.
    pub fn stop(self) -> Result<Vec<Loss>> {
        self.stop.store(true, Ordering::Release);
        join(self.thread)?;
        Ok(lock(&self.state).lost.clone())
    }
}

async fn hold(ledger: &Ledger, target: SocketAddr, state: &Mutex<HeldState>, stop: &AtomicBool) {
    let mut mine: Option<(Connection, String)> = None;
    while !stop.load(Ordering::Acquire) {
        let (id, begun) = (ledger.next_id(), Instant::now());
        let exchange = async {
            match &mut mine {
                Some((connection, _)) => connection.get(&id, false).await,
                None => {
                    let mut connection = Connection::open(target).await?;
                    let server = connection.get(&id, false).await?;
                    mine = Some((connection, server.clone()));
                    *lock(state).per_server.entry(server.clone()).or_default() += 1;
                    Ok(server)
                }
            }
        };
        let answer = match timeout(STALL, exchange).await {
            Ok(answer) => answer.map_err(|e: io::Error| e.to_string()),
            Err(_) => Err(format!("no answer within {STALL:?}")),
        };
        let why = match (&answer, &mine) {
            (Ok(server), Some((_, owner))) if server != owner => {
                Some(format!("{server} answered in the place of {owner}"))
            }
            (Ok(_), _) => None,
            (Err(why), _) => Some(why.clone()),
        };
        ledger.note(Exchange {
            id,
            way: Way::Held,
            begun,
            answer,
        });
        if let Some(why) = why {
            let mut state = lock(state);
            match mine {
                Some((_, server)) => state.lost.push(Loss { server, why }),
                None => state.failed_to_open.push(why),
            }
            return;
        }
        sleep(HELD_EVERY).await;
    }
}
