//! A new connection for every request.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::LocalSet,
    time::{Instant, sleep, timeout},
};

use super::{EXAMPLES, RateReport, is_reset, print};

/// Time a request may take; also how long one is waited for after the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What [`rate`] does.
#[derive(Clone, Debug)]
pub struct RateOptions {
    /// Where to connect to.
    pub target: SocketAddr,
    /// Requests under way at any time.
    pub workers: u32,
    /// For how long requests are started.
    pub duration: Duration,
    /// Pause of each worker between requests.
    pub pause: Duration,
}

enum Failure {
    Connect(io::Error),
    Exchange(io::Error),
    ConnectTimeout,
    Timeout,
    WrongAnswer(String),
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Connect(e) if e.kind() == io::ErrorKind::ConnectionRefused => "refused",
            Self::Connect(e) if e.kind() == io::ErrorKind::TimedOut => "connect_timeout",
            Self::Connect(e) | Self::Exchange(e) if is_reset(e) => "reset",
            Self::Connect(_) | Self::Exchange(_) => "other",
            Self::ConnectTimeout => "connect_timeout",
            Self::Timeout => "timeout",
            Self::WrongAnswer(_) => "wrong_answer",
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Connect(e) => format!("connecting: {e}"),
            Self::Exchange(e) => e.to_string(),
            Self::ConnectTimeout | Self::Timeout => format!("nothing for {PATIENCE:?}"),
            Self::WrongAnswer(line) => format!("wrong answer {line:?}"),
        }
    }
}

/// Makes requests for the given time and prints the counts.
pub async fn rate(options: RateOptions) -> io::Result<RateReport> {
    let report: Rc<RefCell<RateReport>> = Rc::default();
    let started = Instant::now();
    let until = started + options.duration;
    let tasks = LocalSet::new();
    for worker in 0..options.workers {
        let (report, options) = (Rc::clone(&report), options.clone());
        tasks.spawn_local(async move {
            for number in 0u64.. {
                let start = Instant::now();
                if start >= until {
                    return;
                }
                let result = request(options.target, &format!("{worker}.{number}")).await;
                note(&mut report.borrow_mut(), start, result);
                if !options.pause.is_zero() {
                    sleep(options.pause).await;
                }
            }
        });
    }
    tasks.await;
    let mut report = report.take();
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let requests = report.requests as f64;
    report.per_second = requests / started.elapsed().as_secs_f64();
    print(&report)?;
    Ok(report)
}

fn note(report: &mut RateReport, start: Instant, result: Result<String, Failure>) {
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    report.max_ms = report.max_ms.max(ms);
    match result {
        Ok(server) => {
            report.requests += 1;
            *report.per_server.entry(server).or_default() += 1;
        }
        Err(failure) => {
            report.failed += 1;
            *report.failures.entry(failure.kind().into()).or_default() += 1;
            if report.examples.len() < EXAMPLES {
                report.examples.push(failure.text());
            }
        }
    }
}

async fn request(target: SocketAddr, line: &str) -> Result<String, Failure> {
    let stream = match timeout(PATIENCE, TcpStream::connect(target)).await {
        Err(_) => return Err(Failure::ConnectTimeout),
        Ok(result) => result.map_err(Failure::Connect)?,
    };
    let exchange = async {
        let mut stream = BufReader::new(stream);
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let (mut greeting, mut answer) = (String::new(), String::new());
        for text in [&mut greeting, &mut answer] {
            if stream.read_line(text).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "closed by the server",
                ));
            }
        }
        Ok((greeting, answer))
    };
    let (greeting, answer) = match timeout(PATIENCE, exchange).await {
        Err(_) => return Err(Failure::Timeout),
        Ok(result) => result.map_err(Failure::Exchange)?,
    };
    let server = greeting.trim_end();
    if answer.trim_end() == format!("{server} {line}") {
        Ok(server.to_owned())
    } else {
        Err(Failure::WrongAnswer(answer))
    }
}
