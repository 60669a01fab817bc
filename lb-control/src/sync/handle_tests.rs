//! Two nodes on the loopback interface, each with its thread.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use tokio::sync::mpsc as channel;

use super::*;
use crate::sync::{Key, PathSettings, PeerSettings};

const GENEROUS: Duration = Duration::from_secs(30);

struct Node {
    links: PeerLinks,
    events: channel::Receiver<StreamEvent>,
    urgent: mpsc::Receiver<(String, Vec<u8>)>,
}

fn settings(node: usize, ports: [u16; 2]) -> Settings {
    let names = ["lb1", "lb2"];
    let end = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Settings {
        node: names[node].into(),
        key: Key::new([9; 32]),
        keepalive: Duration::from_millis(20),
        peers: vec![PeerSettings {
            name: names[1 - node].into(),
            paths: vec![PathSettings {
                local: end(ports[node]),
                remote: end(ports[1 - node]),
            }],
        }],
    }
}

fn start(settings: Settings, room: usize) -> Node {
    let (stream, events) = channel::channel(room);
    let (told, urgent) = mpsc::channel();
    let sinks = Sinks {
        urgent: Box::new(move |peer, message| {
            let _ = told.send((peer.to_owned(), message.to_vec()));
        }),
        stream,
    };
    Node {
        links: PeerLinks::start(settings, sinks).unwrap(),
        events,
        urgent,
    }
}

/// Two ports that nobody has.
fn ports() -> [u16; 2] {
    let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn pair(room: usize) -> [Node; 2] {
    let ports = ports();
    [0, 1].map(|node| start(settings(node, ports), room))
}

impl Node {
    fn next(&mut self) -> Change {
        let end = Instant::now() + GENEROUS;
        while Instant::now() < end {
            if let Ok(event) = self.events.try_recv() {
                return event.change;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing came: {:?}", self.links.status());
    }

    fn up(&mut self) -> StreamSender {
        match self.next() {
            Change::Up { stream, .. } => stream,
            other => panic!("{other:?}"),
        }
    }

    fn wait(&self, is_it: impl Fn(&LinkStatus) -> bool) -> LinkStatus {
        let end = Instant::now() + GENEROUS;
        loop {
            let status = self.links.status();
            if let Some(status) = status.into_iter().find(&is_it) {
                return status;
            }
            assert!(Instant::now() < end, "{:?}", self.links.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn what_one_sends_the_other_has_in_order_and_the_sender_knows() {
    let [mut one, mut other] = pair(8);
    let (stream, _back) = (one.up(), other.up());
    let sender = std::thread::spawn(move || {
        for number in 0..5000u32 {
            while stream.try_send(number.to_be_bytes().to_vec()) == Err(Refused::Full) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        stream
    });
    for number in 0..5000u32 {
        match other.next() {
            Change::Message(message) => assert_eq!(message, number.to_be_bytes()),
            unexpected => panic!("{unexpected:?}"),
        }
    }
    let stream = sender.join().unwrap();
    let end = Instant::now() + GENEROUS;
    while stream.acknowledged() < stream.sent() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stream.sent(), 5000);
    assert_eq!(
        stream.try_send(vec![0; MAX_MESSAGE + 1]),
        Err(Refused::TooLong)
    );
    let status = one.wait(|status| status.stream.acknowledged == 5000);
    assert!(status.up && status.paths[0].alive && status.stream.waiting == 0);
    assert_eq!(
        other
            .wait(|s| s.stream.received == 5000)
            .rejected
            .values()
            .sum::<u64>(),
        0
    );
}

#[test]
fn urgent_messages_go_to_one_peer_or_to_all_and_also_in_the_last_moment() {
    let [mut one, mut other] = pair(8);
    one.up();
    other.up();
    let urgent = one.links.urgent();
    urgent.tell(Some("nobody"), b"lost".to_vec()).unwrap();
    urgent.tell(Some("lb2"), b"first".to_vec()).unwrap();
    urgent.tell(None, b"second".to_vec()).unwrap();
    assert_eq!(
        urgent.tell(None, vec![0; MAX_MESSAGE + 1]),
        Err(Refused::TooLong)
    );
    for expected in [&b"first"[..], b"second"] {
        let (peer, message) = other.urgent.recv_timeout(GENEROUS).unwrap();
        assert_eq!((peer.as_str(), &message[..]), ("lb1", expected));
    }
    urgent.tell(None, b"last".to_vec()).unwrap();
    drop(one);
    assert_eq!(other.urgent.recv_timeout(GENEROUS).unwrap().1, b"last");
}

#[test]
fn a_full_queue_refuses_and_does_not_wait() {
    let [mut one, mut other] = pair(2);
    let (stream, _back) = (one.up(), other.up());
    // Nobody reads on the other side: queue, ring and channel fill up.
    let refused = (0..100_000).find(|_| stream.try_send(vec![7; 1000]) == Err(Refused::Full));
    assert!(refused.is_some());
    assert!(stream.acknowledged() <= 2);
}

#[test]
fn a_restarted_peer_ends_the_stream_and_begins_another() {
    let ports = ports();
    let [mut one, mut other] = [0, 1].map(|node| start(settings(node, ports), 8));
    let (old, _back) = (one.up(), other.up());
    drop(other);
    let mut other = start(settings(1, ports), 8);
    assert!(matches!(one.next(), Change::Down));
    assert_eq!(old.try_send(b"late".to_vec()), Err(Refused::Ended));
    let (new, _back) = (one.up(), other.up());
    new.try_send(b"early".to_vec()).unwrap();
    assert!(matches!(other.next(), Change::Message(message) if message == b"early"));
    assert!(old.has_ended() && !new.has_ended());
}

#[test]
fn the_same_settings_change_nothing_and_others_are_taken_over() {
    let ports = ports();
    let [mut one, mut other] = [0, 1].map(|node| start(settings(node, ports), 8));
    let (stream, _back) = (one.up(), other.up());
    let before = one.wait(|status| status.up);
    one.links.configure(settings(0, ports));
    stream.try_send(b"still".to_vec()).unwrap();
    assert!(matches!(other.next(), Change::Message(message) if message == b"still"));
    assert_eq!(one.wait(|status| status.up).sessions, before.sessions);

    let new_key = |node| Settings {
        key: Key::new([1; 32]),
        ..settings(node, ports)
    };
    one.links.configure(new_key(0));
    assert!(matches!(one.next(), Change::Down));
    assert!(stream.has_ended());
    other.wait(|status| status.rejected["wrong_key"] > 0 && !status.up);
    other.links.configure(new_key(1));
    assert!(matches!(other.next(), Change::Down));
    one.up();
    other.up();

    one.links.configure(Settings {
        peers: Vec::new(),
        ..new_key(0)
    });
    assert!(matches!(one.next(), Change::Down));
    let end = Instant::now() + GENEROUS;
    while !one.links.status().is_empty() {
        assert!(Instant::now() < end);
    }
}
