//! Many open connections, each sending a numbered line about every second.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    task::LocalSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{EXAMPLES, HoldReport, commands, is_reset, print};

/// An answer that takes longer means that the connection is lost.
const STALL: Duration = Duration::from_secs(10);

/// What [`hold`] does.
#[derive(Clone, Debug)]
pub struct HoldOptions {
    /// Where to connect to.
    pub target: SocketAddr,
    /// Local address to connect from.
    pub bind: Option<std::net::IpAddr>,
    /// Connections to open.
    pub connections: u32,
    /// Connections to open per second.
    pub ramp: u32,
    /// Time from one message of a connection to its next.
    pub interval: Duration,
    /// When to end; without it only `stop` on standard input ends it.
    pub duration: Option<Duration>,
}

#[derive(Default)]
struct State {
    report: HoldReport,
    /// Start of the message each connection waits for, by connection.
    waiting: Vec<Option<Instant>>,
}

type Shared = Rc<RefCell<State>>;

impl State {
    fn answered(&mut self, index: usize) {
        if let Some(since) = self.waiting[index].take() {
            self.waited(since);
        }
    }

    fn waited(&mut self, since: Instant) {
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.report.max_stall_ms = self.report.max_stall_ms.max(ms);
    }

    fn snapshot(&mut self) -> HoldReport {
        for since in self.waiting.clone().into_iter().flatten() {
            self.waited(since);
        }
        self.report.clone()
    }

    fn example(&mut self, text: String) {
        if self.report.examples.len() < EXAMPLES {
            self.report.examples.push(text);
        }
    }
}

/// Why a connection ended.
enum End {
    WrongServer(String),
    WrongAnswer(String),
    Stall,
    Io(io::Error),
}

impl From<io::Error> for End {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// Opens and watches connections until the deadline or `stop`. The line
/// `report` on standard input prints the counts so far, and they are printed
/// at the end.
pub async fn hold(options: HoldOptions) -> io::Result<HoldReport> {
    let state: Shared = Rc::default();
    {
        let mut s = state.borrow_mut();
        s.report.wanted = options.connections;
        s.waiting = vec![None; options.connections as usize];
    }
    let deadline = options.duration.map(|d| Instant::now() + d);
    let tasks = LocalSet::new();
    tasks.spawn_local(open_all(options, Rc::clone(&state)));
    let control = async {
        let mut commands = commands();
        let end = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return io::Result::Ok(()),
                command = commands.recv() => match command.as_deref() {
                    Some("report") => print(&state.borrow_mut().snapshot())?,
                    Some("stop") => return Ok(()),
                    other => eprintln!("unknown command {other:?}: report or stop"),
                },
            }
        }
    };
    tasks.run_until(control).await?;
    let report = state.borrow_mut().snapshot();
    print(&report)?;
    Ok(report)
}

async fn open_all(options: HoldOptions, state: Shared) {
    let mut ticks = interval(Duration::from_secs(1) / options.ramp.max(1));
    // Late ticks are made up for, so that the ramp keeps its rate.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for index in 0..options.connections as usize {
        ticks.tick().await;
        let (options, state) = (options.clone(), Rc::clone(&state));
        tokio::task::spawn_local(async move { one(&options, &state, index).await });
    }
}

async fn one(options: &HoldOptions, state: &Shared, index: usize) {
    let (mut stream, server) = match timeout(STALL, open(options)).await {
        Ok(Ok(opened)) => opened,
        failed => {
            let why = match failed {
                Ok(Err(e)) => e.to_string(),
                _ => "no greeting in time".into(),
            };
            let mut s = state.borrow_mut();
            s.report.failed_to_open += 1;
            s.example(format!("connection {index} failed to open: {why}"));
            return;
        }
    };
    {
        let mut s = state.borrow_mut();
        s.report.opened += 1;
        *s.report.per_server.entry(server.clone()).or_default() += 1;
    }
    let end = talk(options, state, index, &mut stream, &server).await;
    let mut s = state.borrow_mut();
    s.answered(index);
    let lost = &mut s.report.lost;
    let why = match end {
        End::WrongServer(line) => {
            lost.wrong_server += 1;
            format!("another server answered: {line:?}")
        }
        End::WrongAnswer(line) => {
            lost.wrong_answer += 1;
            format!("wrong answer: {line:?}")
        }
        End::Stall => {
            lost.stall += 1;
            format!("no answer within {STALL:?}")
        }
        End::Io(e) => {
            let counter = if is_reset(&e) {
                &mut lost.reset
            } else {
                &mut lost.timeout
            };
            *counter += 1;
            e.to_string()
        }
    };
    let local = stream
        .get_ref()
        .local_addr()
        .map(|a| a.to_string())
        .unwrap_or_default();
    *s.report.lost_per_server.entry(server.clone()).or_default() += 1;
    s.example(format!(
        "connection {index} ({local}, server {server}): {why}"
    ));
}

async fn open(options: &HoldOptions) -> io::Result<(BufReader<TcpStream>, String)> {
    let socket = if options.target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(ip) = options.bind {
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    let stream = socket.connect(options.target).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let name = read_line(&mut stream).await?;
    Ok((stream, name))
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed by the server",
        ));
    }
    Ok(line.trim_end().to_owned())
}

/// Talks until something goes wrong.
async fn talk(
    options: &HoldOptions,
    state: &Shared,
    index: usize,
    stream: &mut BufReader<TcpStream>,
    server: &str,
) -> End {
    let mut ticks = interval(options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0u64.. {
        ticks.tick().await;
        state.borrow_mut().waiting[index] = Some(Instant::now());
        let exchange = async {
            stream.write_all(format!("{number}\n").as_bytes()).await?;
            read_line(stream).await
        };
        let line = match timeout(STALL, exchange).await {
            Err(_) => return End::Stall,
            Ok(Err(e)) => return End::Io(e),
            Ok(Ok(line)) => line,
        };
        state.borrow_mut().answered(index);
        match line.split_once(' ') {
            Some((name, answer)) if name == server => {
                if answer != number.to_string() {
                    return End::WrongAnswer(line);
                }
            }
            _ => return End::WrongServer(line),
        }
        state.borrow_mut().report.messages += 1;
    }
    unreachable!("2^64 messages")
}
