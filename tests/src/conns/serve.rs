//! Servers that tell their name: TCP echo, UDP echo and DNS.

use std::{
    cell::RefCell,
    io::{self, Write as _},
    net::SocketAddr,
    rc::Rc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    task::LocalSet,
};

use super::{ServeCounts, commands, dns, print};

/// What [`serve`] does.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// The server's name; no blanks.
    pub name: String,
    /// Addresses of the TCP echo.
    pub tcp: Vec<SocketAddr>,
    /// Addresses of the UDP echo.
    pub udp: Vec<SocketAddr>,
    /// Addresses (UDP) of a name server that answers every question with its
    /// name.
    pub dns: Vec<SocketAddr>,
}

type Shared = Rc<RefCell<ServeCounts>>;

/// Serves until `stop` on standard input. Prints `ready` when everything is
/// bound; `report` prints the counts.
pub async fn serve(options: ServeOptions) -> io::Result<()> {
    let counts: Shared = Rc::default();
    let name: Rc<str> = options.name.into();
    let tasks = LocalSet::new();
    for &address in &options.tcp {
        let listener = TcpListener::from_std(listen(address)?)?;
        tasks.spawn_local(accept(listener, Rc::clone(&name), Rc::clone(&counts)));
    }
    for (&address, is_dns) in options
        .udp
        .iter()
        .map(|a| (a, false))
        .chain(options.dns.iter().map(|a| (a, true)))
    {
        let socket = UdpSocket::from_std(bind_udp(address)?)?;
        tasks.spawn_local(datagrams(
            socket,
            is_dns,
            Rc::clone(&name),
            Rc::clone(&counts),
        ));
    }
    println!("ready");
    io::stdout().flush()?;
    let control = async {
        let mut commands = commands();
        while let Some(command) = commands.recv().await {
            match command.as_str() {
                "report" => print(&*counts.borrow())?,
                "stop" => break,
                other => eprintln!("unknown command {other:?}: report or stop"),
            }
        }
        io::Result::Ok(())
    };
    tasks.run_until(control).await
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // One socket per family, so that both can have the same port.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket
        .bind(&address.into())
        .map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = bind(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    Ok(bind(address, Type::DGRAM, Protocol::UDP)?.into())
}

async fn accept(listener: TcpListener, name: Rc<str>, counts: Shared) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                {
                    let mut c = counts.borrow_mut();
                    c.accepted += 1;
                    c.open += 1;
                    *c.peers.entry(peer.ip().to_string()).or_default() += 1;
                }
                let (name, counts) = (Rc::clone(&name), Rc::clone(&counts));
                tokio::task::spawn_local(async move {
                    // How it ends is the client's to tell.
                    let _ = echo(stream, &name, &counts).await;
                    counts.borrow_mut().open -= 1;
                });
            }
            Err(e) => {
                eprintln!("accept: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn echo(stream: TcpStream, name: &str, counts: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream
            .write_all(format!("{name} {}\n", line.trim_end()).as_bytes())
            .await?;
        counts.borrow_mut().lines += 1;
        line.clear();
    }
    Ok(())
}

async fn datagrams(socket: UdpSocket, is_dns: bool, name: Rc<str>, counts: Shared) {
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors are ICMP's about earlier answers.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let request = &buffer[..length];
        let answer = if is_dns {
            dns::answer(request, &name)
        } else {
            Some([name.as_bytes(), b" ", request].concat())
        };
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, peer).await;
            counts.borrow_mut().datagrams += 1;
        }
    }
}
