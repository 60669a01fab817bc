//! Two links over networks of all kinds.

use std::time::Duration;

use super::{
    Event,
    tests_net::{Network, Numbers, Weather},
};

/// Sends `count` numbered messages from a side, as fast as it takes them, and waits
/// until all are acknowledged.
fn send_all(network: &mut Network, side: usize, count: u32) {
    let mut next = 0;
    let mut numbers = Numbers(count.into());
    network.drain();
    for _ in 0..200_000 {
        let now = network.now;
        while next < count {
            let mut message = next.to_be_bytes().to_vec();
            message.resize(4 + numbers.below(400) as usize, 7);
            if !network.links[side].send(now, &message) {
                break;
            }
            next += 1;
        }
        if network.links[side].acknowledged() == Some(count.into()) {
            return;
        }
        network.run(Duration::from_millis(1));
    }
    panic!("{:?} of {count} came", network.links[side].acknowledged());
}

fn in_order(count: u32) -> Vec<u32> {
    (0..count).collect()
}

fn downs(events: &[Event]) -> usize {
    events.iter().filter(|event| **event == Event::Down).count()
}

#[test]
fn whatever_the_network_does_nothing_is_lost_and_the_order_is_kept() {
    let calm = Weather::default();
    let all = [
        calm,
        Weather { loss: 5, ..calm },
        Weather { loss: 30, ..calm },
        Weather { double: 50, ..calm },
        Weather {
            jitter_ms: 20,
            ..calm
        },
        Weather {
            corrupt: 10,
            ..calm
        },
        Weather {
            loss: 30,
            double: 30,
            corrupt: 10,
            jitter_ms: 10,
        },
    ];
    for (seed, weather) in (1..).zip(all) {
        for paths in [1, 3] {
            let mut network = Network::new(seed, paths);
            network.weather = weather;
            network.run_until(|n| n.are_up());
            send_all(&mut network, 0, 3000);
            send_all(&mut network, 1, 500);
            assert_eq!(network.messages(1), in_order(3000), "{seed} {paths}");
            assert_eq!(network.messages(0), in_order(500), "{seed} {paths}");
            for side in 0..2 {
                assert_eq!(downs(&network.events[side]), 0, "{seed} {paths}");
                let status = network.links[side].stream_status(network.now);
                assert_eq!((status.waiting, status.lag_ms), (0, 0));
            }
        }
    }
}

#[test]
fn urgent_messages_come_once_and_by_any_path() {
    let mut network = Network::up(1, 3);
    network.cut = vec![0, 1];
    network.weather.double = 50;
    for number in 0..100u8 {
        assert!(network.links[0].tell(&[number]));
        network.run(Duration::from_millis(1));
    }
    network.run(Duration::from_millis(50));
    let expected: Vec<_> = (0..100).map(|number| vec![number]).collect();
    assert_eq!(network.urgent[1], expected);
}

#[test]
fn a_cut_path_is_seen_and_the_stream_goes_by_another() {
    let mut network = Network::up(2, 2);
    network.run(Duration::from_secs(1));
    network.cut = vec![0];
    send_all(&mut network, 0, 2000);
    network.run(Duration::from_secs(5));
    let alive = |network: &Network, path: usize| {
        let time_out = network.links[0].path_time_out();
        network.links[0].paths()[path].is_alive(network.now, time_out)
    };
    assert!(network.are_up() && !alive(&network, 0) && alive(&network, 1));
    network.sent.clear();
    send_all(&mut network, 1, 2000);
    let by_first = network
        .sent
        .iter()
        .filter(|(_, path, d)| *path == 0 && d.len() > 200);
    assert_eq!(
        by_first.count(),
        0,
        "nothing of the stream goes by a path that is dead"
    );
    network.cut.clear();
    network.run(Duration::from_millis(300));
    assert!(alive(&network, 0));
    assert_eq!(downs(&network.events[0]) + downs(&network.events[1]), 0);
}

#[test]
fn a_path_that_carries_one_way_alone_carries_nothing_of_the_stream() {
    let mut network = Network::up(5, 2);
    network.run(Duration::from_secs(1));
    network.cut_from = vec![(0, 0)];
    network.run(Duration::from_secs(1));
    let path = &network.links[0].paths()[0];
    assert!(path.is_alive(network.now, network.links[0].path_time_out()) && !path.heard_by_peer());
    network.sent.clear();
    send_all(&mut network, 0, 500);
    let large = network
        .sent
        .iter()
        .filter(|(by, _, datagram)| *by == 0 && datagram.len() > 200);
    assert!(large.map(|(_, path, _)| *path).all(|path| path == 1));
    assert_eq!(network.links[0].stream_status(network.now).resent, 0);
}

#[test]
fn a_peer_that_hears_and_is_not_heard_comes_to_know_that_the_link_is_down() {
    for deaf in 0..2 {
        let mut network = Network::up(6, 1);
        network.run(Duration::from_secs(1));
        network.cut_from = vec![(1 - deaf, 0)];
        network.run(Duration::from_secs(8));
        assert!(network.links.iter().all(|link| !link.is_up()), "{deaf}");
        network.cut_from.clear();
        network.run_until(|n| n.are_up());
        send_all(&mut network, 0, 50);
        send_all(&mut network, 1, 50);
    }
}

