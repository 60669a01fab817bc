//! Many UDP sockets, each with one request under way at a time.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    net::UdpSocket,
    task::LocalSet,
    time::{Instant, sleep_until, timeout_at},
};

use super::{UdpReport, print};

/// Time an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What [`udp`] does.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// Where to send to.
    pub target: SocketAddr,
    /// Number of sockets.
    pub sockets: u32,
    /// Time from one request of a socket to its next.
    pub interval: Duration,
    /// For how long requests are sent.
    pub duration: Duration,
}

/// Sends requests for the given time and prints the counts.
pub async fn udp(options: UdpOptions) -> io::Result<UdpReport> {
    let report: Rc<RefCell<UdpReport>> = Rc::default();
    let until = Instant::now() + options.duration;
    let tasks = LocalSet::new();
    for _ in 0..options.sockets {
        let any: SocketAddr = if options.target.is_ipv4() {
            (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(options.target).await?;
        let (report, options) = (Rc::clone(&report), options.clone());
        tasks.spawn_local(async move { one(&socket, &options, until, &report).await });
    }
    tasks.await;
    let report = report.take();
    print(&report)?;
    Ok(report)
}

async fn one(
    socket: &UdpSocket,
    options: &UdpOptions,
    until: Instant,
    report: &RefCell<UdpReport>,
) {
    let mut last: Option<String> = None;
    for number in 0u64.. {
        let start = Instant::now();
        if start >= until {
            return;
        }
        report.borrow_mut().sent += 1;
        match exchange(socket, number, start, report).await {
            Some(server) => {
                let mut r = report.borrow_mut();
                r.answered += 1;
                *r.per_server.entry(server.clone()).or_default() += 1;
                if last.replace(server.clone()).is_some_and(|l| l != server) {
                    r.moved += 1;
                }
            }
            None => report.borrow_mut().unanswered += 1,
        }
        sleep_until(start + options.interval).await;
    }
}

/// The server that answered.
async fn exchange(
    socket: &UdpSocket,
    number: u64,
    start: Instant,
    report: &RefCell<UdpReport>,
) -> Option<String> {
    // An error here is an ICMP error for an earlier datagram: not an answer.
    let _ = socket.send(number.to_string().as_bytes()).await;
    let mut buffer = [0; 512];
    loop {
        match timeout_at(start + PATIENCE, socket.recv(&mut buffer)).await {
            Err(_) => return None,
            Ok(Err(_)) => {
                sleep_until((Instant::now() + Duration::from_millis(10)).min(start + PATIENCE))
                    .await;
                if start.elapsed() >= PATIENCE {
                    return None;
                }
            }
            Ok(Ok(length)) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                match text.trim_end().split_once(' ') {
                    Some((server, answer)) if answer == number.to_string() => {
                        return Some(server.to_owned());
                    }
                    _ => report.borrow_mut().wrong_answer += 1,
                }
            }
        }
    }
}