#[test]
fn a_short_cut_of_all_paths_costs_nothing_and_a_long_one_begins_anew() {
    let mut network = Network::up(3, 2);
    network.drain();
    let epoch = |n: &Network| n.links.each_ref().map(super::Link::epoch);
    let before = epoch(&network);
    network.cut = vec![0, 1];
    assert!(network.links[0].send(network.now, &[0; 4]));
    network.run(Duration::from_millis(2500));
    network.cut.clear();
    network.run(Duration::from_secs(2));
    assert_eq!(network.messages(1), [0]);
    assert_eq!(downs(&network.events[0]) + downs(&network.events[1]), 0);

    network.cut = vec![0, 1];
    network.run(Duration::from_millis(3500));
    assert!(network.links.iter().all(|link| !link.is_up()));
    network.run(Duration::from_secs(60));
    network.cut.clear();
    network.run(Duration::from_secs(2));
    assert_eq!(epoch(&network), before, "nobody has restarted");
    for side in 0..2 {
        let last = &network.events[side][network.events[side].len() - 2..];
        assert!(matches!(last, [Event::Down, Event::Up { .. }]), "{last:?}");
    }
    send_all(&mut network, 0, 100);
}

#[test]
fn a_cut_that_only_one_side_gave_up_on_begins_anew_for_both() {
    for deaf in 0..2 {
        let mut network = Network::up(4 + deaf as u64, 1);
        network.run(Duration::from_secs(1));
        let now = network.now;
        let (epoch, number) = (
            network.links[deaf].epoch(),
            network.links[deaf].streams_made,
        );
        network.links[deaf].give_up(now);
        network.run_until(|n| n.links.iter().all(|link| link.streams_made == number + 1));
        network.run(Duration::from_secs(1));
        assert_eq!(network.links[deaf].epoch(), epoch);
        for events in &network.events {
            let ups = events.iter().filter(|e| matches!(e, Event::Up { .. }));
            assert_eq!((ups.count(), downs(events)), (2, 1), "{deaf}");
        }
        send_all(&mut network, deaf, 50);
    }
}

#[test]
fn a_restart_of_either_side_begins_anew_for_both_and_soon() {
    for (side, loss) in [(0, 0), (1, 0), (0, 30), (1, 30)] {
        let mut network = Network::up(10, 2);
        network.drain();
        network.run(Duration::from_secs(1));
        network.weather.loss = loss;
        let before = network.now;
        network.restart(side, 999);
        network.run_until(|n| n.are_up() && n.links[1 - side].epoch() == Some(999));
        let took = network.now - before;
        let most = if loss == 0 { 1500 } else { 10_000 };
        assert!(took < Duration::from_millis(most), "{side} {loss} {took:?}");
        network.drain();
        let last = network.events[1 - side].len() - 2;
        assert_eq!(
            network.events[1 - side][last..],
            [Event::Down, Event::Up { epoch: 999 }]
        );
        send_all(&mut network, 0, 200);
        send_all(&mut network, 1, 200);
    }
}

#[test]
fn after_an_hour_there_is_another_session_and_the_stream_goes_on() {
    let mut network = Network::up(20, 2);
    for link in &mut network.links {
        link.config.keepalive = Duration::from_secs(1);
    }
    network.drain();
    let ids = |n: &Network| n.links.each_ref().map(|link| link.session().unwrap().id);
    let first = ids(&network);
    assert_eq!(first[0], first[1]);
    network.run(Duration::from_secs(3590));
    assert_eq!(ids(&network), first);
    network.weather.loss = 10;
    for number in 0..20u32 {
        assert!(network.links[0].send(network.now, &number.to_be_bytes()));
        network.run(Duration::from_secs(1));
    }
    network.run(Duration::from_secs(5));
    let second = ids(&network);
    assert!(second[0] != first[0] && second[0] == second[1]);
    assert_eq!(network.messages(1), in_order(20));
    for side in 0..2 {
        assert_eq!(
            network.events[side]
                .iter()
                .filter(|e| matches!(e, Event::Up { .. }))
                .count(),
            1
        );
    }
}

#[test]
fn a_slow_reader_holds_up_the_sender_and_loses_nothing() {
    let mut network = Network::up(30, 1);
    network.drain();
    network.is_reader_slow[1] = true;
    let mut taken = 0u32;
    for _ in 0..1000 {
        let now = network.now;
        let mut message = taken.to_be_bytes().to_vec();
        message.resize(1100, 7);
        while network.links[0].send(now, &message) {
            taken += 1;
            message[..4].copy_from_slice(&taken.to_be_bytes());
        }
        network.run(Duration::from_millis(1));
    }
    assert_eq!(
        (taken, network.links[0].acknowledged()),
        (512, Some(0)),
        "the ring is full"
    );
    let resent = network.links[0].stream_status(network.now).resent;
    assert_eq!(resent, 0, "what is held is not sent again");
    network.is_reader_slow[1] = false;
    network.run_until(|n| n.links[0].acknowledged() == Some(512));
    assert_eq!(network.messages(1), in_order(512));
}

#[test]
fn a_reader_that_comes_late_hears_of_what_is_and_not_of_what_was() {
    let mut network = Network::up(40, 1);
    network.drain();
    network.is_reader_slow[1] = true;
    assert!(network.links[0].send(network.now, &[0; 4]));
    network.run(Duration::from_millis(100));
    for epoch in 5..8 {
        network.restart(0, epoch);
        network.run_until(|n| n.links[1].epoch() == Some(epoch));
    }
    network.is_reader_slow[1] = false;
    network.drain();
    assert_eq!(
        network.events[1][1..],
        [Event::Down, Event::Up { epoch: 7 }]
    );
}
